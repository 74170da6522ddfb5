"""Batches of texts of similar length, so that little of a batch is padding.

The rows of an epoch are shuffled, cut into windows of some batches, sorted by length within each window, cut into batches, and
the batches shuffled again: which rows meet stays random, and a batch's longest row is little longer than its shortest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.data import Batch
from pluribus.data.prepared import Prepared

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LengthBuckets:
    """A stage's sampler: one epoch of the training rows that any task labels.

    name: the ragged input whose lengths count. size: rows a batch. window: batches sorted together; 1 is plain shuffling.
    """

    name: str
    size: int
    window: int = 16

    def __call__(self, data: Prepared, generator: torch.Generator) -> Iterator[Batch]:
        rows = labelled(data, "train")
        for batch in cut(data.ragged[self.name].lengths, rows, self.size, self.window, generator):
            yield data.batch(torch.from_numpy(batch))


def labelled(data: Prepared, part: str) -> Rows:
    """The rows of a part that at least one task labels, ascending."""
    kept = np.zeros(data.n_rows, bool)
    for task in data.tasks:
        kept[data.cells[task.name].rows] = True
    rows = data.parts[part]
    return rows[kept[rows]]


def cut(lengths: Rows, rows: Rows, size: int, window: int, generator: torch.Generator) -> list[Rows]:
    """The rows in batches of similar length. lengths [n] of the whole table; rows: the ones to use."""
    mixed = rows[torch.randperm(len(rows), generator=generator).numpy()]
    batches = []
    for start in range(0, len(mixed), size * window):
        some = mixed[start : start + size * window]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [some[i : i + size] for i in range(0, len(some), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def waste(lengths: Rows, batches: Sequence[Rows]) -> float:
    """The share of the batches' places that hold padding."""
    places = sum(len(batch) * int(lengths[batch].max()) for batch in batches if len(batch))
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / places if places else 0.0
