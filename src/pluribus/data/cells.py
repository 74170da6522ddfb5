"""A task's labelled cells, in the three forms of `pluribus.tasks.forms`, and how they become the labels of a batch.

| form  | in memory and on disk                      | in a batch: values                         | mask             |
|-------|--------------------------------------------|--------------------------------------------|------------------|
| value | float64 [m]                                | float32 [b]                                | None             |
| list  | `Ragged`, int32                            | int32 [b, L] or [b, L, w], -1 behind a row | bool [b, L]      |
| map   | `Maps`, in their own type, perhaps mapped  | [b, H, W] or [b, H, W, c], the same type   | bool [b, H, W]   |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data.batch import Labels
from pluribus.errors import BadInput
from pluribus.tasks.forms import NOTHING, Maps, Ragged, Values, there

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """A task's labelled cells of the whole table.

    Parameters
    ----------
    rows : ndarray of int64
        [m], the labelled rows, ascending.
    values : ndarray, Ragged or Maps
        [m], one cell each: numbers or class indices; lists; maps.
    weight : ndarray of float64 or None
        [m], or None for 1.

    Raises
    ------
    BadInput
        There are more or fewer cells than rows, or the values are an array of more than one dimension.
    """

    rows: IntArray
    values: Values
    weight: FloatArray | None = None

    def __post_init__(self) -> None:
        if isinstance(self.values, np.ndarray) and self.values.ndim != 1:
            remedy = "give lists as Ragged, maps as Maps (pluribus.tasks.forms)"
            raise BadInput(f"an array of shape {list(self.values.shape)} is not one value a row", where="Cells", remedy=remedy)
        if len(self.rows) != len(self.values):
            raise BadInput(f"{len(self.values)} cells for {len(self.rows)} rows", where="Cells", remedy="give each row one cell")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def numbers(self) -> FloatArray:
        """The values [m] of a task whose cells are one value each."""
        assert isinstance(self.values, np.ndarray), "lists and maps are no numbers"
        return self.values

    def __getitem__(self, at: NDArray[np.bool_] | IntArray | slice) -> Cells:
        """Some of the cells, by their position among the labelled ones."""
        return Cells(self.rows[at], self.values[at], None if self.weight is None else self.weight[at])

    def within(self, rows: IntArray) -> Cells:
        """The cells whose row is among `rows` (ascending)."""
        return self[np.isin(self.rows, rows, assume_unique=True)]

    def counted(self) -> Cells:
        """The cells whose weight is not 0: the others teach nothing, and a mean over them alone would be 0/0."""
        if self.weight is None or self.weight.all():
            return self
        return self[self.weight > 0]

    def labels(self, at: IntArray, rows: Tensor) -> Labels:
        """The labels of a batch from the cells at these positions.

        Parameters
        ----------
        at : ndarray of int64
            [b], positions among the cells.
        rows : Tensor
            [b] int64, their rows within the batch.

        Returns
        -------
        Labels
            Values and mask as in the table above. Maps without a valid place are left out.
        """
        weight = None if self.weight is None else torch.from_numpy(self.weight[at].astype(np.float32))
        return labels_of(self.values, at, rows, weight)


def labels_of(values: Values, at: IntArray, rows: Tensor, weight: Tensor | None) -> Labels:
    """The labels of a batch: the values at some positions [b], with their rows and weights within the batch."""
    if isinstance(values, Ragged):
        first = values.starts[at]
        lengths = values.starts[at + 1] - first
        place = np.arange(max(1, int(lengths.max(initial=1))))
        mask = place < lengths[:, None]
        if len(values.values):
            found = values.values.take(first[:, None] + place, axis=0, mode="clip")
        else:
            found = np.empty((*mask.shape, *values.values.shape[1:]), values.values.dtype)
        if found.dtype == np.uint8:  # written text: bytes leave no number for "nothing"
            found = found.astype(np.int32)
        found[~mask] = NOTHING
        return Labels(torch.from_numpy(found), rows, torch.from_numpy(mask), weight)
    if isinstance(values, Maps):
        picked = values[at].values
        valid = there(picked)
        held = valid.any((1, 2))
        if not held.all():
            kept = torch.from_numpy(held)
            picked, valid, rows = picked[held], valid[held], rows[kept]
            weight = None if weight is None else weight[kept]
        return Labels(torch.from_numpy(picked), rows, torch.from_numpy(valid), weight)
    return Labels(torch.from_numpy(values[at].astype(np.float32)), rows, None, weight)


def held_classes(values: Values, count: int) -> NDArray[np.bool_]:
    """[m, count], which of the classes 0 … count − 1 each cell holds."""
    if isinstance(values, Ragged):
        found = np.zeros((len(values), count), bool)
        known = (values.values >= 0) & (values.values < count)
        found[values.rows[known], values.values[known]] = True
        return found
    if isinstance(values, Maps):
        pieces = [np.stack([(piece.values == c).any((1, 2)) for c in range(count)], 1) for piece in values.pieces()]
        return np.concatenate([np.zeros((0, count), bool), *pieces])
    return np.asarray(values[:, None] == np.arange(count))


class Digest(Protocol):
    """A hash that goes on, as of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


