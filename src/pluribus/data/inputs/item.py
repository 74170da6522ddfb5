"""Items: one key of an item table a row.

The key is a categorical feature and a ragged input of one code of the item table's catalogue; the item's attributes become
features too, `COL.ATTRIBUTE` (lists and texts left out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.inputs.category import short_words, word, word_schema, words_of
from pluribus.data.inputs.record import (
    CellLimits,
    ColumnFeatures,
    FittedInput,
    Fitting,
    InputColumn,
    InputType,
    JoinedItems,
    Positions,
    Saved,
    Schema,
    Statistics,
    Words,
    register,
)
from pluribus.data.ragged import Ragged
from pluribus.data.statistics import MISSING, Elements
from pluribus.errors import BadInput


class ItemType(InputType):
    """Keys of an item table."""

    name = "item"
    order = 1
    plain = True
    store = Ragged

    def infer(self, column: InputColumn) -> str | None:
        """Columns that are joined to an item table and hold no lists."""
        return "" if column.joined and not column.is_listed else None

    def read(self, column: InputColumn) -> Words:
        """The cells' positions among the distinct keys."""
        return words_of(column)

    def mentioned(self, read: Any, rows: Positions) -> list[str]:
        """The keys in these rows."""
        codes = read.codes[rows]
        return [read.words[code] for code in np.unique(codes[codes >= 0])]

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """Which items it is joined to."""
        assert fitting.items is not None
        return FittedItem(column.name, items=fitting.items)

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        if saved.items is None:
            raise BadInput("the columns' sequences do not match their inputs", remedy="restore the folder")
        return FittedItem(saved.name, saved.numeric, saved.categorical, items=saved.items)

    def read_cells(self, inputs: Sequence[FittedInput], values: Sequence[Any], limits: CellLimits) -> list[Any]:
        """One row's keys."""
        return short_words(values, limits.text)


@dataclass(frozen=True)
class FittedItem(FittedInput):
    """A column of keys of an item table.

    Parameters
    ----------
    items : JoinedItems
        The items.
    """

    items: JoinedItems | None = None

    record = register(ItemType())

    @property
    def elements(self) -> Elements:
        """One key a row."""
        return Elements(1, 1, items=self._items.name)

    @property
    def as_written(self) -> bool:
        """Keys are written as they are."""
        return True

    @property
    def _items(self) -> JoinedItems:
        assert self.items is not None
        return self.items

    def _codes(self, read: Any) -> NDArray[np.int32]:
        """Each row's code of the catalogue."""
        known: NDArray[np.int32] = np.append(self._items.codes(read.words), np.int32(MISSING))
        return np.asarray(known[read.codes], np.int32)

    def features(self, read: Any) -> ColumnFeatures:
        """The key as a word, and the attributes of its item."""
        own = self._items.attributes(self._codes(read), self.name)
        return ColumnFeatures(own.numeric, {self.name: read, **own.categorical})

    def stored(self, read: Any) -> Ragged:
        """A list of one code, or of none where the key is missing."""
        there = read.codes >= 0
        return Ragged(self._codes(read)[there], np.concatenate(([0], np.cumsum(there))))

    def grown(self, items: Mapping[str, JoinedItems]) -> FittedInput:
        """Keys of the larger catalogue are known."""
        return replace(self, items=items[self._items.name])

    def schema(self, statistics: Statistics) -> Schema:
        """A key, or null; the most frequent ones are examples."""
        return word_schema(self, statistics)

    def read_cell(self, value: Any, limits: CellLimits) -> str | None:
        """A key; numbers as the words that they are."""
        return word(value, limits.text)


ITEM = FittedItem.record
