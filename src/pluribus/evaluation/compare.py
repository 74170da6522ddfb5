"""The verdict from prediction files alone, whoever made them.

A prediction file (Parquet or CSV, or a DataFrame) has the id column and, per task, the columns that its kind writes: `TASK` =
value (regression, count), `TASK__p` = P(positive) (binary), `TASK__p_CLASS` for every class (multiclass, ordinal, multilabel),
`TASK__qLEVEL` for every level (quantile), `TASK` = a list of tags, one a word (tagging) or of items, the best first (next_item);
lists are JSON in CSV. The truth has the id and a column `TASK` of labels, empty where there is none. Several files of one side
are several seeds.

The constant predictor is fitted on the truth itself, since training labels are not here: it is a little too good, so the
tolerance is a little too small.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.ingest import read_table
from pluribus.data.ragged import looks_like_lists
from pluribus.data.tags import tag_counts
from pluribus.errors import BadInput, unknown
from pluribus.evaluation.metrics import Array
from pluribus.evaluation.skill import best_constant
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.tasks import KINDS, Kind, Metric, Task
from pluribus.tasks import metric as metric_named
from pluribus.tasks.columns import Column, word_of
from pluribus.tasks.forms import Values
from pluribus.tasks.metrics import Additive, Terms

if TYPE_CHECKING:
    import pandas as pd

    Frame = str | os.PathLike[str] | pd.DataFrame

NAMES = ("the challenger", "the reference")


def compare(
    truth: Frame,
    reference: Frame | Sequence[Frame],
    challenger: Frame | Sequence[Frame],
    *,
    id: str = "id",
    tasks: Sequence[str] = (),
    kind: Mapping[str, str] | None = None,
    metric: Mapping[str, str] | None = None,
    weight: str | None = None,
    group: str | None = None,
    time: str | None = None,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = NAMES,
) -> Verdict:
    """Judge prediction files of a challenger against those of a reference.

    Parameters
    ----------
    truth, reference, challenger: Parquet or CSV paths, or DataFrames; several per side are seeds.
    id: the column that names rows; unique in every file.
    tasks: what to judge; default: every truth column that both sides predict.
    kind: task → kind, where the columns do not tell (count, ordinal).
    metric: task → metric judged, where it is not the kind's own.
    weight, group, time: columns of the truth: row weights; the resampling unit; or a date, whose day is the unit.
    level, repeats, seed: of the intervals and the bootstrap.
    names: what to call challenger and reference.

    Raises
    ------
    BadInput: a file that cannot be read, double or missing ids, rows without a prediction, probabilities outside [0, 1], …
    """
    if group and time:
        raise BadInput("names two resampling units", where="group, time", remedy="give one of them")
    table = _ComparedFile(truth, id, "truth")
    sides = [
        [_ComparedFile(file, id, f"{side} {i + 1}" if len(files) > 1 else side) for i, file in enumerate(files)]
        for side, files in (("reference", _several(reference)), ("challenger", _several(challenger)))
    ]
    for column in filter(None, (weight, group, time)):
        table.need(column)
    notes: list[str] = []
    taken = set(filter(None, (id, weight, group, time)))
    judged = _tasks(table, sides, taken, tasks, dict(kind or {}), dict(metric or {}), notes)
    base = table.numbers(weight) if weight else None
    if base is not None and not (np.isfinite(base).all() and (base >= 0).all()):
        raise BadInput("a weight is missing, negative or infinite", where=f"{table.name}, column {weight!r}")
    units, unit = _units(table, group, time)
    codes = units if group else None
    cells: dict[str, TaskTruth] = {}
    for task in judged:
        target, empty = _target(table, task)
        rows = np.flatnonzero(~empty)
        if not len(rows):
            raise BadInput("has no labels", where=f"{table.name}, column {task.name!r}")
        if task.main_metric.grouped and codes is None:
            where = f"metric {task.main_metric.name!r} of task {task.name!r}"
            raise BadInput("needs a group", where=where, remedy="name the column of groups")
        cells[task.name] = TaskTruth(
            rows, target[rows], None if base is None else base[rows], None if codes is None else np.asarray(codes)[rows]
        )
    predictions = [
        {
            task.name: [_kept(task, _prediction(file, task, table, cells[task.name].rows), cells[task.name]) for file in side]
            for task in judged
        }
        for side in sides
    ]
    for side in sides:
        extra = max(len(file.keys) - len(table.keys) for file in side)
        if extra > 0:
            notes.append(f"{side[0].name} holds {extra} rows that the truth does not; they are left out")
    notes.append("the constant predictor is fitted on the truth itself, since training labels are not given")
    constants = {task.name: best_constant(task, cells[task.name].target, cells[task.name].weight) for task in judged}
    return judge(
        judged,
        cells,
        units,
        predictions[1],
        {names[1]: predictions[0]},
        constants=constants,
        challenger_name=names[0],
        unit=unit,
        level=level,
        repeats=repeats,
        seed=seed,
        notes=notes,
    )


def _kept(task: Task, prediction: Any, cells: TaskTruth) -> Any:
    """The terms of lists and maps, of which no more than one file's are held at a time; other predictions as they are."""
    metric = task.main_metric
    if task.record.per == "value" or not isinstance(metric, Additive):
        return prediction
    try:
        return Terms.of((metric,), prediction, cells.target)
    except BadInput as error:
        raise BadInput(error.what, where=f"task {task.name!r}, {error.where}", remedy=error.remedy) from error


