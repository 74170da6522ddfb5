"""Intervals: if these are too narrow, differences between seeds are sold as differences between methods."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pluribus.errors import BadInput
from pluribus.evaluation import intervals
from pluribus.evaluation.intervals import Component, draw_units, holm, seeds_component, sign_flip, t_interval, units_component
from pluribus.evaluation.metrics import Weightings, resampled


def test_one_component_is_students_interval() -> None:
    """The mean of seeds alone: exactly scipy's one-sample t interval and test."""
    values = np.array([1.0, 1.4, 0.7, 1.1])
    component = seeds_component(values)
    assert component is not None
    found = t_interval(values.mean(), [component], 0.9)
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert found.p_value() == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_two_components_are_welchs_interval() -> None:
    """Satterthwaite's degrees of freedom: two sides' seeds must give Welch's test."""
    a, b = np.array([1.0, 1.4, 0.7, 1.1]), np.array([2.0, 2.9, 1.0])
    parts = [c for c in (seeds_component(a), seeds_component(b)) if c]
    found = t_interval(a.mean() - b.mean(), parts)
    oracle = stats.ttest_ind(a, b, equal_var=False)
    assert found.p_value() == pytest.approx(oracle.pvalue)
    assert found.df == pytest.approx(oracle.df)


def test_one_seed_says_nothing_about_seeds() -> None:
    assert seeds_component([0.7]) is None


def test_no_variance_and_unknown_variance() -> None:
    still = t_interval(0.0, [Component(0.0, 3)])
    assert (still.low, still.high, still.p_value()) == (0, 0, 1)
    assert t_interval(0.1, [Component(0.0, 3)]).p_value() == 0
    assert np.isnan(t_interval(0.1, [Component(np.nan, 3)]).low)
    assert np.isnan(t_interval(0.1, []).low)


def test_bootstrap_of_rows_gives_the_standard_error_of_a_mean() -> None:
    r = np.random.default_rng(0)
    error = r.normal(size=400)
    drawn = draw_units(400, repeats=4000, seed=1)
    w = Weightings(np.ones(400), drawn.code, drawn.counts)
    component = units_component(resampled("pcoc", error, np.ones(400), w), 400)
    assert np.sqrt(component.variance) == pytest.approx(error.std(ddof=1) / 20, rel=0.05)


@pytest.mark.parametrize(("units", "factor"), [(2, 2.0), (4, 4 / 3), (10 * intervals.MOST_UNITS, 500 / 499)])
def test_few_units_widen_the_bootstrap(units: int, factor: float) -> None:
    """A resample of G units varies by (G − 1)/G too little; with a handful of days that is a third of the variance."""
    component = units_component(np.array([1.0, 2.0, 3.0, np.nan]), units)
    assert component.variance == pytest.approx(factor)
    assert np.isnan(units_component(np.array([1.0, 2.0, 3.0]), 1).variance)


@pytest.mark.parametrize("units", [40, 400])
def test_bootstrap_of_units_sees_what_units_share(units: int) -> None:
    """Rows of one unit that are alike: the variance of the mean is that of the units' means, not of the rows."""
    r = np.random.default_rng(0)
    effect = r.normal(size=units)
    code = np.repeat(np.arange(units), 10)
    drawn = draw_units(code, repeats=4000)
    w = Weightings(np.ones(len(code)), drawn.code, drawn.counts)
    component = units_component(resampled("pcoc", effect[code], np.ones(len(code)), w), units)
    assert np.sqrt(component.variance) == pytest.approx(effect.std(ddof=1) / np.sqrt(units), rel=0.05)
    assert component.df == units - 1


def test_random_groups_of_many_units_keep_the_standard_error() -> None:
    """Above MOST_UNITS, units are resampled in random groups; the standard error must stay that of single units."""
    r = np.random.default_rng(0)
    n = 20_000
    error = r.standard_t(5, n)
    drawn = draw_units(n, repeats=2000)
    assert drawn.count == n
    assert drawn.counts.shape == (2000, intervals.MOST_UNITS)
    w = Weightings(np.ones(n), drawn.code, drawn.counts)
    component = units_component(resampled("pcoc", error, np.ones(n), w), n)
    assert np.sqrt(component.variance) == pytest.approx(error.std() / np.sqrt(n), rel=0.1)
    assert component.df == intervals.MOST_UNITS - 1


def test_rows_of_a_unit_stay_together_in_random_groups() -> None:
    units = np.array([f"customer {i % 900}" for i in range(3000)])
    drawn = draw_units(units)
    for unit in ("customer 0", "customer 899"):
        assert len(set(drawn.code[units == unit])) == 1


def test_draws_are_deterministic_and_hold_every_unit_once_on_average() -> None:
    a, b = draw_units(50, seed=3), draw_units(50, seed=3)
    np.testing.assert_array_equal(a.counts, b.counts)
    assert (a.counts.sum(1) == 50).all()
    with pytest.raises(BadInput, match="at least 2 resamples"):
        draw_units(50, repeats=1)
    with pytest.raises(BadInput, match="no row"):
        draw_units(0)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_holm_keeps_the_family_wise_error() -> None:
    """Four true nulls, 4,000 times: any rejection at 5 % in at most 5 % (and a little noise)."""
    p = np.random.default_rng(0).random((4000, 4))
    assert np.mean([holm(row).min() <= 0.05 for row in p]) < 0.06


@pytest.mark.parametrize("k", range(1, 9))
def test_sign_flip_cannot_fall_below_its_floor(k: int) -> None:
    """The sentence about too few seeds rests on this: 5 seeds give .0625 at best."""
    assert sign_flip(np.arange(1, k + 1)) == pytest.approx(2 / 2**k)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_sign_flip_equals_scipys_permutation_test(d: list[int]) -> None:
    values = np.array(d, float)
    oracle = (
        stats.permutation_test(
            (values,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
        ).pvalue
        if len(d) > 1
        else 1.0
    )
    assert sign_flip(values) == pytest.approx(oracle)


def test_sign_flip_of_many_pairs_is_close_to_exact() -> None:
    d = np.random.default_rng(0).normal(0.3, 1, 30)
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert np.isnan(sign_flip([]))


def _true_auc() -> float:
    r = np.random.default_rng(123)
    x = r.normal(size=400_000) * np.sqrt(1 + 0.49)
    y = r.random(400_000) < 1 / (1 + np.exp(-x))
    return float(stats.mannwhitneyu(x[y], x[~y]).statistic / y.sum() / (~y).sum())


def test_coverage_of_clustered_auc() -> None:
    """A 95 % interval for AUC on 40 unequal clusters holds the truth in about 95 % of 300 splits."""
    held, truth = 0, _true_auc()
    for repeat in range(300):
        r = np.random.default_rng(repeat)
        unit = r.choice(40, 800, p=r.dirichlet(np.full(40, 3.0)))
        x = r.normal(size=800) + 0.7 * r.normal(size=40)[unit]
        y = (r.random(800) < 1 / (1 + np.exp(-x))).astype(float)
        drawn = draw_units(unit, repeats=200, seed=repeat)
        w = Weightings(np.ones(800), drawn.code, drawn.counts)
        auc = resampled("auc", x, y, Weightings.of_rows(np.ones((1, 800))))[0]
        interval = t_interval(auc, [units_component(resampled("auc", x, y, w), drawn.count)])
        held += interval.low <= truth <= interval.high
    assert 0.91 <= held / 300 <= 0.985
