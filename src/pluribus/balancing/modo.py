"""MoDo: multi-gradient descent by double sampling.

Source: Chen, Fernando, Ying, Chen (2023), Three-Way Trade-Off in Multi-Objective Learning, eq. 3:
λ ← Π_simplex(λ − γ (J₁ J₂ᵀ λ + ρ λ)) with Jacobians of two independent batches; the step is d = J₃ᵀ λ with a third.
Without independence J Jᵀ is biased by the gradient noise; that is the point of the method.

Where public codes differ: γ = 0.1 (TorchJD, default here) or 0.001 (LibMTL). λ is kept by task name; the tasks of a batch
trade among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import Shares
from pluribus.errors import BadInput
from pluribus.linalg.simplex import project_simplex


@dataclass(eq=False)
class MoDo(Balancer):
    """λ on the simplex, from the cross-Gram J₁J₂ᵀ.

    gamma: γ, step of λ (default 0.1). rho: ρ, pull to equal weights (default 0.1).
    """

    gamma: float = 0.1
    rho: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"cross_gram"})
    doors: ClassVar[tuple[str, ...]] = ("backward",)
    batches: ClassVar[int] = 3
    mutable: ClassVar[tuple[str, ...]] = ("shares",)

    def validate(self) -> None:
        check_positive(self, gamma=self.gamma)
        if self.rho < 0:
            raise BadInput(f"rho is {self.rho}", where="MoDo", remedy="give 0 or more")

    def reset(self) -> None:
        self.shares = Shares()

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        lam = self.shares.shares(tasks, signal[0]).to(signal.dtype)
        lam = project_simplex(lam - self.gamma * (signal @ lam + self.rho * lam))
        self.shares.trade(tasks, lam)
        return lam
