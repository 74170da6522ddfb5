"""DOGE: a common correction of all task vectors by projected gradient descent (the part that needs no data).

Wei, Tang, Shen, Yuan, et al. "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent", ICML 2025,
https://arxiv.org/abs/2501.01230.

    per matrix:  λ_t = η / ‖τ_t‖
    L(Δ) = Σ_j Σ_rows < τ_j, τ_j − Σ_i λ_i (τ_i + Δ) >²
    U_t: the top floor(r/T) left singular vectors of τ_t;  U_s: those of [U_1 … U_T], the first floor(r/6);  P = U_s U_sᵀ
    400 times:  g = ∇L(Δ);  g ← g − P g;  Δ ← Adam(Δ, g), lr 1e-4
    mask_t = the top 30 % of |τ_t| over all matrices;     θ = θ0 + Σ_t λ_t (τ_t + Δ) ⊙ mask_t

Paper and public code (FusionBench's; the authors' could not be had)
1. The code merges what has "encoder" and "weight" in its name; here every matrix but embeddings (`skip`). All else stays
   the base's.
2. A task vector of norm 0 makes λ infinite there; here λ = 0.
3. Adam's entry-wise scaling comes after the projection: the step leaves the subspace's complement. `optimiser="sgd"` does not.
4. The mask keeps exactly round(0.3 n) entries.
5. L is quadratic in Δ and falls apart by rows: with s = Σ λ_i and c_j = <τ_j, τ_j − Σ λ_i τ_i>,
   ∇L = −2 s Σ_j (c_j − s <τ_j, Δ>) τ_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import torch
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, fraction, one_of
from pluribus.merging.matrices import matrix_shape, svd
from pluribus.merging.trim import Trim

SKIP = ("*embed*", "*wte*", "*wpe*", "*position*")


def coefficients(tau: Tensor, eta: float) -> Tensor:
    """λ_t [T] = η / ‖τ_t‖ of task vectors [T, out, in]; 0 where τ_t is 0."""
    size = tau.flatten(1).norm(dim=1)
    return torch.where(size > 0, eta / size.clamp(min=1e-30), 0.0)


def shared_subspace(tau: Tensor, divisor: int) -> Tensor:
    """U_s [out, floor(r / divisor)]: the directions that the tasks' leading left singular vectors share."""
    r = min(tau.shape[1:])
    k = r // len(tau)
    stack = torch.cat([svd(t)[0][:, :k] for t in tau], 1)
    return svd(stack)[0][:, : r // divisor] if k else tau.new_zeros(tau.shape[1], 0)


def loss(delta: Tensor, tau: Tensor, lam: Tensor) -> Tensor:
    """L(Δ), from its definition."""
    merged = (lam[:, None, None] * (tau + delta)).sum(0)
    return (tau * (tau - merged)).sum(-1).square().sum()


def gradient(delta: Tensor, tau: Tensor, lam: Tensor) -> Tensor:
    """∇L(Δ) in closed form."""
    s = lam.sum()
    constant = (tau * (tau - (lam[:, None, None] * tau).sum(0))).sum(-1)
    residual = constant - s * (tau * delta).sum(-1)
    return -2 * s * (residual[..., None] * tau).sum(0)


def correction(
    tau: Tensor, lam: Tensor, *, subspace: int = 6, steps: int = 400, lr: float = 1e-4, optimiser: str = "adam"
) -> Tensor:
    """Δ [out, in] after `steps` projected steps from 0."""
    u = shared_subspace(tau, subspace)
    delta = torch.nn.Parameter(torch.zeros_like(tau[0]))
    adam = torch.optim.Adam([delta], lr=lr) if optimiser == "adam" else torch.optim.SGD([delta], lr=lr)
    for _ in range(steps):
        g = gradient(delta.detach(), tau, lam)
        delta.grad = g - u @ (u.T @ g)
        adam.step()
    return delta.detach()


class _Whole(MergeStage):
    needs: ClassVar[Need] = "tensor"

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return tau


@dataclass(frozen=True)
class Doge(MergeStage):
    eta: float
    trim: Trim
    subspace: int
    steps: int
    lr: float
    optimiser: str
    skip: tuple[str, ...]

    @property
    def need(self) -> Need:
        return "elementwise" if self.trim.density == 1 else "all"

    def chosen(self, name: str, shape: tuple[int, ...]) -> bool:
        return matrix_shape(shape) is not None and not any(fnmatch(name, pattern) for pattern in self.skip)

    def survey(self, views: Sequence[View]) -> Any:
        mine = [view for view in views if self.chosen(view.name, view.shape)]
        if not mine:
            raise BadInput("doge finds no matrix to merge", where="skip", remedy="name fewer patterns")
        return self.trim.survey(mine)

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        shape = matrix_shape(span.shape)
        if shape is None or not self.chosen(span.name, span.shape):
            return torch.zeros_like(tau[0])
        matrices = tau.view(-1, *shape)
        lam = coefficients(matrices, self.eta)
        delta = correction(matrices, lam, subspace=self.subspace, steps=self.steps, lr=self.lr, optimiser=self.optimiser)
        kept = self.trim(torch.ones_like(tau), span, seen) if self.trim.density == 1 else self._mask(tau, span, seen)
        return (lam[:, None] * (tau + delta.reshape(-1)) * kept).sum(0)

    def _mask(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return torch.stack([cuts[1].mask(row.abs(), span.start) for cuts, row in zip(seen[span.name], tau)])


def doge(
    *,
    eta: float = 0.07,
    density: float = 0.3,
    subspace: int = 6,
    steps: int = 400,
    lr: float = 1e-4,
    optimiser: str = "adam",
    skip: tuple[str, ...] = SKIP,
) -> Method:
    """eta: η. density: the share of each task vector kept at the end. subspace: the share 1/subspace of the rank that is kept out
    of the correction. steps, lr, optimiser ("adam" or "sgd"): of the correction. skip: name patterns that stay the base's.
    """
    one_of("optimiser", optimiser, ("adam", "sgd"))
    if subspace < 1 or steps < 0:
        raise BadInput(f"subspace is {subspace} and steps {steps}", where="doge", remedy="use subspace ≥ 1 and steps ≥ 0")
    trim = Trim(fraction("density", density), scope="global")
    return Method(Doge(eta, trim, subspace, steps, lr, optimiser, tuple(skip)), (_Whole(),), weighted=False)
