"""AdaTT: in every level each task fuses all experts by a gate and adds its own experts as a residual.

Li, Zhang, Zhang, Zhang, Chandra, Zhu, Chen, Wen, "AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in
Recommendations", KDD 2023. A unit is a task or a shared unit; unit t has m native experts on its own path x_t:

    x_t^l = Σ_j softmax(W_t x_t^{l−1})_j E_j  +  Σ_i v_ti E_t,i,     j over all experts of the level, v_t free of the input

With one native expert v is 1 (a plain residual); with more it is learnt and starts at 1/m. In the last level shared units have
no gate. Every task reaches every unit; the last level's gates and v, and the tower, are a task's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.modeling import Features, Shared
from pluribus.sharing.stacked import Experts, Gates, Stacked, Towers, at_least, mix, vectors, widths_of
from pluribus.tasks import Task


class FusionLevel(nn.Module):
    """One level: units·m experts, `gated` gates over all of them, native weights v."""

    def __init__(self, units: int, gated: int, width: int, expert: Sequence[int], m: int, norm: bool = False) -> None:
        super().__init__()
        self.m = m
        self.experts = Experts(units * m, (width, *expert), norm=norm)
        self.gates = Gates(gated, width, units * m)
        self.native = nn.Parameter(torch.full((gated, m), 1 / m)) if m > 1 else None

    def forward(self, x: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B, in] that all units read or [U, B, in] → (h [W, B, out], gate weights [W, B, U·m]) of the wanted units."""
        outputs = self.experts(x if x.ndim == 2 or self.m == 1 else x.repeat_interleave(self.m, 0))
        places = torch.arange(self.gates.size, device=x.device) if wanted is None else wanted
        weights = self.gates(x if x.ndim == 2 else x[places], places)
        own = outputs.unflatten(0, (-1, self.m))[places]
        residual = own[:, 0] if self.native is None else torch.einsum("am,ambd->abd", self.native[places], own)
        return mix(weights, outputs) + residual, weights


class AdaTT(Stacked):
    """tasks: in order. width: of the incoming features. levels: L. own: native experts a unit and level, m. shared: shared
    units. expert: units of an expert's layer, or of its layers. tower: hidden units a task, 0 for none. norm: batch norms in the
    experts."""

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        levels: int = 2,
        own: int = 1,
        shared: int = 1,
        expert: int | Sequence[int] = 64,
        tower: int = 32,
        norm: bool = False,
    ) -> None:
        super().__init__(tasks)
        at_least(1, "adatt", levels=levels, own=own)
        layers = widths_of(expert, "adatt")
        at_least(0, "adatt", shared=shared, tower=tower)
        count, last = len(self.index), levels - 1
        units = count + shared
        self.levels = nn.ModuleList(
            FusionLevel(units, count if i == last else units, layers[-1] if i else width, layers, own, norm)
            for i in range(levels)
        )
        self.towers = Towers(count, layers[-1], tower)
        self.width = self.towers.width
        self.owned = {f"levels.{last}.gates": 1, f"levels.{last}.native": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        h = vectors(features, "adatt")
        order, active = self.requested(rows, h.device)
        weights: Tensor = h
        for i, level in enumerate(self.levels):
            h, weights = level(h, active if i == len(self.levels) - 1 else None)
        extra = {"gates": dict(zip(order, weights)), "shared": slice(None)}
        return Shared(self.towers(h, order, active, rows, features), extra=extra)
