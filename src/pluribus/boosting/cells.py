"""The labels of a booster: every shape in which several tasks' labels come, as one list of cells (row, task, label).

long: one row belongs to one task (`y` [N] with `task` [N], or dicts of tables and labels a task).
wide: one row carries labels of all tasks, NaN or None where missing (`Y` [N, T], a frame, or a dict task -> vector).
single: `y` [N] and no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluribus.boosting.columns import is_frame
from pluribus.boosting.histogram import Floats, Ints
from pluribus.errors import BadInput, unknown

LONG, WIDE, SINGLE = "long", "wide", "single"


@dataclass(frozen=True)
class BoosterCells:
    """Labelled cells: X[row[i]] has label y[i] in task task[i], with weight[i] (None: all one).

    names: the tasks; form: "long" | "wide" | "single"; container: what a prediction is handed back in
    ("array" | "frame" | "dict").
    """

    row: Ints
    task: Ints
    y: Any
    weight: Floats | None
    names: tuple[Any, ...]
    form: str
    container: str
    n_rows: int


def plain(value: Any) -> Any:
    """A numpy scalar as the Python value it holds."""
    return value.item() if isinstance(value, np.generic) else value


def tidy(values: Any) -> Any:
    """An object array without holes as an array of numbers or of words, where it is one."""
    if values.dtype == object and values.ndim == 1 and not _missing(values).any():
        return np.array(values.tolist())
    return values


def _missing(values: Any) -> Any:
    import pandas as pd

    return np.asarray(pd.isna(values))


def read_task(task: Any, n: int) -> Any:
    """The task ids [n] as an object array; missing ids are refused."""
    ids = np.asarray(task)
    if ids.ndim != 1 or len(ids) != n:
        raise BadInput(f"has shape {ids.shape} for {n} rows of X", where="task", remedy="give one task id a row")
    if _missing(ids).any():
        row = int(np.flatnonzero(_missing(ids))[0])
        raise BadInput(f"is missing in row {row}", where="task", remedy="drop these rows or give them a task of their own")
    return ids


def split_table(X: Any, task: Any) -> tuple[Any, Any]:
    """X without the column that `task` names, and the task ids (which may also be given as they are)."""
    if not isinstance(task, str):
        return X, task
    if not is_frame(X):
        raise BadInput(f"{task!r} names a column, but X is not a frame", where="task", remedy="give one task id a row")
    if task not in X.columns:
        raise unknown("column", task, [str(c) for c in X.columns], where="task")
    return X.drop(columns=[task]), X[task].to_numpy()


def stack(X: Mapping[Any, Any]) -> tuple[Any, Any]:
    """A dict task -> table as one table and its task ids."""
    if not X:
        raise BadInput("is an empty dict", where="X", remedy="give a table a task")
    ids = np.empty(sum(_length(part) for part in X.values()), dtype=object)
    at = 0
    for name, part in X.items():
        ids[at : at + _length(part)] = [name] * _length(part)
        at += _length(part)
    parts = list(X.values())
    if all(is_frame(p) for p in parts):
        import pandas as pd

        if any(list(p.columns) != list(parts[0].columns) for p in parts):
            raise BadInput("the tasks' tables have different columns", where="X", remedy="give all of them the same columns")
        joined = pd.concat(parts, ignore_index=True)
        for c in parts[0].columns:  # unequal category lists would fall back to object and lose nothing; equal ones stay
            if isinstance(parts[0][c].dtype, pd.CategoricalDtype):
                joined[c] = joined[c].astype("category")
        return joined, ids
    arrays = [np.asarray(p, dtype=np.float64) for p in parts]
    if any(a.ndim != 2 or a.shape[1] != arrays[0].shape[-1] for a in arrays):
        raise BadInput("the tasks' tables have different widths", where="X", remedy="give all of them the same columns")
    return np.concatenate(arrays), ids


def _length(part: Any) -> int:
    return int(part.shape[0]) if hasattr(part, "shape") else len(part)


def read_cells(y: Any, n: int, task: Any = None, sample_weight: Any = None) -> BoosterCells:
    """The cells of labels `y` for a table of n rows.

    Raises BadInput for wrong lengths, a missing task id, NaN among long labels, and a task without any label.
    """
    if not isinstance(y, Mapping) and not is_frame(y):
        y = np.asarray(y)
    if isinstance(y, Mapping) or is_frame(y) or y.ndim == 2:
        if task is not None:
            raise BadInput(
                "is given together with one column of labels a task", where="task", remedy="give one label a row, or no task="
            )
        return _wide(y, n, sample_weight)
    labels = tidy(np.asarray(y))
    if labels.ndim != 1:
        raise BadInput(f"has {labels.ndim} dimensions", where="y", remedy="give [rows] or [rows, tasks]")
    if len(labels) != n:
        raise BadInput(f"Found input variables with inconsistent numbers of samples: {n} rows in X, {len(labels)} in y")
    gone = _missing(labels)
    if gone.any():
        raise BadInput(
            f"Input y contains NaN, first in row {int(np.flatnonzero(gone)[0])}", remedy="drop the rows without a label"
        )
    weight = _weight(sample_weight, n)
    row = np.arange(n, dtype=np.int32)
    if task is None:
        return BoosterCells(row, np.zeros(n, dtype=np.int32), labels, weight, (0,), SINGLE, "array", n)
    names, index = _index(read_task(task, n))
    return BoosterCells(row, index.astype(np.int32), labels, weight, names, LONG, "array", n)


def _index(ids: Any) -> tuple[tuple[Any, ...], Ints]:
    try:
        names, index = np.unique(ids, return_inverse=True)
    except TypeError:  # mixed types have no order of their own
        by_text = sorted({plain(i) for i in ids}, key=lambda v: (type(v).__name__, str(v)))
        place = {name: i for i, name in enumerate(by_text)}
        return tuple(by_text), np.array([place[plain(i)] for i in ids], dtype=np.int64)
    return tuple(plain(name) for name in names), np.asarray(index).reshape(-1)


def _weight(sample_weight: Any, n: int) -> Floats | None:
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(n, float(weight))
    if weight.shape != (n,):
        raise BadInput(f"has shape {weight.shape} for {n} rows of X", where="sample_weight", remedy="give one weight a row")
    _check_weight(weight)
    return weight


def _check_weight(weight: Floats) -> None:
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise BadInput("holds negative or non-finite weights", where="sample_weight", remedy="give finite weights >= 0")
    if not (weight > 0).any():
        raise BadInput("is zero everywhere", where="sample_weight", remedy="give some rows a weight")


def _wide(y: Any, n: int, sample_weight: Any) -> BoosterCells:
    container = "dict" if isinstance(y, Mapping) else "frame" if is_frame(y) else "array"
    if isinstance(y, Mapping):
        names, columns = tuple(y), [np.asarray(v) for v in y.values()]
    elif is_frame(y):
        names, columns = tuple(y.columns), [y.iloc[:, k].to_numpy() for k in range(y.shape[1])]
    else:
        table = np.asarray(y)
        names, columns = tuple(range(table.shape[1])), [table[:, k] for k in range(table.shape[1])]
    if not columns:
        raise BadInput("holds no task", where="y", remedy="give one column of labels a task")
    rows, tasks, values, present = [], [], [], []
    for k, (name, column) in enumerate(zip(names, columns)):
        if column.shape != (n,):
            raise BadInput(
                f"Found input variables with inconsistent numbers of samples: {n} rows in X, shape {column.shape} in y",
                where=f"task {name!r}",
                remedy="give one label a row, NaN where it is missing",
            )
        known = ~_missing(column)
        if not known.any():
            raise BadInput("has no label at all", where=f"task {name!r}", remedy="drop the task")
        present.append(known)
        rows.append(np.flatnonzero(known))
        tasks.append(np.full(int(known.sum()), k))
        values.append(tidy(column[known]))
    row, task = np.concatenate(rows), np.concatenate(tasks)
    weight = None
    if sample_weight is not None:
        if isinstance(sample_weight, Mapping):
            table = np.column_stack([np.asarray(sample_weight[name], dtype=np.float64) for name in names])
        else:
            table = np.asarray(sample_weight, dtype=np.float64)
            table = np.broadcast_to(table[:, None], (n, len(names))) if table.shape == (n,) else table
        if table.shape != (n, len(names)):
            raise BadInput(
                f"has shape {table.shape} for {n} rows and {len(names)} tasks",
                where="sample_weight",
                remedy="give one weight a row or a cell",
            )
        weight = np.ascontiguousarray(table[row, task])
        _check_weight(weight)
    if len({v.dtype.kind in "biuf" for v in values}) > 1:  # words and numbers: each task keeps its own type
        values = [v.astype(object) for v in values]
    return BoosterCells(row, task, np.concatenate(values), weight, names, WIDE, container, n)


def task_index(names: Sequence[Any], ids: Any, unknown_task: str) -> Ints:
    """The position of each id among the fitted tasks; -1 for one never seen, which `unknown_task="error"` refuses."""
    place = {name: i for i, name in enumerate(names)}
    distinct, inverse = _index(ids)
    found = np.array([place.get(name, -1) for name in distinct], dtype=np.int64)
    if unknown_task == "error" and (found < 0).any():
        raise BadInput(
            f"task {distinct[int(np.flatnonzero(found < 0)[0])]!r} was not there at fit",
            where="task",
            remedy="use unknown_task='majority' or drop these rows",
        )
    return found[inverse]
