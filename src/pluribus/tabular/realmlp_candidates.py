"""RealMLP as candidates: one network for all tasks, and its twin, one network per task by the same recipe.

Everything follows from the number of training rows n and the kinds of the tasks ("auto"), by the tuned defaults of Holzmüller,
Grinsztajn, Steinwart (NeurIPS 2024), table A.1:

| setting        | n < 400 ("td_s")                     | else ("td")                          |
|----------------|--------------------------------------|--------------------------------------|
| learning rate  | .04 classes, .07 numbers, .06 both   | .04 classes, .2 numbers, .08 both    |
| dropout        | 0                                    | .15, falls to 0                      |
| weight decay   | 0                                    | .02, falls to 0                      |
| numbers        | as they are scaled                   | PBLD                                 |
| activation     | SELU, all tasks classes; else Mish   | likewise, with α                     |
| first weights  | N(0, 1)                              | fitted to training rows              |

| n              | to 1,024 | 5,000 | 8,192 | 20,000 | 30,000 | 50,000 | 100,000 | above |
|----------------|----------|-------|-------|--------|--------|--------|---------|-------|
| rows a step    | 64       | 128   | 128   | 256    | 256    | 512    | 512     | 1,024 |
| epochs         | 256      | 256   | 128   | 128    | 64     | 64     | 24      | 24    |

For all: 256 × 3 units whatever n; Adam with β = (.9, .95), no clipping; the learning rate in four cycles ("coslog4"), ×6 for the
scale layer, ×.1 for biases, α and PBLD; no early stop, but the weights of the best epoch, the latest of equal ones. "Both" and
the epochs above 5,000 rows are ours: the paper has one task, and 256 epochs always.

The schedule ends within the budget. Where the epochs do not fit, fewer steps are taken, and the learning rate still falls to 0
at their end (`Stage.paced`): such a fit is shorter, not cut off, and is not called undertrained, unless fewer than
`LEAST_EPOCHS` fitted.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pluribus import catalog
from pluribus.balancing import Balancer
from pluribus.data.prepared import Prepared
from pluribus.errors import unknown
from pluribus.modeling import Budget, Choice, IntRange, LogUniform, MultiTaskModel, SearchSpace, Uniform
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.cost import BANK_TENSOR, SPEED, training_seconds
from pluribus.tabular.joint_networks import JointNetwork, balancer_of
from pluribus.tabular.network import Network, size_of
from pluribus.tabular.parametric import ACTIVATIONS
from pluribus.tabular.realmlp import REALMLP_EMBEDDINGS, SHOWN, RangeHeads, RealMLPEncoder, smoothed, smooths
from pluribus.tabular.settings import AUTO
from pluribus.tabular.single_networks import SingleNetworks, SpecialistBank
from pluribus.tabular.specialists import Specialists
from pluribus.tasks import Task
from pluribus.training import Rate, Stage, Update
from pluribus.training.pace import DONE, Pace

SMALL = 400  # training rows below which the simple recipe is the safer one
LEAST_EPOCHS = 8
LOOK_EVERY = 20  # steps of a bank between two looks at the clock
RATES: Mapping[str, tuple[float, float, float]] = {"td": (0.04, 0.2, 0.08), "td_s": (0.04, 0.07, 0.06)}
FACTORS: Mapping[str, tuple[float, bool]] = {  # on the learning rate, and whether it decays; the first that matches counts
    "*scale": (6.0, True),
    "*numeric.bias": (0.1, False),
    "*numeric.*": (0.1, True),
    "*alphas.*": (0.1, True),
    "*bias": (0.1, False),
}

DEFAULTS: dict[str, Any] = {
    "recipe": "auto",  # "td", "td_s"; auto: see the table above, as for all that follows
    "width": 256,
    "depth": 3,
    "activation": "auto",
    "embedding": "auto",  # "pbld", "plain"
    "sigma": 0.1,  # spread of the frequencies of "pbld"
    "category_size": 8,
    "dropout": "auto",
    "lr": "auto",
    "weight_decay": "auto",
    "smoothing": 0.1,  # of labels, for tasks whose main metric judges the label that is chosen
    "batch_size": "auto",
    "epochs": "auto",
}
SPACE = SearchSpace(
    {
        "depth": IntRange(2, 4),
        "width": Choice((256, 384, 512)),
        "activation": Choice(ACTIVATIONS),
        "sigma": LogUniform(0.01, 1.0),
        "dropout": Uniform(0.0, 0.5),
        "lr": LogUniform(0.02, 0.3),
        "weight_decay": LogUniform(1e-3, 5e-2),
    }
)
AUTOMATIC = (*AUTO, "recipe", "activation", "embedding", "dropout", "lr", "weight_decay", "epochs")


def rows_of_a_step(rows: int) -> int:
    """The batch rule of the table above."""
    return next((size for most, size in ((1024, 64), (8192, 128), (30_000, 256), (100_000, 512)) if rows <= most), 1024)


def epochs_of(rows: int) -> int:
    """Epochs by the table above."""
    return next((epochs for most, epochs in ((5000, 256), (20_000, 128), (50_000, 64)) if rows <= most), 24)


def resolved(settings: Mapping[str, Any], rows: int, classes: int, tasks: int) -> dict[str, Any]:
    """The settings with "auto" resolved for so many training rows and tasks, of which some are classes."""
    recipe = ("td_s" if rows < SMALL else "td") if settings["recipe"] == "auto" else settings["recipe"]
    of_classes, of_numbers, of_both = RATES[recipe]
    simple = recipe == "td_s"
    auto: dict[str, Any] = {
        "recipe": recipe,
        "lr": of_classes if classes == tasks else of_both if classes else of_numbers,
        "activation": "selu" if classes == tasks else "mish",
        "embedding": "plain" if simple else "pbld",
        "dropout": 0.0 if simple else 0.15,
        "weight_decay": 0.0 if simple else 0.02,
        "batch_size": rows_of_a_step(rows),
        "epochs": epochs_of(rows),
    }
    return {name: auto[name] if value == "auto" else value for name, value in settings.items()}


def encoder_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the encoder takes of resolved settings."""
    names = ("width", "depth", "activation", "embedding", "sigma", "category_size", "dropout")
    simple = settings["recipe"] == "td_s"
    found = {name: settings[name] for name in names}
    return {**found, "parametric": not simple, "start": "normal" if simple else "data"}


