"""Cells, labels and batches: a table with holes, cut into steps.

Which tasks a batch holds is known on the host (the keys of `Batch.labels`), never read off a tensor. A task without a label
in a batch is absent: it has no key, and gets no loss, no gradient, no vote and no optimiser movement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Rows: TypeAlias = Mapping[str, Tensor | None]
"""The cells asked for: task → row indices within the batch (int64 [m]); None means every row."""


@dataclass(frozen=True)
class Labels:
    """A task's labelled cells, compact: only labelled rows are stored.

    Parameters
    ----------
    values : Tensor
        [m, …] in the task's own units, class indices for kinds with classes (see `pluribus.data.cells`).
    rows : Tensor
        [m] int64, the row of each label within the batch, ascending.
    mask : Tensor or None
        bool, the places of a list [m, L] or a map [m, H, W] that count; None where a cell is one value.
    weight : Tensor or None
        [m] float, or None for 1.
    """

    values: Tensor
    rows: Tensor
    mask: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Labels:
        """The labels with a function applied to every tensor (a device move, say)."""
        return Labels(
            function(self.values),
            function(self.rows),
            None if self.mask is None else function(self.mask),
            None if self.weight is None else function(self.weight),
        )


@dataclass(frozen=True)
class Batch:
    """One step's rows.

    Parameters
    ----------
    inputs : pytree of Tensor
        The first dimension is the row. Tables have {"numeric": [B, F], "categorical": [B, C]}, and an entry for each store.
    n_rows : int
        B.
    labels : mapping
        Task → its labels; a task without labels has no key.
    context : mapping
        What is known of a row beside its inputs: domain, timestep, query, graph index, …
    """

    inputs: Any
    n_rows: int
    labels: Mapping[str, Labels]
    context: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, Tensor]:
        """The cells that the labels ask for."""
        return {name: labels.rows for name, labels in self.labels.items()}

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device (asynchronously where the memory is pinned)."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            inputs=pytree.tree_map_only(Tensor, move, self.inputs),
            labels={name: labels.map(move) for name, labels in self.labels.items()},
            context={name: move(value) for name, value in self.context.items()},
        )

    def only(self, tasks: set[str]) -> Batch:
        """The batch without the labels of other tasks."""
        return replace(self, labels={name: labels for name, labels in self.labels.items() if name in tasks})
