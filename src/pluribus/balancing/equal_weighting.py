"""Equal weighting, and linear scalarisation with fixed weights: L = Σ_t p_t ℓ_t.

The baseline of every claim. ``reduction="sum"`` (LibMTL) or ``"mean"`` (TorchJD): under SGD the sum is a T times larger
learning rate, under Adam nearly nothing. A fixed preference is the second, stronger baseline: search it on the simplex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_preference, preference_of
from pluribus.errors import unknown


@dataclass(eq=False)
class EqualWeighting(Balancer):
    """w_t = p_t (sum) or p_t / Σ p (mean) over the tasks present.

    reduction: "sum" (default) or "mean". preference: fixed weights p_t, default 1 each.
    """

    reduction: Literal["sum", "mean"] = "sum"
    preference: Preference = None
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def validate(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise unknown("reduction", self.reduction, ("sum", "mean"), where="EqualWeighting")
        check_preference(self.preference)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        p = preference_of(self.preference, tasks, signal, 1.0)
        return p if self.reduction == "sum" else p / p.sum().clamp_min(1e-30)
