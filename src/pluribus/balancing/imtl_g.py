"""Impartial multi-task learning, gradient balance: equal projections on every task's unit gradient.

Source: Liu et al. (2021), Towards Impartial Multi-task Learning, eq. 5–6: Σ w = 1 and d·g_t/‖g_t‖ equal for all t.
From the Gram matrix: v = G⁺ √diag G, w = v/Σv; here v = D⁻¹ C⁺ 1, the same at full rank and sound for parallel gradients.

Where public codes differ: LibMTL inverts DUᵀ, which blows up for parallel gradients. When Σv < 0, v/Σv *ascends* every task
(peers do that in some 4 % of random cases), so that we divide by Σ|v| where Σv is not above √ε Σ|v|, ε the rounding of G's
own type (at least 1e-6 Σ|v|). Directions below that rounding count as absent; where no direction has equal projections
(opposite gradients) the weights are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_preference, preference_of
from pluribus.linalg.cosine import cosine, pseudo_inverse


@dataclass(eq=False)
class IMTLG(Balancer):
    """w = v/Σv; weights may be negative. preference: relative projections (default 1 each: impartial)."""

    preference: Preference = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        check_preference(self.preference)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        norm, inverse, cosines = cosine(signal)
        p = preference_of(self.preference, tasks, norm, 1.0)
        p, eps = torch.where(norm > 0, p, 0.0), torch.finfo(signal.dtype).eps
        b = pseudo_inverse(cosines, eps) @ p
        defined = (b * p).sum() > 16 * (len(tasks) * eps) ** 2 * p.square().sum()
        v = inverse * b
        size = v.abs().sum()
        total = torch.where(v.sum() > max(1e-6, eps**0.5) * size, v.sum(), size)
        found = torch.where(total > 0, v / total, 1 / len(tasks))
        return torch.where(defined | (norm == 0).all(), found, 0.0).to(signal.dtype)
