"""Two classes: cross-entropy of one logit, P(positive)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.columns import Column, numbers_of
from pluribus.tasks.forms import Values
from pluribus.tasks.kinds import constants
from pluribus.tasks.kinds.labels import ClassKind, probabilities
from pluribus.tasks.kinds.record import Declared, Empty, Schema, register


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], values.to(outputs.dtype), reduction="none")


def _start(values: Tensor, _: int) -> Tensor:
    rate = values.double().mean().clamp(1e-4, 1 - 1e-4)
    logit: Tensor = torch.logit(rate)
    return logit.float()[None]


class Binary(ClassKind):
    """A label in TASK, P(positive) in TASK__p."""

    def check(self, task: Declared) -> None:
        """Two classes, where any are named."""
        if task.classes and len(task.classes) != 2:
            raise BadInput(f"a binary task has 2 classes, not {len(task.classes)}", where=f"task {task.name!r}")

    def shape(self, task: Declared) -> tuple[int, ...]:
        """()"""
        return ()

    def infer(self, column: Column) -> str | None:
        """Booleans, or two distinct values of any type."""
        import pandas as pd

        values = column.series.dropna()
        if pd.api.types.is_bool_dtype(values.dtype):
            return "booleans"
        return "two distinct values" if values.nunique() <= 2 else None

    def settle(self, task: Any, column: Column, notes: list[str]) -> Any:
        """The classes; of two the second is the positive one."""
        if task.classes:
            return task
        task = super().settle(task, column, notes)
        notes.append(f"{task.name!r}: {task.classes[1]!r} is the positive class, {task.classes[0]!r} the negative")
        return task

    def _checked(self, classes: tuple[str, ...], column: Column) -> tuple[str, ...]:
        if len(classes) > 2:
            shown = ", ".join(classes[:4]) + (", …" if len(classes) > 4 else "")
            what = f"kind binary does not fit: {len(classes)} distinct values ({shown})"
            raise BadInput(what, where=column.where, remedy="use multiclass, ordinal, count or regression")
        return super()._checked(classes, column)

    def constant(self, task: Declared, values: Values, weight: NDArray[np.float64]) -> Any:
        """The share of the positive class."""
        return constants.mean(np.asarray(values, np.float64), weight)

    def found_in(self, name: str, columns: Collection[str]) -> dict[str, Any] | None:
        """Nothing but that TASK__p is there."""
        return {} if f"{name}__p" in columns else None

    def columns(self, task: Declared) -> tuple[str, ...]:
        """TASK__p"""
        return (f"{task.name}__p",)

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """The label, positive from the threshold on, and P(positive); predictions [m]."""
        positive = predictions >= threshold
        return {task.name: np.asarray(task.classes)[positive.astype(int)], self.columns(task)[0]: predictions}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """P(positive) [n]."""
        column = columns[self.columns(task)[0]]
        values = numbers_of(column, self.name)
        empty = ~np.isfinite(values)
        probabilities(values[~empty], column.where)
        return values, empty

    def schema(self, task: Declared) -> dict[str, Schema]:
        """A label and a probability."""
        label: Schema = {"type": "string", "enum": list(task.classes)}
        return {task.name: label, self.columns(task)[0]: {"type": "number", "minimum": 0, "maximum": 1}}


BINARY = register(
    Binary(
        "binary",
        lambda _: 1,
        _loss,
        lambda z: torch.sigmoid(z[:, 0]),
        _start,
        ("auc", "logloss"),
        classes=True,
        positive=True,
        quantity=False,
        likelihood="bernoulli",
        form="p",
    )
)
