"""Is the last row a total? Its first word says so, and numbers in it are the sums of those above."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

WORDS = frozenset(
    {"total", "totals", "grand total", "sum", "sums", "subtotal", "sub-total", "overall", "all", "summe", "gesamt", "insgesamt"}
    | {"somme", "suma", "totale", "totaal", "total général", "total general"}
)


def says_total(word: str | None) -> bool:
    """Whether a cell of the last row calls it a total."""
    return word is not None and word.strip().rstrip(":").casefold() in WORDS


def sums(numbers: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """The columns whose last number is the sum of those above; numbers [n] each, NaN where missing."""
    found = []
    for name, values in numbers.items():
        above, last = values[:-1], values[-1]
        there = above[~np.isnan(above)]
        if len(there) < 2 or np.isnan(last) or last == 0 or not there.any():
            continue
        if abs(float(there.sum()) - last) <= 1e-4 * float(np.abs(there).sum()):  # cells may be rounded
            found.append(name)
    return found
