"""MTAN: one trunk, and for every task soft masks over the trunk's features.

Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, section 3.2, equations (1) and (2), with linear
maps where the paper has 1×1 convolutions; u^l, p^l are the first and second activation of block l:

    a_t^l = σ(h(g([u^l ; f(â_t^{l−1})]))),   â_t^l = a_t^l ⊙ p^l,   g with a ReLU, f shared between the tasks

Differences: no batch norm (a row's output depends on the row alone). a ≡ 1 is a shared bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.modeling import Features, Shared
from pluribus.modeling.experts import Bank
from pluribus.sharing.stacked import Stacked, Towers, at_least, vectors
from pluribus.tasks import Task


class MTANBlock(nn.Module):
    """One block: the trunk's two layers, the tasks' attention, and the layer f that hands the masked features on."""

    def __init__(self, tasks: int, width: int, hidden: int, attention: int, first: bool) -> None:
        super().__init__()
        self.u = nn.Linear(width, hidden)
        self.p = nn.Linear(hidden, hidden)
        self.attention = Bank(tasks, (hidden if first else 2 * hidden, attention, hidden))
        self.f = nn.Linear(hidden, hidden)

    def forward(self, trunk: Tensor, before: Tensor | None, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """trunk [B, in], before: f(â) of the block before [A, B, hidden] → (p [B, hidden], f(â) [A, B, hidden])."""
        u = F.relu(self.u(trunk))
        p = F.relu(self.p(u))
        seen = u if before is None else torch.cat((u.expand(len(before), *u.shape), before), -1)
        mask = torch.sigmoid(self.attention(seen, active))
        return p, F.relu(self.f(mask * p))


class MTAN(Stacked):
    """tasks: in order. width: of the incoming features. blocks: L. hidden: units of the trunk. attention: units inside an
    attention module. tower: hidden units a task, 0 for none."""

    def __init__(
        self, tasks: Sequence[Task], width: int, *, blocks: int = 2, hidden: int = 64, attention: int = 32, tower: int = 0
    ) -> None:
        super().__init__(tasks)
        at_least(1, "mtan", blocks=blocks, hidden=hidden, attention=attention)
        at_least(0, "mtan", tower=tower)
        count = len(self.index)
        self.blocks = nn.ModuleList(MTANBlock(count, hidden if i else width, hidden, attention, i == 0) for i in range(blocks))
        self.towers = Towers(count, hidden, tower)
        self.width = self.towers.width
        self.owned = {"towers": 1, **{f"blocks.{i}.attention": 1 for i in range(blocks)}}

    def forward(self, features: Features, rows: Rows) -> Shared:
        trunk = vectors(features, "mtan")
        order, active = self.requested(rows, trunk.device)
        h: Tensor | None = None
        for block in self.blocks:
            trunk, h = block(trunk, h, active)
        assert h is not None
        return Shared(self.towers(h, order, active, rows, features))
