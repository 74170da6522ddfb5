"""Who is who among the columns of a table: what is predicted, what is known, and what is neither."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.data.table.targets import parse_target
from pluribus.errors import BadInput, unknown
from pluribus.tasks import KINDS, Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Target:
    """A column to predict.

    Parameters
    ----------
    column : str
        Its name.
    kind : str or None
        What the user says it is; None where that is to be found out.
    declared : Task or None
        The task, where the user gave one.
    """

    column: str
    kind: str | None
    declared: Task | None = None


@dataclass(frozen=True)
class SplitRule:
    """How the user wants rows to be parted.

    Parameters
    ----------
    kind : {"random", "time", "column"} or None
        None: by time where that is known, else by the first column of dates, else at random.
    column : str or None
        The column that says train, valid or test.
    time : str or None
        The column that orders the rows.
    """

    kind: str | None
    column: str | None
    time: str | None

    @classmethod
    def of(cls, split: str | None, time: str | None) -> SplitRule:
        """From "random", "time:COL" or "column:COL", and the column of time."""
        kind, _, column = (split or "").partition(":")
        kinds = ("random", "time", "column")
        where = "split"
        if not kind:
            return cls("time" if time else None, None, time)
        if kind not in kinds:
            raise unknown("kind of split", kind, kinds, where=where)
        if kind == "random":
            if column:
                raise BadInput(f"{split!r} names a column", where=where, remedy="write random, time:COL or column:COL")
            return cls(kind, None, time)
        if not column and not (kind == "time" and time):
            raise BadInput(f"{split!r} names no column", where=where, remedy=f"write {kind}:COL")
        if kind == "column":
            return cls(kind, column, time)
        if time and column and column != time:
            raise BadInput(f"orders the rows by {column!r}, but time is {time!r}", where=where, remedy="name one column")
        return cls(kind, None, column or time)


def targets_of(frame: pd.DataFrame, tasks: Sequence[str | Task], long: bool, source: str) -> tuple[Target, ...]:
    """The targets that the user names.

    Parameters
    ----------
    frame : DataFrame
        The table.
    tasks : sequence of str or Task
        `NAME[:KIND]`, or tasks.
    long : bool
        Whether a column says which task a row belongs to.
    source : str
        The file's name, for messages.
    """
    found = []
    for task in tasks:
        if isinstance(task, Task):
            found.append(Target(task.name, task.kind, task))
            continue
        found.append(Target(*parse_target(task)))
        stem, _, suffix = task.rpartition(":")  # a name whose kind is misspelt deserves the better hint
        if found[-1].column not in frame.columns and stem in frame.columns:
            raise unknown("kind", suffix, KINDS, where=f"target {task!r}")
    if not found:
        raise BadInput("no target is named", where=source, remedy="say what to predict: --target NAME")
    if long and len(found) > 1:
        raise BadInput(
            f"a table with a task column has one target column, not {len(found)}",
            where=source,
            remedy="name one target, or leave the task column out",
        )
    return tuple(found)


def inputs_of(
    frame: pd.DataFrame,
    targets: Sequence[Target],
    named: Mapping[str, str | None],
    ignore: Iterable[str],
    time: str | None,
    flags: Mapping[str, Iterable[str]],
    source: str,
) -> tuple[str, ...]:
    """The columns that are left for inputs, once every role has its column.

    Parameters
    ----------
    frame : DataFrame
        The table.
    targets : sequence of Target
        What is predicted.
    named : mapping
        Role → its column, or None; each column has one role.
    ignore : iterable of str
        Columns that are no inputs.
    time : str or None
        The column that orders the rows; it may be an input too.
    flags : mapping
        Role → columns that say why cells of some task are empty; a target may be one.
    source : str
        The file's name, for messages.

    Raises
    ------
    BadInput
        A role names no column, or a column that has a role; no input is left.
    """
    columns = list(frame.columns)
    roles: dict[str, str] = {}

    def take(role: str, column: str | None, *, may_share: bool = False) -> None:
        if column is None:
            return
        if column not in columns:
            raise unknown(f"{role} column" if role != "target" else "target", column, columns, where=source)
        if column in roles and not may_share:
            what = f"is named as {role} and as {roles[column]}"
            raise BadInput(what, where=f"{source}, column {column!r}", remedy="give it one role")
        roles.setdefault(column, role)

    ignored = tuple(ignore)
    for target in targets:
        take("target", target.column)
    for role, column in named.items():
        take(role, column)
    for column in ignored:
        take("ignore", column, may_share=roles.get(column) == "ignore")
    take("time", time, may_share=roles.get(time or "") == "ignore")
    not_inputs = set(roles) - ({time} if time not in ignored else set())
    for role, flagged in flags.items():
        for column in flagged:
            take(role, column, may_share=roles.get(column) in ("target", "ignore", "weight", *flags))
            not_inputs.add(column)
    inputs = tuple(column for column in columns if column not in not_inputs)
    if not inputs:
        raise BadInput("has no input column left", where=source, remedy="ignore fewer columns")
    return inputs


def check_values(
    frame: pd.DataFrame, ignore: Iterable[str], id: str | None, complete: Mapping[str, str | None], source: str
) -> None:
    """Whether the cells of columns with a role can be what the role says.

    Parameters
    ----------
    frame : DataFrame
        The table.
    ignore : iterable of str
        Columns that may hold anything.
    id : str or None
        Column of distinct keys.
    complete : mapping
        Role → a column without an empty cell, or None.
    source : str
        The file's name, for messages.
    """
    import pandas as pd

    def at(column: str) -> str:
        return f"{source}, column {column!r}"

    ignored = set(ignore)
    for column in frame.columns:
        if column in ignored:
            continue
        series = frame[column]
        if pd.api.types.is_float_dtype(series.dtype):
            bad = _infinite(series)
            if bad.any():
                what = f"holds an infinite number in row {int(bad.argmax()) + 1} ({int(bad.sum())} in all)"
                raise BadInput(what, where=at(column), remedy="leave the cell empty, --na inf (or -inf), or --ignore the column")
        elif pd.api.types.is_complex_dtype(series.dtype) or pd.api.types.is_timedelta64_dtype(series.dtype):
            what = f"holds {series.dtype}, which is not supported"
            raise BadInput(what, where=at(column), remedy="write it as a number, or --ignore the column")
    if id is not None:
        series = frame[id]
        if series.isna().any():
            row = int(series.isna().to_numpy().argmax()) + 1
            raise BadInput(f"the id is empty in row {row}", where=at(id), remedy="fill it, or drop --id")
        twice = series.duplicated().to_numpy()
        if twice.any():
            value = series[int(twice.argmax())]
            what = f"ids must be distinct, but {str(value)!r} stands in {int((series == value).sum())} rows"
            raise BadInput(what, where=at(id), remedy="name another column, or use --group for it")
    for role, name in complete.items():
        if name is not None and frame[name].isna().any():
            row = int(frame[name].isna().to_numpy().argmax()) + 1
            raise BadInput(f"the {role} is empty in row {row}", where=at(name), remedy="fill it, or drop the row")


def _infinite(series: pd.Series) -> NDArray[np.bool_]:
    return np.asarray(np.isinf(series.to_numpy(np.float64, na_value=np.nan)))
