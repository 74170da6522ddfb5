"""FAMO: fast adaptive multitask optimisation, without any per-task gradient.

Source: Liu, Feng, Stone, Liu (2023), FAMO, Alg. 1: z = softmax(ξ), D = ℓ − b + 1e-8, weights w_t = c z_t / D_t with
c = 1/Σ(z/D) (so that they sum to 1); after the optimiser's step, on the same batch, δ = log D − log D', and ξ descends
δᵀ ∂softmax(ξ) by Adam with decay.

Where paper and public code differ: decay 1e-3 (paper, default here) or 1e-5 (code). Call `after_step(losses)` with the losses
of the *same* batch after the step (one extra forward); with the next batch's losses it is cheaper and biased. Without a
call ξ stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import PerTask, Scalars, constant
from pluribus.errors import BadInput


@dataclass(eq=False)
class FAMO(Balancer):
    """w_t ∝ softmax(ξ)_t / (ℓ_t − b_t), summing to 1.

    lr: of ξ's Adam (default 0.025). weight_decay: of ξ (default 1e-3). best: the lowest loss b_t by task (default 0).
    """

    lr: float = 0.025
    weight_decay: float = 1e-3
    best: Mapping[str, float] = field(default_factory=dict)
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    mutable: ClassVar[tuple[str, ...]] = ("xi", "logs", "waiting")

    def validate(self) -> None:
        check_positive(self, lr=self.lr)
        if self.weight_decay < 0:
            raise BadInput(f"weight_decay is {self.weight_decay}", where="FAMO", remedy="give 0 or more")

    def reset(self) -> None:
        self.xi = Scalars(0.0, self.lr, self.weight_decay)
        self.logs = PerTask()  # log D before the step
        self.waiting: list[str] = []  # tasks of the step whose losses after it have not been heard yet

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        gap = self._gap(signal, tasks)
        self.logs.rows(tasks, gap)
        self.logs.put(tasks, gap.log())
        self.waiting = list(tasks)
        return (self.xi.rows(tasks, gap).log_softmax(0) - gap.log()).softmax(0)  # c z / D, in logs

    @torch.no_grad()
    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Move ξ by what the step did to the losses of the tasks that were in it."""
        tasks = tuple(task for task in self.waiting if task in losses)
        self.waiting = []
        if not tasks:
            return
        after = torch.stack([losses[task].detach().reshape(()) for task in tasks])
        after = after if after.dtype == torch.float64 else after.float()
        delta = self.logs.rows(tasks, after) - self._gap(after, tasks).log()
        z = self.xi.rows(tasks, after).softmax(0)
        self.xi.descend(tasks, z * (delta - (z * delta).sum()))  # (∂softmax/∂ξ)ᵀ δ

    def _gap(self, losses: Tensor, tasks: tuple[str, ...]) -> Tensor:
        best = constant(tuple(float(self.best.get(task, 0.0)) for task in tasks), losses.dtype, losses.device)
        return (losses - best).clamp_min(0) + 1e-8
