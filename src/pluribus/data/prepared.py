"""A table made ready for learning: encoded once into contiguous arrays, split, its labels compact.

This is what a `Candidate` is handed. Networks slice batches out of it (`batch`), trees take the arrays as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus import catalog
from pluribus.data.batch import Batch
from pluribus.data.cells import Cells, CellsByRow, IntArray
from pluribus.data.ragged import Texts
from pluribus.data.stores import Store
from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json
from pluribus.files.arrays import read_array, write_array
from pluribus.tasks import Task
from pluribus.tasks.forms import Maps, Ragged, Values, form_of

if TYPE_CHECKING:
    from pluribus.data.splitting import Split
    from pluribus.data.table import Table


@dataclass(frozen=True, init=False)
class Prepared:
    """An encoded table.

    Parameters
    ----------
    tasks : tuple of Task
        What is predicted.
    columns : FittedColumns
        The fitted preprocessing, which encodes further tables the same way. (`pluribus.data.columns` stands on this file, so the
        class is found through the catalog.)
    numeric : ndarray of float32
        [n, F], centred and scaled on the training rows, NaN where missing.
    categorical : ndarray of int32
        [n, C]; 0 missing, 1 unseen in training, then the categories.
    cells : mapping
        Task → its labelled cells.
    parts : mapping
        "train", "valid", "test" → ascending rows. A candidate is handed no test part.
    units : ndarray of int64
        [n], the resampling unit of each row (group, day, or the row itself).
    context : mapping
        Per-row side information by name [n] (long layout: "task", the index of the row's task).
    stores : mapping
        Column → what batches or candidates read of it beside features: sequences, texts, pictures.
    ragged : mapping, optional
        Sequence → its elements: numbers as `numeric`, categories as `categorical` codes, items as codes of `items`. They take
        the place of all ragged ones in `stores`.
    texts : mapping, optional
        Text column → its strings, None where missing; likewise.
    """

    tasks: tuple[Task, ...]
    columns: Any
    numeric: NDArray[np.float32]
    categorical: NDArray[np.int32]
    cells: Mapping[str, Cells]
    parts: Mapping[str, IntArray]
    units: IntArray
    context: Mapping[str, IntArray]
    stores: Mapping[str, Store]

    def __init__(
        self,
        tasks: tuple[Task, ...],
        columns: Any,
        numeric: NDArray[np.float32],
        categorical: NDArray[np.int32],
        cells: Mapping[str, Cells],
        parts: Mapping[str, IntArray],
        units: IntArray,
        context: Mapping[str, IntArray] | None = None,
        stores: Mapping[str, Store] | None = None,
        *,
        ragged: Mapping[str, Ragged] | None = None,
        texts: Mapping[str, Sequence[str | None]] | None = None,
    ) -> None:
        held = dict(stores or {})
        if ragged is not None:
            held = {name: each for name, each in held.items() if not isinstance(each, Ragged)} | dict(ragged)
        if texts is not None:
            kept = {name: each for name, each in held.items() if not isinstance(each, Texts)}
            held = kept | {name: Texts.of(each) for name, each in texts.items()}
        vars(self).update(
            tasks=tasks,
            columns=columns,
            numeric=numeric,
            categorical=categorical,
            cells=cells,
            parts=parts,
            units=units,
            context=context or {},
            stores=held,
        )

    @property
    def n_rows(self) -> int:
        return len(self.numeric)

    @property
    def items(self) -> dict[str, Prepared]:
        """Item table → the attributes of its items; code c of a joined column is row c − 2."""
        return {name: found.data for name, found in self.columns.items.items()}

    @cached_property
    def ragged(self) -> Mapping[str, Ragged]:
        """The stores that are sequences."""
        return {name: each for name, each in self.stores.items() if isinstance(each, Ragged)}

    @cached_property
    def texts(self) -> Mapping[str, Texts]:
        """The stores that are texts."""
        return {name: each for name, each in self.stores.items() if isinstance(each, Texts)}

    def labelled(self, task: str, part: str) -> Cells:
        """The labelled cells of one task in one part."""
        return self.cells[task].within(self.parts[part])

    def only(self, tasks: Sequence[str]) -> Prepared:
        """The same rows with fewer tasks."""
        kept = tuple(task for task in self.tasks if task.name in tasks)
        return replace(self, tasks=kept, cells={task.name: self.cells[task.name] for task in kept})

    def with_parts(self, **parts: IntArray) -> Prepared:
        """The same table with these parts instead (a subsample for screening, say)."""
        return replace(self, parts=parts)

    def with_ragged(self, name: str, ragged: Ragged) -> Prepared:
        """The same table with one more ragged input (a tokenizer's ids, say), or with this one in its place."""
        if len(ragged) != self.n_rows:
            raise BadInput(f"has {len(ragged)} rows for a table of {self.n_rows}", where=f"ragged input {name!r}")
        if name in RESERVED:
            raise BadInput(f"is called {name!r}, as the plain columns are", where="ragged input", remedy="choose another name")
        held = {other: each for other, each in self.stores.items() if other != name or isinstance(each, Ragged)}
        return replace(self, stores={**held, name: ragged})

    def followed_by(self, other: Prepared) -> Prepared:
        """The rows of both tables, these first: for tables without tasks, as items are, encoded by the same columns."""
        if self.tasks or other.tasks:
            raise BadInput("tables with tasks are not joined end to end", where="Prepared.followed_by")
        return replace(
            self,
            numeric=np.concatenate((self.numeric, other.numeric)),
            categorical=np.concatenate((self.categorical, other.categorical)),
            units=np.arange(self.n_rows + other.n_rows),
            stores={name: mine.followed_by(other.stores[name]) for name, mine in self.stores.items()},
        )

    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.numeric), torch.from_numpy(self.categorical)

    @cached_property
    def _context(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for name, value in self.context.items()}

    @cached_property
    def _by_row(self) -> dict[tuple[str, ...], CellsByRow]:
        return {}

    def batch(self, rows: Tensor, tasks: Sequence[str] | None = None) -> Batch:
        """The batch of these rows (int64 [B]), with the labels of `tasks` (default all) that they have; cells of weight 0 are
        no labels here.

        A ragged input NAME is `inputs[NAME]` = {"values": [B, L], "mask": [B, L] bool}, L the longest of the batch (at least 1);
        what other stores give is theirs to say.
        """
        names = tuple(task.name for task in self.tasks) if tasks is None else tuple(tasks)
        if names and names not in self._by_row:
            self._by_row[names] = CellsByRow.of({name: self.cells[name].counted() for name in names}, self.n_rows)
        numeric, categorical = self._inputs
        return Batch(
            inputs={"numeric": numeric[rows], "categorical": categorical[rows], **self._gathered(rows)},
            n_rows=len(rows),
            labels=self._by_row[names].labels(rows.numpy()) if names else {},
            context={name: value[rows] for name, value in self._context.items()},
        )

    def _gathered(self, rows: Tensor) -> dict[str, Any]:
        """What the stores hold of these rows."""
        return {name: found for name, store in self.stores.items() if (found := store.gather(rows)) is not None}

    def whole(self) -> Batch:
        """Every row in one batch, without labels; the plain columns are not copied."""
        numeric, categorical = self._inputs
        inputs: dict[str, Any] = {"numeric": numeric, "categorical": categorical}
        if self.stores:
            inputs |= self._gathered(torch.arange(self.n_rows))
        return Batch(inputs=inputs, n_rows=self.n_rows, labels={}, context=self._context)

    def batches(
        self, part: str, size: int, *, generator: torch.Generator | None = None, tasks: Sequence[str] | None = None
    ) -> Iterator[Batch]:
        """Batches over a part: shuffled by `generator`, in row order without one. Rows that no task labels are included."""
        rows = torch.from_numpy(self.parts[part])
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size], tasks)

    # On disk: one `.npy` file per array, so that workers share the pages instead of each holding a copy.

    def save(self, folder: str | Path) -> None:
        """Write the arrays as `.npy` files and the rest as `prepared.json`; the folder appears only once it is whole."""
        arrays: dict[str, NDArray[Any]] = {"numeric": self.numeric, "categorical": self.categorical, "units": self.units}
        found = [self.cells[task.name] for task in self.tasks]  # one file for all tasks: there may be hundreds
        plain = [cells.values for cells in found if isinstance(cells.values, np.ndarray)]
        weights = [cells.weight for cells in found if cells.weight is not None]
        arrays["rows"] = np.concatenate([np.empty(0, np.int64), *(cells.rows for cells in found)])
        arrays["values"] = np.concatenate([np.empty(0), *plain])
        arrays["weight"] = np.concatenate([np.empty(0), *weights])
        cells = [
            {"task": task.to_dict(), "size": len(own), "weight": own.weight is not None, "form": form_of(own.values)}
            for task, own in zip(self.tasks, found)
        ]
        for i, own in enumerate(found):
            if isinstance(own.values, Ragged):
                arrays |= {f"list_{i}_values": own.values.values, f"list_{i}_starts": own.values.starts}
        arrays |= {f"part_{name}": rows for name, rows in self.parts.items()}
        arrays |= {f"context_{name}": value for name, value in self.context.items()}
        with atomic_folder(folder) as aside:
            for name, array in arrays.items():
                write_array(aside / f"{name}.npy", array)
            for i, store in enumerate(self.stores.values()):
                store.save(aside, f"store_{i}")
            for i, own in enumerate(found):
                if isinstance(own.values, Maps):
                    _write(aside / f"map_{i}.npy", own.values)
            manifest: dict[str, Any] = {
                "cells": cells,
                "parts": list(self.parts),
                "context": list(self.context),
                "columns": self.columns.write(aside),
                **({"stores": list(self.stores)} if self.stores else {}),
            }
            (aside / _MANIFEST).write_text(json.dumps(manifest, allow_nan=False), "utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = True) -> Prepared:
        """Undo `save`. With `mmap` (default) arrays are mapped copy-on-write: processes share one copy in memory."""
        folder = Path(folder)
        manifest = read_json(folder / _MANIFEST, what="prepared table")

        def array(name: str) -> NDArray[Any]:
            return read_array(folder / f"{name}.npy", mmap=mmap)

        tasks = tuple(Task.from_dict(entry["task"]) for entry in manifest["cells"])
        rows, values, weight = array("rows"), array("values"), array("weight")
        cells, at, taken, weighed = {}, 0, 0, 0
        for i, (task, entry) in enumerate(zip(tasks, manifest["cells"])):
            size, form, shape = entry["size"], entry.get("form", "value"), entry.get("shape", ())
            own = weight[weighed : weighed + size] if entry["weight"] else None
            held: Values
            if form == "list":
                held = Ragged(array(f"list_{i}_values"), array(f"list_{i}_starts"))
            elif form == "map":
                held = Maps(array(f"map_{i}"))
            else:
                count = math.prod((size, *shape))
                held, taken = values[taken : taken + count], taken + count
                if shape:  # the first edition held lists padded with -1
                    held = Ragged.of_padded(held.reshape(size, *shape))
            cells[task.name] = Cells(rows[at : at + size], held, own)
            at, weighed = at + size, weighed + size * entry["weight"]
        if at != len(rows) or taken != len(values) or weighed != len(weight):
            raise BadInput("holds another number of cells than its manifest", where=str(folder), remedy="prepare it again")
        columns = _columns_class().read(folder, manifest["columns"])
        readers = {i.name: i.record.store for i in columns.inputs}
        stores: dict[str, Store] = {}
        for i, name in enumerate(manifest.get("stores", ())):  # what is no input was put there as ragged
            stores[name] = (readers.get(name) or Ragged).load(folder, f"store_{i}", mmap=mmap)
        for i, name in enumerate(manifest.get("ragged", ())):  # the first edition had these two alone
            stores[name] = Ragged.load(folder, f"ragged_{i}", mmap=mmap)
        for i, name in enumerate(manifest.get("texts", ())):
            stores[name] = Texts.load(folder, f"texts_{i}", mmap=mmap)
        return cls(
            tasks=tasks,
            columns=columns,
            numeric=array("numeric"),
            categorical=array("categorical"),
            cells=cells,
            parts={name: array(f"part_{name}") for name in manifest["parts"]},
            units=array("units"),
            context={name: array(f"context_{name}") for name in manifest["context"]},
            stores=stores,
        )


RESERVED = ("numeric", "categorical")
_MANIFEST = "prepared.json"


def _write(path: Path, maps: Maps) -> None:
    """Maps as an `.npy` file, some at a time."""
    shape = (len(maps), *maps.store.shape[1:])
    if not len(maps):
        np.save(path, np.empty(shape, maps.store.dtype), allow_pickle=False)
        return
    whole, at = np.lib.format.open_memmap(path, "w+", maps.store.dtype, shape), 0
    for piece in maps.pieces():
        whole[at : at + len(piece)] = piece.values
        at += len(piece)
    whole.flush()


def _columns_class() -> Any:
    return catalog.get("columns", "table").resolve()


def prepare(table: Table, split: Split, columns: Any = None) -> Prepared:
    """Encode a split table.

    Parameters
    ----------
    table : Table
        The table.
    split : Split
        Its parts.
    columns : FittedColumns or None
        The preprocessing; default: fitted on the training part.
    """
    if columns is None:
        columns = _columns_class().fit(table, split.parts["train"])
        numeric, categorical, stores = columns.encoded_table(table)
    else:
        numeric, categorical, stores = columns.encoded(table.frame)
    return Prepared(
        tasks=table.tasks,
        columns=columns,
        numeric=numeric,
        categorical=categorical,
        cells=table.cells,
        parts=split.parts,
        units=split.units,
        context={"task": table.task_index} if table.long else {},
        stores=stores,
    )


__all__ = ["RESERVED", "Cells", "Prepared", "prepare"]
