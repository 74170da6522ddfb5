"""Calibration: balanced losses move mean predictions; a wrong correction would be served to customers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.evaluation.calibration import (
    Identity,
    Isotonic,
    PerClass,
    Platt,
    Prior,
    choose,
    cross_fit,
    fit,
    fit_isotonic,
    fit_platt,
    from_dict,
    reliability,
)


def _data(n: int = 2000, seed: int = 0, a: float = 1.0, b: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities p and labels whose true logit is a·logit p + b."""
    r = np.random.default_rng(seed)
    z = r.normal(size=n)
    y = (r.random(n) < 1 / (1 + np.exp(-(a * z + b)))).astype(float)
    return 1 / (1 + np.exp(-z)), y


def test_platt_minimises_platts_own_objective() -> None:
    p, y = _data(500, a=0.6, b=-1)
    w = np.random.default_rng(1).random(500)
    n1, n0 = (w * y).sum(), (w * (1 - y)).sum()
    t = np.where(y > 0, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    z = np.log(p / (1 - p))
    oracle = minimize(lambda ab: (w * (np.logaddexp(0, ab[0] * z + ab[1]) - t * (ab[0] * z + ab[1]))).sum(), [1, 0], tol=1e-12).x
    found = fit_platt(p, y, w)
    np.testing.assert_allclose((found.a, found.b), oracle, atol=1e-4)


def test_platt_recovers_a_planted_distortion() -> None:
    p, y = _data(60_000, a=0.5, b=-1.2)
    found = fit_platt(p, y)
    assert (found.a, found.b) == pytest.approx((0.5, -1.2), abs=0.05)


def test_platt_stays_finite_on_separable_labels() -> None:
    p = np.array([0.1, 0.2, 0.8, 0.9])
    found = fit_platt(p, (p > 0.5).astype(float))
    assert np.isfinite([found.a, found.b]).all()
    assert 0 < found.apply(p).min() < found.apply(p).max() < 1


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1), st.integers(1, 3)), min_size=1, max_size=60))
def test_isotonic_equals_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    x, y, w = (np.array(column, float) for column in zip(*rows))
    x = x / 12
    oracle = IsotonicRegression(out_of_bounds="clip").fit(x, y, sample_weight=w)
    grid = np.linspace(-0.1, 1.1, 50)
    np.testing.assert_allclose(fit_isotonic(x, y, w).apply(grid), oracle.predict(grid), atol=1e-10)


def test_prior_correction_undoes_oversampling() -> None:
    """Bayes: with positives seen 4 times too often, the odds are 4 times too high."""
    p = np.array([0.1, 0.5, 0.9])
    odds = p / (1 - p) * 4
    np.testing.assert_allclose(Prior(4).apply(odds / (1 + odds)), p)
    with pytest.raises(BadInput, match="ratio must be positive"):
        Prior(0)