def recipe(settings: Mapping[str, Any], named: Mapping[str, nn.Parameter]) -> Stage:
    """How parameters with these names train by resolved settings."""
    first = {name: next((glob for glob in FACTORS if fnmatch.fnmatchcase(name, glob)), None) for name in named}
    rates = {glob: Rate(settings["lr"] * factor, decays) for glob, (factor, decays) in FACTORS.items() if glob in first.values()}
    return Stage(
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        betas=(0.9, 0.95),
        schedule="coslog4",
        decay_schedule="flat_cosine",
        rates=rates,
        clip=None,
        patience=None,
        ties="latest",
        drop_last=True,
        paced=True,
    )


class RealMLPNetwork(JointNetwork):
    """One RealMLP for all tasks: a trunk, a head a task, the plain sum of the losses (or a balancer of the catalog).

    A study spells a balancer `realmlp+NAME`. The schedule's length is planned from the speed that is measured, so that it ends
    within the budget (see the module's text).
    """

    name = encoder = "realmlp"
    label = "RealMLP"
    automatic, embeddings = AUTOMATIC, REALMLP_EMBEDDINGS
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "balancer": "equal"}
    space = SPACE

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        check(self.settings, f"candidate {self.name!r}")
        self.balancing = catalog.get("balancer", self.settings["balancer"])
        if self.balancing.name != "equal":
            method: type[Balancer] = self.balancing.resolve()
            vars(self)["label"] = f"RealMLP, {method.__name__}"
            vars(self)["processes"] = method.distributed

    def balancer(self, data: Prepared) -> Balancer | None:
        return None if self.balancing.name == "equal" else balancer_of(self.resolved(data), data)

    def resolved(self, data: Prepared) -> dict[str, Any]:
        """The settings for a table."""
        classes = sum(task.record.classes for task in data.tasks)
        return resolved(self.settings, len(data.parts["train"]), classes, len(data.tasks))

    def config(self, data: Prepared) -> dict[str, Any]:
        settings = self.resolved(data)
        own = {**encoder_of(settings), "smoothing": settings["smoothing"]}
        return {"architecture": {"name": "realmlp", "settings": own}}

    def size(self, data: Prepared) -> tuple[float, int]:
        return size_of(data.tasks, data.columns, self.config(data))

    def estimate(self, data: Prepared) -> float:
        settings, rows, (flops, tensors) = self.resolved(data), len(data.parts["train"]), self.size(data)
        epochs = settings["epochs"]
        found = training_seconds(rows, settings["batch_size"], flops, tensors, epochs=epochs, usual=epochs)
        return found if self.balancing.signal == ("losses",) else found * (1.0 + 0.1 * len(data.tasks))

    def stage(self, data: Prepared, model: MultiTaskModel) -> Stage:
        found = recipe(self.resolved(data), dict(model.named_parameters()))
        return replace(found, balancer=self.balancer(data), objective=self.objective(data), listen=True)

    def begin(self, model: MultiTaskModel, data: Prepared, seed: int) -> None:
        """Fit the first weights to training rows."""
        assert isinstance(model.encoder, RealMLPEncoder)
        assert isinstance(model.heads, RangeHeads)
        model.heads.ranged(data)
        show(model.encoder, data, data.parts["train"])

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Network:
        fitted = super().fit(data, budget, seed)
        epochs = len(fitted.record["rules"])
        if epochs < min(LEAST_EPOCHS, self.resolved(data)["epochs"]):
            fitted.record["undertrained"] = [task.name for task in data.tasks]
        return fitted


