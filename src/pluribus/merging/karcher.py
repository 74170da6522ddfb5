"""The Karcher mean: the point on the sphere with the least sum of squared arcs to the normalised tensors.

Karcher, "Riemannian center of mass and mollifier smoothing", 1977; as a merger: mergekit.

    u_i = a_i/‖a_i‖, Σ α_i = 1;  start at μ = Σ α_i u_i, normalised
    θ_i = acos <u_i, μ>;   T = Σ α_i (θ_i / sin θ_i)(u_i − cos θ_i μ);   μ ← cos‖T‖ μ + sin‖T‖ T/‖T‖
    stop at ‖T‖ < 1e-5 or after 10 iterations;   output (Σ α_i ‖a_i‖) μ

μ stays in the span of the u_i: the iteration runs on their inner products in float64 and the tensors are read twice, however
many iterations it takes. (mergekit takes inner products in the storage dtype.) An input of norm 0 has no direction and is left
out; where the weighted mean of the u_i is 0 the mean is undefined and the straight mean is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, affine, gram, one_of


def coefficients(products: Tensor, weights: Tensor, iterations: int, tolerance: float) -> list[float]:
    """The coefficients of the a_i in the result, from their inner products [T, T] and weights [T]."""
    norm = products.diagonal().clamp(min=0).sqrt()
    alpha = weights.double() / weights.sum()
    length = float(alpha @ norm)
    alpha = torch.where(norm > 0, alpha, 0.0)
    if not float(alpha.sum()):
        return (weights.double() / weights.sum()).tolist()
    alpha = alpha / alpha.sum()
    safe = norm.masked_fill(norm == 0, 1)
    c = products / safe[:, None] / safe
    near = float((c - 1).abs()[norm > 0][:, norm > 0].max()) < 1e-12  # equal directions: nothing to do but average
    m = alpha
    start = float(m @ c @ m)
    if start < 1e-24:
        return (weights.double() / weights.sum()).tolist()
    m = m / start**0.5
    for _ in range(0 if near else iterations):
        cosine = (c @ m).clamp(-1, 1)
        angle = cosine.acos()
        f = alpha * torch.where(angle > 1e-8, angle / angle.sin().clamp(min=1e-300), 1.0)
        tangent = f - (f @ cosine) * m
        size = max(float(tangent @ c @ tangent), 0.0) ** 0.5
        if size < max(tolerance, 1e-15):
            break
        m = torch.cos(torch.tensor(size)).double() * m + (torch.sin(torch.tensor(size)).double() / size) * tangent
    found: list[float] = (length * m / safe).where(norm > 0, 0.0).tolist()
    return found


@dataclass(frozen=True)
class Karcher(MergeStage):
    """The mean on the sphere, tensor by tensor."""

    iterations: int
    tolerance: float
    needs: ClassVar[Need] = "statistic"

    def observe(self, view: View) -> Any:
        return gram(view)

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return affine(tau, coefficients(seen, span.weights, self.iterations, self.tolerance))


def karcher(*, iterations: int = 10, tolerance: float = 1e-5, space: Any = "weights") -> Method:
    """iterations, tolerance: when to stop. space: "weights" or "task_vectors"."""
    one_of("space", space, ("weights", "task_vectors"))
    return Method(Karcher(iterations, tolerance), space=space, positive=True)
