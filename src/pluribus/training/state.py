"""Where a stage stands: everything that a snapshot holds and that going on from it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.balancing import Diagnostics
from pluribus.modeling import MultiTaskModel
from pluribus.training.history import History
from pluribus.training.pace import Pace
from pluribus.training.schedules import ToldOfProgress
from pluribus.training.stage import Stage
from pluribus.training.step import Step

COUNTERS = ("epoch", "step", "best", "since", "task_best", "task_since", "frozen")  # plain values, one entry of the snapshot


@dataclass
class StageState:
    """A stage in training.

    Parameters
    ----------
    index : int
        The stage's place in the run.
    stage : Stage
        Its settings.
    tasks : tuple of str
        Its tasks in the model's order.
    model : MultiTaskModel
        The model that trains; parameters outside of the stage's parts do not require a gradient.
    stepper : Step
        Takes the steps; its optimiser and balancer are part of the state.
    pace : Pace
        How much of the stage is done, and what a step adds.
    annealed : list of ToldOfProgress
        The parts of the model that are told of it.
    generator : torch.Generator
        Of the order of the rows.
    history : History
        Of the whole run, earlier stages included.
    diagnostics : Diagnostics
        Of the whole run.
    weights : dict of str to Tensor
        The model's best weights so far.
    epoch : int
        Epochs that are finished.
    step : int
        Steps that were taken.
    best : float
        The best value of the rule so far.
    since : int
        Epochs since then.
    task_best : dict of str to float
        Task → its best skill so far.
    task_since : dict of str to int
        Task → epochs since then.
    frozen : list of str
        Tasks that have left the training.
    """

    index: int
    stage: Stage
    tasks: tuple[str, ...]
    model: MultiTaskModel
    stepper: Step
    pace: Pace
    annealed: list[ToldOfProgress]
    generator: torch.Generator
    history: History
    diagnostics: Diagnostics
    weights: dict[str, Tensor]
    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    since: int = 0
    task_best: dict[str, float] = field(default_factory=dict)
    task_since: dict[str, int] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        index: int,
        stage: Stage,
        model: MultiTaskModel,
        *,
        seed: int,
        history: History,
        diagnostics: Diagnostics,
        steps: int = 1,
    ) -> StageState:
        """A stage of so many steps before the first one; what it does not train requires no gradient from now on (see `end`)."""
        tasks = stage.check(model)
        for name, p in model.named_parameters():
            p.requires_grad_(stage.trainable is None or name.startswith(stage.trainable))
        generator = torch.Generator().manual_seed(seed + 1_000_003 * index)
        annealed: list[ToldOfProgress] = [part for part in model.modules() if isinstance(part, ToldOfProgress)]
        step = Step.of(model, stage)
        return cls(index, stage, tasks, model, step, Pace(steps), annealed, generator, history, diagnostics, _copy(model))

    @property
    def live(self) -> tuple[str, ...]:
        """The tasks that still train."""
        return tuple(name for name in self.tasks if name not in self.frozen)

    def judge(self, value: float, skills: Mapping[str, float]) -> None:
        """End an epoch with its value of the rule and its skills: keep the weights if they are the best, freeze tasks."""
        self.history.rule.append(value)
        better = value > self.best or self.epoch == 0
        if better or (self.stage.ties == "latest" and value == self.best):
            self.best, self.weights = value, _copy(self.model)
            self.history.best_epoch = len(self.history.rule) - 1
        self.since = 0 if better else self.since + 1
        if self.stage.task_patience is not None:
            for name in sorted(self.live):
                if skills[name] > self.task_best.get(name, -math.inf):
                    self.task_best[name], self.task_since[name] = skills[name], 0
                else:
                    self.task_since[name] = self.task_since.get(name, 0) + 1
                if self.task_since[name] >= self.stage.task_patience:
                    self.frozen.append(name)
        self.epoch += 1
        self.stepper.epoch_end()

    def stopped(self) -> str | None:
        """Why no further epoch follows: "tasks", "patience" or "epochs"; None where one does."""
        if not self.live:
            return "tasks"
        if self.stage.patience is not None and self.since >= self.stage.patience:
            return "patience"
        return "epochs" if self.epoch >= self.stage.epochs or self.pace.done else None

    def end(self, reason: str) -> None:
        """Leave the best weights in the model, and every parameter able to train."""
        self.model.load_state_dict(self.weights)
        self.history.reason = reason
        self.history.stopped = {name: reason != "deadline" or name in self.frozen for name in self.tasks}
        for p in self.model.parameters():
            p.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of tensors and plain values, torch's global generator included."""
        return {
            "stage": self.index,
            "progress": {name: getattr(self, name) for name in COUNTERS},
            "pace": {"share": self.pace.share, "each": self.pace.each},
            "history": dict(vars(self.history)),
            "model": self.model.state_dict(),
            "best": self.weights,
            **self.stepper.state_dict(),
            "diagnostics": self.diagnostics.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` of the same stage gave: what follows is, on one CPU thread count, bit for bit the same."""
        for name, value in state["history"].items():
            setattr(self.history, name, value)
        for name, value in state["progress"].items():
            setattr(self, name, value)
        held = state.get("pace", {"share": min(1.0, self.step * self.pace.each), "each": self.pace.each})  # older ones have none
        self.pace.share, self.pace.each = held["share"], held["each"]
        self.model.load_state_dict(state["model"])
        self.weights = state["best"]
        self.stepper.load_state_dict(state)
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
