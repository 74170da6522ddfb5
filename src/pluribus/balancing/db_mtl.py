"""DB-MTL: dual balancing, log losses and gradients of one length.

Source: Lin et al. (2023), Dual-Balancing for Multi-Task Learning, eq. 2–5: rows g_t/(ℓ_t + 1e-8) (the gradient of log ℓ);
ĝ ← g + (β/k^σ)(ĝ − g); w_t = max_j ‖ĝ_j‖/(‖ĝ_t‖ + 1e-8); d = Σ w_t ĝ_t.

As in LibMTL, β = 0.9, σ = 0.5 and ĝ starts at 0 (so that the first step is scaled by 1 − β); k counts a task's own steps.
With β = 0 nothing is tracked: the Gram matrix and the losses are enough, and the weights w_t/(ℓ_t + 1e-8) act on raw gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_between, check_signs
from pluribus.balancing.state import PerTask


@dataclass(eq=False)
class DBMTL(Balancer):
    """All log-loss gradients stretched to the length of the longest.

    beta: β of the moving average of gradients (default 0.9; 0 keeps none and needs no Jacobian).
    sigma: σ, its decay (default 0.5).
    """

    beta: float = 0.9
    sigma: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"jacobian", "losses"})
    doors: ClassVar[tuple[str, ...]] = ("combine", "backward")
    mutable: ClassVar[tuple[str, ...]] = ("tracked", "steps")

    def validate(self) -> None:
        check_between(self, 0, 1, beta=self.beta)
        check_between(self, 0, 10, sigma=self.sigma)
        # this instance's own needs, which the class cannot know
        vars(self)["needs"] = frozenset({"gram" if self.beta == 0 else "jacobian", "losses"})
        vars(self)["doors"] = ("combine", "backward") if self.beta == 0 else ("backward",)

    def reset(self) -> None:
        self.tracked, self.steps = PerTask(), PerTask()

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        if self.beta:
            return super().compute(signal, tasks, losses)
        assert losses is not None
        check_signs(self, tasks, losses)
        inverse = 1 / (losses + 1e-8)
        return self._stretch(signal.diagonal().clamp_min(0).sqrt() * inverse) * inverse

    @torch.no_grad()
    def direction(self, jacobian: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        if not self.beta:
            return super().direction(jacobian, tasks=tasks, losses=losses)
        names, rows, ell = self.jacobian_of(jacobian, tasks, losses)
        assert ell is not None
        check_signs(self, names, ell)
        rows = rows / (ell + 1e-8).unsqueeze(1)
        k = self.steps.rows(names, ell) + 1
        tracked = self.tracked.rows(names, rows)
        tracked = rows + (self.beta / k**self.sigma).unsqueeze(1) * (tracked - rows)
        self.steps.put(names, k)
        self.tracked.put(names, tracked)
        return (tracked.T @ self._stretch(torch.linalg.vector_norm(tracked, dim=1))).to(jacobian.dtype)

    @staticmethod
    def _stretch(norms: Tensor) -> Tensor:
        return norms.max() / (norms + 1e-8)
