"""ConFIG: conflict-free inverse gradients, the direction of equal cosine with every task's gradient.

Source: Liu, Chu, Thuerey (2025), ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, eq. 2–3:
U = D⁻¹ J, ĝ = U⁺ 1/‖U⁺ 1‖, d = (Σ_t g_t·ĝ) ĝ. From the Gram matrix: v = D⁻¹ C⁺ 1, w = v (1ᵀG v)/(vᵀG v).

Where public codes differ: TorchJD takes a singular value decomposition of the T × P matrix, which is unnecessary. Parallel to
IMTL-G at full row rank; only the length differs. Directions of J that are smaller than the rounding of G's own type count as
absent, and where 1 has no part in the others (opposite gradients) ĝ is not defined: the weights are 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_preference, preference_of
from pluribus.linalg.cosine import cosine, pseudo_inverse


@dataclass(eq=False)
class ConFIG(Balancer):
    """Equal cosines, length Σ g_t·ĝ; 0 where no direction has them. preference: relative cosines (default 1 each)."""

    preference: Preference = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        check_preference(self.preference)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        norm, inverse, cosines = cosine(signal)
        p = preference_of(self.preference, tasks, norm, 1.0)
        eps = torch.finfo(signal.dtype).eps
        p = torch.where(norm > 0, p, 0.0)
        b = pseudo_inverse(cosines, eps) @ p  # v in units of the rows' lengths
        along = cosines @ b
        length = (b * along).sum()
        ratio = (norm * along).sum() / length.clamp_min(torch.finfo(norm.dtype).tiny)
        noise = (len(tasks) * eps) ** 2 * p.square().sum()  # of bᵀCb = pᵀC⁺p where p has no part in the range of C
        scale = torch.where(length > 16 * noise, ratio, 0.0)
        return (scale * inverse * b).to(signal.dtype)
