"""MoCo: multi-objective gradient correction, with tracked gradients.

Source: Fernando et al. (2023), Mitigating Gradient Bias in Multi-objective Learning, eq. 6–8:
y ← y − β_k (y − g) tracks every task's gradient, λ ← Π_simplex(λ − γ_k (y yᵀ + ρ I) λ), d = yᵀ λ; β_k, γ_k fall as k^{−½}.

Where public codes differ: LibMTL feeds normalised rows g_t ℓ_t/‖g_t‖ (kept) and replaces the projection by a softmax, which
barely leaves the uniform weights (``onto="softmax"``; default "simplex", the paper's). k counts a task's own steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_between, check_positive
from pluribus.balancing.state import PerTask, Shares
from pluribus.errors import BadInput, unknown
from pluribus.linalg.simplex import project_simplex


@dataclass(eq=False)
class MoCo(Balancer):
    """d = yᵀ λ. Keeps one tracked gradient a task ([P] numbers each).

    beta: β of the tracking (default 0.5). gamma: γ, step of λ (default 0.1). rho: ρ (default 0). onto: "simplex" or "softmax".
    """

    beta: float = 0.5
    gamma: float = 0.1
    rho: float = 0.0
    onto: Literal["simplex", "softmax"] = "simplex"
    needs: ClassVar[frozenset[str]] = frozenset({"jacobian", "losses"})
    doors: ClassVar[tuple[str, ...]] = ("backward",)
    mutable: ClassVar[tuple[str, ...]] = ("tracked", "steps", "shares")

    def validate(self) -> None:
        check_between(self, 0, 1, beta=self.beta)
        check_positive(self, gamma=self.gamma)
        if self.rho < 0:
            raise BadInput(f"rho is {self.rho}", where="MoCo", remedy="give 0 or more")
        if self.onto not in ("simplex", "softmax"):
            raise unknown("projection", self.onto, ("simplex", "softmax"), where="MoCo")

    def reset(self) -> None:
        self.tracked, self.steps, self.shares = PerTask(), PerTask(), Shares()

    @torch.no_grad()
    def direction(self, jacobian: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        names, rows, ell = self.jacobian_of(jacobian, tasks, losses)
        assert ell is not None
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = torch.where(norm > 0, rows * (ell.unsqueeze(1) / norm), 0.0)
        k = self.steps.rows(names, ell) + 1
        y = self.tracked.rows(names, rows)
        y = y - (self.beta / k.sqrt()).unsqueeze(1) * (y - rows)
        lam = self.shares.shares(names, ell)
        step = lam - self.gamma / k.sqrt() * (y @ (y.T @ lam) + self.rho * lam)
        lam = project_simplex(step) if self.onto == "simplex" else step.softmax(0)
        self.steps.put(names, k)
        self.tracked.put(names, y)
        self.shares.trade(names, lam)
        return (y.T @ lam).to(jacobian.dtype)
