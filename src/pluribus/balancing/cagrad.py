"""CAGrad: the direction near the mean gradient that serves the worst-off task best.

Source: Liu, Liu, Jin, Stone, Liu (2021), Conflict-Averse Gradient Descent, eq. 3–4: max_d min_t g_t·d s.t. ‖d − g₀‖ ≤ c‖g₀‖,
g₀ the mean gradient. Dual: w* = argmin_{w ∈ simplex} w·(G1/T) + κ √(wᵀ G w), κ = c‖g₀‖; d = g₀ + κ g_w/‖g_w‖.

Solved exactly through the worst-off task's gain ν: the shortest e with g_t·e ≥ ν − g_t·g₀ is Jᵀz, z a non-negative QP; its
length is convex in ν and must be κ (Newton in ν from the right). Peers call SLSQP or a conic solver on the host.
Where public codes differ: the authors' rescale 1 divides by 1 + c² (their default), 2 by 1 + c; TorchJD has none.
For c < 1 the optimum has ‖g_w‖ > 0 everywhere. For c ≥ 1 the ball holds d = 0: near a Pareto-stationary point no d gains
for every task, and d is the point of {d: g_t·d ≥ 0 for all t} nearest to g₀, which harms none (0 where nothing else is left).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer
from pluribus.errors import BadInput, unknown
from pluribus.linalg.cosine import cosine, ridge, settled
from pluribus.linalg.nonnegative_qp import nonnegative_qp


@dataclass(eq=False)
class CAGrad(Balancer):
    """w_t = 1/T + κ w*_t/‖g_w‖, rescaled.

    c: radius as a share of ‖g₀‖ (default 0.4, the authors' on NYUv2; 0.2 on Cityscapes); 0 is the mean gradient.
    rescale: 0 none, 1 divides by 1 + c² (default), 2 by 1 + c.
    """

    c: float = 0.4
    rescale: Literal[0, 1, 2] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        if not self.c >= 0:
            raise BadInput(f"c is {self.c}", where="CAGrad", remedy="give a number from 0 (the mean) up, usually below 1")
        if self.rescale not in (0, 1, 2):
            raise unknown("rescale", str(self.rescale), ("0", "1", "2"), where="CAGrad")

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        factor = (1.0, 1 / (1 + self.c**2), 1 / (1 + self.c))[self.rescale]
        if self.c == 0:
            return torch.full_like(signal[0], factor / len(tasks))
        return factor * worst_off(signal, self.c).to(signal.dtype)


def worst_off(gram: Tensor, c: float) -> Tensor:
    """Total weights 1/T + z [T] of max_d min_t g_t·d over the ball of radius c‖g₀‖ around g₀, in working precision."""
    norm, inverse, cosines = cosine(gram)
    size = len(norm)
    b = (cosines * norm).mean(1) * norm  # g_t·g₀ (a zero row has norm 0)
    kappa = c * b.mean().clamp_min(0).sqrt()
    cosines.diagonal().add_(ridge(gram))
    nu = (b + kappa * norm).min()  # no task can gain more: the root lies at or left of this
    z = torch.zeros_like(norm)
    for _ in range(60 if gram.device.type == "cpu" else 12):
        z = nonnegative_qp(cosines, (b - nu) * inverse, z > 0)
        length = (z * (cosines @ z)).sum().clamp_min(0).sqrt()
        over = length - kappa
        if settled(over > 1e-13 * kappa):
            break
        rise = (z * inverse).sum().clamp_min(torch.finfo(norm.dtype).tiny)  # ∂(½ length²)/∂ν
        nu = nu - torch.where(over > 0, over * length / rise, 0.0)
    still = nonnegative_qp(cosines, b * inverse) if c >= 1 else torch.zeros_like(z)  # the shortest e that harms no task
    cosines.diagonal().sub_(ridge(gram))
    true = (z * (cosines @ z)).sum().clamp_min(0).sqrt()
    tiny = torch.finfo(norm.dtype).tiny
    z = torch.where(true > 1e-6 * kappa, z * (kappa / true.clamp_min(tiny)), 0.0)
    if c >= 1:
        gains = (b * inverse + cosines @ z) / kappa.clamp_min(tiny)
        gains = torch.where(norm > 0, gains, torch.inf)
        z = torch.where(gains.min() > 10 * ridge(gram), z, still)
    return 1 / size + inverse * z
