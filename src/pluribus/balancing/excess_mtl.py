"""ExcessMTL: weights by excess risk, robust to label noise in a task.

Source: He et al. (2024), Robust Multi-Task Learning with Excess Risks, eq. 6–7: S_t ← S_t + g_t² (entry by entry) is the diagonal
of an accumulated curvature, e_t = Σ g_t²/√(S_t + 1e-7) estimates the excess risk; relative to its baseline e_t⁰,
w ∝ w exp(η e_t/e_t⁰), then a plain step on Σ w_t ℓ_t.

Where public codes differ: e⁰ is the mean over a warm-up (3 epochs in the paper; here `warmup` steps of the task), during which
w stays; LibMTL takes the first step only. Σw = 1 (paper, TorchJD; LibMTL: T). TorchJD updates w on its first call already, with
the unscaled e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import PerTask, Shares
from pluribus.errors import BadInput


@dataclass(eq=False)
class ExcessMTL(Balancer):
    """Multiplicative weights on the simplex. Keeps one accumulator a task ([P] numbers each).

    eta: η, step of the weights (default 0.01). warmup: steps of a task whose mean e is its baseline (default 10; the paper's is
    3 epochs, in steps: 3 × the length of the loader).
    """

    eta: float = 0.01
    warmup: int = 10
    needs: ClassVar[frozenset[str]] = frozenset({"jacobian"})
    doors: ClassVar[tuple[str, ...]] = ("backward",)
    mutable: ClassVar[tuple[str, ...]] = ("squares", "steps", "baseline", "shares")

    def validate(self) -> None:
        check_positive(self, eta=self.eta)
        if self.warmup < 1:
            raise BadInput(f"warmup is {self.warmup}", where="ExcessMTL", remedy="give a number of steps, 1 or more")

    def reset(self) -> None:
        self.squares, self.steps, self.baseline, self.shares = PerTask(), PerTask(), PerTask(), Shares()

    @torch.no_grad()
    def direction(self, jacobian: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        names, rows, _ = self.jacobian_of(jacobian, tasks, None)
        square = rows.square()
        total = self.squares.rows(names, rows) + square
        excess = (square / (total + 1e-7).sqrt()).sum(1)
        k = self.steps.rows(names, excess)
        base = self.baseline.rows(names, excess)
        warm = k < self.warmup
        base = torch.where(warm, base + (excess - base) / (k + 1), base)  # running mean
        w = self.shares.shares(names, excess)
        risk = torch.where(warm | (base <= 0), 0.0, excess / base.clamp_min(1e-30))
        new = (w.clamp_min(1e-30).log() + self.eta * risk).softmax(0)
        new = torch.where((w > 0) & ~warm.all(), new, w)
        for store, value in ((self.squares, total), (self.steps, k + 1), (self.baseline, base)):
            store.put(names, value)
        self.shares.trade(names, new)
        return (rows.T @ new).to(jacobian.dtype)