class _ComparedFile:
    """A file or frame with its ids checked; `keys` are the ids as text."""

    def __init__(self, source: Frame, id: str, name: str) -> None:
        import pandas as pd

        self.name = name if isinstance(source, pd.DataFrame) else str(source)
        self.frame = source if isinstance(source, pd.DataFrame) else read_table(Path(source), text=(id,))
        doubles = self.frame.columns[self.frame.columns.duplicated()]
        if len(doubles):
            raise BadInput(f"names the column {doubles[0]!r} twice", where=self.name, remedy="rename one")
        if not len(self.frame):
            raise BadInput("has no rows", where=self.name)
        self.need(id)
        column = self.frame[id]
        if column.isna().any():
            raise BadInput("an id is missing", where=f"{self.name}, column {id!r}", remedy="give every row an id")
        self.keys = pd.Index(labels(column))
        if self.keys.has_duplicates:
            double = self.keys[self.keys.duplicated()][0]
            raise BadInput(f"the id {double!r} stands twice", where=f"{self.name}, column {id!r}", remedy="keep one row per id")

    def need(self, column: str) -> None:
        if column not in self.frame.columns:
            raise unknown("column", column, map(str, self.frame.columns), where=self.name)

    def numbers(self, column: str) -> Array:
        import pandas as pd

        self.need(column)
        values = self.frame[column]
        if pd.api.types.is_datetime64_any_dtype(values):
            raise BadInput("holds dates, not numbers", where=f"{self.name}, column {column!r}")
        try:
            return np.asarray(pd.to_numeric(values).to_numpy(dtype=float, na_value=np.nan), float)
        except (TypeError, ValueError) as error:
            raise BadInput("is not numeric", where=f"{self.name}, column {column!r}", remedy="check the column") from error


def labels(column: pd.Series[Any]) -> list[str]:
    """Values as text, so that 1, 1.0, True and "1" of different files are one label; missing values become "nan"."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column):
        return [str(int(v)) if not pd.isna(v) else "nan" for v in column]
    if pd.api.types.is_float_dtype(column):
        return [str(int(v)) if np.isfinite(v) and v == int(v) else str(v) for v in column.astype(float)]
    return ["nan" if pd.isna(v) else str(int(v)) if isinstance(v, (bool, np.bool_)) else str(v) for v in column]


def _several(files: Frame | Sequence[Frame]) -> list[Frame]:
    import pandas as pd

    many = [files] if isinstance(files, (str, os.PathLike, pd.DataFrame)) else list(files)
    if not many:
        raise BadInput("there is no file to compare")
    return many


def _form(name: str, frame: pd.DataFrame, truth: pd.DataFrame) -> tuple[Kind, dict[str, Any]] | None:
    """The kind whose predictions of a task a file holds, the first of its form, and what the columns say of the task.

    Columns of probabilities and quantiles go before TASK: that may hold the labels beside them. Lists in TASK are predictions of
    kinds that answer with lists, numbers those of quantities. Where either holds lists of labels, a kind of lists goes first.
    """
    columns = [str(column) for column in frame.columns]
    lists = name in columns and looks_like_lists(frame[name])
    found = [(kind, fields) for kind in KINDS.values() if (fields := kind.found_in(name, columns)) is not None]
    apart = [(kind, fields) for kind, fields in found if _apart(kind)]
    if apart:
        form = apart[0][0].form
        alike = [each for each in apart if each[0].form == form]
        labelled = lists or looks_like_lists(truth[name])
        return next((each for each in alike if labelled and each[0].cell == "list"), alike[0])
    plain = [(kind, fields) for kind, fields in found if (kind.per == "list" if lists else kind.quantity)]
    return plain[0] if plain else None


def _apart(kind: Kind) -> bool:
    """Whether a kind's predictions stand in columns of their own, not in TASK."""
    return kind.columns(Task("t", kind.name, ("a", "b") if kind.classes else ())) != ("t",)


