"""What the user says of how a file is written."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pluribus.data.written.numbers import DECIMALS, MARKS
from pluribus.errors import BadInput, unknown

SEPARATORS = (",", ";", "\t", "|")
TYPES = ("category", "number", "datetime", "boolean")
"""The types that a user can say a column is of."""

_NAMED = {"space": " ", "comma": ",", "point": ".", "dot": ".", "apostrophe": "'", "tab": "\t", "\\t": "\t", "semicolon": ";"}


@dataclass(frozen=True)
class Reading:
    """How a file is to be read, as far as the user says it; the rest is found out.

    Parameters
    ----------
    thousands : sequence of str
        `[COL=]MARK`: what stands between groups of digits ("," "." "'" "_" or "space"), in all columns or in one.
    decimal : sequence of str
        `[COL=]SIGN`: the decimal sign, "." or ",".
    na : sequence of str
        `[COL=]WORD`: a word, number or date that means that there is no value. `COL=` alone: in this column only empty cells do.
    dayfirst : bool or None
        Whether 03/04/2024 is the third of April; None: see `pluribus.data.written.dates`.
    types : mapping
        Column → its type: "category" (words as they are written), "number", "datetime" or "boolean".
    separator : str or None
        What separates the fields of a CSV file.
    encoding : str or None
        What the bytes of a CSV file mean, such as "utf-8", "cp1252" or "utf-16".

    Raises
    ------
    BadInput
        A mark, sign, type or encoding that is none; a mark that equals the decimal sign.
    """

    thousands: Sequence[str] = ()
    decimal: Sequence[str] = ()
    na: Sequence[str] = ()
    dayfirst: bool | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        for name in ("thousands", "decimal", "na"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value or ()))
        object.__setattr__(self, "types", dict(self.types or {}))
        if self.dayfirst not in (None, True, False):
            raise BadInput(f"{self.dayfirst!r} is neither true nor false", where="dayfirst", remedy="write true or false")
        for name, marks in (("thousands", MARKS), ("decimal", DECIMALS)):
            for mark in self._pairs(name).values():
                if mark not in marks:
                    known = ", ".join({" ": "space"}.get(m, m) for m in marks)
                    raise BadInput(
                        f"{mark!r} is not one of: {known}", where=name, remedy=f"write one of them, or COLUMN={marks[0]}"
                    )
        thousands, decimal = self._pairs("thousands"), self._pairs("decimal")
        for column in {*thousands, *decimal}:
            sign = decimal.get(column, decimal.get(None))
            if sign is not None and sign == thousands.get(column, thousands.get(None)):
                about = f" of {column!r}" if column else ""
                what = f"{sign!r} cannot stand between groups of digits and before the decimals{about}"
                raise BadInput(what, where="thousands, decimal", remedy="give two different signs")
        for column, kind in self.types.items():
            if kind not in TYPES:
                raise unknown("type", kind, TYPES, where=f"type of column {column!r}")
        if self.separator is not None:
            sign = _NAMED.get(self.separator, self.separator)
            if sign not in SEPARATORS:
                remedy = "write one of: , ; | tab"
                raise BadInput(f"{self.separator!r} does not separate fields", where="separator", remedy=remedy)
            object.__setattr__(self, "separator", sign)
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                remedy = "write utf-8, cp1252, latin-1 or utf-16"
                raise BadInput(f"{self.encoding!r} is no encoding", where="encoding", remedy=remedy) from None

    @property
    def says_nothing(self) -> bool:
        """Whether all is left to be found out."""
        return self == Reading()

    def check(self, columns: Collection[str], where: str) -> None:
        """Whether the columns that are named exist.

        Raises
        ------
        BadInput
            One does not.
        """
        named = [
            *self.types,
            *(c for name in ("thousands", "decimal", "na") for c in self._pairs(name, columns) if c is not None),
        ]
        for column in named:
            if column not in columns:
                raise unknown("column", column, columns, where=where)

    def mark(self, column: str) -> str | None:
        """What stands between groups of digits."""
        found = self._pairs("thousands")
        return found.get(column, found.get(None))

    def sign(self, column: str) -> str | None:
        """The decimal sign."""
        found = self._pairs("decimal")
        return found.get(column, found.get(None))

    def missing(self, column: str, columns: Collection[str] = ()) -> tuple[str, ...]:
        """The words that mean that there is no value, beside the usual ones."""
        found = []
        for word in self.na:
            name, value = self._parted(word, columns)
            if value and name in (None, column):
                found.append(value)
        return tuple(dict.fromkeys(found))

    def only_empty(self, column: str) -> bool:
        """Whether only empty cells of a column are missing."""
        return f"{column}=" in self.na

    def _parted(self, word: str, columns: Collection[str]) -> tuple[str | None, str]:
        """The column and the word; a column's name may hold "=", and so may the word where no column is meant."""
        name, equals, value = word.rpartition("=")
        if not equals:
            return None, word
        if name not in columns and "=" in name:  # the word holds the last one
            first, _, rest = word.partition("=")
            if first in columns:
                return first, rest
        return name, value

    def _pairs(self, name: str, columns: Collection[str] = ()) -> dict[str | None, str]:
        found: dict[str | None, str] = {}
        for word in getattr(self, name):
            if not isinstance(word, str) or not word:
                raise BadInput(f"{word!r} is no word", where=name, remedy=f"write {name}='…', or {name}='COLUMN=…'")
            column, value = self._parted(word, columns)
            if value != "" or name == "na":
                value = _NAMED.get(value, value) if name != "na" else value
                if name != "na" and found.setdefault(column, value) != value:
                    about = f" for {column!r}" if column is not None else ""
                    raise BadInput(f"is {found[column]!r} and {value!r}{about}", where=name, remedy="keep one")
                found[column] = value
        return found


def reading_of(options: Mapping[str, Any]) -> Reading:
    """A `Reading` from some of its parameters; None stands for what nobody said."""
    return Reading(**{name: value for name, value in options.items() if value is not None})
