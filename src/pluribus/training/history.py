"""What a run leaves behind, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pluribus.training import processes
from pluribus.training.step import StepResult
from pluribus.training.update import check_finite


@dataclass
class History:
    """What a run leaves behind.

    Parameters
    ----------
    scores : dict of str to list of float
        Task → its main metric on validation, one value per epoch.
    losses : dict of str to list of float
        Task → its mean training loss, one value per epoch.
    rule : list of float
        The rule's value per epoch.
    weights : dict of str to list of float
        Task → the balancer's weight, mean over each epoch (empty without a balancer).
    best_epoch : int
        The epoch whose weights were kept.
    stopped : dict of str to bool
        Task → whether its training ended by an early stop (not by the last epoch or the deadline).
    reason : str
        "patience", "epochs", "deadline" or "tasks" (all tasks stopped), of the last stage.
    seconds : float
        How long the run took, by the trainer's clock.
    times : list of float
        Seconds since the beginning at the end of each epoch, by the trainer's clock.
    diagnostics : dict
        What `Diagnostics.record` says of the tasks' gradients (empty unless the stage compares them).
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    rule: list[float] = field(default_factory=list)
    weights: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: int = -1
    stopped: dict[str, bool] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def undertrained(self) -> list[str]:
        """Tasks whose training the deadline cut short."""
        return [name for name, stopped in self.stopped.items() if not stopped] if self.reason == "deadline" else []

    def add(self, *, losses: dict[str, float], scores: dict[str, float], weights: dict[str, float]) -> None:
        """Write down an epoch's values."""
        for kept, values in ((self.losses, losses), (self.scores, scores), (self.weights, weights)):
            for name, value in values.items():
                kept.setdefault(name, []).append(value)


class EpochSums:
    """Losses and weights, summed over the steps of an epoch on their device, so that no step waits for them."""

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.norm: Tensor | None = None

    def add(self, result: StepResult) -> None:
        """Add what a step has computed."""
        for name, value in result.losses.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value
            self.steps[name] = self.steps.get(name, 0) + 1
        for name, value in result.weights.items():
            self.weights[name] = self.weights[name] + value if name in self.weights else value
        if result.norm is not None:
            self.norm = result.norm if self.norm is None else self.norm + result.norm

    def check(self) -> None:
        """Raise `NonFinite`, with the task's name, if anything has overflowed since the epoch began."""
        check_finite(self.losses, self.norm)

    def means(self, tasks: Iterable[str], device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
        """Task → mean loss (of all processes together) and mean weight, over the steps in which it was present."""
        losses = processes.sum_by_name(self.losses, tasks, device)
        return (
            {name: value.item() / self.steps[name] for name, value in losses.items()},
            {name: value.item() / self.steps.get(name, 1) for name, value in self.weights.items()},
        )
