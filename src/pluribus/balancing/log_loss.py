"""Scale-invariant scalarisation: L = Σ log(ℓ_t + ε), the baseline "SI" of the Nash-MTL and FAMO tables.

The direction of the geometric loss without its global factor: the weight of g_t is 1 / (ℓ_t + ε).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive, check_signs


@dataclass(eq=False)
class LogLoss(Balancer):
    """w_t = 1 / (ℓ_t + ε), for losses that are not negative. epsilon: ε (default 1e-8)."""

    epsilon: float = 1e-8
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def validate(self) -> None:
        check_positive(self, epsilon=self.epsilon)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        check_signs(self, tasks, signal)
        return 1 / (signal + self.epsilon)
