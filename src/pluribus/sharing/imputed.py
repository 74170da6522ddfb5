"""An imputed error per funnel step beside any sharing architecture, for the doubly robust risk of ESCM².

ê_t(x) = softplus(w_t · h_t + b_t) on what the head of task t reads: never negative and not bounded by 1, as the cross-entropy
that it stands in for (Wang et al., SIGIR 2022, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from pluribus import catalog
from pluribus.data import Rows
from pluribus.modeling import Features, Shared, Sharing
from pluribus.modeling.experts import StackedLinear
from pluribus.tasks import Task


class Imputed(Sharing):
    """tasks: in order. width: of the incoming features. inside: the architecture's name (catalog family "sharing"), with its
    settings. `Shared.extra["imputed"]`: task → ê [rows], for tasks that follow another."""

    def __init__(self, tasks: Sequence[Task], width: int, *, inside: str = "mmoe", **settings: Any) -> None:
        super().__init__()
        self.index = {name: i for i, name in enumerate(task.name for task in tasks if task.after)}
        self.inside: Sharing = catalog.get("sharing", inside).resolve()(tasks, width, **settings)
        self.width = self.inside.width
        self.error = StackedLinear(len(self.index), self.width, 1) if self.index else None

    def forward(self, features: Features, rows: Rows) -> Shared:
        shared: Shared = self.inside(features, rows)
        imputed = {}
        for name in rows:
            if self.error is not None and name in self.index:
                i = self.index[name]
                high = shared.tasks[name].at(rows[name]).main
                imputed[name] = F.softplus(torch.addmm(self.error.bias[i], high, self.error.weight[i])[:, 0])
        return Shared(shared.tasks, shared.penalties, {**shared.extra, "imputed": imputed})

    def reads(self, task: str) -> tuple[str, ...]:
        return ("inside", "error") if task in self.index else ("inside",)

    def slices(self, task: str) -> dict[str, slice]:
        found = {f"inside.{name}": where for name, where in self.inside.slices(task).items()}
        if task in self.index:
            here = slice(self.index[task], self.index[task] + 1)
            found |= {"error.weight": here, "error.bias": here}
        return found
