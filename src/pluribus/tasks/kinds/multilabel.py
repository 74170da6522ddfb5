"""A set of classes: binary cross-entropy of one logit a class, P(class).

    loss(z, Y) = 1/C Σ_c  −[c ∈ Y]·log σ(z_c) − [c ∉ Y]·log σ(−z_c)

A cell is a list of classes, as a list, as JSON (``["a", "b"]``) or as words parted by | (``a|b``). An empty list says "none of
them"; an empty cell is a hole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.columns import Column, word_of
from pluribus.tasks.forms import Ragged, Values
from pluribus.tasks.kinds.labels import ClassKind, probabilities
from pluribus.tasks.kinds.record import Declared, Empty, Schema, register, side_by_side

MAX_CLASSES = 1000
RARE = 1e-4
"""The logits begin at a rate of at least this, and at most 1 minus this."""


def indicators(values: Tensor, mask: Tensor | None, size: int) -> Tensor:
    """Which classes a row has [m, size], of class indices [m, L]; without a mask, −1 is no class."""
    there = values >= 0 if mask is None else mask
    places = torch.where(there, values.long(), size)  # what is no class goes to one column more, which is cut
    return values.new_zeros(len(values), size + 1, dtype=torch.float32).scatter_(1, places, 1.0)[:, :size]


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    target = indicators(values, mask, outputs.shape[1]).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, target, reduction="none").mean(1)


def _start(values: Tensor, size: int) -> Tensor:
    rates = indicators(values, None, size).double().mean(0)
    return torch.logit(rates.clamp(RARE, 1 - RARE)).float()


class Multilabel(ClassKind):
    """A list of labels in TASK, P(class) in TASK__p_CLASS."""

    phrase = "is a set of classes"

    def settle(self, task: Any, column: Column, notes: list[str]) -> Any:
        """The classes that occur, where the task names none: numbers by value, words by letter."""
        if not task.classes:
            task = task.with_(classes=self._found(column))
            notes.append(f"{task.name!r} is {self.name}: any of {len(task.classes)} classes a row")
        return task

    def _found(self, column: Column) -> tuple[str, ...]:
        distinct = {value for cell in _sets(column) if cell is not None for value in cell}
        if not distinct:
            raise BadInput("holds no class at all", where=column.where, remedy="leave it out: there is nothing to predict")
        if len(distinct) > MAX_CLASSES:
            what = f"kind {self.name} does not fit: {len(distinct)} different classes"
            raise BadInput(what, where=column.where, remedy=f"group them; at most {MAX_CLASSES} are told apart")
        words = any(isinstance(value, str) for value in distinct)
        return tuple(dict.fromkeys(word_of(value) for value in (sorted(distinct, key=str) if words else sorted(distinct))))

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        """Class indices, an ascending list a row; of an empty cell an empty list.

        Raises
        ------
        BadInput
            A cell is no list of classes, or names one that the task does not have.
        """
        position = {label: place for place, label in enumerate(task.classes)}
        cells = _sets(column)
        rows: list[list[int]] = []
        for cell in cells:
            words = [word_of(value) for value in cell or ()]
            for word in words:
                if word not in position:
                    what = f"holds {word!r}, which is none of the task's classes ({', '.join(task.classes[:12])})"
                    raise BadInput(what, where=column.where, remedy="add the class or mend the value")
            rows.append(sorted({position[word] for word in words}))
        return Ragged.of(rows), np.array([cell is None for cell in cells], bool)

    def varied(self, task: Declared, values: Values) -> str | None:
        """Whether every row has the same classes."""
        assert isinstance(values, Ragged)
        if len(np.unique(values.to_padded(), axis=0)) > 1:
            return None
        same = ", ".join(task.classes[int(i)] for i in values.row(0)) or "none"
        return f"has the same classes in all {len(values)} labels ({same})"

    def constant(self, task: Declared, values: Values, weight: NDArray[np.float64]) -> Any:
        """The share of rows that have each class [C]."""
        assert isinstance(values, Ragged)
        held = np.bincount(values.values, np.repeat(weight, values.lengths), len(task.classes))
        return held / weight.sum()

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """The labels from the threshold on, and P(class) for every class; predictions [m, C]."""
        chances = np.asarray(predictions)
        labels = [[task.classes[i] for i in np.flatnonzero(row)] for row in chances >= threshold]
        each: dict[str, Any] = {column: chances[:, i] for i, column in enumerate(self.columns(task))}
        return {task.name: labels, **each}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """P(class) [n, C]."""
        values, empty = side_by_side(self, task, columns)
        probabilities(values[~empty], columns[self.columns(task)[0]].where)
        return values, empty

    def schema(self, task: Declared) -> dict[str, Schema]:
        """A list of labels, and a probability a class."""
        label: Schema = {"type": "string", "enum": list(task.classes)}
        chance: Schema = {"type": "number", "minimum": 0, "maximum": 1}
        return {task.name: {"type": "array", "items": label}, **dict.fromkeys(self.columns(task), chance)}


def _sets(column: Column) -> list[list[Any] | None]:
    """The cells as lists of what they name; None where a cell is empty.

    Raises
    ------
    BadInput
        A cell is no list, or a list holds something that is no word or number.
    """
    import pandas as pd

    found: list[list[Any] | None] = []
    for row, cell in enumerate(column.series.to_numpy(object)):
        each: list[Any] | None
        if isinstance(cell, str):
            each = _parted(cell)
        elif isinstance(cell, list | tuple | np.ndarray):
            each = list(cell)
        else:
            each = None if pd.isna(cell) else [cell]
        for value in each or ():
            if not isinstance(value, str | bool | int | float | np.generic) or value != value:
                what = f"names {value!r:.60} in row {row + 1}, which is no class"
                raise BadInput(what, where=column.where, remedy='write ["a", "b"] or a|b; [] where no class applies')
        found.append(each)
    return found


def _parted(cell: str) -> list[Any]:
    """A JSON list, or words between |."""
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        try:
            read: list[Any] = json.loads(cell)
            return read
        except ValueError:
            pass
    return [word.strip() for word in cell.split("|") if word.strip()]


MULTILABEL = register(
    Multilabel(
        "multilabel",
        lambda size: size,
        _loss,
        torch.sigmoid,
        _start,
        ("logloss", "f1_micro", "f1_macro"),
        classes=True,
        quantity=False,
        cell="list",
        layout="value",
        form="classes",
    )
)
