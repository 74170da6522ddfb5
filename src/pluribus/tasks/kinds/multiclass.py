"""Several classes without order: cross-entropy, P(class)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.tasks.columns import Column
from pluribus.tasks.kinds.labels import MAX_CLASSES, ClassKind, frequencies
from pluribus.tasks.kinds.record import register


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.cross_entropy(outputs, values.long(), reduction="none")


class Multiclass(ClassKind):
    """A label in TASK, P(class) in TASK__p_CLASS."""

    def infer(self, column: Column) -> str | None:
        """At most 50 distinct words, or categories without order; more than two of them."""
        import pandas as pd

        values = column.series.dropna()
        ordered = isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.ordered
        if ordered or pd.api.types.is_numeric_dtype(values.dtype):
            return None
        distinct = values.nunique()
        return f"{distinct} distinct words" if 2 < distinct <= MAX_CLASSES else None


MULTICLASS = register(
    Multiclass(
        "multiclass",
        lambda size: size,
        _loss,
        lambda z: torch.softmax(z, 1),
        lambda values, size: frequencies(values, size).log().float(),
        ("logloss", "accuracy"),
        classes=True,
        quantity=False,
        likelihood="categorical",
        form="classes",
    )
)
