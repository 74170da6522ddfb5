"""Cross-stitch: a network for each task, and after every layer learnt linear combinations of their activations.

Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016, equation (1), for T tasks:

    h̃_t^l = Σ_s α^l_ts h_s^l,   α_tt = own, α_ts = (1 − own)/(T − 1) at the start

The paper stitches whole networks that start pretrained; here the T networks stand on one encoder's features and start at random.
Its α learn 10–100 times faster than the weights: α is stored divided by `RATE`, which under Adam is the same. α = I is T
networks apart. Every task reaches every network below the last stitch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.modeling.experts import StackedLinear
from pluribus.sharing.stacked import Stacked, Towers, at_least, vectors
from pluribus.tasks import Task

RATE = 10.0


class Stitch(nn.Module):
    """α of one layer: h [T, B, d] → the wanted tasks' combinations [W, B, d]."""

    def __init__(self, tasks: int, own: float) -> None:
        super().__init__()
        alpha = torch.full((tasks, tasks), (1 - own) / max(tasks - 1, 1))
        alpha.fill_diagonal_(own if tasks > 1 else 1.0)
        self.weight = nn.Parameter(alpha / RATE)

    def forward(self, h: Tensor, wanted: Tensor | None) -> Tensor:
        weight: Tensor = self.weight if wanted is None else self.weight[wanted]
        return torch.einsum("ts,sbd->tbd", RATE * weight, h)


class CrossStitch(Stacked):
    """tasks: in order. width: of the incoming features. layers: L. hidden: units of a layer. own: α_tt at the start. tower:
    hidden units a task, 0 for none."""

    def __init__(
        self, tasks: Sequence[Task], width: int, *, layers: int = 2, hidden: int = 64, own: float = 0.9, tower: int = 0
    ) -> None:
        super().__init__(tasks)
        at_least(1, "cross_stitch", layers=layers, hidden=hidden)
        at_least(0, "cross_stitch", tower=tower)
        if not 0 <= own <= 1:
            raise BadInput(f"own must lie between 0 and 1, not {own}", where="cross_stitch")
        count = len(self.index)
        self.layers = nn.ModuleList(StackedLinear(count, hidden if i else width, hidden) for i in range(layers))
        self.stitches = nn.ModuleList(Stitch(count, own) for _ in range(layers))
        self.towers = Towers(count, hidden, tower)
        self.width = self.towers.width
        self.owned = {f"stitches.{layers - 1}": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        h = vectors(features, "cross_stitch")
        order, active = self.requested(rows, h.device)
        last = len(self.layers) - 1
        for i, (layer, stitch) in enumerate(zip(self.layers, self.stitches)):
            h = stitch(F.relu(layer(h)), active if i == last else None)
        return Shared(self.towers(h, order, active, rows, features))