def feed(digest: Digest, values: Values, width: int = 1, rows: int = 4096) -> None:
    """Put cells into a hash, some at a time.

    Lists go in padded to at least `width` in float64, as they once lay in memory, so that the hash of a table stays what it was.
    """
    if isinstance(values, Maps):
        for piece in values.pieces():
            digest.update(np.ascontiguousarray(piece.values).tobytes())
    elif isinstance(values, Ragged):
        width = max(width, int(values.lengths.max(initial=0)))
        for start in range(0, len(values), rows):
            digest.update(values[start : start + rows].to_padded(width=width).astype(np.float64).tobytes())
    else:
        digest.update(np.ascontiguousarray(values).tobytes())


@dataclass(frozen=True)
class CellsByRow:
    """The labelled cells of some tasks in the order of their rows (compressed sparse rows).

    The labels of a batch are then a few gathers, whether five tasks are full or six hundred are nearly empty.

    Parameters
    ----------
    names : tuple of str
        The tasks.
    start : ndarray of int64
        [n + 1], the first cell of each row.
    task : ndarray of int16
        [m], each cell's position among `names`.
    values : ndarray of float32
        [m], the values; of lists and maps 0.
    weight : ndarray of float32 or None
        [m].
    place : ndarray of int64 or None
        [m], each cell's position among those of its task; None where no task has lists or maps.
    wide : mapping
        Task → its lists or maps.
    """

    names: tuple[str, ...]
    start: IntArray
    task: NDArray[np.int16]
    values: NDArray[np.float32]
    weight: NDArray[np.float32] | None
    place: IntArray | None
    wide: Mapping[str, Ragged | Maps]

    @classmethod
    def of(cls, cells: Mapping[str, Cells], n_rows: int) -> CellsByRow:
        """From task → cells of a table of `n_rows` rows."""
        wide = {name: c.values for name, c in cells.items() if not isinstance(c.values, np.ndarray)}
        each = [replace(c, values=np.zeros(len(c))) if name in wide else c for name, c in cells.items()]
        rows = np.concatenate([np.empty(0, np.int64), *(c.rows for c in each)])
        order = np.argsort(rows, kind="stable")
        task = np.repeat(np.arange(len(each), dtype=np.int16), [len(c) for c in each])
        values = np.concatenate([np.empty(0, np.float32), *(np.asarray(c.values, np.float32) for c in each)])
        weight = None
        if any(c.weight is not None for c in each):
            ones = (np.ones(len(c), np.float32) if c.weight is None else c.weight.astype(np.float32) for c in each)
            weight = np.concatenate([np.empty(0, np.float32), *ones])[order]
        start = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n_rows))))
        place = np.concatenate([np.arange(len(c)) for c in each])[order] if wide else None
        return cls(tuple(cells), start, task[order], values[order], weight, place, wide)

    def labels(self, rows: IntArray) -> dict[str, Labels]:
        """The labels of these rows by task, their `rows` counted within the batch."""
        first, counts = self.start[rows], self.start[rows + 1] - self.start[rows]
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        if not total:
            return {}
        at = np.arange(total) + np.repeat(first - ends + counts, counts)
        task = self.task[at]
        order = np.argsort(task, kind="stable")  # of small whole numbers: counted, not compared
        at = at[order]
        values = torch.from_numpy(self.values[at])
        places = torch.from_numpy(np.repeat(np.arange(len(rows)), counts)[order])
        weight = None if self.weight is None else torch.from_numpy(self.weight[at])
        sizes = np.bincount(task, minlength=len(self.names)).tolist()
        weights = [None] * len(sizes) if weight is None else torch.split(weight, sizes)
        each = zip(torch.split(values, sizes), torch.split(places, sizes), weights)
        found = {
            name: Labels(value, place, None, own) for name, size, (value, place, own) in zip(self.names, sizes, each) if size
        }
        if self.place is not None:
            self._widen(found, self.place[at], sizes)
        return found

    def _widen(self, found: dict[str, Labels], place: IntArray, sizes: list[int]) -> None:
        """Put lists and maps where zeros stand; a task whose maps have no valid place is absent."""
        end = 0
        for name, size in zip(self.names, sizes):
            own, end = place[end : end + size], end + size
            if name in self.wide and size:
                found[name] = labels_of(self.wide[name], own, found[name].rows, found[name].weight)
                if not len(found[name].rows):
                    del found[name]
