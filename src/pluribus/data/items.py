"""Item tables: a second table with one row an item, joined by key to columns of items in the first.

A joined column, one item a row or a list of them, becomes codes into the catalogue: 0 missing, 1 not in the catalogue, 2 + i the
item in row i of `FittedItems.data`, which holds every item's attributes, encoded as a table is. So a model that reads attributes
can score an item that no training row mentions, and the catalogue may grow once the model is fitted (`FittedItems.grown`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.ingest import read_table
from pluribus.data.prepared import Prepared
from pluribus.data.ragged import Texts
from pluribus.data.table import Table
from pluribus.errors import BadInput, unknown
from pluribus.tasks.columns import word_of

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.tasks import Task

FILE = "items.safetensors"

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ItemTable:
    """A table of items.

    frame: one row an item. key: its column of distinct, complete keys. columns: the columns of the other table that hold keys
    (default: the one that is called like this table, else like the key). ignore: columns that are no attributes. text: columns
    of text. max_length: how many of a list's latest elements are kept. source: the file's name, for messages.
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
            (),
            ignore=(*self.ignore, self.key),
            split="random",
            text=self.text,
            max_length=self.max_length,
            source=self.source,
            keys=keys_of(self.frame, self.key, self.source),
        )


class Attributes(Table):
    """The attributes of items: a table without tasks. keys: one word an item."""

    def __init__(self, frame: pd.DataFrame, tasks: Sequence[str | Task], *, keys: list[str], **roles: Any) -> None:
        super().__init__(frame, tasks, **roles)
        self.keys = keys

    def _named(self, tasks: Sequence[str | Task]) -> list[tuple[Task | None, str, str | None]]:
        return []


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


@dataclass(frozen=True)
class FittedItems:
    """The catalogue of an item table, as a model was fitted on it or as it has grown since.

    name, key: of the table. columns: the joined columns. data: the attributes, row i is code 2 + i; statistics and vocabularies
    are those of the items that training rows mention. keys: the items' keys. seen: [I], whether training rows mention the item.
    """

    name: str
    key: str
    columns: tuple[str, ...]
    data: Prepared
    keys: Texts
    seen: NDArray[np.bool_]

    @classmethod
    def fit(cls, name: str, key: str, columns: Sequence[str], table: Attributes, mentioned: Iterable[str]) -> FittedItems:
        """mentioned: keys in the training rows."""
        from pluribus.data.columns import FittedColumns

        words = set(mentioned)
        seen = np.array([word in words for word in table.keys], bool)
        fitted = FittedColumns.fit(table, np.flatnonzero(seen) if seen.any() else None, min_count=1)
        return cls(name, key, tuple(columns), fitted.prepare(table.frame, ()), Texts.of(table.keys), seen)

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def size(self) -> int:
        """Number of codes: the items, and two."""
        return len(self) + 2

    @cached_property
    def _code_of(self) -> dict[str, int]:
        return {str(word): code for code, word in enumerate(self.keys, 2)}

    def codes(self, words: Iterable[str]) -> NDArray[np.int32]:
        """Each key's code; 1 where the catalogue lacks it."""
        known = self._code_of
        return np.array([known.get(word, 1) for word in words], np.int32)

    def grown(self, frame: pd.DataFrame, source: str = "new items") -> FittedItems:
        """The catalogue with more items at its end: earlier codes, and everything that was learnt, stay what they are.

        Raises
        ------
        BadInput: the key is missing, empty, doubled or in the catalogue already; an attribute is missing or of another type.
        """
        keys = keys_of(frame, self.key, source)
        known = next((key for key in keys if key in self._code_of), None)
        if known is not None:
            where = f"{source}, column {self.key!r}"
            raise BadInput(f"the item {known!r} is in the catalogue already", where=where, remedy="give new items only")
        new = self.data.columns.prepare(frame.reset_index(drop=True), ())
        seen = np.concatenate((self.seen, np.zeros(len(keys), bool)))
        return replace(self, data=self.data.followed_by(new), keys=self.keys.followed_by(Texts.of(keys)), seen=seen)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the catalogue into `folder`, which is made, and return the rest as plain JSON."""
        from safetensors.numpy import save_file

        self.data.save(folder / "table")
        arrays: dict[str, NDArray[Any]] = {"keys": self.keys.data, "starts": self.keys.starts, "seen": self.seen}
        save_file(arrays, str(folder / FILE))
        return {"name": self.name, "key": self.key, "columns": list(self.columns)}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any]) -> FittedItems:
        """Undo `write`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / FILE
        remedy = "restore the folder"
        try:
            arrays = load_file(str(path))
            keys = Texts(arrays["keys"], arrays["starts"], np.ones(len(arrays["seen"]), bool))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise BadInput(f"is not a file of items ({error})", where=str(path), remedy=remedy) from error
        found = cls(
            str(manifest["name"]),
            str(manifest["key"]),
            tuple(manifest["columns"]),
            Prepared.load(folder / "table"),
            keys,
            arrays["seen"],
        )
        if not len(found.keys.starts) - 1 == len(found) == found.data.n_rows:
            raise BadInput("holds another number of keys than of items", where=str(path), remedy=remedy)
        return found
