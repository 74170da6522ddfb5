"""Impartial multi-task learning, loss balance.

Source: Liu et al. (2021), Towards Impartial Multi-task Learning, eq. 8: L = Σ (e^{s_t} ℓ_t − s_t), s learnt; at the optimum
e^{s_t} ℓ_t = 1 for every task, whatever the loss's scale.
Difference: s has its own Adam; LibMTL's "IMTL" is this and IMTL-G together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import Scalars


@dataclass(eq=False)
class IMTLL(Balancer):
    """w_t = e^{s_t}, s_t learnt from 0 (kept within ±50). lr: of the inner Adam (default 0.01)."""

    lr: float = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    mutable: ClassVar[tuple[str, ...]] = ("s",)

    def validate(self) -> None:
        check_positive(self, lr=self.lr)

    def reset(self) -> None:
        self.s = Scalars(0.0, self.lr)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        w = self.s.rows(tasks, signal).clamp(-50, 50).exp()
        self.s.descend(tasks, w * signal - 1)  # ∂L/∂s_t
        return w
