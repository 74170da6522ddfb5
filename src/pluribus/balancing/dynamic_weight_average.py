"""Dynamic weight average: tasks whose loss falls slowly get more weight.

Source: Liu, Johns, Davison (2019), End-to-End Multi-Task Learning with Attention, eq. 7:
r_t = L̄_t(e−1) / L̄_t(e−2), w_t = T softmax(r/τ)_t, with the epochs' mean losses L̄; w = 1 in the first two epochs.

Differences: LibMTL reads the averages from its trainer; here the balancer keeps them: call `epoch_end()` after each epoch.
A task without two epochs of its own has r = 1 (a loss that stands still); a step without a task does not count for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import PerTask


@dataclass(eq=False)
class DynamicWeightAverage(Balancer):
    """w_t = T softmax(r/τ)_t over the tasks present. temperature: τ (default 2, the paper's)."""

    temperature: float = 2.0
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    mutable: ClassVar[tuple[str, ...]] = ("total", "steps", "newest", "older")

    def validate(self) -> None:
        check_positive(self, temperature=self.temperature)

    def reset(self) -> None:
        self.total, self.steps = PerTask(), PerTask()  # of the running epoch
        self.newest, self.older = PerTask(), PerTask()  # L̄(e−1), L̄(e−2); 0 where there is none yet

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        self.total.put(tasks, self.total.rows(tasks, signal) + signal)
        self.steps.put(tasks, self.steps.rows(tasks, signal) + 1)
        last, before = self.newest.rows(tasks, signal), self.older.rows(tasks, signal)
        r = torch.where((last != 0) & (before != 0), last / before, 1.0)
        return len(tasks) * (r / self.temperature).softmax(0)

    def epoch_end(self) -> None:
        """Close the epoch: its mean losses become L̄(e−1) of the tasks that were seen in it."""
        if self.total.values is None:
            return
        tasks = tuple(self.total.names)
        total, steps = self.total.values, self.steps.rows(tasks, self.total.values)
        last, before = self.newest.rows(tasks, total), self.older.rows(tasks, total)
        seen = steps > 0
        self.older.put(tasks, torch.where(seen, last, before))
        self.newest.put(tasks, torch.where(seen, total / steps.clamp_min(1), last))
        self.total, self.steps = PerTask(), PerTask()
