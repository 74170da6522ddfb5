"""Real numbers: squared error on the standardised scale, the mean."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.tasks.columns import Column
from pluribus.tasks.kinds.count import count_reason
from pluribus.tasks.kinds.record import Kind, register


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return (outputs[:, 0] - values.to(outputs.dtype)).square()


class Regression(Kind):
    """A number in TASK."""

    def infer(self, column: Column) -> str | None:
        """Numbers, more than two of them, that are no counts."""
        import pandas as pd

        values = column.series.dropna()
        if pd.api.types.is_bool_dtype(values.dtype) or not pd.api.types.is_numeric_dtype(values.dtype):
            return None
        numbers: NDArray[np.float64] = values.to_numpy(np.float64)
        if count_reason(numbers) or values.nunique() <= 2:
            return None
        return f"numbers from {numbers.min():g} to {numbers.max():g}"


REGRESSION = register(
    Regression(
        "regression",
        lambda _: 1,
        _loss,
        lambda z: z[:, 0],
        lambda values, _: torch.zeros(1),
        ("rmse", "mae", "r2"),
        standardise=True,
        likelihood="normal",
    )
)
