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

from pluribus.data.batch import Batch
from pluribus.data.cells import Cells, CellsByRow, IntArray
from pluribus.data.ragged import Texts
from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json
from pluribus.tasks import Task
from pluribus.tasks.forms import Maps, Ragged, Values, form_of

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns
    from pluribus.data.splitting import Split
    from pluribus.data.table import Table


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
    def _by_row(self) -> dict[tuple[str, ...], CellsByRow]:
        return {}

    def batch(self, rows: Tensor, tasks: Sequence[str] | None = None) -> Batch:
        """The batch of these rows (int64 [B]), with the labels of `tasks` (default all) that they have; cells of weight 0 are
        no labels here.

        A ragged input NAME is `inputs[NAME]` = {"values": [B, L], "mask": [B, L] bool}, L the longest of the batch (at least 1).
        """
        names = tuple(task.name for task in self.tasks) if tasks is None else tuple(tasks)
        if names and names not in self._by_row:
            self._by_row[names] = CellsByRow.of({name: self.cells[name].counted() for name in names}, self.n_rows)
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
        for i, ragged in enumerate(self.ragged.values()):
            arrays |= {f"ragged_{i}_values": ragged.values, f"ragged_{i}_starts": ragged.starts}
        for i, texts in enumerate(map(Texts.of, self.texts.values())):
            arrays |= {f"texts_{i}_data": texts.data, f"texts_{i}_starts": texts.starts, f"texts_{i}_present": texts.present}
        with atomic_folder(folder) as aside:
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
            for i, own in enumerate(found):
                if isinstance(own.values, Maps):
                    _write(aside / f"map_{i}.npy", own.values)
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


RESERVED = ("numeric", "categorical")
_MANIFEST = "prepared.json"
_NPY_HEADER = 128


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


__all__ = ["RESERVED", "Cells", "Prepared", "prepare"]
