"""Weightings of rows: what a metric is asked under, once or R times at once (resamples)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_CHUNK = 1 << 20  # weights held at a time by a ranked metric: 8 MB


@dataclass(frozen=True)
class Weightings:
    """R weightings of n rows: row i has weight ``counts[r, unit[i]] * base[i]``.

    A resampling unit moves as one, with all its rows.

    Parameters
    ----------
    base : ndarray
        Weights of the rows [n].
    unit : ndarray
        The unit of each row [n], whole numbers below G.
    counts : ndarray
        How often each weighting holds each unit [R, G].
    """

    base: Array
    unit: Ints
    counts: Array

    @classmethod
    def of_rows(cls, weight: Array) -> Weightings:
        """Each row its own unit: weight [R, n]."""
        n = weight.shape[1]
        return cls(np.ones(n), np.arange(n), weight)

    def sums(self, terms: Array) -> Array:
        """Σ_i w_ri terms_ik → [R, k]: rows are first summed within units."""
        size = self.counts.shape[1]
        by_unit: Array = np.stack([np.bincount(self.unit, self.base * column, size) for column in terms.T], 1)
        total: Array = self.counts @ by_unit
        return total

    def rows(self, order: Ints) -> Iterator[Array]:
        """The weights in the given order of rows, a few weightings at a time: [r, n]."""
        unit, base = self.unit[order], self.base[order]
        step = max(1, _CHUNK // max(1, len(order)))
        for start in range(0, len(self.counts), step):
            weight = np.take(self.counts[start : start + step], unit, axis=1)
            weight *= base
            yield weight
