"""Are these words numbers? `1,234,567`, `1.234,56`, `12.3%`, `€9.99`, `$1,200.50`, `(1,234)`, `1 234`, `−5`, `12-`.

A style is a decimal sign, a mark between groups of digits, and a unit. A column has a style if all of its cells can be read in
it. Where several styles fit and give different numbers, the column is ambiguous: `28,666` alone is 28666 or 28.666.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

POINT, COMMA = ".", ","
DECIMALS = (POINT, COMMA)
MARKS = (",", ".", " ", "'", "_")
"""What may stand between groups of digits; every space counts as one, and ’ as '."""
PERCENT = "%"

_SPACES = "[ \\t\u00a0\u2007\u2009\u202f]"
_SIGNS = "$€£¥₹₽₩₺₴₦₫฿₪₱₡₲₵₸"
_CODES = "USD|EUR|GBP|JPY|CHF|CAD|AUD|NZD|CNY|INR|BRL|MXN|SEK|NOK|DKK|PLN|CZK|HUF|RUB|TRY|ZAR"
_CURRENCY = rf"[A-Z]{{0,3}}[{_SIGNS}]|{_CODES}|kr\.?|zł|Kč|Fr\.|Rs\.?"
_BEHIND = re.compile(
    r"^[-+−(]*[\d.,'’ \u00a0\u202f]*\d[)]*(?P<gap> ?)(?P<unit>[^\W\d_]{1,8}(?:/[^\W\d_]{1,4})?[²³]?|°[CF]?|[\"″']|in\.|ft\.)$"
)
_UNIT = re.compile(rf"^[-+−(]*{_SPACES}*({_CURRENCY})(?=[-+−(\d., ]|{_SPACES})|({_CURRENCY}|%)[-−)]*$")
_HEAD = 100


