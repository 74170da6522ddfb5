"""Metrics: a wrong definition, weight or tie rule would make every verdict wrong. Oracle: scikit-learn and scipy."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from pluribus import catalog
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.evaluation.metrics import Weightings, compute, constant, judged, of_constant, resampled
from pluribus.evaluation.skill import best_constant
from pluribus.tasks import Task, weightings
from pluribus.tasks.forms import Ragged
from pluribus.tasks.metrics import METRICS, Metric

BOTH = ("logloss", "brier", "accuracy", "balanced_accuracy", "f1", "f1_micro", "f1_macro", "mcc")
BINARY = ("auc", "gini", "ks", "pr_auc", "ne", "ece", "pcoc", *BOTH)
CLASSES = (*BOTH, "macro_auc", "qwk")
SETS = ("logloss", "accuracy", "f1_micro", "f1_macro")
NUMBERS = ("rmse", "mae", "mape", "r2", "explained_variance", "pearson", "spearman")
GROUPED = ("gauc", "uauc")


def _data(form: str, n: int = 300, seed: int = 0) -> tuple[Any, Any, Any]:
    """Prediction (with ties), target and weight."""
    r = np.random.default_rng(seed)
    w = r.integers(0, 4, n).astype(float)
    if form == "classes":
        p = r.dirichlet(np.ones(4), n)
        return p, np.array([r.choice(4, p=q) for q in p]).astype(float), w
    if form == "tags":
        y = np.where(np.arange(9) < r.integers(1, 10, n)[:, None], r.integers(0, 5, (n, 9)), -1).astype(float)
        return np.where(r.random((n, 9)) < 0.7, y, 0).clip(0), y, w
    if form == "sets":
        p = r.random((n, 4)).round(2)
        return p, Ragged.of([np.flatnonzero(row) for row in r.random((n, 4)) < p]), w
    if form == "quantiles":
        return np.sort(r.normal(size=(n, 3)), 1), r.normal(size=n), w
    if form == "ranks":
        return r.permuted(np.tile(np.arange(60.0), (n, 1)), axis=1)[:, :50], r.integers(0, 60, n).astype(float), w
    if form == "binary":
        p = r.random(n).round(2).clip(0.01, 0.99)
        return p, (r.random(n) < p).astype(float), w
    y = r.poisson(3, n).astype(float)
    return (y + r.normal(size=n)).clip(0.1).round(1), y, w


def test_names_and_kinds_are_those_that_tasks_declare() -> None:
    """A metric that can be declared but not computed would fail only at the end of a study."""
    assert {entry.name for entry in catalog.entries(family="metric")} <= set(METRICS)
    for name, metric in METRICS.items():
        assert metric.best is None or metric.direction == "max"
        for kind in metric.kinds:
            forms = {"multiclass": "classes", "ordinal": "classes", "tagging": "tags", "next_item": "ranks", "binary": "binary"}
            forms |= {"multilabel": "sets", "quantile": "quantiles"}
            form = forms.get(kind, "numbers")
            p, y, w = _data(form)
            assert np.isfinite(compute(name, p, y, w, groups=np.arange(len(y)) % 7))


def test_no_record_is_forgotten() -> None:
    """Broken: a metric stands in the source and nobody finds it by name."""
    listed = {id(METRICS[name]) for name in METRICS}
    for module in pkgutil.iter_modules(metrics.__path__, "pluribus.evaluation.metrics."):
        held = vars(importlib.import_module(module.name)).values()
        assert all(id(value) in listed for value in held if isinstance(value, Metric)), module.name


def test_a_record_is_copied_and_sent_by_its_name() -> None:
    """Broken: a task that goes to a worker process drags functions along, or comes back as another metric."""
    assert copy.deepcopy(METRICS["auc"]) is METRICS["auc"]
    assert pickle.loads(pickle.dumps(METRICS["rmse"])) is METRICS["rmse"]
    own = Metric("mine", "max")
    assert copy.deepcopy(own) == own
    assert own != Metric("mine", "min")
    with pytest.raises(BadInput, match="'mine' is a name alone"):
        compute(own, [1.0], [1.0])


ORACLES: dict[str, tuple[str, Callable[[Any, Any, Any], float]]] = {
    "auc": ("binary", lambda p, y, w: sk.roc_auc_score(y, p, sample_weight=w)),
    "gini": ("binary", lambda p, y, w: 2 * sk.roc_auc_score(y, p, sample_weight=w) - 1),
    "pr_auc": ("binary", lambda p, y, w: sk.average_precision_score(y, p, sample_weight=w)),
    "logloss": ("binary", lambda p, y, w: sk.log_loss(y, p, sample_weight=w)),
    "brier": ("binary", lambda p, y, w: sk.brier_score_loss(y, p, sample_weight=w)),
    "accuracy": ("binary", lambda p, y, w: sk.accuracy_score(y, p >= 0.5, sample_weight=w)),
    "balanced_accuracy": ("binary", lambda p, y, w: sk.balanced_accuracy_score(y, p >= 0.5, sample_weight=w)),
    "f1": ("binary", lambda p, y, w: sk.f1_score(y, p >= 0.5, sample_weight=w)),
    "f1_micro": ("binary", lambda p, y, w: sk.f1_score(y, p >= 0.5, average="micro", sample_weight=w)),
    "f1_macro": ("binary", lambda p, y, w: sk.f1_score(y, p >= 0.5, average="macro", sample_weight=w)),
    "mcc": ("binary", lambda p, y, w: sk.matthews_corrcoef(y, p >= 0.5, sample_weight=w)),
    "pcoc": ("binary", lambda p, y, w: (w * p).sum() / (w * y).sum()),
    "ne": (
        "binary",
        lambda p, y, w: (
            sk.log_loss(y, p, sample_weight=w) / stats.entropy([np.average(y, weights=w), 1 - np.average(y, weights=w)])
        ),
    ),
    "rmse": ("numbers", lambda p, y, w: sk.root_mean_squared_error(y, p, sample_weight=w)),
    "mae": ("numbers", lambda p, y, w: sk.mean_absolute_error(y, p, sample_weight=w)),
    "mape": ("numbers", lambda p, y, w: sk.mean_absolute_percentage_error(y[y > 0], p[y > 0], sample_weight=w[y > 0])),
    "r2": ("numbers", lambda p, y, w: sk.r2_score(y, p, sample_weight=w)),
    "explained_variance": ("numbers", lambda p, y, w: sk.explained_variance_score(y, p, sample_weight=w)),
    "poisson_deviance": ("numbers", lambda p, y, w: sk.mean_poisson_deviance(y, p, sample_weight=w)),
    "pearson": ("numbers", lambda p, y, w: stats.pearsonr(np.repeat(p, w.astype(int)), np.repeat(y, w.astype(int))).statistic),
    "spearman": ("numbers", lambda p, y, w: stats.spearmanr(np.repeat(p, w.astype(int)), np.repeat(y, w.astype(int))).statistic),
    "ks": (
        "binary",
        lambda p, y, w: (
            stats.ks_2samp(np.repeat(p[y > 0], w[y > 0].astype(int)), np.repeat(p[y == 0], w[y == 0].astype(int))).statistic
        ),
    ),
    "macro_auc": (
        "classes",
        lambda p, y, w: sk.roc_auc_score(
            np.repeat(y, w.astype(int)), np.repeat(p, w.astype(int), 0), multi_class="ovr", average="macro"
        ),
    ),
    "qwk": ("classes", lambda p, y, w: sk.cohen_kappa_score(y, p.argmax(1), weights="quadratic", sample_weight=w)),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn_with_weights_and_ties(name: str, seed: int) -> None:
    form, oracle = ORACLES[name]
    p, y, w = _data(form, seed=seed)
    assert compute(name, p, y, w) == pytest.approx(oracle(p, y, w), abs=1e-10)


@pytest.mark.parametrize("name", BOTH)
def test_equals_scikit_learn_on_several_classes(name: str) -> None:
    p, y, w = _data("classes")
    said = p.argmax(1)
    oracle = {
        "logloss": lambda: sk.log_loss(y, p, sample_weight=w),
        "accuracy": lambda: sk.accuracy_score(y, said, sample_weight=w),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, said, sample_weight=w),
        "f1": lambda: sk.f1_score(y, said, average="macro", sample_weight=w),
        "f1_macro": lambda: sk.f1_score(y, said, average="macro", sample_weight=w),
        "f1_micro": lambda: sk.f1_score(y, said, average="micro", sample_weight=w),
        "mcc": lambda: sk.matthews_corrcoef(y, said, sample_weight=w),
        "brier": lambda: np.average(((p - np.eye(4)[y.astype(int)]) ** 2).sum(1), weights=w),
    }[name]()
    assert compute(name, p, y, w) == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize("name", SETS)
def test_equals_scikit_learn_on_sets_of_classes(name: str) -> None:
    p, y, w = _data("sets")
    held, said = np.zeros(p.shape), p >= 0.5
    held[y.rows, y.values] = 1
    oracle = {
        "logloss": lambda: np.mean([sk.log_loss(held[:, c], p[:, c].clip(1e-7, 1 - 1e-7), sample_weight=w) for c in range(4)]),
        "accuracy": lambda: sk.accuracy_score(held, said, sample_weight=w),
        "f1_micro": lambda: sk.f1_score(held, said, average="micro", sample_weight=w),
        "f1_macro": lambda: sk.f1_score(held, said, average="macro", sample_weight=w),
    }[name]()
    assert compute(name, p, y, w) == pytest.approx(oracle, abs=1e-12)


def test_pinball_equals_scikit_learn() -> None:
    p, y, w = _data("quantiles")
    each = [sk.mean_pinball_loss(y, p[:, i], alpha=level, sample_weight=w) for i, level in enumerate((0.1, 0.5, 0.9))]
    assert compute("pinball", p, y, w) == pytest.approx(np.mean(each))
    own = Task("t", "quantile", levels=(0.2, 0.4, 0.6)).main_metric
    each = [sk.mean_pinball_loss(y, p[:, i], alpha=level, sample_weight=w) for i, level in enumerate((0.2, 0.4, 0.6))]
    assert compute(own, p, y, w) == pytest.approx(np.mean(each))
    assert pickle.loads(pickle.dumps(own)) == own
    with pytest.raises(BadInput, match=r"needs predictions \[n, 3\] \(levels 0.1, 0.5, 0.9\), not \(300, 2\)"):
        compute("pinball", p[:, :2], y)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 3)), min_size=1, max_size=30), st.integers(-6, 6))
def test_pinball_is_least_at_the_quantiles(rows: list[tuple[int, int]], other: int) -> None:
    """No constant has a lower loss than the weighted quantiles, which are the best constant of the kind."""
    y, w = (np.array(column, float) for column in zip(*rows))
    task = Task("t", "quantile")
    best = best_constant(task, y, w)
    assert of_constant("pinball", best, y, w) <= of_constant("pinball", np.sort(np.append(best[:2], other)), y, w) + 1e-12


def test_coverage_by_hand() -> None:
    """Three of five rows lie between the outer quantiles, bounds included; the levels promise 0.8 of them."""
    p = np.tile([1.0, 2.0, 3.0], (5, 1))
    assert compute("coverage", p, [0.9, 1.0, 2.5, 3.0, 3.1]) == pytest.approx(0.6)
    assert judged("coverage", np.array(0.6)) == pytest.approx(0.2)


def test_ece_by_hand() -> None:
    """Fifteen bins of two rows each: the mean gap between prediction and rate."""
    p = np.arange(30) / 30
    y = (np.arange(30) % 3 == 0).astype(float)
    by_hand = np.abs((p - y).reshape(15, 2).sum(1)).sum() / 30
    assert compute("ece", p, y) == pytest.approx(by_hand)
    assert compute("ece", np.full(10, 0.3), np.arange(10) < 3) == pytest.approx(0, abs=1e-12)


def test_group_aucs_equal_a_loop_over_groups() -> None:
    p, y, w = _data("binary", 400)
    group = np.random.default_rng(1).integers(0, 60, 400)
    aucs, mass = [], []
    for g in range(60):
        here = (group == g) & (w > 0)
        if len(set(y[here])) == 2:
            aucs.append(sk.roc_auc_score(y[here], p[here], sample_weight=w[here]))
            mass.append(w[here].sum())
    assert compute("gauc", p, y, w, groups=group) == pytest.approx(np.average(aucs, weights=mass))
    assert compute("uauc", p, y, w, groups=group) == pytest.approx(np.mean(aucs))


ALL = [
    *((name, "binary") for name in (*BINARY, *GROUPED)),
    *((name, "classes") for name in CLASSES),
    *((name, "numbers") for name in (*NUMBERS, "poisson_deviance")),
    *((name, "sets") for name in SETS),
    *((name, "quantiles") for name in ("pinball", "coverage")),
]


@pytest.mark.parametrize(("name", "form"), ALL)
def test_weight_two_is_a_row_twice_and_order_does_not_matter(name: str, form: str) -> None:
    """A unit that is drawn twice must count twice, whatever the metric: the bootstrap rests on it."""
    p, y, w = _data(form, 120, seed=4)
    group = np.arange(120) % 9
    times = w.astype(int)
    twice = compute(name, np.repeat(p, times, 0), y[np.repeat(np.arange(120), times)], groups=np.repeat(group, times))
    assert compute(name, p, y, w, groups=group) == pytest.approx(twice, abs=1e-10)
    shuffled = np.random.default_rng(0).permutation(120)
    again = compute(name, p[shuffled], y[shuffled], w[shuffled], groups=group[shuffled])
    assert compute(name, p, y, w, groups=group) == pytest.approx(again, abs=1e-10)
    assert compute(name, p, y, 7.5 * w, groups=group) == pytest.approx(twice, abs=1e-10)


@pytest.mark.parametrize(("name", "form"), ALL)
def test_many_weightings_equal_one_at_a_time(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """[R, n] must give what R calls give, also in several chunks, and for whole units with row weights."""
    p, y, w = _data(form, 90)
    r = np.random.default_rng(2)
    unit, group = r.integers(0, 12, 90), np.arange(90) % 5
    counts = r.multinomial(12, np.ones(12) / 12, size=30).astype(float)
    weights = counts[:, unit] * w
    one_by_one = [compute(name, p, y, row, groups=group) for row in weights]
    for chunk in (1, 1 << 20):
        monkeypatch.setattr(weightings, "_CHUNK", chunk)
        np.testing.assert_allclose(compute(name, p, y, weights, groups=group), one_by_one, atol=1e-10)
        np.testing.assert_allclose(resampled(name, p, y, Weightings(w, unit, counts), group), one_by_one, atol=1e-10)


def test_both_ways_to_resample_auc_agree() -> None:
    """Few units take the quadratic form of pairs, many units the sorted pass: same numbers, ties included."""
    p, y, w = _data("binary", 500)
    r = np.random.default_rng(0)
    unit = r.integers(0, 8, 500)
    counts = r.multinomial(8, np.ones(8) / 8, size=40).astype(float)
    few = resampled("auc", p, y, Weightings(w, unit, counts))
    by_row = resampled("auc", p, y, Weightings.of_rows(counts[:, unit] * w))
    np.testing.assert_allclose(few, by_row, atol=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.integers(1, 3)), min_size=2, max_size=40),
    st.floats(0.1, 5),
    st.floats(-3, 3),
)
def test_rank_metrics_see_order_only(rows: list[tuple[int, int, int]], scale: float, shift: float) -> None:
    """A monotone change of the scores must not move AUC, KS, average precision or Spearman."""
    score, y, w = (np.array(column, float) for column in zip(*rows))
    bent = np.exp(scale * score / 3 + shift)
    for name in ("auc", "gini", "ks", "pr_auc", "spearman"):
        a, b = compute(name, score, y, w), compute(name, bent, y, w)
        assert a == pytest.approx(b, abs=1e-9, nan_ok=True)
    if 0 < y.mean() < 1:
        assert compute("auc", score, y, w) + compute("auc", -score, y, w) == pytest.approx(1)


@pytest.mark.parametrize("name", ["auc", "gini", "ks", "pr_auc", "ne", "gauc", "uauc"])
def test_one_class_is_nan_and_no_error(name: str) -> None:
    assert np.isnan(compute(name, [0.1, 0.5], [1, 1], groups=[0, 0]))
    assert np.isnan(compute(name, [0.1, 0.5, 0.7], [1, 1, 0], weight=[1, 1, 0], groups=[0, 0, 0]))


@pytest.mark.parametrize(("name", "form"), ALL)
def test_no_rows_is_nan(name: str, form: str) -> None:
    p, y, _ = _data(form, 10)
    assert np.isnan(compute(name, p[:0], y[:0], groups=np.arange(0)))
    assert np.isnan(compute(name, p, y, np.zeros(10), groups=np.arange(10)))


@pytest.mark.parametrize("name", ["r2", "explained_variance", "pearson", "spearman"])
def test_constant_target_is_nan(name: str) -> None:
    assert np.isnan(compute(name, [1.0, 2.0, 4.0], [0.1, 0.1, 0.1]))


def test_r2_is_accurate_far_from_zero() -> None:
    """Sums of squares of large numbers cancel; centring first keeps the digits."""
    p, y, w = _data("numbers")
    for name in ("r2", "pearson"):
        assert compute(name, p + 1e7, y + 1e7, w) == pytest.approx(compute(name, p, y, w), abs=1e-6)


def test_perfect_and_constant_predictions() -> None:
    y = np.array([0, 0, 1, 1.0])
    assert compute("auc", y, y) == 1
    assert compute("auc", np.full(4, 0.3), y) == 0.5
    assert compute("logloss", y, y) == pytest.approx(1e-7, rel=1e-3)  # clipped
    assert of_constant("spearman", 2.0, [1.0, 2.0, 3.0]) == 0
    assert of_constant("gauc", 0.5, y, groups=[0, 0, 0, 0]) == 0.5
    assert judged("pcoc", np.array(0.8)) == pytest.approx(0.2)


def test_best_constants() -> None:
    y = np.array([0, 0, 1, 10.0])
    assert constant("rmse", y) == y.mean()
    assert constant("mae", y, weight=[1, 1, 1, 4]) == 10
    assert constant("logloss", [0, 1, 1, 1]) == 0.75
    np.testing.assert_allclose(constant("logloss", [0, 2, 2, 2], classes=3), [0.25, 0, 0.75])
    assert of_constant("logloss", constant("logloss", [0, 2, 2, 2], classes=3), [0, 2, 2, 2]) == pytest.approx(
        stats.entropy([0.25, 0.75])
    )
    with pytest.raises(BadInput, match="at least one labelled row"):
        constant("rmse", [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute("acu", [0.1], [1]), "unknown metric 'acu'; did you mean 'auc'"),
        (lambda: compute("auc", [0.1, np.nan], [1, 0]), "a prediction is missing or infinite"),
        (lambda: compute("auc", [0.1, 0.2], [1, np.inf]), "a target is missing or infinite"),
        (lambda: compute("auc", [0.1], [1, 0]), "does not fit target of shape"),
        (lambda: compute("auc", [0.1, 0.2], [1, 0], weight=[1]), "one per row"),
        (lambda: compute("auc", [0.1, 0.2], [1, 0], weight=[1, -1]), "not negative"),
        (lambda: compute("rmse", [[0.1, 0.2]], [1]), "one prediction per row"),
        (lambda: compute("qwk", [0.1, 0.2], [1, 0]), "probability per class"),
        (lambda: compute("logloss", [[0.5, 0.5]], [2]), "not a class index below 2"),
        (lambda: compute("gauc", [0.1, 0.2], [1, 0]), "needs a group per row"),
        (lambda: compute("gauc", [0.1, 0.2, 0.3], [1, 0, 1], groups=[7, np.nan, np.nan]), "group is missing in row 2"),
        (lambda: compute("uauc", [0.1, 0.2], [1, 0], groups=np.array(["a", None], object)), "group is missing in row 2"),
        (lambda: compute("auc", [0.1, 0.2], [1, 2]), "neither 0 nor 1"),
        (lambda: compute("brier", [0.1, 0.2], [1, 2]), "neither 0 nor 1"),
        (lambda: compute("ece", [1.1, 0.2], [1, 0]), "not in .0, 1.; pass probabilities"),
        (lambda: compute("logloss", [[0.5, -0.5]], [1]), "not in .0, 1.; pass probabilities"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()
