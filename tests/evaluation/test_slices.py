"""Slices: a model that is good on average and bad for one segment must show it, at the top."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pluribus.errors import BadInput
from pluribus.evaluation import TaskTruth, metrics
from pluribus.evaluation.slices import by_slice, judge_slices, segments, worst
from pluribus.evaluation.verdict import judge
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


def test_segments_of_every_kind_of_column() -> None:
    """Categories with the rare ones together, numbers and dates by quartiles, missing values by themselves."""
    words = np.array(["a"] * 50 + ["b"] * 30 + [f"rare {i}" for i in range(30)] + [None], dtype=object)
    found = segments(words)
    assert {"a", "b", "(other)", "(missing)"} <= set(found)
    assert len(set(found)) == 21  # 19 of their own, the others together, the missing
    assert (found[:50] == "a").all()
    numbers = np.append(np.arange(100.0), np.nan)
    cut = segments(numbers)
    assert cut[-1] == "(missing)"
    assert list(dict.fromkeys(cut[:-1])) == ["0 to 24.75", "24.75 to 49.5", "49.5 to 74.25", "74.25 to 99"]
    assert [int((cut == name).sum()) for name in dict.fromkeys(cut)] == [25, 25, 25, 25, 1]
    assert set(segments(np.array([1, 2, 2, 1]))) == {"1", "2"}
    assert set(segments(np.array([True, False]))) == {"True", "False"}
    for kind in ("datetime64[s]", "datetime64[ns]", "datetime64[ns, Asia/Tokyo]"):
        days = pd.Series(pd.date_range("2024-01-01", periods=101, tz="Asia/Tokyo" if "Tokyo" in kind else None)).astype(kind)
        assert next(iter(dict.fromkeys(segments(days)))) == "2024-01-01 to 2024-01-26"


def test_the_verdict_of_a_slice_is_the_verdict_on_its_rows() -> None:
    """The bad segment is worse there and only there; it is the worst one; a tiny slice is not judged."""
    truth, segment, good, bad = _data()
    segment = segment.astype(object)
    segment[:8] = "tiny"
    settings = {"constants": {"default": 0.5}, "repeats": 200, "level": 0.95, "seed": 0, "unit": "row"}
    tasks, sides = [TASK], ({"default": [bad]}, {"default": [good]})
    found = judge_slices(tasks, {"default": truth}, 3000, segment.astype(str), *sides, **settings)
    assert [each.name for each in found][-1] == "tiny"  # the largest first
    words = {each.name: each.tasks["default"].word for each in found if each.tasks}
    assert words["south"] == "worse"
    assert {words["north"], words["east"]} == {"as good"}
    assert "fewer than 10" in found[-1].unjudged["default"]
    assert worst(TASK, found) == "south"
    south = next(each for each in found if each.name == "south")
    here = segment[truth.rows] == "south"
    part = TaskTruth(truth.rows[here], truth.target[here])
    alone = judge(tasks, {"default": part}, 3000, {"default": [bad[here]]}, {"reference": {"default": [good[here]]}}, **settings)
    assert south.tasks["default"] == alone.comparisons[0].tasks[0]
    assert south.rows == (segment == "south").sum()
    with pytest.raises(BadInput, match="segment of every test row"):
        judge_slices(tasks, {"default": truth}, 3000, segment[:10].astype(str), *sides, **settings)


def test_no_slice_is_the_worst_of_one() -> None:
    """With a single slice, or no value, nothing is named."""
    truth, _, good, _ = _data()
    settings = {"constants": {"default": 0.5}, "repeats": 100, "level": 0.95, "seed": 0, "unit": "row"}
    found = judge_slices([TASK], {"default": truth}, 3000, ["all"] * 3000, {"default": [good]}, {"default": [good]}, **settings)
    assert worst(TASK, found) is None
