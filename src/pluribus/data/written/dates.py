"""Are these words dates, and does the day or the month come first?

Read are ISO dates and times, `2024/12/31`, `31/12/2024`, `12/31/2024`, `31.12.24`, `31 Dec 2024`, `Dec 31, 2024` and `31-Dec-24`,
each with or without a time of day (`14:30`, `2:30:15.5 PM`) and a zone (`Z`, `+02:00`, `UTC`), and the months `2024-12` and
`Dec 2024` as their first day; a column may mix them. Times with a zone become UTC; beside them, those without one are taken for
UTC.

In `03/04/2024` day or month may come first (in `03.04.2024` it is the day). A column is decided by its own cells (`31/12/2024`
has the day first), else by what the user says, else by the other columns of the file. Years of two digits are 1969 … 2068.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAME = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_LONG = rf"{_NAME}[a-z]{{0,6}}\.?"
_TIME = (
    r"(?:(?:[t ]|, ?| at )\s*(?P<h>\d{1,2}):(?P<i>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    r"\s*(?P<p>[ap]\.?m\.?)?\s*(?P<z>z|utc|gmt|[-+]\d{2}:?\d{2}|[-+]\d{2})?)?$"
)
_DAY = r"^(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{0,6}\.?,? )?"
_FORMS = (
    rf"{_DAY}(?P<y>\d{{4}})-(?P<m>\d{{1,2}})-(?P<d>\d{{1,2}}){_TIME}",
    rf"{_DAY}(?P<y>\d{{4}})[/.](?P<m>\d{{1,2}})[/.](?P<d>\d{{1,2}}){_TIME}",
    rf"{_DAY}(?P<d>\d{{1,2}})(?:st|nd|rd|th)?[- .]{{1,2}}(?P<w>{_LONG})[- ,.]{{1,2}}(?P<y>\d{{4}}|\d{{2}}){_TIME}",
    r"^(?P<y>\d{4})-(?P<m>\d{1,2})$",
    rf"^(?P<w>{_LONG}) (?P<y>\d{{4}})$",
    rf"{_DAY}(?P<w>{_LONG}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y>\d{{4}}){_TIME}",
)
_POINTED = rf"{_DAY}(?P<a>\d{{1,2}})\.(?P<b>\d{{1,2}})\.(?P<y>\d{{4}}|\d{{2}}){_TIME}"
_EITHER = tuple(rf"{_DAY}(?P<a>\d{{1,2}}){sign}(?P<b>\d{{1,2}}){sign}(?P<y>\d{{4}}|\d{{2}}){_TIME}" for sign in ("/", "-"))
_COMPACT = r"^(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})$"
_ISO = _FORMS[0]
_ORDER = {None: 0, True: 1, False: -1}


@dataclass(frozen=True)
class Dates:
    """What dates some words are.

    Parameters
    ----------
    stamps : ndarray of datetime64[us]
        [n], NaT where a word is no date; ambiguous ones with the day first, where `dayfirst` is None.
    dayfirst : bool or None
        Which comes first where that matters: the day, the month, or what cannot be told from the words.
    matters : bool
        Whether that matters to any word.
    conflict : tuple of str
        A word with the day first and one with the month first, where there are both.
    zoned, unzoned : bool
        Whether any word has a zone, or none.
    """

    stamps: NDArray[np.datetime64]
    dayfirst: bool | None
    matters: bool
    conflict: tuple[str, ...] = ()
    zoned: bool = False
    unzoned: bool = False


def dates_of(words: pa.Array, dayfirst: bool | None = None, *, settled: bool = False, compact: bool = False) -> Dates:
    """Words as dates.

    Parameters
    ----------
    words : Array of strings
        The words of a column.
    dayfirst : bool or None
        What is known of the order of day and month; the words themselves decide first, unless it is `settled`.
    settled : bool
        See there: words of the other order are no dates.
    compact : bool
        Whether 20241231 is a date.
    """
    import pyarrow.compute as pc

    lower = pc.utf8_trim_whitespace(pc.utf8_lower(words))
    stamps = np.full(len(words), np.datetime64("NaT", "us"), "datetime64[us]")
    zoned = np.zeros(len(words), bool)
    for form in (*_FORMS, *((_COMPACT,) if compact else ())):
        _fill(stamps, zoned, lower, form, "m", "d")
    _fill(stamps, zoned, lower, _POINTED, "b", "a")
    beyond: dict[bool, str] = {}  # a word that has the day first, one that has the month first
    either = []
    for form in _EITHER:
        there, first, second = _pair(lower, form)
        either += [form] if there.any() else []
        for order, large in ((True, first), (False, second)):
            rows = np.flatnonzero(there & (large > 12))
            if len(rows):
                beyond.setdefault(order, words[int(rows[0])].as_py())
    if not settled and len(beyond) == 1:
        (dayfirst,) = beyond
    for form in either:
        _fill(stamps, zoned, lower, form, *(("a", "b") if dayfirst is False else ("b", "a")))
    clash = (beyond[True], beyond[False]) if len(beyond) == 2 else ()
    is_date = ~np.isnat(stamps)
    return Dates(stamps, dayfirst, bool(either), clash, bool(zoned.any()), bool((is_date & ~zoned).any()))


def are_iso(words: pa.Array) -> bool:
    """Whether all words are ISO dates or times."""
    import pyarrow.compute as pc

    lower = pc.utf8_trim_whitespace(pc.utf8_lower(words))
    return bool(pc.all(pc.match_substring_regex(lower, _ISO)).as_py())


def _pair(words: pa.Array, form: str) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    import pyarrow.compute as pc

    found = pc.extract_regex(words, form)
    there = np.asarray(found.is_valid().to_numpy(zero_copy_only=False), bool)
    return there, _whole(found.field("a"), there), _whole(found.field("b"), there)


def _fill(stamps: NDArray[np.datetime64], zoned: NDArray[np.bool_], words: pa.Array, form: str, month: str, day: str) -> None:
    """Put the dates of one form where they belong."""
    import pyarrow.compute as pc

    found = pc.extract_regex(words, form)
    rows = np.flatnonzero(np.asarray(found.is_valid().to_numpy(zero_copy_only=False), bool))
    if not len(rows):
        return
    found = found.take(rows)
    every = np.ones(len(rows), bool)
    names = {field.name for field in found.type}
    year = _whole(found.field("y"), every)
    short = year < 100
    year = np.where(short, year + np.where(year >= 69, 1900, 2000), year)
    if "w" in names:
        three = pc.utf8_slice_codeunits(found.field("w"), 0, 3)
        months = np.array([_MONTHS.index(word) + 1 for word in three.to_pylist()], np.int64)
    else:
        months = _whole(found.field(month), every)
    days = _whole(found.field(day), every) if day in names else np.ones(len(rows), np.int64)
    good = (year >= 1) & (months >= 1) & (months <= 12) & (days >= 1)
    first = (np.where(good, year, 1970) - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (np.where(good, months, 1) - 1)
    last = ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(np.int64)
    good &= days <= last
    micros = np.zeros(len(rows), np.int64)
    if "h" in names:
        hours, minutes, seconds = (_whole(found.field(part), every) for part in "his")
        half = np.array([_ORDER[None if not word else word[0] == "p"] for word in found.field("p").to_pylist()], np.int64)
        good &= (minutes < 60) & (seconds < 61) & np.where(half == 0, hours < 24, (hours >= 1) & (hours <= 12))
        hours = np.where(half == 0, hours, hours % 12 + np.where(half == 1, 12, 0))
        fraction = _whole(pc.utf8_slice_codeunits(pc.utf8_rpad(found.field("f"), 6, "0"), 0, 6), every)
        zone = found.field("z").to_pylist()
        offset = np.array([_minutes(word) for word in zone], np.int64)
        zoned[rows] |= np.array([bool(word) for word in zone], bool) & good
        micros = ((hours * 60 + minutes - offset) * 60 + seconds) * 1_000_000 + fraction
    whole = first.astype("datetime64[D]") + (days - 1)
    stamps[rows[good]] = (whole.astype("datetime64[us]") + micros)[good]


def _minutes(zone: str) -> int:
    """How far a zone is ahead of UTC."""
    if not zone or zone in ("z", "utc", "gmt"):
        return 0
    digits = zone[1:].replace(":", "")
    size = int(digits[:2]) * 60 + int(digits[2:] or 0)
    return -size if zone[0] == "-" else size


def _whole(words: pa.Array, there: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Digits as numbers; 0 for none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = pc.if_else(pc.equal(pc.fill_null(words, ""), ""), "0", pc.fill_null(words, "0"))
    return np.where(there, np.asarray(pc.cast(filled, pa.int64()).to_numpy(zero_copy_only=False), np.int64), 0)
