"""Self Positioning: the place of the merged model in the space of task vectors, found on a small balanced probe set.

Li, Nie, Wang, Zhang, Zhu. "Improving General Text Embedding Model: Tackling Task Conflict and Data Imbalance through Model
Merging", 2024, https://arxiv.org/abs/2410.15035.

    θ(α, μ) = θ0 + μ Σ_i a_i τ_i,   a = softmax(α);   min over (α, μ) of Σ_task L_task(probe; θ(α, μ)),   from α = 0, μ = 1

No public code. The paper searches "the interpolation space of task vectors"; the split into a convex direction and a length is
our reading, hence `simplex` (False: a = α, free) and `learn_scale` (False: μ stays 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.merging.coefficients import Batches, Coefficients, Learned, Objective, TaskVectors, fit


class Position(Coefficients):
    """λ_i = μ a_i for every tensor: `alpha` [N] and `mu` are trained."""

    def __init__(self, vectors: TaskVectors, *, simplex: bool = True, learn_scale: bool = True) -> None:
        super().__init__(vectors, granularity="task", clamp=None)
        count = len(vectors.tasks)
        self.raw.requires_grad_(False)
        self.simplex = simplex
        start = torch.zeros(count) if simplex else torch.full((count,), 1 / count)
        # With one vector a = 1: nothing but the length is left to learn.
        self.alpha = nn.Parameter(start.double(), requires_grad=not (simplex and count == 1))
        self.mu = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=learn_scale)

    def forward(self) -> Tensor:
        a = self.alpha.softmax(0) if self.simplex else self.alpha
        return (self.mu * a)[:, None, None]


def self_positioning(
    base: Any,
    experts: Mapping[str, Any],
    model: nn.Module,
    probe: Batches,
    loss: Objective,
    *,
    simplex: bool = True,
    learn_scale: bool = True,
    keep: Sequence[str] = (),
    steps: int = 300,
    lr: float = 1e-2,
) -> Learned:
    """Merge `experts` at the point of the task-vector space with the least probe loss.

    probe: by task, single-task batches, as many of each. loss: `(model, task, batch) -> loss`, the models' own training loss.
    simplex, learn_scale: see the module. keep: name patterns that are not merged. Adam with `lr`.
    The length μ is the sum of the coefficients, the direction their shares.
    """
    position = Position(TaskVectors(base, experts, heads=keep), simplex=simplex, learn_scale=learn_scale)
    return fit(position, model, loss, probe, steps=steps, optimiser=lambda trained: torch.optim.Adam(trained, lr=lr))
