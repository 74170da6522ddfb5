"""MGDA and MGDA-UB: the min-norm point of the convex hull of the tasks' gradients.

Source: Désidéri (2012); Sener and Koltun (2018), Multi-Task Learning as Multi-Objective Optimization, eq. 4 and 6:
w = argmin_{w ∈ simplex} ‖Σ w_t g_t‖², d = Σ w_t g_t. (G w)_t ≥ wᵀ G w for all t, equality where w_t > 0; d = 0 exactly at
Pareto-stationary points. MGDA-UB takes the gradients with respect to the shared features, an upper bound.

Where public codes differ: solved exactly here; TorchJD's Frank–Wolfe stops early on badly scaled rows (its d may then raise a
loss), LibMTL clips the two-task case to .001/.999. Normalised gradients ("l2": g/‖g‖, "loss": g/ℓ, "loss+": g/(ℓ‖g‖)): LibMTL
descends along the normalised gradients (``applied="normalised"``, default), ParetoGNN along the raw ones with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_signs
from pluribus.errors import BadInput, unknown
from pluribus.linalg.min_norm import min_norm

NORMALISE = ("none", "l2", "loss", "loss+")


@dataclass(eq=False)
class MGDA(Balancer):
    """Weights on the simplex (divided by the normaliser where one is applied).

    normalise: "none" (default), "l2", "loss", "loss+" ("loss" and "loss+" need ``losses=``).
        A task whose loss is 0 has no such gradient and gets weight 0; a negative loss is an error.
    applied: whether the weights act on the "normalised" gradients (default) or on the "raw" ones.
    """

    normalise: Literal["none", "l2", "loss", "loss+"] = "none"
    applied: Literal["normalised", "raw"] = "normalised"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        if self.normalise not in NORMALISE:
            raise unknown("normaliser", self.normalise, NORMALISE, where=type(self).__name__)
        if self.applied not in ("normalised", "raw"):
            raise unknown("use of the normaliser", self.applied, ("normalised", "raw"), where=type(self).__name__)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        if self.normalise == "none":
            return min_norm(signal)
        scale, solved = torch.ones_like(signal[0]), torch.zeros(len(tasks), dtype=torch.bool)
        if self.normalise in ("l2", "loss+"):
            scale = signal.diagonal().clamp_min(0).sqrt()
        if self.normalise in ("loss", "loss+"):
            if losses is None:
                raise BadInput(
                    "losses are missing",
                    where=f"{type(self).__name__}(normalise={self.normalise!r})",
                    remedy="pass losses=, one number a task",
                )
            solved = check_signs(self, tasks, losses)
            scale = scale * losses
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        normed = signal * inverse.unsqueeze(1) * inverse
        if bool(solved.any()):  # a loss of 0 has no normalised gradient: the others are balanced
            w = torch.zeros_like(scale)
            if not bool(solved.all()):
                w[~solved] = min_norm(normed[~solved][:, ~solved])
        else:
            w = min_norm(normed)
        return w * inverse if self.applied == "normalised" else w


@dataclass(eq=False)
class MGDAUB(MGDA):
    """MGDA on the gradients with respect to the shared features: T passes through the heads, one through the encoder."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram", "features"})
