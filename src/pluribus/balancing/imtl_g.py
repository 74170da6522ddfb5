"""Impartial multi-task learning, gradient balance: equal projections on every task's unit gradient.

Source: Liu et al. (2021), Towards Impartial Multi-task Learning, eq. 5–6: Σ w = 1 and d·g_t/‖g_t‖ equal for all t.
From the Gram matrix: v = G⁺ √diag G, w = v/Σv; here v = D⁻¹ C⁺ 1, the same at full rank and sound for parallel gradients.

Where public codes differ: LibMTL inverts DUᵀ, which blows up for parallel gradients. When Σv < 0, v/Σv *ascends* every task
(peers do that in some 4 % of random cases), so that we divide by Σ|v| where Σv is not above 1e-6 Σ|v|.
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
        v = inverse * (pseudo_inverse(cosines) @ torch.where(norm > 0, p, 0.0))
        size = v.abs().sum()
        total = torch.where(v.sum() > 1e-6 * size, v.sum(), size)
        return torch.where(total > 0, v / total, 1 / len(tasks)).to(signal.dtype)
