"""What is learnt of a feature on the training rows, and kept with the model.

Statistics are taken over sorted values: the order of the rows does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_CATEGORIES = 1000
MAX_ELEMENTS = 100_000
MIN_COUNT = 5
MAX_BINS = 48
QUANTILES = np.linspace(0, 1, 21)

MISSING, UNSEEN, FIRST = 0, 1, 2
"""Codes of a categorical feature: no value, none of the categories, the first category."""


@dataclass(frozen=True)
class Number:
    """One numeric feature.

    Parameters
    ----------
    centre, scale : float
        Training mean and standard deviation (1 where it is constant), in the column's units.
    edges : ndarray of float32
        Quantile bin edges of the encoded training values, ascending and distinct, at most `MAX_BINS` + 1.
    quantiles : ndarray of float64
        The `QUANTILES` of the training values in the column's units (NaN where there is none).
    missing : float
        Share of training rows without a value.
    """

    centre: float
    scale: float
    edges: NDArray[np.float32]
    quantiles: NDArray[np.float64]
    missing: float


@dataclass(frozen=True)
class Category:
    """One categorical feature.

    Parameters
    ----------
    categories : tuple of str
        Its categories; category i has code i + `FIRST`.
    frequency : ndarray of float64
        [`FIRST` + number of categories], the share of training rows of each code.
    """

    categories: tuple[str, ...]
    frequency: NDArray[np.float64]


@dataclass(frozen=True)
class Elements:
    """One ragged input.

    Parameters
    ----------
    limit : int
        Its latest so many elements are kept.
    typical : int
        Mean length in the training rows, rounded, at least 1.
    category : Category or None
        How its elements are encoded, where they are words.
    number : Number or None
        How its elements are encoded, where they are numbers.
    items : str or None
        The item table whose keys its elements are.
    """

    limit: int
    typical: int
    category: Category | None = None
    number: Number | None = None
    items: str | None = None

    @property
    def type(self) -> Literal["category", "number", "item"]:
        """What its elements are."""
        return "item" if self.items is not None else "number" if self.number is not None else "category"

    @property
    def numeric(self) -> bool:
        """Whether its elements are numbers."""
        return self.number is not None


def fit_number(values: NDArray[np.float64]) -> Number:
    """The statistics of training values [n], NaN where missing."""
    present = _sorted(values[~np.isnan(values)])
    missing = 1 - len(present) / max(len(values), 1)
    if not len(present):
        nothing = np.full(len(QUANTILES), np.nan)
        return Number(0.0, 1.0, np.array([0, 1], np.float32), nothing, float(missing))
    # Scaled by the largest magnitude first: the square of 1e200 is not a number.
    largest = float(np.abs(present[[0, -1]]).max()) or 1.0
    centre = float((present / largest).mean()) * largest
    scale = float((present / largest).std()) * largest
    if scale <= 1e-14 * largest:  # constant up to rounding
        scale = max(1.0, 1e-14 * largest)
    quantiles = _quantiles_of_sorted(present, QUANTILES)
    raw = _quantiles_of_sorted(present, np.linspace(0, 1, MAX_BINS + 1))
    edges = np.unique(((raw - centre) / scale).astype(np.float32))
    if len(edges) == 1:
        edges = np.array([edges[0], edges[0] + 1], np.float32)
    return Number(centre, scale, edges, quantiles, float(missing))


def _sorted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values in ascending order; whole numbers of a small range are counted instead of compared."""
    if len(values):
        low, high = values.min(), values.max()
        if high - low < len(values) and abs(low) < 2**52 and (values == np.floor(values)).all():
            counts = np.bincount((values - low).astype(np.int64))
            return np.repeat(np.arange(len(counts)) + low, counts)
    return np.sort(values)


def _quantiles_of_sorted(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation between order statistics, as numpy's default, without sorting again."""
    place = at * (len(values) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, len(values) - 1)
    share = place - low
    return np.asarray(values[low] * (1 - share) + values[high] * share)


def fit_category(
    codes: NDArray[np.int64], words: Sequence[str], least: int, most: int, known: Sequence[str] | None = None
) -> Category:
    """The categories of training rows.

    Parameters
    ----------
    codes : ndarray of int64
        [n], positions among `words`; −1 where missing.
    words : sequence of str
        What the codes stand for; the same word may stand there twice (1 and 1.0).
    least : int
        Words in fewer rows are no categories.
    most : int
        So many categories are kept, the most frequent first.
    known : sequence of str or None
        The categories and their order, where they do not depend on the rows (weekdays, booleans, tasks).
    """
    counts = np.bincount(codes + 1, minlength=len(words) + 1)
    by_word: dict[str, int] = {}
    for word, count in zip(words, counts[1:].tolist()):  # 1 and 1.0 are one category
        by_word[word] = by_word.get(word, 0) + count
    if known is not None:
        kept = list(dict.fromkeys(known))
    else:
        frequent = [word for word, count in by_word.items() if count >= least]
        kept = sorted(frequent, key=lambda word: (-by_word[word], word))[:most]
    seen = [by_word.get(word, 0) for word in kept]
    total = max(len(codes), 1)
    shares = [int(counts[0]), int(counts[1:].sum()) - sum(seen), *seen]
    return Category(tuple(kept), np.array(shares, np.float64) / total)