class RealMLPSingle(SingleNetworks):
    """One RealMLP per task by the same recipe, nothing shared; all tasks of a kind and size train side by side.

    The networks have the shape that the joint one has on this table, so that what differs is the sharing. Rates, batches and
    epochs follow each task's own kind and number of labels. Every task keeps the weights of its own best epoch.
    """

    name = "realmlp_single"
    label = "RealMLP, one per task"
    encoder = "realmlp"
    automatic, embeddings = AUTOMATIC, REALMLP_EMBEDDINGS
    defaults = DEFAULTS
    space = SPACE

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        check(self.settings, f"candidate {self.name!r}")

    def resolved(self, data: Prepared, rows: int | None = None, classes: int | None = None) -> dict[str, Any]:
        """The settings for the table, or for tasks with so many training labels that are all classes (1) or all numbers (0)."""
        rows = len(data.parts["train"]) if rows is None else rows
        if classes is not None:
            return resolved(self.settings, rows, classes, 1)
        return resolved(self.settings, rows, sum(task.record.classes for task in data.tasks), len(data.tasks))

    def config(self, data: Prepared) -> dict[str, Any]:
        return {"architecture": {"name": "specialists", "settings": {"encoder": "realmlp", **encoder_of(self.resolved(data))}}}

    def bank(self, model: Specialists, tasks: Sequence[Task], data: Prepared, seed: int) -> SpecialistBank:
        assert isinstance(model.heads, RangeHeads)
        model.heads.ranged(data)
        table = self.resolved(data)
        rows = int(np.mean([len(data.labelled(task.name, "train")) for task in tasks]))
        settings = {**self.resolved(data, rows, int(tasks[0].record.classes)), "recipe": table["recipe"]}
        return _RealMLPBank(model, tasks, data, encoder_of(table), settings, seed)

    def _flops(self, data: Prepared) -> float:
        return size_of(data.tasks[:1], data.columns, self.config(data))[0]

    def _cost(self, data: Prepared, task: Task, flops: float) -> float:
        """Core-seconds of one task among others: three forward passes a label and epoch."""
        rows = max(1, len(data.labelled(task.name, "train")))
        return 3 * rows * flops * int(self.resolved(data, rows, int(task.record.classes))["epochs"]) / SPEED + 0.05

    def estimate(self, data: Prepared) -> float:
        flops, tensors = size_of(data.tasks[:1], data.columns, self.config(data))
        steps: dict[tuple[Any, ...], int] = {}  # tasks of one kind and size take theirs together
        for task in data.tasks:
            rows = max(1, len(data.labelled(task.name, "train")))
            own = self.resolved(data, rows, int(task.record.classes))
            alike = task.kind, len(task.classes), task.levels, rows.bit_length()
            steps[alike] = max(steps.get(alike, 0), math.ceil(rows / own["batch_size"]) * own["epochs"])
        return sum(steps.values()) * BANK_TENSOR * tensors + sum(self._cost(data, task, flops) for task in data.tasks)


