"""DELLA: drop small entries of a row with higher probability than large ones.

Deep, Bhardwaj, Poria. "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling", 2024,
https://arxiv.org/abs/2406.11617.

    within a row, rank |τ| ascending r = 1..n:   q_r = ρ − ε + 2ε (r − 1)/(n − 1),   τ̂ = m ⊙ τ / q,  m ~ Bernoulli(q)
    then election and disjoint mean as in TIES (or a plain sum);   θ = θ0 + λ τ_M

Paper and public code
1. mergekit rescales by the ratio of L1 norms (`rescale="l1"`, here per tensor), the paper by 1/q (the default).
2. A row of one entry makes (r − 1)/(n − 1) = 0/0 and stops mergekit; here q = ρ.
3. A tensor of one dimension is one row; a row of a larger tensor runs along its last dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.algebra import MergeStage, Method, Need, Span, fraction, one_of, random_bits
from pluribus.merging.dare import COMBINE


@dataclass(frozen=True)
class MagPrune(MergeStage):
    """Keep an entry with a probability that grows with its rank in its row."""

    density: float
    epsilon: float
    rescale: str

    def __post_init__(self) -> None:
        fraction("density", self.density)
        fraction("epsilon", self.epsilon)
        one_of("rescale", self.rescale, ("expectation", "l1", "none"))
        if 0 < self.density < 1 and not (self.density > self.epsilon and self.density + self.epsilon <= 1):
            what = f"density {self.density:g} ± epsilon {self.epsilon:g} leaves the interval from 0 to 1"
            raise BadInput(what, where="epsilon", remedy="use a smaller epsilon")

    @property
    def need(self) -> Need:
        return "tensor" if self.rescale == "l1" else "rows"

    def probability(self, tau: Tensor) -> Tensor:
        """q of every entry of rows [rows, n], in float64."""
        n = tau.shape[1]
        if n == 1 or self.epsilon == 0:
            return torch.full(tau.shape, self.density, dtype=torch.float64)
        order = tau.abs().sort(dim=1, stable=True, descending=True).indices  # equal magnitudes: the lower index ranks higher
        rank = torch.empty_like(order)
        rank.scatter_(1, order, torch.arange(n - 1, -1, -1).expand_as(order))
        return rank.double().mul_(2 * self.epsilon / (n - 1)).add_(self.density - self.epsilon)

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        if self.density in (0, 1) or not tau.shape[1]:
            return tau if self.density == 1 else tau.zero_()
        for t, task in enumerate(span.tasks):
            q = self.probability(tau[t].view(-1, span.columns)).view(-1)
            before = tau[t].double().abs().sum()
            for start, stop, bits in random_bits(span, task):
                tau[t, start:stop].mul_(bits.double() < q[start:stop] * 2.0**32 - 2.0**31)
            if self.rescale == "expectation":
                tau[t].div_(q)
            elif self.rescale == "l1":
                after = tau[t].double().abs().sum()
                tau[t].mul_(float(before / after) if after > 0 else 1.0)
        return tau


def della(
    *, density: float = 0.5, epsilon: float = 0.15, combine: str = "ties", rescale: str = "expectation", scale: float = 1.0
) -> Method:
    """density: mean probability ρ of keeping. epsilon: half its range in a row. combine: "ties" or "linear". scale: λ."""
    one_of("combine", combine, tuple(COMBINE))
    return Method(COMBINE[combine](), (MagPrune(density, epsilon, rescale),), scale=scale, positive=combine == "ties")
