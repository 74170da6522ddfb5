"""AITM, adaptive information transfer: what a step of the funnel knows is handed to the next, as much as the row asks for.

Xi, Chen, Yan, Zhang, Zhu, Zhuang, Chen, "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task
Learning in Targeted Advertising", KDD 2021, equations (3)–(8). For task t after task s (`Task(after=…)`):

    q_t = f_t(x),   p = g_t(z_s),   z_t = Σ_{u ∈ {p, q_t}} w_u h₁(u),   w = softmax_u(⟨h₂(u), h₃(u)⟩ / √d),   z_1 = q_1

The labels of the whole way and the behavioural calibrator are the objective's (`pluribus.modeling.funnels.Calibrated`). A request
runs the task's ancestors and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.sharing.stacked import Stacked, Towers, at_least, vectors
from pluribus.tasks import Task
from pluribus.tasks.task import check_graph


class FunnelStage(nn.Module):
    """One task's bottom f and, where it follows another, the transfer g and the attention h₁, h₂, h₃ (as one linear map)."""

    def __init__(self, width: int, hidden: int, follows: bool) -> None:
        super().__init__()
        self.f = nn.Linear(width, hidden)
        self.g = nn.Linear(hidden, hidden) if follows else None
        self.h = nn.Linear(hidden, 3 * hidden) if follows else None

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        q = F.relu(self.f(x))
        if self.g is None or self.h is None or before is None:
            return q
        u = torch.stack((F.relu(self.g(before)), q))
        h1, h2, h3 = self.h(u).chunk(3, -1)
        w = torch.softmax((h2 * h3).sum(-1, keepdim=True) / q.shape[-1] ** 0.5, 0)
        z: Tensor = (w * h1).sum(0)
        return z


class AITM(Stacked):
    """tasks: in order; each follows at most one. width: of the incoming features. hidden: units of a bottom and a transfer.
    tower: hidden units a task, 0 for none."""

    def __init__(self, tasks: Sequence[Task], width: int, *, hidden: int = 64, tower: int = 32) -> None:
        super().__init__(tasks)
        at_least(1, "aitm", hidden=hidden)
        at_least(0, "aitm", tower=tower)
        self.order = check_graph(tasks)
        self.parent: dict[str, str | None] = {}
        for i, task in enumerate(tasks):
            if len(task.after) > 1:
                raise BadInput(f"hands on from one step, not from {len(task.after)}", where=f"aitm, task {task.name!r}")
            self.parent[task.name] = task.after[0] if task.after else None
            self.add_module(f"step_{i}", FunnelStage(width, hidden, bool(task.after)))
        self.towers = Towers(len(self.index), hidden, tower)
        self.width = self.towers.width
        self.owned = {"towers": 1}

    def ancestors(self, task: str) -> list[str]:
        """The task and those before it."""
        found, at = [], cast("str | None", task)
        while at is not None:
            found.append(at)
            at = self.parent[at]
        return found

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "aitm")
        order, active = self.requested(rows, x.device)
        needed = {step for name in order for step in self.ancestors(name)}
        z: dict[str, Tensor] = {}
        for name in self.order:
            if name in needed:
                before = self.parent[name]
                z[name] = getattr(self, f"step_{self.index[name]}")(x, None if before is None else z[before])
        hidden = torch.stack([z[name] for name in order])
        return Shared(self.towers(hidden, order, active, rows, features))

    def reads(self, task: str) -> tuple[str, ...]:
        return (*(f"step_{self.index[name]}" for name in self.ancestors(task)), "towers")
