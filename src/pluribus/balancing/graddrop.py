"""GradDrop: keep, entry by entry, only the gradients of one sign, drawn by the purity of the signs.

Source: Chen et al. (2020), Just Pick a Sign, Alg. 1: purity p = ½(1 + Σ_t g_t/Σ_t|g_t|) per entry, U ~ U(0,1); keep positive
entries of every task where p > U, negative ones where p < U; a task's leak λ_t lets a share through: (λ_t + (1−λ_t) M_t) g_t.
On shared features both purity and masks come from Σ_batch sign(Z)·g_t: one decision a task and feature, for all its samples.
E[d]_j = p_j Σ_t max(g_tj, 0) + (1 − p_j) Σ_t min(g_tj, 0).

Where public codes differ: TorchJD works on the Jacobian, as `direction` does (the features form is `on_features`). All-zero
columns have purity ½ here (0/0 there). The authors' code also rescales the result to the length of Σ g_t, which the paper
does not: not done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.state import constant, generator
from pluribus.errors import BadInput


@dataclass(eq=False)
class GradDrop(Balancer):
    """Sign dropout. leak: share by task name that passes unmasked (default 0). seed: of the balancer's own generator."""

    leak: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"jacobian"})
    doors: ClassVar[tuple[str, ...]] = ("combine", "backward")
    mutable: ClassVar[tuple[str, ...]] = ("generator",)

    def validate(self) -> None:
        for task, value in self.leak.items():
            if not 0 <= value <= 1:
                raise BadInput(f"the leak of task {task!r} is {value}", where="GradDrop", remedy="give a number from 0 to 1")

    def reset(self) -> None:
        self.generator = generator(self.seed)

    @torch.no_grad()
    def direction(self, jacobian: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        names, rows, _ = self.jacobian_of(jacobian, tasks, None)
        return self._drop(rows, rows, names).to(jacobian.dtype)

    @torch.no_grad()
    def on_features(
        self,
        gradients: Tensor,
        features: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        total: Callable[[Tensor], Tensor] = lambda votes: votes,
    ) -> Tensor:
        """The gradient [B, …] to send below the shared features Z [B, …], from every task's ∂ℓ_t/∂Z [T, B, …].

        total: adds the votes [T, 1, …] of other processes, whose rows are others.
        """
        names = self._names(gradients, tasks)
        if gradients.shape[1:] != features.shape:
            raise BadInput(
                f"gradients have shape {tuple(gradients.shape)}, features {tuple(features.shape)}",
                where="GradDrop",
                remedy="pass one gradient of the shape of the features a task",
            )
        votes = (gradients.detach() * features.detach().sign()).sum(1, keepdim=True)
        votes = total(votes)
        return self._drop(gradients.detach(), votes, names)

    def _drop(self, g: Tensor, votes: Tensor, names: tuple[str, ...]) -> Tensor:
        """Mask g [T, …] by the signs of `votes` (broadcastable to g) and their purity."""
        size = votes.abs().sum(0)
        purity = 0.5 * (1 + torch.where(size > 0, votes.sum(0) / size, 0.0))
        u = torch.rand(purity.shape, generator=self.generator, dtype=purity.dtype).to(g.device, non_blocking=True)
        keep = torch.where(votes > 0, purity > u, (votes < 0) & (purity < u)).to(g.dtype)
        if any(self.leak.get(name, 0.0) for name in names):
            leak = constant(tuple(float(self.leak.get(name, 0.0)) for name in names), g.dtype, g.device)
            leak = leak.reshape(-1, *[1] * (g.ndim - 1))
            keep = leak + (1 - leak) * keep
        return (keep * g).sum(0)
