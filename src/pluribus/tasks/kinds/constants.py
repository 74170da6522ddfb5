"""The best constant predictions, from labels and their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mean(values: Array, weight: Array) -> float:
    """The weighted mean: the best constant for squared errors, Poisson deviance and the log loss of two classes."""
    return float((weight * values).sum() / weight.sum())


def shares(values: Array, weight: Array, size: int) -> Array:
    """The weighted share of each class [size]: the best constant for the log loss."""
    found: Array = np.bincount(values.astype(np.intp), weight, size) / weight.sum()
    return found


def quantiles(values: Array, weight: Array, levels: Sequence[float]) -> Array:
    """The weighted quantiles [L]: the best constants for the pinball loss."""
    order = np.argsort(values)
    found: Array = values[order][np.searchsorted(np.cumsum(weight[order]), np.asarray(levels) * weight.sum())]
    return found
