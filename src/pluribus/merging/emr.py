"""EMR-Merging: elect, mask and rescale; one vector, and for each task a bit mask and a number.

Huang, Ye, Chen, He, Yue, Ouyang. "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024,
https://arxiv.org/abs/2405.17461.

    γ = sign(Σ_t τ_t);   τ_u = γ · max{|τ_t| : sign τ_t = γ};   mask_t = [τ_t γ > 0];   scale_t = Σ|τ_t| / Σ|mask_t ⊙ τ_u|
    model of task t:  θ0 + scale_t · (mask_t ⊙ τ_u)

Public code: FusionBench takes sign(0) as −1 and averages |·| per tensor before it sums; here, as the authors, over all entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, total


def unified(tau: Tensor) -> tuple[Tensor, Tensor]:
    """τ_u [n] and the masks [T, n] of task vectors [T, n]."""
    sign = tau.sum(0).sign_()
    agreeing = (tau * sign).clamp_(min=0)
    return agreeing.amax(0).mul_(sign), agreeing > 0


def scales(views: Sequence[View]) -> list[float]:
    """scale_t of every task, over all tensors."""

    def sums(tau: Tensor, span: Span) -> Tensor:
        vector, masks = unified(tau)
        return torch.stack([tau.double().abs().sum(1), (vector.double().abs() * masks).sum(1)])

    whole = torch.stack([total(view, sums) for view in views]).sum(0)
    return [float(a / b) if b > 0 else 1.0 for a, b in zip(*whole)]


@dataclass(frozen=True)
class Unified(MergeStage):
    """τ_u, or with a task its masked and rescaled part."""

    task: str | None

    @property
    def need(self) -> Need:
        return "elementwise" if self.task is None else "all"

    def survey(self, views: Sequence[View]) -> Any:
        return scales(views)

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        vector, masks = unified(tau)
        if self.task is None:
            return vector
        t = span.tasks.index(self.task)
        return vector.mul_(masks[t]).mul_(seen[t])


def emr(*, task: str | None = None, scale: float = 1.0) -> Method:
    """task: the expert whose model to rebuild; without it the unified vector is added whole."""
    return Method(Unified(task), scale=scale, weighted=False, task=task)
