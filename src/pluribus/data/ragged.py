"""Columns whose cells have lengths: sequences of codes or numbers, and texts.

Both are stored flat, one array of everything and one of where each row starts, so that a million rows are two arrays, can be
mapped from disk, and a padded batch is one gather. `read_lists` turns a column of lists, as pandas, Arrow or JSON hold them,
into this form.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.files.arrays import read_array, write_array
from pluribus.tasks.forms import Ragged

if TYPE_CHECKING:
    import pandas as pd

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Texts(Sequence["str | None"]):
    """Strings, some missing, as UTF-8.

    Parameters
    ----------
    data : ndarray of uint8
        [bytes], string after string.
    starts : ndarray of int64
        [n + 1]; string i is `data[starts[i]:starts[i + 1]]`.
    present : ndarray of bool
        [n], False where a string is missing.
    """

    data: NDArray[np.uint8]
    starts: IntArray
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> Texts:
        if isinstance(texts, Texts):
            return texts
        found = list(texts)
        each = [b"" if text is None else text.encode("utf-8", "replace") for text in found]
        starts = np.concatenate(([0], np.cumsum([len(text) for text in each]))).astype(np.int64)
        data = np.frombuffer(b"".join(each), np.uint8).copy()
        return cls(data, starts, np.array([text is not None for text in found], bool))

    def __len__(self) -> int:
        return len(self.present)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...

    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = index + len(self) if index < 0 else index
        if not self.present[index]:
            return None
        return self.data[self.starts[index] : self.starts[index + 1]].tobytes().decode("utf-8", "replace")

    def take(self, rows: IntArray) -> Texts:
        """These strings, in this order."""
        found = Ragged(self.data, self.starts).take(rows)
        return Texts(np.asarray(found.values, np.uint8), found.starts, self.present[rows])

    def gather(self, rows: Tensor) -> None:
        """Batches hold no texts: whoever reads them tokenises them first."""

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME_data.npy`, `NAME_starts.npy` and `NAME_present.npy`."""
        for part in ("data", "starts", "present"):
            write_array(folder / f"{name}_{part}.npy", getattr(self, part))

    @classmethod
    def load(cls, folder: Path, name: str, *, mmap: bool = True) -> Texts:
        """Undo `save`."""
        return cls(*(read_array(folder / f"{name}_{part}.npy", mmap=mmap) for part in ("data", "starts", "present")))

    def followed_by(self, other: Texts) -> Texts:
        """The strings of both, these first."""
        starts = np.concatenate((self.starts, self.starts[-1] + other.starts[1:]))
        return Texts(np.concatenate((self.data, other.data)), starts, np.concatenate((self.present, other.present)))


# A column of lists


@dataclass(frozen=True)
class Lists:
    """A column of lists, read.

    Parameters
    ----------
    numeric : bool
        What its elements are: words and whole numbers are categories, numbers with decimals are numbers.
    starts : ndarray of int64
        [n + 1]; list i has the elements from `starts[i]` to `starts[i + 1]`. A missing cell is an empty list.
    numbers : ndarray of float64
        [total], NaN where missing; empty where elements are categories.
    codes : ndarray of int64
        [total], positions among `words`, −1 where missing; empty where elements are numbers.
    words : list of str
        The different elements.
    """

    numeric: bool
    starts: IntArray
    numbers: NDArray[np.float64]
    codes: IntArray
    words: list[str]

    def rows(self, picked: Any) -> tuple[NDArray[np.float64], IntArray]:
        """The numbers and the codes of these rows (indices or a slice), flat."""
        kept = np.zeros(len(self.starts) - 1, bool)
        kept[picked] = True
        each = np.repeat(kept, np.diff(self.starts))
        return (self.numbers[each], self.codes[:0]) if self.numeric else (self.numbers[:0], self.codes[each])


def looks_like_lists(series: pd.Series) -> bool:
    """Whether a column holds lists.

    The first value that is there is one, or nine in ten of the first thousand are text that starts with [ and ends with ], as
    JSON writes them.
    """
    import pandas as pd

    if series.dtype == np.dtype(object):
        for cell in series.to_numpy(object):
            if _is_list(cell):
                return True
            if not _is_missing(cell):
                break
    if series.dtype == np.dtype(object) or pd.api.types.is_string_dtype(series.dtype):
        head = [cell for cell in series.iloc[:1000].to_numpy(object) if isinstance(cell, str)]
        return bool(head) and sum(_written_list(cell) for cell in head) >= 0.9 * len(head)
    return False


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | np.ndarray)


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell) or type(cell).__name__ in ("NAType", "NaTType")


def _written_list(cell: str) -> bool:
    cell = cell.strip()
    return cell.startswith("[") and cell.endswith("]")


