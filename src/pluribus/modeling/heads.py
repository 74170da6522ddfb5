"""Heads: the last linear map of every task, fused into one weight, with the tasks' units inside.

Tasks that read the same feature tensor share one matrix product. A regression head carries the mean and scale of its target
as buffers, so that `link` answers in the user's units and the loss is computed on the standardised scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Labels, Rows
from pluribus.modeling.features import Features
from pluribus.tasks import Task
from pluribus.tasks.kinds import Kind


class Heads(nn.Module):
    """One linear head per task on features of width `width`: weight [Σ width_t, width], bias [Σ width_t]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, tasks: Sequence[Task], width: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.place: dict[str, slice] = {}
        start = 0
        for task in self.tasks:
            self.place[task.name] = slice(start, start + task.width)
            start += task.width
        bound = 1 / math.sqrt(max(width, 1))
        self.weight = nn.Parameter(torch.empty(start, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(start))
        self.register_buffer("mean", torch.zeros(len(self.tasks)))
        self.register_buffer("scale", torch.ones(len(self.tasks)))
        self._index = {task.name: i for i, task in enumerate(self.tasks)}

    def start(self, labels: Mapping[str, Labels]) -> None:
        """Begin at the best constant predictor: biases, and the mean and scale of standardised targets."""
        with torch.no_grad():
            for task in self.tasks:
                if task.name not in labels or not len(labels[task.name]):
                    continue
                values = labels[task.name].values
                if task.record.standardise:
                    i = self._index[task.name]
                    spread = values.double().std(correction=0) if len(values) > 1 else torch.zeros(())
                    self.mean[i] = values.double().mean()
                    self.scale[i] = spread if spread > 0 else 1.0
                    values = (values - self.mean[i]) / self.scale[i]
                self.bias[self.place[task.name]] = task.record.start(values, len(task.classes)).to(self.bias)

    def slices(self, task: str) -> dict[str, slice]:
        """Which rows of the stacked weight and bias belong to `task`."""
        return {"weight": self.place[task], "bias": self.place[task]}

    def forward(self, features: Mapping[str, Features], rows: Rows) -> dict[str, Tensor]:
        """Outputs [m, width_t] of every requested task at its rows."""
        groups: dict[int, list[str]] = {}
        for name in rows:
            groups.setdefault(id(features[name].main), []).append(name)
        outputs: dict[str, Tensor] = {}
        for names in groups.values():
            shared = features[names[0]]
            for name, piece in self.products(shared.main, names).items():
                wanted = rows[name]
                outputs[name] = piece if wanted is None or shared.selected else piece[wanted]
        return {name: outputs[name] for name in rows}

    def products(self, main: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs [B, width_t] of tasks that read the same features `main`, at all of their rows."""
        if len(names) == len(self.tasks):
            fused = F.linear(main, self.weight, self.bias)
            return {name: fused[..., self.place[name]] for name in names}
        return {name: F.linear(main, self.weight[self.place[name]], self.bias[self.place[name]]) for name in names}

    def loss(self, name: str, outputs: Tensor, labels: Labels) -> Tensor:
        """Loss per cell [m] of one task, on the standardised scale where its kind has one."""
        i = self._index[name]
        record = self.tasks[i].record
        values = (labels.values - self.mean[i]) / self.scale[i] if record.standardise else labels.values
        return self.loss_of(record, outputs, values, labels.mask)

    def loss_of(self, record: Kind, outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """The kind's loss per cell [m], on the scale that the heads work in."""
        return record.loss(outputs, values, mask)

    def link(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions in the tasks' own units (see `pluribus.tasks.kinds`)."""
        found = {}
        for name, value in outputs.items():
            i = self._index[name]
            record = self.tasks[i].record
            linked = self.link_of(record, value)
            found[name] = linked * self.scale[i] + self.mean[i] if record.standardise else linked
        return found

    def link_of(self, record: Kind, outputs: Tensor) -> Tensor:
        """The kind's prediction, on the scale that the heads work in."""
        return record.link(outputs)
