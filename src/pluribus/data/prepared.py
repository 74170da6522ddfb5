"""A table made ready for learning: encoded once into contiguous arrays, split, its labels compact.

This is what a `Candidate` is handed. Networks slice batches out of it (`batch`), trees take the arrays as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data.batch import Batch, Labels
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """A task's labelled cells of the whole table: ascending rows [m], values [m] (class indices for classes), weight [m]."""

    rows: IntArray
    values: FloatArray
    weight: FloatArray | None = None

    def within(self, rows: IntArray) -> Cells:
        """The cells whose row is among `rows` (ascending)."""
        kept = np.isin(self.rows, rows, assume_unique=True)
        return Cells(self.rows[kept], self.values[kept], None if self.weight is None else self.weight[kept])

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
    """

    tasks: tuple[Task, ...]
    columns: FittedColumns
    numeric: NDArray[np.float32]
    categorical: NDArray[np.int32]
    cells: Mapping[str, Cells]
    parts: Mapping[str, IntArray]
    units: IntArray
    context: Mapping[str, IntArray] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return len(self.numeric)

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

    # Dense label storage: values [T, n] with a mask, so that a batch is one gather per task and no search.
    @cached_property
    def _inputs(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.numeric), torch.from_numpy(self.categorical)

    @cached_property
    def _dense(self) -> dict[str, tuple[Tensor, Tensor | None, Tensor | None]]:
        dense = {}
        for task in self.tasks:
            cells = self.cells[task.name]
            values = torch.zeros(self.n_rows, dtype=torch.float32)
            rows = torch.from_numpy(cells.rows)
            values[rows] = torch.from_numpy(cells.values.astype(np.float32))
            present = None
            if len(cells) < self.n_rows:
                present = torch.zeros(self.n_rows, dtype=torch.bool)
                present[rows] = True
            weight = None
            if cells.weight is not None:
                weight = torch.zeros(self.n_rows, dtype=torch.float32)
                weight[rows] = torch.from_numpy(cells.weight.astype(np.float32))
            dense[task.name] = (values, present, weight)
        return dense

    def batch(self, rows: Tensor, tasks: Sequence[str] | None = None) -> Batch:
        """The batch of these rows (int64 [B]), with the labels of `tasks` (default all) that they have."""
        numeric, categorical = self._inputs
        everything = torch.arange(len(rows))
        labels = {}
        for name in self._dense if tasks is None else tasks:
            values, present, weight = self._dense[name]
            if present is None:
                where, picked = everything, rows
            else:
                where = present[rows].nonzero()[:, 0]
                if not len(where):
                    continue
                picked = rows[where]
            labels[name] = Labels(values[picked], where, None, None if weight is None else weight[picked])
        return Batch(
            inputs={"numeric": numeric[rows], "categorical": categorical[rows]},
            n_rows=len(rows),
            labels=labels,
            context={name: torch.from_numpy(value)[rows] for name, value in self.context.items()},
        )

    def batches(
        self, part: str, size: int, *, generator: torch.Generator | None = None, tasks: Sequence[str] | None = None
    ) -> Iterator[Batch]:
        """Batches over a part: shuffled by `generator`, in row order without one. Rows that no task labels are included."""
        rows = torch.from_numpy(self.parts[part])
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size], tasks)
