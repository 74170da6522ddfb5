"""What several metrics are made of: weighted means, ties in sorted rows, values that are not defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pluribus.tasks.weightings import Array, Ints

Terms = Callable[[Any, Any, Any], Array]


def with_ones(loss: Callable[[Any, Any], Array]) -> Terms:
    """Terms (1, loss) [n, 2] of a weighted mean."""

    def terms(p: Any, y: Any, mask: Any) -> Array:
        each = loss(p, y)
        return np.stack((np.ones(len(each)), each), 1)

    return terms


def mean(sums: Array) -> Array:
    """Σ w·loss / Σ w [R], of sums of (weight, loss) [R, 2]."""
    found: Array = sums[:, 1] / sums[:, 0]
    return found


def undefined_unless(defined: npt.NDArray[np.bool_], value: Array) -> Array:
    """The value where it is defined, else NaN."""
    return np.where(defined, value, np.nan)


def mean_where(there: npt.NDArray[np.bool_], value: Array) -> Array:
    """The mean of each row over the places that are there [R, C] → [R]; NaN where none is."""
    count = there.sum(1)
    return undefined_unless(count > 0, np.where(there, value, 0.0).sum(1) / np.maximum(count, 1))


def starts_of(*keys: npt.NDArray[Any]) -> Ints:
    """Where blocks of equal keys begin, in sorted keys."""
    if not len(keys[0]):
        return np.zeros(0, np.intp)
    new = np.ones(len(keys[0]), bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(new)


def blocks(weight: Array, starts: Ints) -> Array:
    """Sums within blocks of ties [r, n] → [r, b]."""
    return weight if len(starts) == weight.shape[1] else np.add.reduceat(weight, starts, axis=1)
