"""Sequences: lists of words, of numbers, or of keys of an item table.

A list of words becomes codes, as of a categorical feature (at most `MAX_ELEMENTS` categories); a list of numbers is centred and
scaled; a list of keys becomes codes of the item table's catalogue. Of each list the latest elements are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from pluribus.data.inputs.category import word
from pluribus.data.inputs.number import number
from pluribus.data.inputs.reading import called
from pluribus.data.inputs.record import (
    CellLimits,
    FittedInput,
    Fitting,
    InputColumn,
    InputType,
    JoinedItems,
    Positions,
    Saved,
    Schema,
    Statistics,
    Unfit,
    register,
)
from pluribus.data.ragged import Lists, Ragged, read_lists
from pluribus.data.statistics import FIRST, MAX_ELEMENTS, MISSING, UNSEEN, Elements, fit_category, fit_number
from pluribus.errors import BadInput


class SequenceType(InputType):
    """Lists, as Python, Arrow or JSON in text hold them."""

    name = "sequence"
    order = 2
    depth = 1
    store = Ragged

    def infer(self, column: InputColumn) -> str | None:
        """Columns of lists."""
        if not column.is_listed:
            return None
        lists, longest = column.lists, int(np.diff(column.lists.starts).max())
        kept = f", the latest {column.limit} of which are kept" if longest > column.limit else ""
        what = "numbers" if lists.numeric else "categories"
        return f"{column.name!r} is a sequence of {what} (at most {longest} in a row{kept})"

    def read(self, column: InputColumn) -> Lists:
        """The lists; a missing cell is an empty one."""
        return column.lists

    def mentioned(self, read: Any, rows: Positions) -> list[str]:
        """The keys in the lists of these rows."""
        codes = read.rows(rows)[1]
        return [read.words[code] for code in np.unique(codes[codes >= 0])]

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """How elements are encoded, and how long a training row is."""
        lengths = np.minimum(np.diff(read.starts)[fitting.rows], column.limit)
        typical = max(1, round(float(lengths.mean()))) if len(lengths) else 1
        if fitting.items is not None:
            return FittedSequence(
                column.name, encoding=Elements(column.limit, typical, items=fitting.items.name), items=fitting.items
            )
        numbers, codes = read.rows(fitting.rows)
        if read.numeric:
            return FittedSequence(column.name, encoding=Elements(column.limit, typical, number=fit_number(numbers)))
        category = fit_category(codes, read.words, fitting.least, MAX_ELEMENTS)
        return FittedSequence(column.name, encoding=Elements(column.limit, typical, category))

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        if saved.elements is None:
            raise BadInput("the columns' sequences do not match their inputs", remedy="restore the folder")
        return FittedSequence(saved.name, encoding=saved.elements, items=saved.items)


@dataclass(frozen=True)
class FittedSequence(FittedInput):
    """A column of lists.

    Parameters
    ----------
    encoding : Elements
        How its elements are encoded.
    items : JoinedItems or None
        The items whose keys the elements are.
    """

    encoding: Elements = field(default_factory=lambda: Elements(1, 1))
    items: JoinedItems | None = None

    record = register(SequenceType())

    @property
    def elements(self) -> Elements:
        """How its elements are encoded."""
        return self.encoding

    @property
    def as_written(self) -> bool:
        """Keys of items are written as they are."""
        return self.items is not None

    @cached_property
    def _code_of(self) -> dict[str, int]:
        categories = () if self.encoding.category is None else self.encoding.category.categories
        return {word: code for code, word in enumerate(categories, FIRST)}

    def read(self, column: InputColumn) -> Lists:
        """The lists, with elements of the fitted type."""
        return read_lists(column.series, column.where, self.encoding.numeric)

    def stored(self, read: Any) -> Ragged:
        """Codes (int32) or numbers (float32), the latest of each row."""
        values: Any
        if self.encoding.number is not None:
            values = ((read.numbers - self.encoding.number.centre) / self.encoding.number.scale).astype(np.float32)
        elif self.items is not None:
            values = np.append(self.items.codes(read.words), np.int32(MISSING))[read.codes]
        else:
            codes = [self._code_of.get(word, UNSEEN) for word in read.words]
            values = np.array([*codes, MISSING], np.int32)[read.codes]
        return Ragged(values, read.starts).latest(self.encoding.limit)

    def grown(self, items: Mapping[str, JoinedItems]) -> FittedInput:
        """Keys of the larger catalogue are known."""
        return self if self.items is None else replace(self, items=items[self.items.name])

    def schema(self, statistics: Statistics) -> Schema:
        """A list, or null."""
        return {"type": ["array", "null"], "items": {"type": ["number" if self.encoding.numeric else "string", "null"]}}

    def read_cell(self, value: Any, limits: CellLimits) -> list[Any]:
        """A list of numbers, or of words; null is an empty one."""
        found = list_of(value, limits)
        return numbers_in(found) if self.encoding.numeric else _words(found, limits.text)


def list_of(value: Any, limits: CellLimits) -> list[Any]:
    """One JSON value as a list; null is an empty one.

    Raises
    ------
    Unfit
        It is none, or longer than the limits say.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unfit(f"takes a list, not {called(value)}")
    if len(value) > limits.elements:
        raise Unfit(f"is a list of {len(value)}, the limit is {limits.elements}")
    return value


def numbers_in(found: list[Any]) -> list[float]:
    """The elements of a JSON list as numbers.

    Raises
    ------
    Unfit
        One of them is none.
    """
    if found and set(map(type, found)) == {float} and math.isfinite(sum(found)):
        return found
    try:
        return [number(each) for each in found]
    except Unfit as error:
        raise Unfit(f"{error}, in its list") from None


def _words(found: list[Any], limit: int) -> list[str | None]:
    for each in found:
        if isinstance(each, bool) or (isinstance(each, float) and not each.is_integer()):
            raise Unfit(f"takes a list of words, not {called(each)} in it")
    return [word(each, limit) for each in found]


SEQUENCE = FittedSequence.record
