"""SDMGrad: stochastic direction-oriented multi-objective gradient descent.

Source: Xiao, Ban, Ji (2023), Direction-oriented Multi-objective Learning, eq. 9, Alg. 1: w ≈ argmin over the simplex of
½‖Jᵀw + λ g₀‖² by projected SGD from the last w, with gradients A w + λ A 1/T, A = J₁J₂ᵀ of independent batches;
d = (J₃ᵀ w + λ g₀)/(1 + λ), g₀ the mean gradient of the third batch.

As in the public code A is divided by s², s = mean √max(diag, 0), and the inner SGD has momentum 0.5 and 20 steps; its rate is
5 in LibMTL and 10 in TorchJD (default here). LibMTL's version calls a function that NumPy 2 removed. λ = 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_between, check_positive
from pluribus.balancing.state import Shares
from pluribus.errors import BadInput
from pluribus.linalg.simplex import project_simplex


@dataclass(eq=False)
class SDMGrad(Balancer):
    """Total weights (w + λ/T)/(1 + λ) for the third batch's gradients, from the cross-Gram J₁J₂ᵀ.

    lam: λ, pull to the mean gradient (default 0.3). lr: of the inner SGD (default 10). momentum: 0.5. steps: 20.
    """

    lam: float = 0.3
    lr: float = 10.0
    momentum: float = 0.5
    steps: int = 20
    needs: ClassVar[frozenset[str]] = frozenset({"cross_gram"})
    doors: ClassVar[tuple[str, ...]] = ("backward",)
    batches: ClassVar[int] = 3
    mutable: ClassVar[tuple[str, ...]] = ("shares",)

    def validate(self) -> None:
        check_positive(self, lr=self.lr, steps=self.steps)
        check_between(self, 0, 1, momentum=self.momentum)
        if self.lam < 0:
            raise BadInput(f"lam is {self.lam}", where="SDMGrad", remedy="give 0 or more")

    def reset(self) -> None:
        self.shares = Shares()

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        s = signal.diagonal().clamp_min(0).sqrt().mean()
        a = torch.where(s > 0, signal / s.square().clamp_min(1e-38), 0.0)
        pull = self.lam * a.mean(1)
        w = self.shares.shares(tasks, signal[0]).to(signal.dtype)
        velocity = torch.zeros_like(w)
        for _ in range(self.steps):
            velocity = self.momentum * velocity + a @ w + pull
            w = project_simplex(w - self.lr * velocity)
        self.shares.trade(tasks, w)
        return (w + self.lam / len(tasks)) / (1 + self.lam)