def read_lists(series: pd.Series, where: str, numeric: bool | None = None) -> Lists:
    """Read a column of lists.

    Parameters
    ----------
    series : pandas.Series
        The cells: lists, arrays of one dimension, JSON lists in text, or nothing.
    where : str
        The file and the column, for messages.
    numeric : bool or None
        Whether the elements must be numbers (True) or categories (False); None: found out.

    Raises
    ------
    BadInput
        A cell that is no list, a list within a list, an element of another type than the others or than `numeric` says, an
        infinite number; the row is named (from 1).
    """
    cells = [_cell(cell, row, where) for row, cell in enumerate(series.to_numpy(object))]
    lengths = np.fromiter((len(cell) for cell in cells), np.int64, len(cells))
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    found, flat = _flat(cells, where, numeric)
    if found:
        infinite = np.isinf(flat)
        if infinite.any():
            row = int(np.searchsorted(starts, int(infinite.argmax()), "right"))
            raise BadInput(f"holds an infinite number in row {row}", where=where, remedy="leave it out of the list")
        return Lists(True, starts, flat, np.empty(0, np.int64), [])
    codes, words = _dictionary(flat)
    return Lists(False, starts, np.empty(0), codes, words)


def _cell(cell: Any, row: int, where: str) -> Sequence[Any] | NDArray[Any]:
    if isinstance(cell, list | tuple):
        return cell
    if isinstance(cell, np.ndarray) and cell.ndim == 1:
        return cell
    if isinstance(cell, np.ndarray):
        raise BadInput(f"holds an array of {cell.ndim} dimensions in row {row + 1}", where=where, remedy="give it plain lists")
    if _is_missing(cell):
        return ()
    if isinstance(cell, str) and _written_list(cell):
        try:
            read: list[Any] = json.loads(cell)
            return read
        except ValueError:
            pass
    what = f"holds {cell!r:.60} in row {row + 1}, where the other rows hold lists"
    raise BadInput(what, where=where, remedy="give every row a list; [] where there is nothing")


def _flat(cells: Sequence[Any], where: str, numeric: bool | None) -> tuple[bool, Any]:
    """Whether the elements are numbers, and all of them: float64 for numbers, an Arrow array for categories."""
    import pyarrow as pa

    plain = [cell for cell in cells if isinstance(cell, np.ndarray)]
    if plain and len(plain) == len(cells) and len({cell.dtype for cell in plain}) == 1 and plain[0].dtype != object:
        elements: Any = np.concatenate(plain)
    else:
        elements = list(itertools.chain.from_iterable(cells))
    try:
        array = pa.array(elements, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise _odd_element(cells, where) from error
    kinds = pa.types
    if kinds.is_floating(array.type):
        numbers = np.asarray(array.to_numpy(zero_copy_only=False), np.float64)
        if numeric is not False:
            return True, numbers
        whole = np.isnan(numbers) | ((numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53))
        if not whole.all():
            raise _wrong_kind(cells, where, "words or whole numbers", int((~whole).argmax()), float(numbers[(~whole).argmax()]))
        array = array.cast(pa.int64())
    if kinds.is_null(array.type):  # nothing in any list
        if numeric:
            return True, np.full(len(array), np.nan)
        return False, array.cast(pa.string())
    if kinds.is_integer(array.type):
        if numeric:
            return True, np.asarray(array.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
        return False, array
    if kinds.is_string(array.type) or kinds.is_large_string(array.type) or kinds.is_boolean(array.type):
        if numeric:
            at = int(np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))[0])
            raise _wrong_kind(cells, where, "numbers", at, array[at].as_py())
        return False, array
    raise _odd_element(cells, where)


def _wrong_kind(cells: Sequence[Any], where: str, wanted: str, at: int, value: Any) -> BadInput:
    row = int(np.searchsorted(np.cumsum([len(cell) for cell in cells]), at, "right"))
    what = f"was fitted on lists of {wanted} but holds {value!r:.60} in row {row + 1}"
    return BadInput(what, where=where, remedy=f"give it lists of {wanted}")


def _called(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "a boolean"
    if isinstance(value, int | float | np.integer | np.floating):
        return "a number"
    if isinstance(value, str):
        return "a word"
    if isinstance(value, list | tuple | np.ndarray):
        return "a list within the list"
    return f"a value of type {type(value).__name__}"


def _odd_element(cells: Sequence[Any], where: str) -> BadInput:
    """The first element that is neither word nor number, or is of another type than the first."""
    first = None
    for row, cell in enumerate(cells):
        for value in cell:
            if _is_missing(value):
                continue
            called = _called(value)
            if called not in ("a boolean", "a number", "a word"):
                what = f"holds {called} in row {row + 1}"
                return BadInput(what, where=where, remedy="give it flat lists of words or numbers")
            first = first or called
            if called != first:
                what = f"holds {called} ({value!r:.60}) in row {row + 1}, where the elements before are each {first}"
                return BadInput(what, where=where, remedy="give all lists elements of one type")
    return BadInput("holds lists of numbers beyond 64 bits", where=where, remedy="write them as words")


def _dictionary(array: Any) -> tuple[IntArray, list[str]]:
    """Codes [total], −1 where missing, and the distinct elements as words."""
    encoded = array.dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    return codes, [str(word) for word in encoded.dictionary.to_pylist()]


__all__ = ["Lists", "Ragged", "Texts", "looks_like_lists", "read_lists"]
