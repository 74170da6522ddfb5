"""Every metric of the catalog keeps the protocol: rows have weights and no order, and terms add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.entries import entries_for

from pluribus.evaluation import metrics
from pluribus.evaluation.metrics import Weightings
from pluribus.evaluation.skill import best_constant
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.tasks import METRICS, Metric, Task, kind
from pluribus.tasks.forms import Ragged
from pluribus.tasks.metrics import Additive, Terms

CLASSES = 3
LISTED = entries_for(__name__, "metric", "predictions")
each = pytest.mark.parametrize("metric", [entry.resolve() for entry in LISTED], ids=lambda metric: metric.name)


def _rows(metric: Metric, n: int, seed: int) -> tuple[Any, Any, Any]:
    """Predictions, labels and groups (or None) of a kind that the metric judges."""
    rng = np.random.default_rng(seed)
    record = kind((metric.kinds or ("regression",))[-1])
    groups = rng.integers(0, 3, n) if metric.grouped else None
    if record.head is not None:  # a ranked list of items, and one item
        ranked = np.argsort(rng.random((n, 60)), 1)[:, :50].astype(float)
        return ranked, rng.integers(0, 60, n).astype(float), groups
    if record.positive:
        return rng.random(n), np.r_[0.0, 1.0, rng.integers(0, 2, n - 2)], groups
    if record.beside is not None:  # one class a word
        lengths = rng.integers(1, 5, n)
        said, true = (Ragged.of([rng.integers(0, CLASSES, length) for length in lengths]) for _ in range(2))
        return said, true, groups
    if record.cell == "list":  # a set of classes
        return rng.random((n, CLASSES)), Ragged.of([np.flatnonzero(rng.random(CLASSES) < 0.5) for _ in range(n)]), groups
    if record.classes:
        p = rng.random((n, CLASSES))
        return p / p.sum(1, keepdims=True), np.r_[0.0, 1.0, 2.0, rng.integers(0, CLASSES, n - 3)], groups
    if record.form != "value":  # several levels a row
        return np.sort(rng.normal(size=(n, 3)), 1), rng.normal(size=n), groups
    return rng.random(n) + 0.1, rng.integers(0, 5, n).astype(float), groups


def _value(metric: Metric, p: Any, y: Any, weight: Any = None, groups: Any = None) -> float:
    return float(metrics.compute(metric.name, p, y, weight, groups))


def test_the_catalog_lists_them_all() -> None:
    assert {entry.name for entry in LISTED} == set(METRICS)
    assert all(METRICS[entry.name] is entry.resolve() for entry in LISTED)


@each
@given(seed=st.integers(0, 30))
def test_a_row_of_weight_two_counts_as_two_rows(metric: Metric, seed: int) -> None:
    p, y, groups = _rows(metric, 12, seed)
    twice = np.r_[np.arange(12), 3, 7]
    weight = np.ones(12)
    weight[[3, 7]] = 2
    expected = _value(metric, p[twice], y[twice], None, None if groups is None else groups[twice])
    assert _value(metric, p, y, weight, groups) == pytest.approx(expected, nan_ok=True)


@each
@given(seed=st.integers(0, 30))
def test_rows_have_no_order_and_weight_nothing_is_not_there(metric: Metric, seed: int) -> None:
    p, y, groups = _rows(metric, 12, seed)
    value = _value(metric, p, y, None, groups)
    order = np.random.default_rng(seed).permutation(12)
    moved = None if groups is None else groups[order]
    assert _value(metric, p[order], y[order], None, moved) == pytest.approx(value, nan_ok=True)
    more, weight = np.r_[np.arange(12), 5, 0], np.r_[np.ones(12), 0, 0]
    held = None if groups is None else groups[more]
    assert _value(metric, p[more], y[more], weight, held) == pytest.approx(value, nan_ok=True)


@each
@given(seed=st.integers(0, 30))
def test_terms_of_two_halves_add_up(metric: Metric, seed: int) -> None:
    """Broken: a verdict on kept terms is another than the one on predictions."""
    if not isinstance(metric, Additive):
        pytest.skip("it needs all rows at once")
    p, y, _ = _rows(metric, 12, seed)
    checked, labels = metric.checked(p, y)
    whole = metric.each(checked, labels)
    halves = [metric.each(*metric.checked(p[part], y[part])) for part in (np.arange(5), np.arange(5, 12))]
    counts = np.random.default_rng(seed).integers(0, 3, (4, 12)).astype(float)
    value = metric.measured(checked, labels, Weightings.of_rows(counts))
    np.testing.assert_allclose(metric.finished(counts @ whole), value, rtol=1e-9, equal_nan=True)
    summed = metric.finished(counts[:, :5] @ halves[0] + counts[:, 5:] @ halves[1])
    np.testing.assert_allclose(summed, value, rtol=1e-9, equal_nan=True)


@each
@given(seed=st.integers(0, 10))
def test_the_verdict_on_terms_is_the_verdict_on_predictions(metric: Metric, seed: int) -> None:
    """Broken: a study that keeps terms of lists and maps judges otherwise than `pluribus compare` on the predictions."""
    if not isinstance(metric, Additive):
        pytest.skip("it needs all rows at once")
    name = (metric.kinds or ("regression",))[-1]
    classes = ("a", "b") if kind(name).positive else ("a", "b", "c") if kind(name).classes else ()
    levels = {"levels": (0.1, 0.5, 0.9)} if kind(name).form != "value" and not classes and kind(name).head is None else {}
    task = Task("t", name, classes, metrics=(metric.name,), **levels)
    p, y, groups = _rows(metric, 40, seed)
    other = _rows(metric, 40, seed + 1)[0] if not isinstance(p, Ragged) else y
    weight = np.random.default_rng(seed).random(40)
    truth = {"t": TaskTruth(np.arange(40), y, weight, groups)}
    units = np.arange(40) // 2

    def judged(one: Any, two: Any) -> Verdict:
        constants = {"t": best_constant(task, y, weight)}
        return judge([task], truth, units, {"t": [one]}, {"other": {"t": [two]}}, constants=constants, repeats=50)

    expected = judged(p, other)
    terms = [Terms.of(task.metrics, side, y) for side in (p, other)]
    np.testing.assert_equal(judged(*terms).to_dict(), expected.to_dict())


@each
def test_the_best_value_is_that_of_a_perfect_prediction(metric: Metric) -> None:
    p, y, groups = _rows(metric, 12, 0)
    if metric.best is None:
        pytest.skip("no best value is known")
    if isinstance(p, Ragged):
        perfect: Any = y
    elif isinstance(y, Ragged):
        perfect = np.array([[float(c in row) for c in range(CLASSES)] for row in (y.row(i).tolist() for i in range(12))])
    elif p.ndim == 2 and p.shape[1] == CLASSES:
        perfect = np.eye(CLASSES)[y.astype(int)]
    elif p.ndim == 2:
        rest = np.where(p == y[:, None], 59, p)
        rest[:, 0] = y
        perfect = rest
    else:
        perfect = y
    assert _value(metric, perfect, y, None, groups) == pytest.approx(metric.best)
