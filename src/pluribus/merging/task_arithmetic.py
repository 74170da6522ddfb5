"""Task arithmetic: θ = θ0 + λ Σ_t w_t τ_t.

Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi. "Editing Models with Task Arithmetic", ICLR 2023,
https://arxiv.org/abs/2212.04089. Negation is a negative weight; analogy is weights (1, 1, −1).
"""

from __future__ import annotations

from pluribus.merging.algebra import Method, WeightedSum


def task_arithmetic(*, scale: float = 0.3) -> Method:
    """scale: λ, the paper's constant for eight tasks by default; tune it from 0 to 1 on validation data."""
    return Method(WeightedSum(), scale=scale)