def _tasks(
    truth: _ComparedFile,
    sides: Sequence[Sequence[_ComparedFile]],
    taken: set[str],
    named: Sequence[str],
    kinds: dict[str, str],
    metric: dict[str, str],
    notes: list[str],
) -> list[Task]:
    files = [file for side in sides for file in side]
    candidates = [str(c) for c in truth.frame.columns if str(c) not in taken]
    for name in (*named, *kinds, *metric):
        if name not in candidates:
            raise unknown("task", name, candidates, where=truth.name)
    explicit = {*named, *kinds, *metric}
    found = []
    for name in named or candidates:
        forms = {file.name: _form(name, file.frame, truth.frame) for file in files}
        absent = [file for file, form in forms.items() if form is None]
        if len(absent) == len(files) and name not in explicit:
            continue
        if absent:
            remedy = f"add {name}, {name}__p or {name}__p_CLASS, or choose tasks without it"
            raise BadInput(f"lacks predictions of task {name!r}", where=absent[0], remedy=remedy)
        first = forms[files[0].name]
        assert first is not None
        record, fields = first
        for file, other in forms.items():
            if other is None or other[0].form != record.form or _sets(other[1]) != _sets(fields):
                what = f"predicts task {name!r} in another form than {files[0].name}"
                raise BadInput(what, where=file, remedy="use the same columns in all files")
        if not _apart(record) and record.cell == "value" and name not in explicit:
            try:
                truth.numbers(name)
            except BadInput:
                notes.append(f"column {name!r} of the truth is not numeric: not judged")
                continue
            if all(_is_truth(file, truth, name) for file in files):
                notes.append(f"column {name!r} is the same in all files: taken as a label or an input, not as a prediction")
                continue
        if name in kinds:
            said = KINDS.named(kinds[name], where=f"task {name!r}")
            if said.form != record.form and (_apart(said) or _apart(record)):
                what = f"predictions of task {name!r} are not those of a {said.name} task"
                raise BadInput(what, where=files[0].name, remedy="correct the kind or the columns")
            record, fields = said, said.found_in(name, list(map(str, files[0].frame.columns))) or {}
        judged: tuple[Metric, ...] = (metric_named(metric[name], where=f"task {name!r}"),) if name in metric else ()
        found.append(_settled(Task(name, record.name, metrics=judged, **fields), truth, files, notes))
    if not found:
        raise BadInput(
            "no column of the truth is predicted by the files",
            where=truth.name,
            remedy="name prediction columns TASK, TASK__p or TASK__p_CLASS",
        )
    return found


def _sets(fields: Mapping[str, Any]) -> dict[str, set[Any]]:
    """What columns say of a task, without the order of the columns."""
    return {name: set(value) for name, value in fields.items()}


def _settled(task: Task, truth: _ComparedFile, files: Sequence[_ComparedFile], notes: list[str]) -> Task:
    """The task with the classes that its columns do not tell, from the labels (of lists also from the predictions)."""
    import pandas as pd

    name, record = task.name, task.record
    if record.positive:
        return task.with_(classes=_two(truth, name, notes))
    if record.classes and not task.classes:
        whole = pd.concat([table.frame[name] for table in (truth, *files)], ignore_index=True)
        settled: Task = record.settle(task, _beside(task, Column(whole, f"{truth.name}, column {name!r}")), [])
        return settled
    if record.ordered and any(not _is_number(label) for label in task.classes):
        notes.append(f"classes of {name} are ordered as in {files[0].name}: {' < '.join(task.classes)}")
    return task


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _beside(task: Task, column: Column, truth: Column | None = None) -> Column:
    """The column with what its kind needs beside it: how many words a row has, as many as its true list, or the true items."""
    true = column if truth is None else truth
    if task.record.beside == "text":
        return replace(column, words=tag_counts(true.series, true.where))
    if task.record.beside == "items":
        return replace(column, keys={key: i for i, key in enumerate(sorted(map(word_of, true.series.dropna().unique())))})
    return column


def _is_truth(file: _ComparedFile, truth: _ComparedFile, name: str) -> bool:
    """Whether a column repeats the truth, wherever both have a value."""
    mine = dict(zip(file.keys, file.frame[name]))
    pairs = [(mine[key], value) for key, value in zip(truth.keys, truth.frame[name]) if key in mine and value == value]
    return bool(pairs) and all(a == b for a, b in pairs)