@dataclass(frozen=True)
class NumberStyle:
    """How numbers are written.

    Parameters
    ----------
    decimal : {".", ","}
        The decimal sign.
    mark : str
        What may stand between groups of digits, one of `MARKS`; "" for nothing.
    unit : str
        What stands behind the digits of every cell (kg), or a currency, before or behind them, or "%". A currency may be left
        out, a % only behind a zero.
    """

    decimal: str = POINT
    mark: str = ""
    unit: str = ""

    @property
    def plain(self) -> bool:
        """Whether numbers are written as programs write them."""
        return self == PLAIN

    @property
    def is_money(self) -> bool:
        """Whether the unit is a currency."""
        return re.fullmatch(_CURRENCY, self.unit) is not None

    @property
    def pattern(self) -> str:
        """A regular expression that all of a cell must match."""
        decimal = re.escape(self.decimal)
        whole = r"\d+"
        if self.mark:
            mark = re.escape(self.mark)
            pairs = r"\d{2,3}" if self.mark == COMMA else r"\d{3}"  # 12,34,567 in India
            whole = rf"(?:\d+|[1-9]\d{{0,2}}(?:{mark}{pairs})*{mark}\d{{3}})"
        body = rf"(?:{whole}(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][-+]?\d+)?"
        if not self.unit:
            return rf"^(?:[-+]? *{body}|\( *{body} *\)|{body} *-)$"
        unit = rf"(?:{re.escape(self.unit)})"
        if self.unit == PERCENT:
            zero = rf"0+(?:{decimal}0+)?"
            return rf"^(?:[-+]? *{body} *{unit}|\( *{body} *\) *{unit}|\( *{body} *{unit} *\)|{zero})$"
        if not self.is_money:
            return rf"^[-+]? *{body} *{unit}$"
        signed = rf"[-+]? *(?:{unit} *)?{body}|{unit} *[-+] *{body}|[-+]? *{body} *{unit}"
        bracketed = rf"(?:{unit} *)?\( *(?:{unit} *)?{body} *(?:{unit} *)?\)(?: *{unit})?"
        return rf"^(?:{signed}|{bracketed}|(?:{unit} *)?{body} *(?:{unit})?-)$"

    def fits(self, words: pa.Array) -> Any:
        """Which words are numbers of this style [n]; words as `tidy` gives them."""
        import pyarrow.compute as pc

        return pc.match_substring_regex(words, self.pattern)

    def numbers(self, words: pa.Array) -> NDArray[np.float64]:
        """The numbers [n], NaN where a word is none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        words = tidy(words)
        kept = pc.if_else(pc.fill_null(self.fits(words), False), words, pa.scalar(None, pa.string()))
        bare = pc.replace_substring(kept, self.unit, "") if self.unit else kept
        negative = pc.match_substring_regex(bare, r"^[^\d]*[-(]|-$")
        if self.mark:
            bare = pc.replace_substring(bare, self.mark, "")
        if self.decimal != POINT:
            bare = pc.replace_substring(bare, self.decimal, POINT)
        bare = pc.replace_substring_regex(bare, r"^[-+( ]+|[-) ]+$", "")
        size = pc.cast(bare, pa.float64())
        return np.asarray(pc.if_else(negative, pc.negate(size), size).to_numpy(zero_copy_only=False), np.float64)


PLAIN = NumberStyle()
"""How programs write numbers."""


def tidy(words: pa.Array) -> pa.Array:
    """Words without spaces around, with one sort of space, minus and apostrophe."""
    import pyarrow.compute as pc

    words = pc.replace_substring_regex(words, _SPACES, " ")
    words = pc.replace_substring(pc.replace_substring(words, "−", "-"), "’", "'")
    return pc.utf8_trim(words, " ")


@dataclass(frozen=True)
class Styles:
    """What styles the numbers of a column can have.

    Parameters
    ----------
    possible : tuple of NumberStyle
        Styles in which all words are numbers; those that give the same numbers stand there once. Empty where words are none.
    example : str
        A word that is read differently by them, if there are several.
    """

    possible: tuple[NumberStyle, ...]
    example: str = ""

    @property
    def style(self) -> NumberStyle | None:
        """The only one."""
        return self.possible[0] if len(self.possible) == 1 else None


def styles_of(words: pa.Array, decimal: str | None = None, mark: str | None = None, *, measured: bool = False) -> Styles:
    """In which styles all of some words are numbers.

    Parameters
    ----------
    words : Array of strings
        The different words of a column.
    decimal, mark : str or None
        What the user says; None: to be found out.
    measured : bool
        Whether any unit may stand behind the digits ("12 kg"), and not only a currency or a %.
    """
    words = tidy(words)
    unit = unit_of(words[:_HEAD].to_pylist())
    if measured and not unit:
        unit = measure_of(words[:_HEAD].to_pylist())
    found: list[NumberStyle] = []
    for style in _styles(unit, decimal, mark):
        if _all(style.fits(words[:_HEAD])) and _all(style.fits(words)):
            found.append(style)
    if len(found) <= 1:
        return Styles(tuple(found))
    kept: list[NumberStyle] = []
    seen: list[NDArray[np.float64]] = []
    example = ""
    for style in found:  # the simplest first
        numbers = style.numbers(words)
        same = [bool(np.array_equal(numbers, other)) for other in seen]
        if not any(same):
            if seen:
                example = words[int((numbers != seen[0]).argmax())].as_py()
            kept.append(style)
            seen.append(numbers)
    return Styles(tuple(kept), example)


def share_of_numbers(words: pa.Array) -> tuple[float, NumberStyle]:
    """The share of words that are numbers in the style that fits most of them, and that style."""
    import pyarrow.compute as pc

    words = tidy(words)
    best, share = PLAIN, 0.0
    for style in _styles(unit_of(words[:_HEAD].to_pylist()), None, None):
        fits = float(pc.sum(style.fits(words)).as_py() or 0) / max(len(words), 1)
        if fits > share:
            best, share = style, fits
    return share, best


def unit_of(words: Iterable[str]) -> str:
    """The currency or the % of the first word that has one; "" for none."""
    for word in words:
        if (found := _UNIT.search(word)) is not None:
            return found[1] or found[2]
    return ""


def measure_of(words: Iterable[str]) -> str:
    """The unit that stands behind the digits of all words; "" for none."""
    units = {found["unit"] if (found := _BEHIND.match(word)) is not None else "" for word in words}
    return units.pop() if len(units) == 1 else ""


def _styles(unit: str, decimal: str | None, mark: str | None) -> list[NumberStyle]:
    """All styles that agree with what the user says, the simplest first."""
    found = []
    for sign in DECIMALS if decimal is None else (decimal,):
        for between in ("", *MARKS) if mark is None else (mark,):
            if between != sign:
                found.append(NumberStyle(sign, between, unit))
    return sorted(found, key=lambda style: (bool(style.mark), style.decimal != POINT))


def _all(found: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(found).as_py()) if len(found) else False
