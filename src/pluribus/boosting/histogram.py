"""Binning: every feature once, to at most 255 value bins and one bin for missing values, in one byte a cell.

Numeric features with at most 255 distinct values keep one bin a value (the split search is then exact); the others are cut
at quantiles. Categorical features arrive as codes 0 .. 254 and keep one bin a category. The code after the last value bin
means "missing".
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.errors import require

MAX_BINS = 255
SAMPLE = 200_000  # rows that the quantiles are taken from

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[Any]


def kernels() -> ModuleType:
    """The compiled kernels; without numba one clear error with the pip command."""
    require("numba", extra="boost", purpose="boosting with shared trees")
    return importlib.import_module("pluribus.boosting.kernels")


@dataclass(frozen=True)
class Binner:
    """Fitted bins of d features.

    categorical [d]; n_values [d]: value bins a feature; exact [d]: each bin holds one distinct value of the data.
    lower, upper, edge (flat, feature f at value_offset[f] .. value_offset[f + 1]): smallest and largest value of each bin,
    and the midpoint to the next bin. offset [d + 1]: where a feature's bins start in a histogram (one more for missing).
    """

    categorical: Bools
    n_values: Ints
    exact: Bools
    lower: Floats
    upper: Floats
    edge: Floats

    @property
    def value_offset(self) -> Ints:
        return np.concatenate(([0], np.cumsum(self.n_values)))

    @property
    def offset(self) -> Ints:
        return np.concatenate(([0], np.cumsum(self.n_values + 1)))

    @classmethod
    def fit(
        cls, X: Floats, categorical: Bools, max_bins: int = MAX_BINS, random_state: np.random.RandomState | None = None
    ) -> Binner:
        """Find the bins of X [N, d] (NaN = missing; categorical columns hold codes)."""
        n, d = X.shape
        rows: Any = slice(None)
        if n > SAMPLE:
            rows = np.sort((random_state or np.random.RandomState(0)).choice(n, SAMPLE, replace=False))
        lower, upper, edge, exact = [], [], [], np.zeros(d, dtype=bool)
        for f in range(d):
            if categorical[f]:
                top = np.nanmax(X[:, f], initial=0.0)
                low = high = cuts = np.arange(int(top) + 1, dtype=np.float64)
                exact[f] = True
            else:
                values, counts = np.unique(X[rows, f], return_counts=True)
                known = ~np.isnan(values)
                values, counts = values[known], counts[known]
                if len(values) == 0:
                    values, counts = np.zeros(1), np.ones(1, dtype=np.int64)
                first = _groups(counts, max_bins)
                low, high = values[first], values[np.append(first[1:], len(values)) - 1]
                cuts = np.append(high[:-1] + 0.5 * (low[1:] - high[:-1]), np.inf)
                cuts[:-1] = np.where(cuts[:-1] < low[1:], cuts[:-1], high[:-1])  # neighbours in floating point
                exact[f] = n <= SAMPLE and len(values) <= max_bins
            lower.append(low)
            upper.append(high)
            edge.append(cuts)
        sizes = np.array([len(e) for e in edge], dtype=np.int64)
        return cls(categorical, sizes, exact, np.concatenate(lower), np.concatenate(upper), np.concatenate(edge))

    def transform(self, X: Floats) -> NDArray[np.uint8]:
        """The codes of X, uint8 [N, d] in row order."""
        codes = np.empty(X.shape, dtype=np.uint8)
        at = self.value_offset
        for f in range(X.shape[1]):
            column = X[:, f]
            missing = np.isnan(column)
            if self.categorical[f]:
                found = np.where(missing, 0, column).astype(np.int64)
            else:
                found = np.searchsorted(self.edge[at[f] : at[f + 1] - 1], column)
            found[missing | (found >= self.n_values[f])] = self.n_values[f]
            codes[:, f] = found
        return codes


def _groups(counts: Ints, max_bins: int) -> Ints:
    """Where each bin starts among the sorted distinct values: one bin a value if they are few, else about equal counts."""
    if len(counts) <= max_bins:
        return np.arange(len(counts))
    before = np.cumsum(counts) - counts
    bin_of = np.minimum((before + 0.5 * counts) * max_bins / counts.sum(), max_bins - 1).astype(np.int64)
    return np.flatnonzero(np.diff(bin_of, prepend=-1))
