"""Which cells of a table have labels, and why the others have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.data.table.delayed import weighed
from pluribus.errors import BadInput
from pluribus.tasks import Task
from pluribus.tasks.columns import Column
from pluribus.tasks.forms import Maps, Values
from pluribus.tasks.task import check_graph

if TYPE_CHECKING:
    import pandas as pd

LABELLED, MISSING, NOT_APPLICABLE, DELAYED = range(4)
HOLES = ("labelled", "missing", "not_applicable", "delayed")
"""The codes of holes, by position."""

Flags = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Reasons:
    """Why cells may be empty, beside what tasks say of themselves.

    Parameters
    ----------
    not_applicable, delayed : mapping
        Task → rows [n] whose cell is not applicable, or whose label is still to come.
    elsewhere : ndarray of int64 or None
        Long layout: [n], the position of the task that each row belongs to.
    weights : mapping
        Task → row weights [n]; a task that is not there has none.
    times : callable or None
        Gives the rows' times [n], where late labels are weighed by them; None: late labels are left out.
    """

    not_applicable: Flags
    delayed: Flags
    elsewhere: NDArray[np.int64] | None
    weights: Mapping[str, NDArray[np.float64]]
    times: Callable[[], NDArray[np.float64]] | None


def labelled_cells(
    tasks: Sequence[Task], column_of: Callable[[Task], Column], reasons: Reasons, source: str
) -> tuple[dict[str, Cells], dict[str, NDArray[np.int8]]]:
    """The labels of all tasks.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks.
    column_of : callable
        Task → its column.
    reasons : Reasons
        Why cells may be empty.
    source : str
        The file's name, for messages.

    Returns
    -------
    dict
        Task → its labelled cells.
    dict
        Task → for every row its position in `HOLES` [n].
    """
    values: dict[str, Values] = {}
    empty: dict[str, NDArray[np.bool_]] = {}
    for task in tasks:
        values[task.name], empty[task.name] = task.record.read(task, column_of(task))
        if isinstance(found := values[task.name], Maps):  # a map without a valid place is a hole
            empty[task.name] |= ~np.concatenate([piece.there().any((1, 2)) for piece in found.pieces()])
    cells: dict[str, Cells] = {}
    codes: dict[str, NDArray[np.int8]] = {}
    by_name = {task.name: (position, task) for position, task in enumerate(tasks)}
    for position, task in (by_name[name] for name in check_graph(tasks)):  # parents first
        name, value = task.name, values[task.name]
        where = f"{source}, task {name!r}"
        code = np.where(empty[name], np.int8(HOLES.index(task.absent)), np.int8(LABELLED))
        weighs = reasons.times is not None and task.record.positive
        if name in reasons.delayed:
            pending = reasons.delayed[name]
            code[pending & (value != 1) if weighs else pending] = DELAYED
        for parent in task.after:
            before = values[parent]
            assert isinstance(before, np.ndarray)  # a parent says yes or no
            _check_step(task, by_name[parent][1], value, before, where)
            code[(before == 0) | (codes[parent] == NOT_APPLICABLE)] = NOT_APPLICABLE
        if name in reasons.not_applicable:
            code[reasons.not_applicable[name]] = NOT_APPLICABLE
        if reasons.elsewhere is not None:
            code[reasons.elsewhere != position] = NOT_APPLICABLE
        rows = np.flatnonzero(code == LABELLED)
        weight = reasons.weights.get(name)
        cells[name] = Cells(rows, value[rows], None if weight is None else weight[rows])
        if weighs and reasons.times is not None and (code == DELAYED).any():
            known = np.where(code == LABELLED, np.asarray(value), np.nan)
            cells[name] = weighed(known, code == DELAYED, reasons.times(), weight, where)
        codes[name] = code
    return {task.name: cells[task.name] for task in tasks}, {task.name: codes[task.name] for task in tasks}


def _check_step(task: Task, parent: Task, value: Values, before: NDArray[np.float64], where: str) -> None:
    """A child happens only where its parent did."""
    if not task.record.positive:
        return
    wrong = (np.asarray(value) == 1) & (before == 0)
    if wrong.any():
        what = f"is {task.classes[1]!r} in row {int(wrong.argmax()) + 1}, where {parent.name!r} is {parent.classes[0]!r}"
        remedy = f"mend the rows ({int(wrong.sum())} in all), or leave `after` out"
        raise BadInput(what, where=where, remedy=remedy)


def check_labels(tasks: Sequence[Task], cells: Mapping[str, Cells], source: str) -> None:
    """Whether each task has labels, and not all of them say the same."""
    for task in tasks:
        where = f"{source}, task {task.name!r}"
        values = cells[task.name].values
        if not len(values):
            raise BadInput("has no label that counts", where=where, remedy="check `after`, not_applicable and delayed")
        if why := task.record.varied(task, values):
            raise BadInput(why, where=where, remedy="leave it out: there is nothing to predict")


def flags(series: pd.Series, where: str) -> NDArray[np.bool_]:
    """A column of true and false [n]."""
    try:
        return np.asarray(series.fillna(0).astype(float) != 0)
    except (TypeError, ValueError) as error:
        remedy = "write 1 where it holds, 0 elsewhere"
        raise BadInput("must hold true and false, or 1 and 0", where=where, remedy=remedy) from error