def _two(truth: _ComparedFile, name: str, notes: list[str]) -> tuple[str, str]:
    """The classes of a binary truth: 0 and 1, or two words of which the later in the alphabet is the positive one."""
    seen = sorted({label for label, empty in zip(labels(truth.frame[name]), truth.frame[name].isna()) if not empty})
    if set(seen) <= {"0", "1"}:
        return "0", "1"
    if len(seen) != 2:
        raise BadInput(
            f"has {len(seen)} classes, and {name}__p speaks of two",
            where=f"{truth.name}, column {name!r}",
            remedy="give a probability per class, or mend the labels",
        )
    notes.append(f"in {name}, {seen[1]!r} counts as positive and {seen[0]!r} as negative")
    return seen[0], seen[1]


def _target(truth: _ComparedFile, task: Task) -> tuple[Values, NDArray[np.bool_]]:
    """The labels [n], and which rows have none [n]."""
    where = f"{truth.name}, column {task.name!r}"
    record = task.record
    if record.quantity:
        values = truth.numbers(task.name)
        if np.isinf(values).any():
            raise BadInput("holds an infinite number", where=where, remedy="mend it or leave it empty")
        if record.likelihood == "poisson" and np.nanmin(values, initial=0) < 0:
            raise BadInput("holds a negative count", where=where)
        return values, np.isnan(values)
    column = Column(truth.frame[task.name], where)
    if record.cell == "value" and task.classes:
        words = _words(column.series)
        strange = words[words.notna() & ~words.isin(task.classes)]
        if len(strange):
            what = f"holds the class {strange.iloc[0]!r}, for which there is no prediction column"
            raise BadInput(what, where=where, remedy=f"known classes: {', '.join(task.classes[:12])}")
        column = replace(column, series=words)
    return record.read(task, _beside(task, column))


def _words(column: pd.Series[Any]) -> pd.Series[Any]:
    """Labels as text, None where empty."""
    import pandas as pd

    return pd.Series([None if empty else label for label, empty in zip(labels(column), column.isna())], dtype=object)


def _units(truth: _ComparedFile, group: str | None, time: str | None) -> tuple[Any, str]:
    import pandas as pd

    column = group or time
    if column is None:
        return len(truth.keys), "row"
    values, where = truth.frame[column], f"{truth.name}, column {column!r}"
    if values.isna().any():
        raise BadInput("a resampling unit is missing", where=where, remedy="give every row one")
    if group:
        return np.asarray(labels(values)), group
    try:
        days = pd.to_datetime(values, format=None if pd.api.types.is_datetime64_any_dtype(values) else "ISO8601")
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput("does not hold dates", where=where, remedy="write them as 2024-01-31, or use --group") from error
    return days.dt.strftime("%Y-%m-%d").to_numpy(str), "day"


def _prediction(file: _ComparedFile, task: Task, truth: _ComparedFile, rows: Any) -> Any:
    """The predictions of the truth's labelled rows, checked, in the kind's form."""
    import pandas as pd

    at = file.keys.get_indexer(truth.keys[rows])
    if (at < 0).any():
        lost = truth.keys[rows][at < 0]
        rows_lost = f"{len(lost)} row{'s' * (len(lost) > 1)}"
        raise BadInput(
            f"lacks {rows_lost} that the truth labels for task {task.name!r}, first id {lost[0]!r}",
            where=file.name,
            remedy="predict every labelled row",
        )
    record = task.record
    true = Column(truth.frame[task.name].iloc[rows], f"{truth.name}, column {task.name!r}")
    columns = {}
    for name in task.columns:
        where = f"{file.name}, column {name!r}"
        lists = looks_like_lists(file.frame[name])
        series = file.frame[name].iloc[at] if lists else pd.Series(file.numbers(name)[at])
        columns[name] = _beside(task, Column(series, where), true)
    where = columns[task.columns[0]].where
    values, bad = record.parse(task, columns)
    if bad.any():
        first = truth.keys[rows][bad][0]
        raise BadInput(
            f"{int(bad.sum())} predictions are missing or infinite, first id {first!r}",
            where=where,
            remedy="predict every labelled row",
        )
    if record.likelihood == "categorical" and np.abs(values.sum(1) - 1).max() > 1e-3:
        raise BadInput("probabilities of a row's classes do not sum to 1", where=where, remedy="write every class")
    return values
