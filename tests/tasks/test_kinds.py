"""Kinds read and write their own cells: what is lost here is lost in every file, table and answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.entries import entries_for

from pluribus.errors import BadInput
from pluribus.tasks import KINDS, Task
from pluribus.tasks.columns import Column
from pluribus.tasks.forms import Ragged

CLASSES = ("a", "b", "c", "d e")
ITEMS = {str(i): i for i in range(60)}
NAMES = [entry.name for entry in entries_for(__name__, "kind", "table", "text", "sessions")]
each_kind = pytest.mark.parametrize("name", NAMES)


def _task(name: str) -> Task:
    kind = KINDS[name]
    return Task("t", name, (CLASSES[:2] if kind.positive else CLASSES) if kind.classes else ())


def _predictions(task: Task, n: int, r: np.random.Generator) -> Any:
    """Predictions as the kind's link gives them, of tags and items as artefacts hold them."""
    if task.record.beside == "items":
        return np.stack([np.append(r.permutation(60)[:49], -1.0) for _ in range(n)])
    if task.record.per == "list":
        return Ragged.of([r.integers(0, 4, r.integers(1, 6)) for _ in range(n)])
    shape = (n, *task.record.shape(task))
    if task.record.classes:
        chances = r.random(shape)
        return chances / chances.sum(1, keepdims=True) if task.record.likelihood == "categorical" else chances
    values = np.sort(np.abs(r.normal(size=shape)), -1) if len(shape) > 1 else np.abs(r.normal(size=shape))
    return 10.0 ** r.integers(-5, 6) * values


def _columns(task: Task, frame: pd.DataFrame, words: Any = None) -> dict[str, Column]:
    return {name: Column(frame[name], f"column {name!r}", words, ITEMS) for name in task.columns}


@each_kind
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), by_csv=st.booleans())
def test_what_a_kind_writes_it_reads(name: str, seed: int, n: int, by_csv: bool, tmp_path_factory: Any) -> None:
    """Predictions → columns of a file → predictions, to the last bit; through a CSV file too, where lists are JSON."""
    r, task = np.random.default_rng(seed), _task(name)
    said = _predictions(task, n, r)
    frame = pd.DataFrame(dict(task.record.write(task, said)))
    if by_csv:
        for column in frame:
            if isinstance(frame[column].iloc[0], list):
                frame[column] = [pd.io.json.ujson_dumps(cell) for cell in frame[column]]
        path = tmp_path_factory.getbasetemp() / "predictions.csv"
        frame.to_csv(path, index=False)
        frame = pd.read_csv(path, dtype={"t": object} if task.record.classes else None, float_precision="round_trip")
    words = said.lengths if isinstance(said, Ragged) else None
    again, empty = task.record.parse(task, _columns(task, frame, words))
    assert not empty.any()
    np.testing.assert_array_equal(np.asarray(again), np.asarray(said))
    assert set(task.record.schema(task)) == set(frame.columns)
    assert task.record.found_in("t", list(frame.columns)) is not None


def _labels(name: str, n: int, r: np.random.Generator) -> list[Any]:
    """Cells of a column of labels, without holes."""
    kind = KINDS[name]
    if kind.beside == "items":
        return [str(item) for item in r.integers(0, 60, n)]
    if kind.cell == "list":
        least = 1 if kind.per == "list" else 0
        return [[CLASSES[i] for i in np.sort(r.permutation(4)[: r.integers(least, 5)])] for _ in range(n)]
    if kind.classes:
        return [CLASSES[i] for i in r.integers(0, 2 if kind.positive else 4, n)]
    return r.integers(0, 9, n).tolist() if kind.likelihood == "poisson" else r.normal(size=n).tolist()


def _cells(task: Task, values: Any) -> list[Any]:
    """What the labels stand for, as the column held them."""
    if isinstance(values, Ragged):
        return [[task.classes[i] for i in values.row(row)] for row in range(len(values))]
    return [task.classes[int(v)] if task.classes else str(int(v)) if task.record.beside == "items" else v for v in values]


@each_kind
@given(seed=st.integers(0, 10**6), holes=st.lists(st.booleans(), min_size=1, max_size=10))
def test_labels_are_read_as_they_were_written(name: str, seed: int, holes: list[bool]) -> None:
    """Labels → values → labels; an empty cell is a hole and nothing else is."""
    task, cells = _task(name), _labels(name, len(holes), np.random.default_rng(seed))
    words = np.array([len(cell) if isinstance(cell, list) else 0 for cell in cells])
    series = pd.Series([None if hole else cell for hole, cell in zip(holes, cells)], dtype=object)
    if task.record.quantity:
        series = series.astype(float)
    values, empty = task.record.read(task, Column(series, "column 't'", words, ITEMS))
    assert empty.tolist() == holes
    kept = np.flatnonzero(~np.array(holes))
    assert _cells(task, values[kept]) == [cells[i] for i in kept]


@pytest.mark.parametrize("write", [list, lambda cell: "|".join(cell) or "[]", lambda cell: pd.io.json.ujson_dumps(cell)])
def test_a_set_of_classes_may_be_written_in_three_ways(write: Callable[[Any], Any]) -> None:
    """Order and repetition do not matter; [] is "none of them"; classes are found in order."""
    cells = [["b", "a"], [], ["a", "a"], None, ["c"]]
    series = pd.Series([None if cell is None else write(cell) for cell in cells], dtype=object)
    task, notes = Task("t", "multilabel"), []
    task = task.record.settle(task, Column(series, "column 't'"), notes)
    assert task.classes == ("a", "b", "c")
    assert notes == ["'t' is multilabel: any of 3 classes a row"]
    values, empty = task.record.read(task, Column(series, "column 't'"))
    assert [values.row(i).tolist() for i in range(5)] == [[0, 1], [], [0], [], [2]]
    assert empty.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([["a", "x"]], "holds 'x', which is none of the task's classes"),
        ([["a", None]], "names None in row 1, which is no class"),
        ([["a"], [["b"]]], r"names \['b'\] in row 2, which is no class"),
        ([{"a": 1}], "which is no class"),
    ],
)
def test_a_set_that_is_none_is_named(cells: list[Any], message: str) -> None:
    task = Task("t", "multilabel", CLASSES)
    with pytest.raises(BadInput, match=message):
        task.record.read(task, Column(pd.Series(cells, dtype=object), "column 't'"))


def test_classes_of_sets_that_cannot_be() -> None:
    with pytest.raises(BadInput, match="holds no class at all"):
        Task("t", "multilabel").record.settle(Task("t", "multilabel"), Column(pd.Series([[], None], dtype=object), "t"), [])
    many = pd.Series([[f"c{i}" for i in range(1001)]], dtype=object)
    with pytest.raises(BadInput, match="1001 different classes"):
        Task("t", "multilabel").record.settle(Task("t", "multilabel"), Column(many, "t"), [])
    task = Task("t", "multilabel", CLASSES)
    assert "same classes in all 3 labels (a, b)" in str(task.record.varied(task, Ragged.of([[0, 1]] * 3)))
    assert task.record.varied(task, Ragged.of([[0, 1], [], [0]])) is None


def test_no_kind_is_guessed_where_another_was_before() -> None:
    """Quantiles and sets of classes are asked for by name: a table that was read yesterday is read alike today."""
    for cells in ([1.5, 2.5, 3.5], ["a|b", "b", "a"], [["a"], ["a", "b"], []]):
        column = Column(pd.Series(cells), "column 't'")
        assert not any(KINDS[name].infer(column) for name in ("quantile", "multilabel"))
