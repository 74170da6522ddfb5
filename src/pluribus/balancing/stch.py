"""Smooth Tchebycheff scalarisation: a smooth maximum of the weighted losses.

Source: Lin et al. (2024), Smooth Tchebycheff Scalarization for Multi-Objective Optimization, eq. 6:
L = μ logsumexp_t(λ_t (ℓ_t − z_t*)/μ), with preference λ, ideal point z*. Weight of g_t: λ_t softmax_t(λ (ℓ − z*)/μ).
μ → 0 is the maximum, μ → ∞ the weighted mean (plus μ log T).

Differences: LibMTL's form is T times that on log(ℓ_t / nadir_t), nadir_t the mean loss of a warm-up during which Σ log ℓ_t
is trained; `warmup=` epochs turns it on (λ = 1 there, so that its T λ/T is ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_positive, check_preference, check_signs, preference_of
from pluribus.balancing.state import PerTask, constant
from pluribus.errors import BadInput


@dataclass(eq=False)
class STCH(Balancer):
    """The smooth maximum's weights.

    mu: μ (default 0.1; the paper tunes it in .01–1). preference: λ (default 1/T each). ideal: z* by task (default 0).
    warmup: epochs of Σ log ℓ before the log-relative form (default 0: the plain form on ℓ from the first step);
    it counts calls of `epoch_end()`. A task that comes after the warm-up is measured by its first loss.
    """

    mu: float = 0.1
    preference: Preference = None
    ideal: Mapping[str, float] = field(default_factory=dict)
    warmup: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    mutable: ClassVar[tuple[str, ...]] = ("epoch", "total", "steps")

    def validate(self) -> None:
        check_positive(self, mu=self.mu)
        check_preference(self.preference)
        if self.warmup < 0:
            raise BadInput(f"warmup is {self.warmup}", where="STCH", remedy="give a number of epochs, 0 or more")

    def reset(self) -> None:
        self.epoch = 0
        self.total, self.steps = PerTask(), PerTask()  # of the warm-up

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        if not self.warmup:
            preference = preference_of(self.preference, tasks, signal, 1 / len(tasks))
            ideal = constant(tuple(float(self.ideal.get(task, 0.0)) for task in tasks), signal.dtype, signal.device)
            return preference * (preference * (signal - ideal) / self.mu).softmax(0)
        check_signs(self, tasks, signal)
        loss = signal.clamp_min(1e-8)
        total, steps = self.total.rows(tasks, signal), self.steps.rows(tasks, signal)
        counts = steps == 0 if self.epoch >= self.warmup else torch.ones_like(steps, dtype=torch.bool)
        total, steps = torch.where(counts, total + loss, total), torch.where(counts, steps + 1, steps)
        self.total.put(tasks, total)
        self.steps.put(tasks, steps)
        if self.epoch < self.warmup:
            return 1 / loss
        nadir = total / steps
        preference = preference_of(self.preference, tasks, signal, 1.0)
        return preference * (preference * (loss / nadir).log() / self.mu).softmax(0) / loss * len(tasks)

    def epoch_end(self) -> None:
        """Count an epoch of the warm-up."""
        self.epoch += 1
