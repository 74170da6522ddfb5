"""FairGrad: α-fair division of the loss reductions.

Source: Ban and Ji (2024), Fair Resource Allocation in Multi-Task Learning, eq. 6: G w = w^{−1/α}, w > 0, d = Jᵀ w.
α = 1 is Nash-MTL; α → ∞ makes all g_t·d equal (max–min); α → 0 tends to equal weights.

Where public codes differ: the authors and TorchJD call scipy's bounded least squares on the host; here damped Newton steps on
the convex function whose stationary point this is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_between, check_preference, preference_of
from pluribus.linalg.alpha_fair import alpha_fair


@dataclass(eq=False)
class FairGrad(Balancer):
    """The α-fair weights, those of a task without gradient 0.

    alpha: α in [0.05, 100] (default 2, the authors' on NYUv2 and Cityscapes). preference: p in G w = p w^{−1/α} (default 1 each).
    """

    alpha: float = 2.0
    preference: Preference = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        check_between(self, 0.05, 100, alpha=self.alpha)
        check_preference(self.preference)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        power = None if self.preference is None else preference_of(self.preference, tasks, signal, 1.0)
        return alpha_fair(signal, self.alpha, power)