@pytest.mark.parametrize("method", ["none", "platt", "isotonic"])
def test_state_survives_json_bit_for_bit(method: str) -> None:
    p, y = _data()
    fitted = fit(method, p, y)
    again = from_dict(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_array_equal(fitted.apply(p), again.apply(p))


def test_several_classes_sum_to_one() -> None:
    r = np.random.default_rng(0)
    p = r.dirichlet(np.ones(3), 900)
    y = np.array([r.choice(3, p=q**2 / (q**2).sum()) for q in p])  # sharper than p says
    found = cross_fit("platt", p, y)
    np.testing.assert_allclose(found.held_out.sum(1), 1)
    again = from_dict(json.loads(json.dumps(found.calibrator.to_dict())))
    np.testing.assert_array_equal(again.apply(p), found.calibrator.apply(p))
    assert metrics.compute("logloss", found.held_out, y) < metrics.compute("logloss", p, y)
    never = PerClass((Isotonic((0.0,), (0.0,)),) * 2)
    np.testing.assert_array_equal(never.apply(np.array([[0.3, 0.7]])), [[0.5, 0.5]])


def test_held_out_rows_did_not_see_their_own_label() -> None:
    """Flipping one label must not move that row's held-out probability, only others'."""
    p, y = _data(300)
    before = cross_fit("isotonic", p, y, seed=2)
    flipped = y.copy()
    flipped[17] = 1 - flipped[17]
    after = cross_fit("isotonic", p, flipped, seed=2)
    assert before.held_out[17] == after.held_out[17]
    assert (before.held_out != after.held_out).any()


def test_units_stay_in_one_fold() -> None:
    """With the label copied within units, a fold that splits units would leak: flip a whole unit and nothing in it moves."""
    p, y = _data(300)
    units = np.arange(300) // 10
    before = cross_fit("platt", p, y, units=units).held_out
    flipped = np.where(units == 3, 1 - y, y)
    after = cross_fit("platt", p, flipped, units=units).held_out
    np.testing.assert_array_equal(before[units == 3], after[units == 3])


def test_choice_leaves_good_probabilities_alone_and_mends_bad_ones() -> None:
    p, y = _data(5000, seed=3)
    assert choose(p, y).method in ("none", "platt")
    bad = _data(5000, seed=3, a=0.4, b=-1.5)
    mended = choose(*bad)
    assert mended.method != "none"
    assert metrics.compute("ece", mended.held_out, bad[1]) < 0.5 * metrics.compute("ece", *bad)


def test_reliability_table_adds_up_to_ece() -> None:
    p, y = _data(1234)
    w = np.random.default_rng(0).random(1234)
    table = reliability(p, y, w)
    total = sum(row.weight for row in table)
    assert sum(row.rows for row in table) == 1234
    assert sum(row.weight * abs(row.predicted - row.observed) for row in table) / total == pytest.approx(
        metrics.compute("ece", p, y, w)
    )
    assert all(0 <= row.low <= row.observed <= row.high <= 1 for row in table)
    assert reliability([], []) == []


def test_wilson_interval_of_one_bin() -> None:
    """Textbook value: 8 of 10 → [0.490, 0.943]."""
    (row,) = reliability(np.full(10, 0.5), np.arange(10) < 8, bins=1)
    assert (row.low, row.high) == pytest.approx((0.490, 0.943), abs=1e-3)


def test_weights_make_no_rows() -> None:
    """Rows that all weigh a hundred are as many as before: an interval of a thousand rows would claim too much."""
    p, y = np.full(10, 0.5), np.arange(10) < 8
    (row,), (heavy,) = (reliability(p, y, np.full(10, weight), bins=1) for weight in (1.0, 100.0))
    assert (heavy.low, heavy.high) == pytest.approx((row.low, row.high))
    some = np.array([1.0] * 5 + [1e-9] * 5)
    y = np.arange(10) == 3
    (uneven,), (alone,) = reliability(p, y, some, bins=1), reliability(p[:5], y[:5], bins=1)  # five rows that count
    assert (uneven.low, uneven.high) == pytest.approx((alone.low, alone.high), abs=1e-6)


@pytest.mark.parametrize("rarer", [9, 10])
def test_ten_rows_of_each_class_are_the_least(rarer: int) -> None:
    p, _ = _data(100)
    y = (np.arange(100) < rarer).astype(float)
    if rarer == 10:
        assert cross_fit("platt", p, y).method == "platt"
    else:
        with pytest.raises(BadInput, match="a class has 9 rows, fewer than 10"):
            cross_fit("platt", p, y)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"method": "plat"}, "did you mean 'platt'"),
        ({"method": "platt", "a": "x", "b": 0}, "damaged"),
        ({"method": "platt"}, "damaged"),
        ({"method": "isotonic", "x": [0, 1], "y": [1, 0]}, "not ascending"),
        ({}, "damaged"),
    ],
)
def test_damaged_states_are_refused(state: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        from_dict(state)


def test_bad_input() -> None:
    p, y = _data(100)
    with pytest.raises(BadInput, match="not in"):
        fit("platt", p + 1, y)
    with pytest.raises(BadInput, match="0 or 1"):
        fit("platt", p, y + 1)
    with pytest.raises(BadInput, match="unknown calibration method 'plat'"):
        fit("plat", p, y)
    with pytest.raises(BadInput, match="fewer than 10"):
        cross_fit("platt", p, np.zeros(100))
    with pytest.raises(BadInput, match="cannot make 5 folds of 3 units"):
        cross_fit("platt", p, y, units=np.arange(100) % 3)
    with pytest.raises(BadInput, match="weights must be finite and not negative"):
        fit("platt", p, y, np.full(100, np.nan))
    with pytest.raises(BadInput, match="weights must be finite, not negative"):
        cross_fit("isotonic", p, y, -np.ones(100))
    with pytest.raises(BadInput, match="a label is missing"):
        cross_fit("platt", p, np.where(np.arange(100) == 3, np.nan, y))
    with pytest.raises(BadInput, match="units must be one per row"):
        cross_fit("platt", p, y, units=np.arange(5))
    assert isinstance(fit("none", p, y), Identity)
    assert isinstance(fit("platt", p, y), Platt)
