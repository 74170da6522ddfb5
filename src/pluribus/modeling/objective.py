"""Objectives: from a model and a batch to sums and counts.

Losses travel as (sum, count), so that micro-batches, several sources and several processes add up to the union batch's
mean exactly. A task's loss is the sum over its labelled cells divided by the count of their weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pluribus.data import Batch
from pluribus.modeling.model import MultiTaskModel


@dataclass(frozen=True)
class Losses:
    """What one forward pass yields.

    Parameters
    ----------
    sums : mapping of str to Tensor
        Task → Σ weight·loss over its labelled cells (scalar, with graph).
    counts : mapping of str to Tensor
        Task → Σ weight (scalar, without graph).
    shared : tuple of Tensor
        The features at which balancers measure gradients.
    penalties : mapping of str to Tensor
        Auxiliary scalars by name, added to the total and never balanced.
    """

    sums: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    shared: tuple[Tensor, ...] = ()
    penalties: Mapping[str, Tensor] = field(default_factory=dict)

    def means(self) -> dict[str, Tensor]:
        """Task → mean loss over its labelled cells."""
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


class Objective(ABC):
    """How labels become losses.

    Attributes
    ----------
    couples_rows : bool
        Whether a row's loss depends on other rows of the batch (contrastive losses); such objectives forbid row sampling and
        plain accumulation.
    teacher_forced : tuple of str
        Tasks whose targets the model reads in training, as a decoder that predicts each token from the true ones before it. The
        model finds them in its context (see `context`) and returns −log p of each row's target [m] in place of outputs, which
        for a text of L tokens and V words would be [m, L, V].
    """

    couples_rows: bool = False
    teacher_forced: tuple[str, ...] = ()

    def context(self, batch: Batch) -> Mapping[str, Tensor]:
        """What the model is told of the rows.

        Parameters
        ----------
        batch : Batch
            Inputs and labels of a step.

        Returns
        -------
        dict of str to Tensor
            The batch's context and, of each teacher-forced task with labels, `target.TASK`: its labels' values [B, …], 0 at rows
            that have none; and `target.TASK.mask` [B, …] where the labels have a mask.
        """
        found = dict(batch.context)
        for name in self.teacher_forced:
            if name in batch.labels:
                labels = batch.labels[name]
                found[f"target.{name}"] = _at_rows(labels.values, labels.rows, batch.n_rows)
                if labels.mask is not None:
                    found[f"target.{name}.mask"] = _at_rows(labels.mask, labels.rows, batch.n_rows)
        return found

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
    """The default: each task's own loss, from its kind, at its labelled cells.

    Parameters
    ----------
    teacher_forced : sequence of str
        Tasks whose targets the model reads; their losses are what it returns (see `Objective`).
    """

    def __init__(self, teacher_forced: Sequence[str] = ()) -> None:
        self.teacher_forced = tuple(teacher_forced)

    def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
        outputs = model(batch.inputs, batch.rows, self.context(batch))
        sums = {}
        for name, labels in batch.labels.items():
            forced = name in self.teacher_forced
            cells = outputs[name] if forced else model.heads.loss(name, outputs[name], labels)
            sums[name] = cells.sum() if labels.weight is None else (cells * labels.weight).sum()
        return Losses(sums, self.counts(batch), shared=outputs.shared, penalties=outputs.penalties)


def _at_rows(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Values [m, …] at their rows [n_rows, …], 0 elsewhere."""
    return values.new_zeros(n_rows, *values.shape[1:]).index_copy_(0, rows, values)
