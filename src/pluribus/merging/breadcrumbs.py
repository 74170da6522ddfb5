"""Model Breadcrumbs: drop the largest and the smallest entries of each task vector, add up the rest.

Davari, Belilovsky. "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024,
https://arxiv.org/abs/2312.06795.

    per tensor: drop the top fraction γ of |τ|, then the smallest until the fraction ρ remains;   θ = θ0 + α Σ_t w_t τ̂_t

Public code: mergekit up to 0.1.4 kept nothing of a tensor with fewer than 1/γ entries; here exactly max(1, round(ρ n)) stay.
"""

from __future__ import annotations

from pluribus.merging.algebra import Method, WeightedSum
from pluribus.merging.trim import Trim


def breadcrumbs(*, density: float = 0.9, gamma: float = 0.01, scale: float = 0.3) -> Method:
    """density: ρ, the fraction kept. gamma: γ, the fraction of largest entries dropped. scale: α."""
    return Method(WeightedSum(), (Trim(density, gamma),), scale=scale)
