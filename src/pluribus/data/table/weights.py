"""How much each labelled cell counts: columns of row weights, for all tasks or for one, and weights of classes.

A cell's weight is that of its row, times that of its class. Losses, boosters and metrics see the product, as `Cells.weight`.

The words are `COL` (of all tasks) and `TASK=COL` (of one task, in place of the other). Of classes they are `balanced`,
`TASK=balanced`, `CLASS=x` and `TASK:CLASS=x`. Balanced: class k of K counts n / (K · n_k), where n_k is the weight of its
labelled cells and n that of all, so that each class has the same in all (as in King & Zeng, "Logistic Regression in Rare Events
Data", 2001, with equal shares for the population's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.errors import BadInput, unknown
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

BALANCED = "balanced"
_REMEDY = "write balanced, TASK=balanced, CLASS=x or TASK:CLASS=x"


@dataclass(frozen=True)
class CellWeights:
    """What the user says of weights.

    Parameters
    ----------
    common : str or None
        The column of row weights of all tasks.
    own : dict
        Task → its column, in place of the common one.
    classes : tuple of str
        The words about classes.
    """

    common: str | None = None
    own: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, weight: str | Sequence[str] | None, class_weights: str | Sequence[str], columns: Sequence[str], source: str
    ) -> CellWeights:
        """From the words; which of them are columns only the table knows.

        Raises
        ------
        BadInput
            A word names no column, or a task twice.
        """
        common: str | None = None
        own: dict[str, str] = {}
        for word in (weight,) if isinstance(weight, str) else weight or ():
            task, equals, column = word.rpartition("=")
            if word in columns or not equals:
                if common is not None and common != word:
                    raise BadInput(f"is {common!r} and {word!r} for all tasks", where="weight", remedy="name one, or TASK=COL")
                common = word
            elif own.setdefault(task, column) != column:
                raise BadInput(f"task {task!r} is named twice", where="weight", remedy="keep one")
        for column in (*([common] if common is not None else []), *own.values()):
            if column not in columns:
                raise unknown("weight column", column, columns, where=source)
        return cls(common, own, (class_weights,) if isinstance(class_weights, str) else tuple(class_weights))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of row weights."""
        return tuple(dict.fromkeys([*([self.common] if self.common is not None else []), *self.own.values()]))

    def check(self, tasks: Sequence[Task], frame: pd.DataFrame, source: str) -> None:
        """Whether tasks and classes exist, and the columns hold weights.

        Raises
        ------
        BadInput
            They do not.
        """
        import pandas as pd

        names = [task.name for task in tasks]
        for name in self.own:
            if name not in names:
                raise unknown("task", name, names, where="weight")
        for column in self.columns:
            series = frame[column]
            good = pd.api.types.is_numeric_dtype(series) and not (series.isna().any() or (series < 0).any()) and series.sum() > 0
            if not good or np.isinf(series.to_numpy(np.float64)).any():
                what = "weights must be numbers, present in every row, none negative and not all 0"
                raise BadInput(what, where=f"{source}, column {column!r}", remedy="mend the column, or drop --weight")
        for task in tasks:
            self._factors(task, np.ones(len(task.classes)))
        self._check_words(tasks)

    def rows(self, task: str, frame: pd.DataFrame) -> NDArray[np.float64] | None:
        """A task's row weights [n]; None where all are 1."""
        column = self.own.get(task, self.common)
        return None if column is None else frame[column].to_numpy(np.float64)

    def of_cells(self, task: Task, cells: Cells, where: str) -> Cells:
        """A task's cells with the weights of their classes.

        Raises
        ------
        BadInput
            All cells, or all of one class, have the weight 0: that class could not be learnt.
        """
        if not _indexed(task) or not isinstance(cells.values, np.ndarray):
            if cells.weight is not None and len(cells) and not cells.weight.any():
                raise BadInput(
                    "all labelled cells have the weight 0", where=where, remedy="mend the weights, or leave the task out"
                )
            return cells
        index = cells.values.astype(np.int64)
        rows = np.ones(len(cells)) if cells.weight is None else cells.weight
        total = np.bincount(index, rows, len(task.classes)).astype(np.float64)
        lost = (total == 0) & (np.bincount(index, minlength=len(task.classes)) > 0)
        if lost.any():
            name = task.classes[int(lost.argmax())]
            what = f"all cells of class {name!r} have the weight 0: it could not be learnt"
            raise BadInput(what, where=where, remedy="mend the weights, or leave the rows out")
        factors = self._factors(task, total)
        return cells if factors is None else replace(cells, weight=rows * factors[index])

    def changes(self, task: Task) -> bool:
        """Whether a task's cells have other weights than the common ones."""
        return task.name in self.own or self._factors(task, np.ones(len(task.classes))) is not None

    def _factors(self, task: Task, total: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """What each class of a task counts [C]; None where nobody speaks of them."""
        found = np.ones(len(task.classes))
        spoken = False
        named: dict[int, float] = {}
        for word in self.classes:
            left, _, right = word.rpartition("=")
            if word == BALANCED or (right == BALANCED and left == task.name):
                if not _indexed(task):
                    if word == BALANCED:
                        continue
                    raise BadInput(f"{task.name!r} has no classes of one cell", where="class weights", remedy="leave it out")
                spoken = True
                there = total > 0
                found[there] = total.sum() / (there.sum() * total[there])
            elif right != BALANCED and (place := _class(task, left)) is not None:
                named[place] = _number(word, right)
        for place, value in named.items():
            found[place] = value
        return found if spoken or named else None

    def _check_words(self, tasks: Sequence[Task]) -> None:
        """Whether each word speaks of a task or class that exists."""
        names = [task.name for task in tasks]
        known = [label for task in tasks if _indexed(task) for label in task.classes]
        for word in self.classes:
            left, equals, right = word.rpartition("=")
            if word == BALANCED:
                if not known:
                    raise BadInput("no target has classes", where="class weights", remedy="leave them out")
            elif not equals or not left or not right:
                raise BadInput(f"{word!r} gives no class a weight", where="class weights", remedy=_REMEDY)
            elif right == BALANCED:
                if left not in names:
                    raise unknown("task", left, names, where="class weights")
            else:
                _number(word, right)
                if all(_class(task, left) is None for task in tasks):
                    raise unknown("class", left, known, where="class weights")


def _indexed(task: Task) -> bool:
    """Whether a cell is one of the task's classes."""
    return task.record.cell == "value" and bool(task.classes)


def _class(task: Task, words: str) -> int | None:
    """The place of the class that `CLASS` or `TASK:CLASS` names."""
    if not _indexed(task):
        return None
    for label in (words, words.removeprefix(f"{task.name}:")):
        if label in task.classes:
            return task.classes.index(label)
    return None


def _number(word: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{word!r} gives no class a weight", where="class weights", remedy=_REMEDY) from None
    if not (math.isfinite(value) and value > 0):
        what = f"{word!r}: a class of this weight could not be learnt"
        raise BadInput(what, where="class weights", remedy="give a positive number, or leave the rows of the class out")
    return value


def row_weights(weights: CellWeights, tasks: Sequence[Task], frame: pd.DataFrame) -> Mapping[str, NDArray[np.float64]]:
    """Task → its row weights [n]; without the tasks whose rows all count 1."""
    found = {task.name: weights.rows(task.name, frame) for task in tasks}
    return {name: rows for name, rows in found.items() if rows is not None}
