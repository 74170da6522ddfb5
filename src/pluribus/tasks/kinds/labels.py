"""What kinds with classes share: finding the classes of a column, reading and writing labels, frequencies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.columns import Column, word_of
from pluribus.tasks.forms import Values
from pluribus.tasks.kinds import constants
from pluribus.tasks.kinds.record import Declared, Empty, Kind, Schema, side_by_side

MAX_CLASSES = 50
"""More distinct words than this are not taken for classes unless the kind says so."""


def frequencies(values: Tensor, size: int) -> Tensor:
    """The share of each class [size], none of them 0."""
    counts = torch.bincount(values.long(), minlength=size).double() + 1e-2
    shares: Tensor = counts / counts.sum()
    return shares


class ClassKind(Kind):
    """A kind whose values are class indices: a label in TASK, P(class) in TASK__p_CLASS."""

    phrase = "is a class"

    def shape(self, task: Declared) -> tuple[int, ...]:
        """(C,)"""
        return (len(task.classes),)

    def settle(self, task: Any, column: Column, notes: list[str]) -> Any:
        """The classes, where the task names none."""
        return task if task.classes else task.with_(classes=self.find(column))

    def find(self, column: Column) -> tuple[str, ...]:
        """The distinct values as class labels, in order: numbers by value, words by letter, ordered categories as they are.

        Raises
        ------
        BadInput
            There is one class only, or there are more than the kind takes.
        """
        import pandas as pd

        series = column.series
        if isinstance(series.dtype, pd.CategoricalDtype):
            used = set(series.dropna().unique())
            if series.dtype.ordered:
                return self._checked(tuple(word_of(c) for c in series.cat.categories if c in used), column)
            distinct = sorted(used, key=str)
        else:
            distinct = series.dropna().unique().tolist()
        words = any(isinstance(value, str) for value in distinct)
        self._check_order(words, column)
        ordered = sorted(distinct, key=str) if words else sorted(distinct)
        return self._checked(tuple(word_of(value) for value in ordered), column)

    def _check_order(self, words: bool, column: Column) -> None:
        """Whether the order of the classes is known, where the kind needs one."""

    def _checked(self, classes: tuple[str, ...], column: Column) -> tuple[str, ...]:
        if len(classes) == 1:
            what = f"has one class only ({classes[0]!r})"
            raise BadInput(what, where=column.where, remedy="leave it out: there is nothing to predict")
        if len(classes) > 1000:
            what = f"kind {self.name} does not fit: {len(classes)} distinct values"
            raise BadInput(what, where=column.where, remedy="use regression, or group the classes")
        return classes

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        """Class indices [n], and which rows are empty.

        Raises
        ------
        BadInput
            A value is none of the task's classes.
        """
        import pandas as pd

        codes, distinct = pd.factorize(column.series)
        position = {label: i for i, label in enumerate(task.classes)}
        table = np.full(len(distinct) + 1, np.nan)
        for i, value in enumerate(distinct):
            if word_of(value) not in position:
                what = f"holds {word_of(value)!r}, which is none of the task's classes ({', '.join(task.classes[:12])})"
                raise BadInput(what, where=column.where, remedy="add the class or mend the value")
            table[i] = position[word_of(value)]
        values = np.asarray(table[codes])
        return values, np.isnan(values)

    def constant(self, task: Declared, values: Values, weight: NDArray[np.float64]) -> Any:
        """The share of each class [C]."""
        return constants.shares(np.asarray(values, np.float64), weight, len(task.classes))

    def found_in(self, name: str, columns: Collection[str]) -> dict[str, Any] | None:
        """The classes that TASK__p_CLASS name."""
        start = f"{name}__p_"
        classes = tuple(column.removeprefix(start) for column in columns if column.startswith(start))
        return {"classes": classes} if classes else None

    def columns(self, task: Declared) -> tuple[str, ...]:
        """TASK__p_CLASS for every class; TASK where the classes are not known."""
        return tuple(f"{task.name}__p_{c}" for c in task.classes) or (task.name,)

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """The likeliest label, and P(class) for every class; predictions [m, C]."""
        if not task.classes:
            return {task.name: predictions}
        labels = np.asarray(task.classes)[predictions.argmax(1)]
        return {task.name: labels, **{column: predictions[:, i] for i, column in enumerate(self.columns(task))}}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """P(class) [n, C]."""
        values, empty = side_by_side(self, task, columns)
        probabilities(values[~empty], columns[self.columns(task)[0]].where)
        return values, empty

    def schema(self, task: Declared) -> dict[str, Schema]:
        """A label, and a probability a class."""
        chance: Schema = {"type": "number", "minimum": 0, "maximum": 1}
        label: Schema = {"type": "string", "enum": list(task.classes)}
        return {task.name: label, **dict.fromkeys(self.columns(task), chance)}


def probabilities(values: NDArray[np.float64], where: str) -> None:
    """Refuse what is not in [0, 1]."""
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise BadInput("a probability is not in [0, 1]", where=where, remedy="write probabilities, not scores")
