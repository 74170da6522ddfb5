"""Objectives: from a model and a batch to sums and counts.

Losses travel as (sum, count), so that micro-batches, several sources and several processes add up to the union batch's
mean exactly. A task's loss is the sum over its labelled cells divided by the count of their weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pluribus.data import Batch
from pluribus.modeling.model import MultiTaskModel


@dataclass(frozen=True)
class Losses:
    """What one forward pass yields.

    sums: task → Σ weight·loss over its labelled cells (scalar, with graph).
    counts: task → Σ weight (scalar, without graph).
    shared: the tensors at which gradient balancers listen.
    penalties: auxiliary scalars by name, added unbalanced.
    """

    sums: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    shared: tuple[Tensor, ...] = ()
    penalties: Mapping[str, Tensor] = field(default_factory=dict)

    def means(self) -> dict[str, Tensor]:
        """Task → mean loss over its labelled cells."""
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


class Objective(ABC):
    """How labels become losses. `couples_rows`: whether a row's loss depends on other rows of the batch (contrastive
    losses); such objectives forbid row sampling and plain accumulation."""

    couples_rows: bool = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Task → what its sum will be divided by (Σ weight over its labelled cells); known before the forward pass, so that
        micro-batches and processes can agree on the union's denominator."""
        return {
            name: labels.values.new_tensor(float(len(labels)), dtype=torch.float32)
            if labels.weight is None
            else labels.weight.sum()
            for name, labels in batch.labels.items()
        }

    @abstractmethod
    def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
        """Forward once and account for every labelled cell of the batch."""


class Supervised(Objective):
    """The default: each task's own loss, from its kind, at its labelled cells."""

    def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
        outputs = model(batch.inputs, batch.rows, batch.context)
        sums = {}
        for name, labels in batch.labels.items():
            cells = model.heads.loss(name, outputs[name], labels)
            sums[name] = cells.sum() if labels.weight is None else (cells * labels.weight).sum()
        return Losses(sums, self.counts(batch), shared=outputs.shared, penalties=outputs.penalties)
