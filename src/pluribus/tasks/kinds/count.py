"""0, 1, 2 …: Poisson deviance, the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.columns import Column, numbers_of
from pluribus.tasks.forms import Values
from pluribus.tasks.kinds.record import Declared, Empty, Kind, register

MAX_COUNT = 1000
MIN_RATING, MAX_RATING, RATING_ROWS = 3, 10, 10
LARGEST_LOG_MEAN = 30.0


def _mean(outputs: Tensor) -> Tensor:
    """exp(z); beyond `LARGEST_LOG_MEAN` it goes on along its tangent, so that neither value nor gradient overflows."""
    log_mean = outputs[:, 0]
    bounded = log_mean.clamp_max(LARGEST_LOG_MEAN)
    mean: Tensor = bounded.exp() * (1 + (log_mean - bounded))
    return mean


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Poisson negative log-likelihood up to a constant in the values; non-negative form (half the unit deviance)."""
    log_mean, values = outputs[:, 0], values.to(outputs.dtype)
    deviance: Tensor = _mean(outputs) - values * log_mean + torch.special.xlogy(values, values) - values
    return deviance


def count_reason(numbers: NDArray[np.float64]) -> str | None:
    """Why some numbers are counts: whole ones from 0 or 1 up to at most 1000; None where they are not."""
    low, high = numbers.min(initial=np.inf), numbers.max(initial=-np.inf)
    if 0 <= low <= 1 and high <= MAX_COUNT and (numbers == np.floor(numbers)).all():
        return f"whole numbers from {low:g} to {high:g}"
    return None


def rating_reason(numbers: NDArray[np.float64]) -> str | None:
    """Why some numbers are ratings: 1, 2, … k, all of them and nothing else, 3 ≤ k ≤ 10, each in ten rows on average; None where
    they are not. Counts mostly start at 0."""
    high = numbers.max(initial=0)
    if not MIN_RATING <= high <= MAX_RATING or len(numbers) < RATING_ROWS * high:
        return None
    return (
        f"whole numbers from 1 to {high:g}, like ratings" if np.array_equal(np.unique(numbers), np.arange(1, high + 1)) else None
    )


class Count(Kind):
    """A number in TASK."""

    def infer(self, column: Column) -> str | None:
        """Whole numbers from 0 or 1 up to at most 1000, more than two of them."""
        import pandas as pd

        values = column.series.dropna()
        if pd.api.types.is_bool_dtype(values.dtype) or not pd.api.types.is_numeric_dtype(values.dtype) or values.nunique() <= 2:
            return None
        return count_reason(values.to_numpy(np.float64))

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        """Whole numbers from 0 on."""
        values = numbers_of(column, self.name)
        present = values[~np.isnan(values)]
        wrong = present[(present < 0) | (present != np.floor(present))]
        if len(wrong):
            what = f"kind count does not fit: it holds {wrong[0]:g}"
            raise BadInput(what, where=column.where, remedy="use regression")
        return values, np.isnan(values)

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """Means, none of them negative."""
        values, empty = super().parse(task, columns)
        if (values[~empty] < 0).any():
            raise BadInput("predicts a negative count", where=columns[task.name].where)
        return values, empty


COUNT = register(
    Count(
        "count",
        lambda _: 1,
        _loss,
        _mean,
        lambda values, _: values.double().mean().clamp_min(1e-4).log().float()[None],
        ("poisson_deviance", "rmse"),
        likelihood="poisson",
    )
)
