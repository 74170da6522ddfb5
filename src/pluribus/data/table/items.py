"""Item tables: a second table with one row an item, joined by key to columns of items in the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluribus.data.ingest import read_table
from pluribus.data.table.table import Table
from pluribus.errors import BadInput, unknown
from pluribus.tasks.columns import word_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ItemTable:
    """A table of items.

    Parameters
    ----------
    frame : DataFrame
        One row an item.
    key : str
        Its column of distinct, complete keys.
    columns : sequence of str
        The columns of the other table that hold keys; default: the one that is called like this table, else like the key.
    ignore : sequence of str
        Columns that are no attributes.
    text : sequence of str
        Columns of text.
    max_length : int
        How many of a list's latest elements are kept.
    source : str
        The file's name, for messages.
    """

    frame: pd.DataFrame
    key: str
    columns: Sequence[str] = ()
    ignore: Sequence[str] = ()
    text: Sequence[str] = ()
    max_length: int = 100
    source: str = "item table"

    @classmethod
    def read(cls, path: str | Path, key: str, columns: Sequence[str] = (), **roles: Any) -> ItemTable:
        """From a CSV or Parquet file; keys keep their leading zeros."""
        return cls(read_table(path, text=[key, *roles.get("text", ())]), key, columns, source=str(path), **roles)

    def joined(self, name: str, inputs: Sequence[str]) -> tuple[str, ...]:
        """The input columns that this table, called `name`, is joined to."""
        if isinstance(self.columns, str):
            raise BadInput("columns must be a list of names", where=f"items {name!r}", remedy=f"write [{self.columns!r}]")
        for column in self.columns:
            if column not in inputs:
                raise unknown("input column", column, inputs, where=f"items {name!r}")
        found = tuple(self.columns) or tuple(c for c in (name, self.key) if c in inputs)[:1]
        if not found:
            remedy = "say which: columns=[…]"
            raise BadInput("no column holds its keys", where=f"items {name!r}", remedy=remedy)
        return found

    def attributes(self) -> Attributes:
        """The checked table of attributes.

        Raises
        ------
        BadInput: the key is no column, is empty in a row, or stands in two rows; and whatever a `Table` refuses.
        """
        return Attributes(
            self.frame,
            ignore=(*self.ignore, self.key),
            split="random",
            text=self.text,
            max_length=self.max_length,
            source=self.source,
            keys=keys_of(self.frame, self.key, self.source),
        )


class Attributes(Table):
    """The attributes of items: a table without tasks. keys: one word an item."""

    predicts = False

    def __init__(self, frame: pd.DataFrame, *, keys: list[str], **roles: Any) -> None:
        super().__init__(frame, (), **roles)
        self.keys = keys


def keys_of(frame: pd.DataFrame, key: str, source: str) -> list[str]:
    """The keys of an item table as words, checked."""
    if key not in frame.columns:
        raise unknown("key column", key, [str(name) for name in frame.columns], where=source)
    series, where = frame[key], f"{source}, column {key!r}"
    if not len(series):
        raise BadInput("has no items", where=source, remedy="check how it was made")
    empty = series.isna().to_numpy()
    if empty.any():
        raise BadInput(f"the key is empty in row {int(empty.argmax()) + 1}", where=where, remedy="fill it, or drop the row")
    words = [word_of(value) for value in series.tolist()]
    seen: dict[str, int] = {}
    for row, word in enumerate(words):
        if word in seen:
            what = f"the key {word!r} stands in row {seen[word] + 1} and in row {row + 1}"
            raise BadInput(what, where=where, remedy="keep one row an item")
        seen[word] = row
    return words
