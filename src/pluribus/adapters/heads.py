"""Linear heads with different numbers of classes, for rows of different tasks in one batch.

The weight [Σ classes, width] and bias [Σ classes] hold the tasks one after another, as `pluribus.modeling.Heads` does, so that
nothing is stored for classes that do not exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pluribus.adapters.route import Route, active
from pluribus.errors import BadInput, unknown


class TaskHeads(nn.Module):
    """One linear head per task.

    classes: task → number of outputs. width: size of the features.
    """

    first: Tensor
    count: Tensor

    def __init__(self, classes: Mapping[str, int], width: int) -> None:
        super().__init__()
        if not classes or min(classes.values()) < 1:
            raise BadInput("needs tasks with at least one output each", where="classes", remedy="give {task: outputs}")
        self.classes = dict(classes)
        self.slots = {name: i for i, name in enumerate(self.classes)}
        counts = torch.tensor(list(self.classes.values()))
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(int(counts.sum()), width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(int(counts.sum())))
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("count", counts, persistent=False)

    def slices(self, task: str) -> dict[str, slice]:
        """Which rows of weight and bias belong to `task`."""
        if task not in self.slots:
            raise unknown("task", task, self.slots, where="heads")
        start = int(self.first[self.slots[task]])
        place = slice(start, start + self.classes[task])
        return {"weight": place, "bias": place}

    def forward(self, features: Tensor, route: Route | None = None) -> Tensor:
        """Features [rows, …, width] → logits [rows, …, C] of each row's task, with C the largest number of classes among the
        tasks present, and -inf where a task has fewer (so that softmax and cross-entropy are those of its own classes).

        route: by default the one of the `with` block around.
        """
        route = route or active()
        for name in route.names:
            if name not in self.slots:
                raise unknown("task", name, self.slots, where="heads")
        slots = [self.slots[name] for name in route.names]
        if route.index is None:
            (name,) = route.names
            mine = self.slices(name)["weight"]
            return nn.functional.linear(features, self.weight[mine], self.bias[mine])
        if len(route.index) != len(features):
            raise BadInput(f"the route names {len(route.index)} rows, the features have {len(features)}", where="heads")
        most = max(self.classes[name] for name in route.names)
        place = torch.arange(most, device=features.device)
        chosen = torch.tensor(slots, device=features.device)
        missing = place >= self.count[chosen][:, None]  # [tasks, C]
        index = (self.first[chosen][:, None] + place).masked_fill(missing, 0)
        inverse = route.index.to(features.device)
        weight, bias = self.weight[index][inverse], self.bias[index].masked_fill(missing, -torch.inf)[inverse]
        x = features.reshape(len(features), -1, features.shape[-1])
        out = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        return out.view(*features.shape[:-1], most)

    def split(self, logits: Tensor, route: Route | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Task → (its rows int64 [m], their logits [m, …, classes of the task])."""
        route = route or active()
        if route.index is None:
            (name,) = route.names
            return {name: (torch.arange(len(logits), device=logits.device), logits)}
        found = {}
        for i, name in enumerate(route.names):
            rows = (route.index == i).nonzero()[:, 0].to(logits.device)
            found[name] = (rows, logits[rows][..., : self.classes[name]])
        return found
