"""Classes from low to high: cumulative logits, P(class) (McCullagh, "Regression Models for Ordinal Data", 1980).

logit P(y > k) = z_0 − Σ_{1 ≤ j ≤ k} softplus(z_j)        k = 0 … C − 2
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.columns import Column
from pluribus.tasks.kinds.count import rating_reason
from pluribus.tasks.kinds.labels import ClassKind, frequencies
from pluribus.tasks.kinds.record import register


def _cumulative(outputs: Tensor) -> Tensor:
    """Logits of P(y > k), k = 0 … C−2: decreasing in k by construction, so that no class gets a negative probability."""
    first, steps = outputs[:, :1], F.softplus(outputs[:, 1:])
    return torch.cat((first, first - steps.cumsum(1)), 1)


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """−log P(y): with a = logit P(y > k−1), b = logit P(y > k), P = σ(a) − σ(b) = σ(a)·σ(−b)·(1 − e^{b−a})."""
    logits = _cumulative(outputs)
    padded = F.pad(logits, (1, 1))
    padded[:, 0], padded[:, -1] = torch.inf, -torch.inf
    index = values.long()[:, None]
    above, below = padded.gather(1, index)[:, 0], padded.gather(1, index + 1)[:, 0]
    inner = (index[:, 0] > 0) & (index[:, 0] < logits.shape[1])
    gap = torch.where(inner, above - below, torch.ones_like(above)).clamp_min(1e-6)
    log_gap = torch.where(inner, torch.log(-torch.expm1(-gap)), torch.zeros_like(gap))
    return F.softplus(-above) + F.softplus(below) - log_gap


def _link(outputs: Tensor) -> Tensor:
    beyond = torch.sigmoid(_cumulative(outputs))
    ones = torch.ones_like(beyond[:, :1])
    return (torch.cat((ones, beyond), 1) - torch.cat((beyond, torch.zeros_like(ones)), 1)).clamp_min(0)


def _start(values: Tensor, size: int) -> Tensor:
    beyond = 1 - frequencies(values, size).cumsum(0)[:-1]
    logits = torch.logit(beyond.clamp(1e-6, 1 - 1e-6))
    steps = (logits[:-1] - logits[1:]).clamp_min(1e-4)
    return torch.cat((logits[:1], torch.log(torch.expm1(steps)))).float()


class Ordinal(ClassKind):
    """A label in TASK, P(class) in TASK__p_CLASS."""

    ordered = True

    def found_in(self, name: str, columns: Collection[str]) -> dict[str, Any] | None:
        """The classes that TASK__p_CLASS name: numbers by value, others in the order of the columns."""
        found = super().found_in(name, columns)
        try:
            return found and {"classes": tuple(sorted(found["classes"], key=float))}
        except ValueError:
            return found

    def infer(self, column: Column) -> str | None:
        """Ordered categories, more than two of them in use; ratings from 1 to k."""
        import pandas as pd

        values = column.series.dropna()
        if isinstance(values.dtype, pd.CategoricalDtype):
            return "ordered categories" if values.dtype.ordered and values.nunique() > 2 else None
        if pd.api.types.is_bool_dtype(values.dtype) or not pd.api.types.is_numeric_dtype(values.dtype):
            return None
        why = rating_reason(values.to_numpy(np.float64))
        return why and f"{why} ({column.series.name}:count or :regression if they are none)"

    def _check_order(self, words: bool, column: Column) -> None:
        if words:
            remedy = "give the classes in order in the task, or use multiclass"
            raise BadInput("the order of the classes is not known", where=column.where, remedy=remedy)


ORDINAL = register(
    Ordinal(
        "ordinal",
        lambda size: size - 1,
        _loss,
        _link,
        _start,
        ("logloss", "qwk"),
        classes=True,
        quantity=False,
        likelihood="categorical",
        form="classes",
    )
)
