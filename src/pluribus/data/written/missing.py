"""Which words and numbers mean that there is no value?

Empty cells and the usual words (`WORDS`) are missing. Among numbers and dates, and only there, so is what people put where a
value is not known or a program failed (`BESIDE_NUMBERS`). "NA" beside other codes of two letters is a code: Namibia.

A sentinel is a number or a date that stands for "not known" and lies far from all others: −9999.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

WORDS = (
    *("", "NA", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "#N/A", "#N/A N/A", "#NA"),
    *("-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"),
)
"""Missing in every column; the words that pandas and Arrow take for it."""

BESIDE_NUMBERS = frozenset(
    {"?", "-", "--", "—", "–", ".", "..", "...", "*", "none", "nil", "na", "n.a.", "n.a", "n/a", "nan", "null", "missing"}
    | {
        "unknown",
        "unk",
        "not available",
        "not applicable",
        "not known",
        "no data",
        "n.d.",
        "tbd",
        "undefined",
        "blank",
        "(blank)",
    }
    | {"#ref!", "#div/0!", "#value!", "#name?", "#num!", "#null!", "#n/a"}
)
"""Missing among numbers and dates, in any capitals."""

NA = "NA"
_CODE = re.compile(r"^[A-Za-z]{2}$")
_CODES = 10
_LEAST_ROWS = 2
_NINES = re.compile(r"^-?9{2,7}$")
_OTHER = (-32768.0, -2147483648.0, 2147483647.0, 1e30, -1e30, 1e20, -1e20)
_DATES = ("0001-01-01", "1899-12-30", "1899-12-31", "1900-01-01", "1970-01-01", "2099-12-31", "2999-12-31", "9999-12-31")


def beside_numbers(words: Collection[str]) -> list[str]:
    """Those words that are missing values where the others are numbers or dates."""
    return [word for word in words if word.strip().casefold() in BESIDE_NUMBERS]


def na_is_a_code(others: Collection[str], empty: bool) -> bool:
    """Whether "NA" is one of the codes of a column.

    Parameters
    ----------
    others : collection of str
        The other words of the column.
    empty : bool
        Whether the column has empty cells too: then "NA" is not how it writes them.
    """
    codes = [word for word in others if _CODE.match(word.strip())]
    return len(codes) == len(others) and len(codes) >= (2 if empty else _CODES)


def sentinel_of(values: NDArray[np.float64]) -> tuple[float, int, bool] | None:
    """A number that may stand for "not known".

    Parameters
    ----------
    values : ndarray of float64
        [n], NaN where missing.

    Returns
    -------
    (float, int, bool) or None
        The number, in how many rows it stands, and whether there is no doubt: −999, −9999, … below all others, which are further
        apart from it than from one another, and in two rows at least.
    """
    there = values[~np.isnan(values)]
    if len(there) < _LEAST_ROWS + 1:
        return None
    low, high = float(there.min()), float(there.max())
    for extreme in (low, high):
        if not is_sentinel(extreme):
            continue
        others = there[there != extreme]
        rows = len(there) - len(others)
        if rows < _LEAST_ROWS or not len(others):
            continue
        smallest, largest = float(others.min()), float(others.max())
        gap = smallest - extreme if extreme == low else extreme - largest
        if gap > max(largest - smallest, abs(extreme) / 2) and smallest < largest:
            return extreme, rows, extreme <= -999 and extreme == low
    return None


def is_sentinel(value: float) -> bool:
    """Whether people write this number where they know none: nines, and what programs use."""
    return value in _OTHER or (value.is_integer() and bool(_NINES.match(str(int(value)))))


def date_sentinel_of(days: NDArray[np.datetime64]) -> tuple[str, int] | None:
    """A date that may stand for "not known", and in how many rows it stands; days [n], NaT where missing."""
    there = days[~np.isnat(days)].astype("datetime64[D]")
    if len(there) < _LEAST_ROWS + 1:
        return None
    low, high = there.min(), there.max()
    for extreme in (low, high):
        if str(extreme) not in _DATES:
            continue
        others = there[there != extreme]
        rows = len(there) - len(others)
        if rows >= _LEAST_ROWS and len(others):
            gap = others.min() - extreme if extreme == low else extreme - others.max()
            if gap > others.max() - others.min():
                return str(extreme), rows
    return None


def equal_number(words: Sequence[str]) -> list[float]:
    """Those words that are numbers, as numbers: −9999 is also −9999.0."""
    found = []
    for word in words:
        try:
            found.append(float(word))
        except ValueError:
            continue
    return [value for value in found if not np.isnan(value)]
