"""The catalogue of an item table, as a model was fitted on it.

A joined column, one item a row or a list of them, becomes codes into the catalogue: 0 missing, 1 not in the catalogue, 2 + i the
item in row i of `FittedItems.data`, which holds every item's attributes, encoded as a table is. So a model that reads attributes
can score an item that no training row mentions, and the catalogue may grow once the model is fitted (`FittedItems.grown`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.inputs.record import ColumnFeatures, Words
from pluribus.data.prepared import Prepared
from pluribus.data.ragged import Texts
from pluribus.data.statistics import FIRST, MISSING, UNSEEN
from pluribus.data.table.items import ItemTable, keys_of
from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

FILE = "items.safetensors"
_NO_WORD = "\0"  # no attribute's word: an item that the catalogue lacks, or a word that its items in training did not have

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class FittedItems:
    """The catalogue of an item table, as a model was fitted on it or as it has grown since.

    Parameters
    ----------
    name, key : str
        Of the table.
    columns : tuple of str
        The joined columns.
    data : Prepared
        The attributes; row i is code 2 + i. Statistics and vocabularies are those of the items that training rows mention.
    keys : Texts
        The items' keys.
    seen : ndarray of bool
        [I], whether training rows mention the item.
    """

    name: str
    key: str
    columns: tuple[str, ...]
    data: Prepared
    keys: Texts
    seen: NDArray[np.bool_]

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

    def attributes(self, codes: NDArray[np.int32], prefix: str) -> ColumnFeatures:
        """The features of the items with these codes [n], each called PREFIX.ATTRIBUTE.

        Of a missing item they are missing; of one that the catalogue lacks its numbers are, and its words are unseen.
        """
        there, row = codes >= FIRST, np.maximum(codes.astype(np.int64) - FIRST, 0)
        columns, found = self.data.columns, ColumnFeatures()
        for i, (attribute, number) in enumerate(columns.numbers.items()):
            values = self.data.numeric[row, i].astype(np.float64) * number.scale + number.centre
            found.numeric[f"{prefix}.{attribute}"] = np.where(there, values, np.nan)
        for i, (attribute, category) in enumerate(columns.categories.items()):
            own = np.where(there, self.data.categorical[row, i], codes).astype(np.int64)  # 0 and 1 mean the same on both sides
            last = len(category.categories)
            own = np.where(own == MISSING, -1, np.where(own == UNSEEN, last, own - FIRST))
            found.categorical[f"{prefix}.{attribute}"] = Words(own, [*category.categories, _NO_WORD], category.categories)
        return found

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


__all__ = ["FILE", "FittedItems", "ItemTable"]
