"""TIES: trim, elect sign, merge what agrees.

Yadav, Tam, Choshen, Raffel, Bansal. "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
https://arxiv.org/abs/2306.01708.

    1. τ̂_t = the fraction `density` of τ_t with the largest |τ_t|      2. γ = sign(Σ_t w_t τ̂_t)
    3. τ_M = mean of the τ̂_t whose sign is γ;      θ = θ0 + λ τ_M

Paper and public code
1. The authors trim over the concatenation of all tensors (`scope="global"`), tools for language models per tensor (the default).
2. The authors keep int(ρ n) + 1 entries and their ties, mergekit max(1, int(ρ n)); here exactly max(1, round(ρ n)).
3. A column whose sum is 0: the authors give it the majority sign of the whole vector, mergekit +; here it stays 0.
4. The disjoint sum with λ = 0.3 of later papers is `reduce="sum"`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pluribus.merging.algebra import DisjointMean, MergeStage, Method, Span, one_of, weighted_sum
from pluribus.merging.trim import Trim


class DisjointSum(MergeStage):
    """Σ_{sign τ_t = γ} w_t τ_t with γ = sign(Σ_t w_t τ_t)."""

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        weights = span.weights.tolist()
        elected = weighted_sum(tau.clone(), weights).sign_()
        tau.mul_(elected).clamp_(min=0)
        return weighted_sum(tau, weights).mul_(elected)


def ties(*, density: float = 0.2, scale: float = 1.0, scope: str = "per_tensor", reduce: str = "mean") -> Method:
    """density: fraction kept of each task vector. scale: λ. scope: "per_tensor" or "global". reduce: "mean" or "sum"."""
    one_of("reduce", reduce, ("mean", "sum"))
    combine = DisjointMean() if reduce == "mean" else DisjointSum()
    return Method(combine, (Trim(density, scope=scope),), scale=scale, positive=True)
