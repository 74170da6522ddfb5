"""A table made ready for learning: encoded once into contiguous arrays, split, its labels compact.

This is what a `Candidate` is handed. Networks slice batches out of it (`batch`), trees take the arrays as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data.batch import Batch, Labels
from pluribus.data.ragged import Ragged, Texts
from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns
    from pluribus.data.splitting import Split
    from pluribus.data.table import Table

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """A task's labelled cells of the whole table: ascending rows [m], values [m] (class indices for classes; of kinds whose cells
    are lists [m, W], −1 behind the last), weight [m]."""

    rows: IntArray
    values: FloatArray
    weight: FloatArray | None = None

    def within(self, rows: IntArray) -> Cells:
        """The cells whose row is among `rows` (ascending)."""
        kept = np.isin(self.rows, rows, assume_unique=True)
        return Cells(self.rows[kept], self.values[kept], None if self.weight is None else self.weight[kept])

    def counted(self) -> Cells:
        """The cells whose weight is not 0: the others teach nothing, and a mean over them alone would be 0/0."""
        if self.weight is None or self.weight.all():
            return self
        kept = self.weight > 0
        return Cells(self.rows[kept], self.values[kept], self.weight[kept])

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Prepared:
    """An encoded table.

    tasks: what is predicted.
    columns: the fitted preprocessing, which encodes further tables the same way.
    numeric: [n, F] float32, centred and scaled on the training rows, NaN where missing.
    categorical: [n, C] int32, 0 missing, 1 unseen in training, then the categories.
    cells: task → its labelled cells.
    parts: "train", "valid", "test" → ascending rows. A candidate is handed no test part.
    units: [n] int64, the resampling unit of each row (group, day, or the row itself).
    context: per-row side information by name [n] (long layout: "task", the index of the row's task).
    ragged: sequence → its elements: numbers as `numeric`, categories as `categorical` codes, items as codes of `items`.
    texts: text column → its strings, None where missing; a tokenizer's ids come in by `with_ragged`.
    """

    tasks: tuple[Task, ...]
    columns: FittedColumns
    numeric: NDArray[np.float32]
    categorical: NDArray[np.int32]
    cells: Mapping[str, Cells]
    parts: Mapping[str, IntArray]
    units: IntArray
    context: Mapping[str, IntArray] = field(default_factory=dict)
    ragged: Mapping[str, Ragged] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return len(self.numeric)

    @property
    def items(self) -> dict[str, Prepared]:
        """Item table → the attributes of its items; code c of a joined column is row c − 2."""
        return {name: found.data for name, found in self.columns.items.items()}

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
        return replace(self, ragged={**self.ragged, name: ragged})

    def followed_by(self, other: Prepared) -> Prepared:
        """The rows of both tables, these first: for tables without tasks, as items are, encoded by the same columns."""
        if self.tasks or other.tasks:
            raise BadInput("tables with tasks are not joined end to end", where="Prepared.followed_by")
        return replace(
            self,
            numeric=np.concatenate((self.numeric, other.numeric)),
            categorical=np.concatenate((self.categorical, other.categorical)),
            units=np.arange(self.n_rows + other.n_rows),
            ragged={name: mine.followed_by(other.ragged[name]) for name, mine in self.ragged.items()},
            texts={name: Texts.of(mine).followed_by(Texts.of(other.texts[name])) for name, mine in self.texts.items()},
        )

    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.numeric), torch.from_numpy(self.categorical)

    @cached_property
    def _context(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for name, value in self.context.items()}

    @cached_property
    def _by_row(self) -> dict[tuple[str, ...], _CellsByRow]:
        return {}

    def batch(self, rows: Tensor, tasks: Sequence[str] | None = None) -> Batch:
        """The batch of these rows (int64 [B]), with the labels of `tasks` (default all) that they have; cells of weight 0 are
        no labels here.

        A ragged input NAME is `inputs[NAME]` = {"values": [B, L], "mask": [B, L] bool}, L the longest of the batch (at least 1).
        """
        names = tuple(task.name for task in self.tasks) if tasks is None else tuple(tasks)
        if names and names not in self._by_row:
            self._by_row[names] = _CellsByRow.of({name: self.cells[name].counted() for name in names}, self.n_rows)
        numeric, categorical = self._inputs
        return Batch(
            inputs={
                "numeric": numeric[rows],
                "categorical": categorical[rows],
                **{name: each.padded(rows) for name, each in self.ragged.items()},
            },
            n_rows=len(rows),
            labels=self._by_row[names].labels(rows.numpy()) if names else {},
            context={name: value[rows] for name, value in self._context.items()},
        )

    def whole(self) -> Batch:
        """Every row in one batch, without labels; the plain columns are not copied."""
        numeric, categorical = self._inputs
        ragged = {name: each.padded(torch.arange(self.n_rows)) for name, each in self.ragged.items()}
        inputs = {"numeric": numeric, "categorical": categorical, **ragged}
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
        weights = [cells.weight for cells in found if cells.weight is not None]
        arrays["rows"] = np.concatenate([np.empty(0, np.int64), *(cells.rows for cells in found)])
        arrays["values"] = np.concatenate([np.empty(0), *(cells.values.reshape(-1) for cells in found)])
        arrays["weight"] = np.concatenate([np.empty(0), *weights])
        cells = [
            {"task": task.to_dict(), "size": len(own), "weight": own.weight is not None, "shape": list(own.values.shape[1:])}
            for task, own in zip(self.tasks, found)
        ]
        arrays |= {f"part_{name}": rows for name, rows in self.parts.items()}
        arrays |= {f"context_{name}": value for name, value in self.context.items()}
        for i, ragged in enumerate(self.ragged.values()):
            arrays |= {f"ragged_{i}_values": ragged.values, f"ragged_{i}_starts": ragged.starts}
        for i, texts in enumerate(map(Texts.of, self.texts.values())):
            arrays |= {f"texts_{i}_data": texts.data, f"texts_{i}_starts": texts.starts, f"texts_{i}_present": texts.present}
        with atomic_folder(folder) as aside:
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
            manifest: dict[str, Any] = {
                "cells": cells,
                "parts": list(self.parts),
                "context": list(self.context),
                "columns": self.columns.write(aside),
            }
            manifest |= {key: list(held) for key, held in (("ragged", self.ragged), ("texts", self.texts)) if held}
            (aside / _MANIFEST).write_text(json.dumps(manifest, allow_nan=False), "utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = True) -> Prepared:
        """Undo `save`. With `mmap` (default) arrays are mapped copy-on-write: processes share one copy in memory."""
        from pluribus.data.columns import FittedColumns

        folder = Path(folder)
        manifest = read_json(folder / _MANIFEST, what="prepared table")

        def array(name: str) -> NDArray[Any]:
            path = folder / f"{name}.npy"
            try:
                mappable = mmap and path.stat().st_size > _NPY_HEADER  # an empty array cannot be mapped
                return np.asarray(np.load(path, mmap_mode="c" if mappable else None, allow_pickle=False))
            except (OSError, ValueError) as error:
                raise BadInput(f"cannot be read ({error})", where=str(path), remedy="prepare the table again") from error

        tasks = tuple(Task.from_dict(entry["task"]) for entry in manifest["cells"])
        rows, values, weight = array("rows"), array("values"), array("weight")
        cells, at, taken, weighed = {}, 0, 0, 0
        for task, entry in zip(tasks, manifest["cells"]):
            size = entry["size"]
            own = weight[weighed : weighed + size] if entry["weight"] else None
            shape = (size, *entry.get("shape", ()))
            count = math.prod(shape)
            cells[task.name] = Cells(rows[at : at + size], values[taken : taken + count].reshape(shape), own)
            at, taken, weighed = at + size, taken + count, weighed + size * entry["weight"]
        if at != len(rows) or taken != len(values) or weighed != len(weight):
            raise BadInput("holds another number of cells than its manifest", where=str(folder), remedy="prepare it again")
        return cls(
            tasks=tasks,
            columns=FittedColumns.read(folder, manifest["columns"]),
            numeric=array("numeric"),
            categorical=array("categorical"),
            cells=cells,
            parts={name: array(f"part_{name}") for name in manifest["parts"]},
            units=array("units"),
            context={name: array(f"context_{name}") for name in manifest["context"]},
            ragged={
                name: Ragged(array(f"ragged_{i}_values"), array(f"ragged_{i}_starts"))
                for i, name in enumerate(manifest.get("ragged", ()))
            },
            texts={
                name: Texts(*(array(f"texts_{i}_{part}") for part in ("data", "starts", "present")))
                for i, name in enumerate(manifest.get("texts", ()))
            },
        )


@dataclass(frozen=True)
class _CellsByRow:
    """The labelled cells of some tasks in the order of their rows (compressed sparse rows), so that the labels of a batch are a
    few gathers, whether five tasks are full or six hundred are nearly empty.

    names: the tasks. start: [n + 1] first cell of each row. task: [m] index among `names`. values, weight: [m] float32.
    lists: of tasks whose cells are lists, these [m_t, W]; `values` then holds the place of each.
    """

    names: tuple[str, ...]
    start: IntArray
    task: NDArray[np.int16]
    values: NDArray[np.float32]
    weight: NDArray[np.float32] | None
    lists: Mapping[str, NDArray[np.float32]]

    @classmethod
    def of(cls, cells: Mapping[str, Cells], n_rows: int) -> _CellsByRow:
        lists = {name: c.values.astype(np.float32) for name, c in cells.items() if c.values.ndim > 1}
        each = [replace(c, values=np.arange(len(c), dtype=np.float64)) if name in lists else c for name, c in cells.items()]
        rows = np.concatenate([np.empty(0, np.int64), *(c.rows for c in each)])
        order = np.argsort(rows, kind="stable")
        task = np.repeat(np.arange(len(each), dtype=np.int16), [len(c) for c in each])
        values = np.concatenate([np.empty(0, np.float32), *(c.values.astype(np.float32) for c in each)])
        weight = None
        if any(c.weight is not None for c in each):
            ones = (np.ones(len(c), np.float32) if c.weight is None else c.weight.astype(np.float32) for c in each)
            weight = np.concatenate([np.empty(0, np.float32), *ones])[order]
        start = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n_rows))))
        return cls(tuple(cells), start, task[order], values[order], weight, lists)

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
        return {
            name: Labels(self._listed(name, value), place, None, own)
            for name, size, (value, place, own) in zip(self.names, sizes, each)
            if size
        }

    def _listed(self, name: str, values: Tensor) -> Tensor:
        """The lists [b, W] of these cells, cut to the longest of them; other tasks' values as they are."""
        if name not in self.lists:
            return values
        found = torch.from_numpy(self.lists[name])[values.long()]
        return found[:, : max(1, int((found >= 0).sum(1).max()))]


RESERVED = ("numeric", "categorical")
_MANIFEST = "prepared.json"
_NPY_HEADER = 128


def prepare(table: Table, split: Split, columns: FittedColumns | None = None) -> Prepared:
    """Encode a split table. `columns` default to those fitted on the training part."""
    from pluribus.data.columns import FittedColumns

    if columns is None:
        columns = FittedColumns.fit(table, split.parts["train"])
        numeric, categorical = columns.encode_table(table)
    else:
        numeric, categorical = columns.encode(table.frame)
    ragged, texts = columns.encode_ragged(table.frame, table.lists)
    return Prepared(
        tasks=table.tasks,
        columns=columns,
        numeric=numeric,
        categorical=categorical,
        cells=table.cells,
        parts=split.parts,
        units=split.units,
        context={"task": table.task_index} if table.long else {},
        ragged=ragged,
        texts=texts,
    )
