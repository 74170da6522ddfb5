"""STAR: a network shaped as a star, whose every layer is a centre that all domains share, times a layer of the domain's own.

Sheng, Zhao, Zhou, Ding, Dai, Luo, Yang, Lv, Zhang, Deng, Zhu, "One Model to Serve All: Star Topology Adaptive Recommender for
Multi-Domain CTR Prediction", CIKM 2021 (arXiv 2101.11427). With p the domain:

    z′ = (γ γ_p) ẑ + (β + β_p),   ẑ by the domain's own moments                (partitioned normalisation, equations 2 and 3)
    W*_p = W_p ⊗ W,   b*_p = b_p + b,   h ← φ(W*_p h + b*_p)                   (star topology, equations 4 and 5)
    s = s_m + s_a,   s_a from the domain's indicator and the features           (auxiliary network, equation 6)

In `Star` a domain is a task: its rows are those that the task asks for, which in the long layout (a task column) are the
domain's. Where a column names the domain (`pluribus.tabular.star`) it is a part of the rows, whatever the task, as in the
paper, which has one task; then all tasks read the star of their row's domain. The final sum of logits is one head on [h ; a],
since W [h ; a] = W_m h + W_a a; a head is the task's, not the domain's. W_p and γ_p start at 1, b_p and β_p at 0, so that every
domain starts as the centre. The auxiliary network has one hidden layer; its domain embedding enters that layer as an offset,
which is what a linear map of it is. The paper's batches hold one domain each; here a batch's rows are run domain by domain. It
does not say what a domain without training rows gets: we answer it from the centre, normalised by moments of all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.modeling import Features, Shared
from pluribus.modeling.experts import PLANS, StackedLinear, StackedNorm, plan
from pluribus.sharing.stacked import Stacked, at_least, vectors, widths_of
from pluribus.tasks import Task


class PartitionedNorm(StackedNorm):
    """Batch normalisation with moments, scale γ_p and shift β_p a domain, beside a γ and β of all."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self.common_weight = nn.Parameter(torch.ones(width))
        self.common_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [B, d] that all domains read → [A, B, d]."""
        return super().forward(x.expand(len(self.weight) if active is None else len(active), *x.shape), active)

    def taken(self, active: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight, bias, mean, variance = super().taken(active)
        return self.common_weight * weight, self.common_bias + bias, mean, variance

    def centre(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """x [B, d] with these moments [d], and γ and β alone."""
        return self.common_weight * (x - mean) * torch.rsqrt(variance + self.eps) + self.common_bias


class StarLayer(nn.Module):
    """x [A, B, in] → x (W_p ⊗ W) + b_p + b [A, B, out]."""

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.centre = StackedLinear(1, inputs, outputs)
        self.weight = nn.Parameter(torch.ones(size, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(size, outputs))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        weight, bias = (p if active is None else p[active] for p in (self.weight, self.bias))
        chosen = plan(len(weight), x.shape[1], common=False, cpu=x.device.type == "cpu")
        return PLANS[chosen](x, weight * self.centre.weight, bias + self.centre.bias)


class Star(Stacked):
    """tasks: in order, each a domain. width: of the incoming features. hidden: units of the star's layers. auxiliary: units of
    the auxiliary network's layer, 0 for none."""

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        hidden: int | Sequence[int] = (128, 64),
        auxiliary: int = 16,
        domains: int | None = None,
    ) -> None:
        super().__init__(tasks)
        at_least(0, "star", auxiliary=auxiliary)
        count, layers = domains or len(self.index), widths_of(hidden, "star", "hidden")
        self.norm = PartitionedNorm(count, width)
        self.layers = nn.ModuleList(StarLayer(count, a, b) for a, b in itertools.pairwise((width, *layers)))
        self.auxiliary = nn.Linear(width, auxiliary) if auxiliary else None
        self.indicator = nn.Parameter(0.1 * torch.randn(count, auxiliary)) if auxiliary else None
        self.width = layers[-1] + auxiliary
        self.owned = {"norm.weight": 1, "norm.bias": 1, "indicator": 1}
        self.owned |= {f"layers.{i}.{name}": 1 for i in range(len(layers)) for name in ("weight", "bias")}

    def forward(self, features: Features, rows: Rows) -> Shared:
        vectors(features, "star")
        return Shared(self.each(self._run, features, rows, exact=True))

    def _run(self, features: Features, active: Tensor | None) -> Tensor:
        x = features.main
        h = self.norm(x, active)
        for layer in self.layers:
            h = F.relu(layer(h, active))
        if self.auxiliary is None:
            return cast(Tensor, h)
        indicator = cast(Tensor, self.indicator if active is None else self.indicator[active])  # type: ignore[index]
        return torch.cat((h, F.relu(self.auxiliary(x) + indicator[:, None])), -1)
