"""Geometric loss strategy: L = (Π ℓ_t)^{1/T}.

Source: Chennupati et al. (2019), MultiNet++, eq. 2. Computed as exp(mean log ℓ); the weight of g_t is L / (T ℓ_t).
Difference: LibMTL reports ℓ_t/(T Π ℓ), the wrong way round, and multiplies the losses, which under- or overflows for many tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive, check_signs


@dataclass(eq=False)
class GeometricLoss(Balancer):
    """w_t = L / (T ℓ_t), L the geometric mean of the losses, for positive losses. floor: losses count as at least this (1e-8)."""

    floor: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def validate(self) -> None:
        check_positive(self, floor=self.floor)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        check_signs(self, tasks, signal)
        logs = signal.clamp_min(self.floor).log()
        return (logs.mean() - logs).exp() / len(tasks)