class _RealMLPBank(SpecialistBank):
    """RealMLPs in training, side by side: one schedule for all of them, which ends before the deadline."""

    def __init__(
        self,
        model: Specialists,
        tasks: Sequence[Task],
        data: Prepared,
        shape: Mapping[str, Any],
        settings: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.heads = cast(RangeHeads, model.heads)
        super().__init__(model, tasks, data, shape, {**settings, "patience": math.inf}, seed)
        self.batch = int(settings["batch_size"])
        self.steps = max(1, int(np.mean([stream.count for stream in self.streams])) // self.batch)
        self.plan = recipe(settings, dict(zip(self.names, self.parameters)))
        self.pace = Pace(self.steps * int(settings["epochs"]))
        self.began = self.deadline = 0.0

    def fit(self, deadline: float) -> bool:
        self.began, self.deadline = time.process_time(), deadline
        self.pace.taken = 0
        return super().fit(deadline)

    @property
    def undertrained(self) -> list[str]:
        least = min(LEAST_EPOCHS, int(self.settings["epochs"]))
        return [task.name for task in self.tasks] if self.rounds < least or not self.ended else []

    @property
    def ended(self) -> bool:
        """Whether the schedule has come to its end."""
        return self.pace.share >= DONE

    def _begin(self, one: BankEncoder, task: Task) -> None:
        assert isinstance(one, RealMLPEncoder)
        show(one, self.data, self.data.labelled(task.name, "train").counted().rows)

    def _update(self, named: Mapping[str, nn.Parameter]) -> Update:
        self.names = list(named)
        stage = recipe(self.settings, named)
        return Update(named, lr=stage.lr, weight_decay=stage.weight_decay, betas=stage.betas, rates=stage.rates, clip=None)

    def _sizes(self, size: int) -> tuple[int, int]:
        return self.batch, self.steps

    def _step(self, places: Tensor) -> Tensor:
        if self.pace.taken % LOOK_EVERY == 0:
            self.pace.hurry(time.process_time() - self.began, self.deadline - self.began)
        cast(RealMLPEncoder, self.encoder).anneal(self.pace.share)
        return super()._step(places)

    def _move(self) -> None:
        share = self.pace.share
        self.update(rate=self.plan.rate(0, 1, share), decay=self.plan.decay(share))
        self.pace.step()

    def _judge(self) -> None:
        began = time.process_time()
        super()._judge()
        self.pace.evaluated(time.process_time() - began)

    def _loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        task = self.tasks[0]
        if not self.settings["smoothing"] or not smooths(task):
            return super()._loss(outputs, values)
        return smoothed(self.record, self.settings["smoothing"], len(task.classes), outputs[:, 0], values)

    def _best(self, score: float, before: float) -> bool:
        return score >= before

    def _held(self, task: Task, predictions: Tensor) -> Tensor:
        return self.heads.within(task.name, predictions)


def show(encoder: RealMLPEncoder, data: Prepared, rows: np.ndarray[Any, Any]) -> None:
    """Fit fresh weights of one network to some of these rows, spread evenly."""
    if len(rows) > SHOWN:
        rows = rows[np.linspace(0, len(rows) - 1, SHOWN).astype(np.int64)]
    inputs = data.batch(torch.from_numpy(np.ascontiguousarray(rows)), tasks=()).inputs
    encoder.begin(inputs["numeric"][None], inputs["categorical"][None])


def check(settings: Mapping[str, Any], where: str) -> None:
    """The settings that RealMLP alone has."""
    for name, known in (("recipe", ("td", "td_s")), ("activation", ACTIVATIONS)):
        if settings[name] != "auto" and settings[name] not in known:
            raise unknown(name, str(settings[name]), ("auto", *known), where=where)
