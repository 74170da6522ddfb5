"""Shared bottom: every task reads the same features.

Caruana, "Multitask Learning", Machine Learning 28, 1997: one hidden representation, one output per task. `tower` puts a hidden
layer of its own between the shared features and each task's output (the usual form in recommendation); 0 is Caruana's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data import Rows
from pluribus.modeling import Features, Shared, Sharing
from pluribus.modeling.experts import Bank
from pluribus.sharing.stacked import at_least
from pluribus.tasks import Task
from pluribus.tasks.forms import FORMS


class SharedBottom(Sharing):
    """Every task reads the same features, or its own tower's.

    Parameters
    ----------
    tasks : sequence of Task
        In order.
    width : int
        Of the incoming features.
    tower : int
        Hidden units per task, 0 for none; at each place of lists and maps.
    """

    cells = frozenset(FORMS)

    def __init__(self, tasks: Sequence[Task], width: int, *, tower: int = 0) -> None:
        super().__init__()
        at_least(0, "shared_bottom", tower=tower)
        self.index = {task.name: i for i, task in enumerate(tasks)}
        self.width = tower or width
        self.towers = Bank(len(self.index), (width, tower)) if tower else None

    def forward(self, features: Features, rows: Rows) -> Shared:
        if self.towers is None:
            return Shared(dict.fromkeys(rows, features))
        active: Tensor | None = None
        if len(rows) < len(self.index):
            active = torch.tensor([self.index[name] for name in rows], device=features.main.device)
            order = list(rows)
        else:
            order = list(self.index)
        each = self._towers(self.towers, features.main, active)
        mask, context, selected = features.mask, features.context, features.selected
        return Shared({name: Features(each[i], (), mask, context, selected) for i, name in enumerate(order)})

    def _towers(self, towers: Bank, main: Tensor, active: Tensor | None) -> Sequence[Tensor] | Tensor:
        """What each active tower makes of the features, at every place of lists and maps."""
        if main.ndim == 2:
            return F.relu(towers(main, active))
        last = main.movedim(1, -1) if main.ndim == 4 else main
        hidden = F.relu(towers(last.flatten(0, -2), active))
        whole = hidden.reshape(len(hidden), *last.shape[:-1], self.width)
        return whole.movedim(-1, 2) if main.ndim == 4 else whole

    def reads(self, task: str) -> tuple[str, ...]:
        return () if self.towers is None else ("towers",)

    def slices(self, task: str) -> dict[str, slice]:
        here = slice(self.index[task], self.index[task] + 1)
        return {name: here for name, _ in self.named_parameters()}
