"""WUDI: the update whose difference from every task vector is least seen by that task vector's own rows.

Cheng, Xiong, Wei, Zhu, Yuan. "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors",
ICML 2025, https://arxiv.org/abs/2503.08099.

    min over M:  Σ_t ‖(M − τ_t) τ_tᵀ‖² / ‖τ_t‖²,   start M = Σ_t τ_t, Adam, lr 1e-5, 300 steps;   other tensors: the mean

The objective is quadratic: with C_t = τ_tᵀ τ_t and n_t = ‖τ_t‖² its minimiser of least norm is
M = (Σ τ_t C_t / n_t)(Σ C_t / n_t)⁺ (`solver="closed_form"`, the default). Three hundred steps of 1e-5 stop far from it, near
their start (`solver="adam"`, as published).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.algebra import Method, Span, one_of
from pluribus.merging.matrices import MatrixStage, svd


def objective(m: Tensor, tau: Tensor) -> Tensor:
    """Σ_t ‖(M − τ_t) τ_tᵀ‖² / ‖τ_t‖² for M [out, in] and τ [T, out, in]."""
    size = tau.square().sum((1, 2))
    residual = (m - tau) @ tau.transpose(1, 2)
    return (residual.square().sum((1, 2)) / size.masked_fill(size == 0, 1)).sum()


@dataclass(frozen=True)
class Wudi(MatrixStage):
    solver: str
    steps: int
    lr: float

    def merge(self, tau: Tensor, span: Span) -> Tensor:
        return self.closed_form(tau) if self.solver == "closed_form" else self.adam(tau)

    def closed_form(self, tau: Tensor) -> Tensor:
        # with the rows of all τ_t / √n_t stacked as S = U Σ V:  Σ C_t / n_t = Sᵀ S, whose pseudo-inverse is Vᵀ Σ⁻² V
        wide = tau.double()
        size = wide.square().sum((1, 2))
        wide, size = wide[size > 0], size[size > 0]
        left = (wide @ wide.transpose(1, 2) @ wide / size[:, None, None]).sum(0)
        _, s, v = svd((wide / size.sqrt()[:, None, None]).flatten(0, 1))
        s, v = s[s > 1e-7 * s[0]], v[s > 1e-7 * s[0]]
        return (((left @ v.T) / s.square()) @ v).to(tau.dtype)

    def adam(self, tau: Tensor) -> Tensor:
        size = tau.square().sum((1, 2))
        scaled = tau / size.masked_fill(size == 0, 1)[:, None, None]
        m = torch.nn.Parameter(tau.sum(0))
        optimiser = torch.optim.Adam([m], lr=self.lr)
        if 2 * tau.shape[0] * tau.shape[1] < tau.shape[2]:  # wide: through the small products (M − τ_t) τ_tᵀ
            for _ in range(self.steps):
                m.grad = 2 * (((m.detach() - tau) @ tau.transpose(1, 2)) @ scaled).sum(0)
                optimiser.step()
        else:  # ∇ = Σ 2 (M − τ_t) C_t / n_t: the products with the C_t are one product with their sum, and a constant
            whole = (tau.transpose(1, 2) @ scaled).sum(0)
            constant = (tau @ tau.transpose(1, 2) @ scaled).sum(0)
            for _ in range(self.steps):
                m.grad = 2 * (m.detach() @ whole - constant)
                optimiser.step()
        return m.detach()


def wudi(*, solver: str = "closed_form", steps: int = 300, lr: float = 1e-5, scale: float = 1.0) -> Method:
    """solver: "closed_form" or "adam" (with its steps and lr). scale: λ."""
    one_of("solver", solver, ("closed_form", "adam"))
    if steps < 0:
        raise BadInput(f"steps is {steps}", where="steps", remedy="use 0 or more")
    return Method(Wudi(solver, steps, lr), scale=scale, weighted=False)
