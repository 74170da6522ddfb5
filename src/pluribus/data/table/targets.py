"""What a column is as a target: its kind, its classes, its values as numbers.

Kinds, where none is given, looking at the values that are there:

| values                                                              | kind       |
|---------------------------------------------------------------------|------------|
| lists of words, one for each word of the text column                | tagging    |
| booleans, or two distinct values of any type                        | binary     |
| ordered categories; 1, 2, … k and nothing else, k from 3 to 10      | ordinal    |
| at most 50 distinct words or categories                             | multiclass |
| whole numbers from 0 or 1 up to at most 1000, more than two of them | count      |
| other numbers                                                       | regression |

Never guessed: quantiles of a number (NAME:quantile) and sets of classes (NAME:multilabel).

Classes are sorted (numbers by value, words by letter); of two classes the second is the positive one. A `Task` object that
names its classes overrides both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.data.ragged import looks_like_lists
from pluribus.data.written.numbers import share_of_numbers, tidy
from pluribus.errors import BadInput, unknown
from pluribus.tasks import Task
from pluribus.tasks.columns import Column
from pluribus.tasks.kinds import KINDS, by_inference
from pluribus.tasks.task import check_graph

if TYPE_CHECKING:
    import pandas as pd


def parse_target(text: str) -> tuple[str, str | None]:
    """`NAME[:KIND]` → (name, kind or None); only a known kind after the last colon is one, so names may hold colons."""
    name, colon, kind = text.rpartition(":")
    return (name, kind) if colon and name and kind in KINDS else (text, None)


def infer_kind(column: Column, among: Collection[str] | None = None) -> tuple[str, str]:
    """(kind, reason) by the rules at the top of this file; of the kinds `among` which it is, if one of them fits."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    series, where = column.series, column.where
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        remedy = "predict a duration, or --ignore it"
        raise BadInput("a date cannot be a target", where=where, remedy=remedy)
    lists = looks_like_lists(series)
    fits: dict[str, str] = {}
    for kind in by_inference():
        if lists and kind.cell == "value":
            continue
        reason = kind.infer(column)
        if reason is not None:
            fits[kind.name] = reason
            if among is None or kind.name in among:
                return kind.name, reason
    if fits:
        return next(iter(fits.items()))
    if lists:
        raise no_list(where)
    what = f"holds {series.nunique()} different words; no kind fits"
    words = pa.array(series.dropna().astype(str).unique().tolist(), pa.string())
    share, style = share_of_numbers(words)
    if share >= 0.5:
        one = words.filter(pc.invert(style.fits(tidy(words))))[0].as_py()
        what, remedy = f"holds {one[:60]!r} among numbers; no kind fits", f"mend it, or --na {one[:60]!r} if it means missing"
        raise BadInput(what, where=where, remedy=remedy)
    raise BadInput(what, where=where, remedy="name another target, or say :multiclass")


def no_list(where: str) -> BadInput:
    """What is said of a list where a plain value belongs."""
    remedy = "write NAME:multilabel for sets of classes; tags of words need --text COLUMN, and one for each of its words"
    return BadInput("a list cannot be a target", where=where, remedy=remedy)


def task_positions(words: pd.Series, names: Sequence[str], where: str) -> NDArray[np.int64]:
    """The position of each word among `names` [n]."""
    import pandas as pd

    codes, distinct = pd.factorize(words)
    if (codes < 0).any():
        raise BadInput(f"the task is empty in row {int((codes < 0).argmax()) + 1}", where=where, remedy="fill it")
    position = {name: i for i, name in enumerate(names)}
    for word in distinct:
        if str(word) not in position:
            raise unknown("task", str(word), names, where=where)
    return np.array([position[str(word)] for word in distinct], np.int64)[codes]


def resolve(
    task: Task | None, column: Column, kind: str | None, texts: int, notes: list[str], among: Collection[str] | None = None
) -> Task:
    """The task of a column, with kind and classes filled in.

    Parameters
    ----------
    task : Task or None
        What the user declared.
    column : Column
        The column, with what stands beside it.
    kind : str or None
        What the user says it is; None: found out.
    texts : int
        How many text columns there are, for messages.
    notes : list of str
        What was found out is appended.
    among : collection of str or None
        The kinds that come into question where none is said; None: all.

    Raises
    ------
    BadInput
        The column cannot be a target, or not of that kind.
    """
    name = column.series.name if task is None else task.name
    nothing = not column.series.notna().any()
    empty = BadInput("the target has no value at all", where=column.where, remedy="name another target")
    if kind is None:
        if nothing:
            raise empty
        kind, why = infer_kind(column, among)
        if KINDS[kind].cell == "value":
            notes.append(f"{name!r} is {kind}: {why}")
    found = (task or Task(str(name), kind)).with_(kind=kind)
    record = found.record
    if record.beside == "text" and column.words is None:
        what = "labels the words of one text column, and " + (f"there are {texts}" if texts else "there is none")
        raise BadInput(what, where=column.where, remedy="name it: --text COLUMN (and --ignore other texts)")
    if record.cell == "value" and looks_like_lists(column.series):
        raise no_list(column.where)
    if nothing and record.beside != "text":
        raise empty
    said: list[str] = []
    settled: Task = record.settle(found, column, said)
    notes += said if task is None else []
    return settled


def check_inputs(tasks: Sequence[Task], inputs: Sequence[str], source: str) -> None:
    """Whether the columns that tasks read are inputs."""
    for task in tasks:
        for column in task.inputs or ():
            if column not in inputs:
                raise unknown("input column", column, inputs, where=f"{source}, task {task.name!r}, inputs")


def check_columns(tasks: Sequence[Task], source: str) -> None:
    """No two tasks may answer in one column of a prediction file: a label or value is called TASK, a chance TASK__p."""
    taken: dict[str, str] = {}
    for task in tasks:
        for column in {task.name, *task.columns}:
            if column in taken:
                what = f"tasks {taken[column]!r} and {task.name!r} would both be predicted in a column {column!r}"
                raise BadInput(what, where=source, remedy="rename one of the targets")
            taken[column] = task.name


def check_parents(tasks: Sequence[Task], source: str) -> None:
    """A task can only come after one that says yes or no."""
    check_graph(tasks)
    records = {task.name: task.record for task in tasks}
    for task in tasks:
        for parent in task.after:
            if not records[parent].positive:
                what = f"comes after {parent!r}, which is {records[parent].name}"
                remedy = "only a binary task can say whether another applies"
                raise BadInput(what, where=f"{source}, task {task.name!r}", remedy=remedy)
