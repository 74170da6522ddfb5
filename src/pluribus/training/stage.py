"""A stage: which tasks, which parts, which sampler, until when. Most runs have one.

Pre-finetuning, growth and adaptation are lists of stages; a run can be resumed at their borders and inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pluribus.data import Batch
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Losses, MultiTaskModel, Objective, Supervised
from pluribus.training.schedules import SCHEDULES, Scheduled
from pluribus.training.update import Rate

Sampler = Callable[[Any, torch.Generator], Iterable[Batch]]
"""One epoch's batches of the data set that trains, drawn with the generator that it is handed."""

Regulariser = Callable[[Losses], Tensor]
"""A scalar to add to the total, never balanced (Rep-MTL and kin)."""


@dataclass(frozen=True)
class Stage:
    """The unit of a run.

    Parameters
    ----------
    tasks : tuple of str or None
        The tasks that train (None: all of the model's).
    balancer : Balancer or None
        How much each task weighs in the shared part; None: the sum of the tasks' mean losses times their weights.
    objective : Objective
        How labels become losses.
    regularisers : sequence of callable
        Terms that are added to the total and never balanced.
    trainable : tuple of str or None
        Names of the parameters that train begin with one of these (None: all).
    sampler : callable or None
        One epoch's batches; None: all rows of the training part, shuffled.
    batch_size : int
        Rows per micro-batch.
    accumulate : int
        Micro-batches per step.
    epochs : int
        How many at most.
    patience : int or None
        Epochs without a better validation rule before the stage ends (None: never).
    task_patience : int or None
        Epochs without a better score before a task alone leaves the training (None: never): its labels are left out from then
        on, and its head and moments stay as they are.
    rule : str
        What "better" means on validation: "mean" or "worst" skill over the main tasks, or one task's name.
    lr : float
        AdamW's learning rate, the peak of the schedule.
    weight_decay : float
        AdamW's; biases and other vectors do not decay.
    betas : pair of float
        AdamW's.
    warmup : int
        Steps in which the learning rate rises to `lr`.
    schedule : {"constant", "cosine", "coslog4", "flat_cosine"}
        Of the learning rate over all steps (see `pluribus.training.schedules`): "cosine" lets it fall to zero at `epochs`.
    decay_schedule : {"constant", "cosine", "coslog4", "flat_cosine"}
        Of the weight decay; what a step subtracts is weight · learning rate · weight decay, each by its own schedule.
    rates : mapping of str to float or Rate
        Glob over names of parameters → their own peak learning rate, warmed up and scheduled like `lr`. A plain number is a rate
        without weight decay. A parameter follows the first glob that it matches.
    paced : bool
        Where the trainer has a deadline that the epochs do not fit into: take fewer steps, so that the schedules come to their
        ends before the deadline and are not cut off. How many fit is measured on the way.
    drop_last : bool
        Leave out the rows at the end of an epoch that fill no batch (unless there is no other batch).
    ties : {"first", "latest"}
        Which of several equally good epochs is the best one.
    clip : float or None
        Largest norm of the gradient (None: no limit).
    listen : bool
        Compare the tasks' gradients at the features now and then (see `compares`); what is found is in `History.diagnostics`.
        Nothing that is trained depends on it.
    precision : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 autocast where the device has it fast (CUDA), float32 elsewhere.

    Raises
    ------
    BadInput
        A number is out of range, or an objective that couples rows is asked to accumulate.
    """

    tasks: tuple[str, ...] | None = None
    balancer: Any = None
    objective: Objective = field(default_factory=Supervised)
    regularisers: Sequence[Regulariser] = ()
    trainable: tuple[str, ...] | None = None
    sampler: Sampler | None = None
    batch_size: int = 1024
    accumulate: int = 1
    epochs: int = 50
    patience: int | None = 8
    task_patience: int | None = None
    rule: str = "mean"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 0
    schedule: Scheduled = "constant"
    decay_schedule: Scheduled = "constant"
    rates: Mapping[str, float | Rate] = field(default_factory=dict)
    paced: bool = False
    drop_last: bool = False
    ties: Literal["first", "latest"] = "first"
    clip: float | None = 1.0
    listen: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "epochs"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}", where="stage")
        if not self.lr > 0:
            raise BadInput(f"lr must be positive, not {self.lr}", where="stage")
        for glob, rate in self.rates.items():
            if not Rate.of(rate).lr > 0:
                raise BadInput(f"the rate of {glob!r} must be positive, not {Rate.of(rate).lr}", where="stage, rates")
        for schedule in (self.schedule, self.decay_schedule):
            if schedule not in SCHEDULES:
                raise unknown("schedule", schedule, SCHEDULES, where="stage")
        if self.ties not in ("first", "latest"):
            raise unknown("rule for ties", self.ties, ("first", "latest"), where="stage")
        if self.accumulate > 1 and self.objective.couples_rows:
            raise BadInput(
                f"{type(self.objective).__name__} couples the rows of a batch, so micro-batches do not add up to it",
                where="stage",
                remedy="set accumulate=1",
            )

    def check(self, model: MultiTaskModel) -> tuple[str, ...]:
        """The stage's tasks, in the model's order; unknown tasks and rules are errors."""
        for name in self.tasks or ():
            if name not in model.tasks:
                raise unknown("task", name, model.tasks, where="stage")
        if self.rule not in ("mean", "worst", *model.tasks):
            raise unknown("rule", self.rule, ("mean", "worst", *model.tasks), where="stage")
        return tuple(name for name in model.tasks if self.tasks is None or name in self.tasks)

    def compares(self, step: int, tasks: int) -> bool:
        """Whether the tasks' gradients are compared in step `step`: every 25 steps, or every 5 a task where that is more.

        A comparison takes one pass a task through its head, the trunk none; where such a pass costs no more than a tenth of
        a step, comparing costs at most 2 %. Beyond 64 tasks nothing is compared: no map of so many could be read.
        """
        every = max(25, 5 * tasks)
        return self.listen and 2 <= tasks <= 64 and step % every == every - 1

    def rate(self, step: int, steps: int, share: float | None = None) -> float:
        """The learning rate of step `step` of `steps`; `share` of the training is done before it (None: step / steps)."""
        rate = self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr
        return rate * SCHEDULES[self.schedule](step / max(1, steps) if share is None else share)

    def decay(self, share: float) -> float:
        """The weight decay of a step before which `share` of the training is done."""
        return self.weight_decay * SCHEDULES[self.decay_schedule](share)
