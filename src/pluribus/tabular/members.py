"""Heads of an ensemble: every member predicts, is judged by its own loss in training, and is averaged when predicting.

    training:    ℓ_t = mean over members i of ℓ(z_ti, y)          (the mean of the losses, not the loss of the mean)
    predicting:  ŷ_t = mean over members i of link(z_ti)          (probabilities and means are averaged, not logits)

Gorishniy, Kotelnikov, Babenko, "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling", ICLR 2025, section 3.
For several tasks: members × tasks heads as one stacked product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pluribus.data import Labels
from pluribus.errors import BadInput
from pluribus.modeling import Heads
from pluribus.tasks import Task
from pluribus.tasks.kinds import Kind


class MemberHeads(Heads):
    """One linear head per task and member on features [B, k, width]: weight [Σ width_t, k, width], bias [Σ width_t, k].

    Outputs of a task are [m, k, width_t].
    """

    def __init__(self, tasks: Sequence[Task], width: int, members: int) -> None:
        super().__init__(tasks, width)
        if other := next((task.name for task in tasks if task.record.per != "value"), None):
            remedy = "take an encoder without members"
            raise BadInput("an ensemble of members answers one row of outputs a cell", where=f"task {other!r}", remedy=remedy)
        self.members = members
        bound, outputs = 1 / math.sqrt(max(width, 1)), len(self.bias)
        self.weight = nn.Parameter(torch.empty(outputs, members, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outputs, members))

    @torch.no_grad()
    def start(self, labels: Mapping[str, Labels]) -> None:
        one = Heads(self.tasks, 1)
        one.start(labels)
        self.bias.copy_(one.bias[:, None].expand_as(self.bias))
        self.mean.copy_(one.mean)
        self.scale.copy_(one.scale)

    def products(self, main: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        whole = len(names) == len(self.tasks)
        order = [task.name for task in self.tasks] if whole else list(names)
        places = [self.place[name] for name in order]
        weight = self.weight if whole else torch.cat([self.weight[place] for place in places])
        bias = self.bias if whole else torch.cat([self.bias[place] for place in places])
        fused = torch.baddbmm(bias.T[:, None], main.transpose(0, 1), weight.permute(1, 2, 0)).transpose(0, 1)
        return dict(zip(order, torch.split(fused, [place.stop - place.start for place in places], -1)))

    def loss_of(self, record: Kind, outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean_loss(record, outputs, values, mask)

    def link_of(self, record: Kind, outputs: Tensor) -> Tensor:
        return mean_link(record, outputs)


def mean_loss(record: Kind, outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """outputs [m, k, width], values [m] → mean over the k members of each one's loss [m]."""
    members = outputs.shape[1]
    own = None if mask is None else mask.repeat_interleave(members, 0)
    each = record.loss(outputs.flatten(0, 1), values.repeat_interleave(members, 0), own)
    return each.reshape(outputs.shape[:2]).mean(1)


def mean_link(record: Kind, outputs: Tensor) -> Tensor:
    """outputs [m, k, width] → mean over the k members of each one's prediction, [m] or [m, C]."""
    each = record.link(outputs.flatten(0, 1))
    return each.reshape(*outputs.shape[:2], *each.shape[1:]).mean(1)
