"""The three forms of a task's cells: a value, a list, a map.

| form  | held as                                     | examples                                             |
|-------|---------------------------------------------|------------------------------------------------------|
| value | float64 [n]                                 | a class index, a number                              |
| list  | `Ragged`: int32 rows of width w, any number | tags, spans, sets of classes, relevant items, UTF-8  |
| map   | `Maps`: [n, H, W] or [n, H, W, c], narrow   | segments, depth, normals                             |

All three are indexed by rows in the same way: `values[rows]` holds those rows, in the same form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.files.arrays import read_array, write_array

Form: TypeAlias = Literal["value", "list", "map"]
FORMS: tuple[Form, ...] = ("value", "list", "map")
NOTHING = -1
"""What stands behind the end of a list where lists are padded."""
VOID = 255
"""The class of a place in a map that has no label."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, stored flat.

    Parameters
    ----------
    values : ndarray
        [total] or, where an element is w numbers, [total, w], row after row; int32 (codes, places), float32 (numbers) or
        uint8 (the bytes of a text).
    starts : ndarray of int64
        [n + 1]; row i is `values[starts[i]:starts[i + 1]]`. A row may be empty.

    Raises
    ------
    BadInput
        The arrays have another shape or type, or `starts` does not ascend from 0 to the number of values.
    """

    values: NDArray[np.int32] | NDArray[np.float32] | NDArray[np.uint8]
    starts: IntArray

    def __post_init__(self) -> None:
        if self.values.ndim not in (1, 2) or self.values.dtype not in (np.int32, np.float32, np.uint8):
            given = f"{self.values.dtype} of shape {list(self.values.shape)}"
            what = f"values must be rows of int32 or float32, or bytes (uint8), not {given}"
            raise BadInput(what, where="Ragged")
        starts = self.starts
        sound = starts.ndim == 1 and starts.dtype == np.int64 and len(starts) >= 1 and starts[0] == 0
        if not sound or starts[-1] != len(self.values) or (np.diff(starts) < 0).any():
            raise BadInput("starts must ascend from 0 to the number of values, in int64", where="Ragged")

    @classmethod
    def of(cls, rows: Iterable[ArrayLike], dtype: Any = np.int32, width: int | None = None) -> Ragged:
        """From one array-like a row; `width`: numbers of an element, None for plain elements."""
        each = [
            np.asarray(row, dtype).reshape(-1) if width is None else np.asarray(row, dtype).reshape(-1, width) for row in rows
        ]
        starts = np.concatenate(([0], np.cumsum([len(row) for row in each]))).astype(np.int64)
        empty = np.empty(0 if width is None else (0, width), dtype)
        return cls(np.concatenate([empty, *each]), starts)

    @classmethod
    def of_padded(cls, padded: ArrayLike, mask: ArrayLike | None = None) -> Ragged:
        """From rows of one length [n, L] or [n, L, w]: the places that `mask` [n, L] names, or those that are not `NOTHING`."""
        whole = np.asarray(padded)
        there = whole.reshape(*whole.shape[:2], -1)[..., 0] != NOTHING if mask is None else np.asarray(mask, bool)
        starts = np.concatenate(([0], np.cumsum(there.sum(1)))).astype(np.int64)
        return cls(whole[there].astype(np.int32), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, rows: Any) -> Ragged:
        """These rows (indices, a mask or a slice), in this order."""
        return self.take(np.arange(len(self))[rows])

    @property
    def width(self) -> int | None:
        """How many numbers an element has; None where it is one number."""
        return None if self.values.ndim == 1 else self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return int(self.values.nbytes + self.starts.nbytes)

    @property
    def lengths(self) -> IntArray:
        """[n]"""
        return np.diff(self.starts)

    @property
    def rows(self) -> IntArray:
        """The row of each element [total]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def row(self, index: int) -> NDArray[Any]:
        """The elements of one row."""
        return self.values[self.starts[index] : self.starts[index + 1]]

    def take(self, rows: IntArray) -> Ragged:
        """These rows, in this order."""
        return self._pick(self.starts[rows], self.starts[rows + 1])

    def latest(self, limit: int) -> Ragged:
        """At most the last `limit` elements of each row."""
        if not len(self.values) or int(self.lengths.max()) <= limit:
            return self
        return self._pick(np.maximum(self.starts[:-1], self.starts[1:] - limit), self.starts[1:])

    def followed_by(self, other: Ragged) -> Ragged:
        """The rows of both, these first."""
        values: Any = np.concatenate((self.values, other.values))
        return Ragged(values, np.concatenate((self.starts, self.starts[-1] + other.starts[1:])))

    def sums(self, elements: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over each row of something that is known of its elements: [total] → [n]."""
        return np.bincount(self.rows, elements, len(self)).astype(np.float64)

    def _pick(self, first: IntArray, end: IntArray) -> Ragged:
        lengths = end - first
        starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        return Ragged(self.values[np.arange(starts[-1]) + np.repeat(first - starts[:-1], lengths)], starts)

    def to_padded(self, fill: int = NOTHING, width: int = 1) -> NDArray[Any]:
        """[n, L] or [n, L, w], L the longest row but at least `width`, `fill` behind the end of each row."""
        longest = max(width, int(self.lengths.max(initial=0)))
        kind = np.result_type(self.values.dtype, np.min_scalar_type(fill))
        whole = np.full((len(self), longest, *self.values.shape[1:]), fill, kind)
        whole[np.arange(longest) < self.lengths[:, None]] = self.values
        return whole

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The rows in the padded form, as `to_padded` gives them."""
        return self.to_padded().astype(dtype, copy=False)

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """What a batch holds of it: see `padded`."""
        return self.padded(rows)

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_values.npy` and `NAME_starts.npy`."""
        write_array(folder / f"{name}_values.npy", self.values)
        write_array(folder / f"{name}_starts.npy", self.starts)

    @classmethod
    def load(cls, folder: Path, name: str, *, mmap: bool = True) -> Ragged:
        """Undo `save`."""
        return cls(*(read_array(folder / f"{name}_{part}.npy", mmap=mmap) for part in ("values", "starts")))

    def padded(self, rows: Tensor) -> dict[str, Tensor]:
        """{"values": [B, L] or [B, L, w], "mask": [B, L] bool, True where there is an element} of these rows (int64 [B]).

        L is the longest of them, at least 1; 0 fills the rest.
        """
        values, starts = self._tensors
        first = starts[rows]
        lengths = starts[rows + 1] - first
        longest = max(1, int(lengths.max()) if len(lengths) else 1)
        place, few = torch.arange(longest), 2 * longest < len(rows)  # few lengths: a mask each, then copies of them
        mask = (place < torch.arange(longest + 1)[:, None]).index_select(0, lengths) if few else place < lengths[:, None]
        if values.ndim == 2:
            found = values.new_zeros(len(rows), longest, values.shape[1])
            found[mask] = values[(first[:, None] + place)[mask]]
            return {"values": found, "mask": mask}
        if longest > len(values):
            values = F.pad(values, (0, longest - len(values)))  # a copy of everything
        last = len(values) - longest
        # Windows over the values, `longest` wide, overlap in memory: a row is one copy from where it starts, without indices.
        found = values.as_strided((last + 1, longest), (1, 1)).index_select(0, first.clamp_max(last))
        late = (first > last).nonzero()[:, 0]  # their windows reach beyond the end
        if len(late):
            end = F.pad(values[last:], (0, longest)).as_strided((longest + 1, longest), (1, 1))
            found[late] = end.index_select(0, first[late] - last)
        # a NaN beside the row survives a product with 0
        return {"values": found.masked_fill_(~mask, 0) if found.is_floating_point() else found.mul_(mask), "mask": mask}

    @property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] | None = vars(self).get("_cached")
        if found is None:
            found = torch.from_numpy(self.values), torch.from_numpy(self.starts)
            vars(self)["_cached"] = found  # a view of the arrays, which are not written to
        return found


@dataclass(frozen=True)
class Maps:
    """Dense cells in a narrow type; the array may be mapped from disk.

    Indexing copies nothing: it notes which rows are meant. `values` reads those, so take as many at a time as memory holds.

    Parameters
    ----------
    store : ndarray
        [N, H, W] or [N, H, W, c]. Whole numbers are classes, with `VOID` where there is no label; floating-point numbers
        are NaN there.
    at : ndarray of int64 or None
        [n], which rows of the store these are, in this order; None: all.

    Raises
    ------
    BadInput
        The array has another number of dimensions.
    """

    store: NDArray[Any]
    at: IntArray | None = None

    def __post_init__(self) -> None:
        if self.store.ndim not in (3, 4):
            what = f"maps are [n, H, W] or [n, H, W, c], not of shape {list(self.store.shape)}"
            raise BadInput(what, where="Maps")

    def __len__(self) -> int:
        return len(self.store if self.at is None else self.at)

    def __getitem__(self, rows: Any) -> Maps:
        """These rows (indices, a mask or a slice), in this order."""
        if self.at is None and isinstance(rows, slice):
            return Maps(self.store[rows])
        return Maps(self.store, (np.arange(len(self.store)) if self.at is None else self.at)[rows])

    @property
    def values(self) -> NDArray[Any]:
        """[n, H, W] or [n, H, W, c], read here and now."""
        return self.store if self.at is None else np.asarray(self.store[self.at])

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return len(self) * int(np.prod(self.store.shape[1:])) * self.store.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values.astype(dtype, copy=False)

    def pieces(self, nbytes: int = 1 << 26) -> Iterator[Maps]:
        """The maps in order, some at a time: as many as have about this many bytes."""
        step = max(1, nbytes * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), step):
            yield self[start : start + step]

    def there(self) -> NDArray[np.bool_]:
        """Which places have a label [n, H, W]; with several channels, those in which every channel has one."""
        return there(self.values)

    def followed_by(self, other: Maps) -> Maps:
        """The maps of both, these first."""
        return Maps(np.concatenate((self.values, other.values)))


def there(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which places of some maps [n, H, W] or [n, H, W, c] have a label [n, H, W]."""
    valid = ~np.isnan(values) if np.issubdtype(values.dtype, np.floating) else values != VOID
    return np.asarray(valid if valid.ndim == 3 else valid.all(-1))


Values: TypeAlias = NDArray[np.float64] | Ragged | Maps
"""What a task's cells hold, in one of the three forms."""


def form_of(values: Any) -> Form:
    """The form of some values."""
    return "list" if isinstance(values, Ragged) else "map" if isinstance(values, Maps) else "value"


def joined(parts: Sequence[Values]) -> Values:
    """The cells of several parts of one form, one below the other."""
    first, *rest = parts
    if isinstance(first, np.ndarray):
        return np.concatenate([cast(NDArray[np.float64], part) for part in parts])
    for part in rest:
        first = first.followed_by(cast(Any, part))
    return first


def one_value(values: Values) -> tuple[float, int] | None:
    """The value that all labelled places hold, and how many places that are; None where they differ, or there are none."""
    places: Iterable[NDArray[Any]]
    if isinstance(values, Maps):
        places = (piece.values[piece.there()] for piece in values.pieces())
    else:
        places = [values.values if isinstance(values, Ragged) else values]
    first, count = None, 0
    for each in places:
        flat = each.reshape(-1)
        if not len(flat):
            continue
        first = float(flat[0]) if first is None else first
        if not (flat == first).all():
            return None
        count += len(flat)
    return None if first is None else (first, count)
