"""Slices: a model that is good on average and bad for one segment must show it, at the top."""

from __future__ import annotations

import numpy as np
import pytest

from pluribus.errors import BadInput
from pluribus.evaluation import TaskTruth, metrics
from pluribus.evaluation.slices import by_slice
from pluribus.tasks import Task

TASK = Task("default", "binary", ("0", "1"), ("auc",))


def _data() -> tuple[TaskTruth, np.ndarray, np.ndarray, np.ndarray]:
    r = np.random.default_rng(0)
    x = r.normal(size=3000)
    segment = np.array(["north", "south", "east"])[np.arange(3000) % 3]
    y = (r.random(3000) < 1 / (1 + np.exp(-2 * x))).astype(float)
    rows = np.flatnonzero(r.random(3000) < 0.8)
    good = 1 / (1 + np.exp(-2 * x))
    bad = np.where(segment == "south", r.random(3000), good)
    return TaskTruth(rows, y[rows]), segment, good[rows], bad[rows]


def test_the_bad_segment_comes_first_with_its_own_figures() -> None:
    truth, segment, good, bad = _data()
    found = by_slice(TASK, truth, 3000, segment, [bad, bad], [good, good], repeats=200)
    assert found[0].name == "south"
    here = segment[truth.rows] == "south"
    assert found[0].value.file.value == pytest.approx(metrics.compute("auc", bad[here], truth.target[here]))
    assert found[0].rows == here.sum()
    assert found[0].gain is not None
    assert found[0].gain.deciding.high < 0
    assert found[1].gain is not None
    assert found[1].gain.file.value == 0
    assert sum(row.rows for row in found[0].reliability) == here.sum()


def test_a_slice_with_one_class_is_undefined_and_last() -> None:
    truth, segment, good, _ = _data()
    target = np.where(segment[truth.rows] == "east", 0.0, truth.target)
    found = by_slice(TASK, TaskTruth(truth.rows, target), 3000, segment, [good], repeats=50)
    assert found[-1].name == "east"
    assert np.isnan(found[-1].value.file.value)
    assert found[-1].gain is None


def test_every_row_needs_a_segment() -> None:
    truth, segment, good, _ = _data()
    with pytest.raises(BadInput, match="segment of every test row"):
        by_slice(TASK, truth, 3000, segment[:100], [good])
