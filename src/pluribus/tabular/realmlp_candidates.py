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

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from pluribus import catalog
from pluribus.balancing import Balancer
from pluribus.data.prepared import Prepared
from pluribus.errors import unknown
from pluribus.modeling import Budget, Choice, IntRange, LogUniform, MultiTaskModel, SearchSpace, Uniform
from pluribus.tabular.cost import training_seconds
from pluribus.tabular.joint_networks import JointNetwork, balancer_of
from pluribus.tabular.network import Network, size_of
from pluribus.tabular.parametric import ACTIVATIONS
from pluribus.tabular.realmlp import REALMLP_EMBEDDINGS, SHOWN, RangeHeads, RealMLPEncoder
from pluribus.tabular.settings import AUTO
from pluribus.training import Rate, Stage

SMALL = 400  # training rows below which the simple recipe is the safer one
LEAST_EPOCHS = 8
RATES: Mapping[str, tuple[float, float, float]] = {"td": (0.04, 0.2, 0.08), "td_s": (0.04, 0.07, 0.06)}
FACTORS: Mapping[str, tuple[float, bool]] = {  # on the learning rate, and whether it decays; the first that matches counts
    "*encoder.scale": (6.0, True),
    "*encoder.numeric.bias": (0.1, False),
    "*encoder.numeric.*": (0.1, True),
    "*encoder.alphas.*": (0.1, True),
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


def rates_of(names: Any, lr: float) -> dict[str, Rate]:
    """The learning rates of the parameters with these names that have one of their own."""
    import fnmatch

    present = {glob for glob in FACTORS if any(fnmatch.fnmatchcase(name, glob) for name in names)}
    return {glob: Rate(lr * factor, decays) for glob, (factor, decays) in FACTORS.items() if glob in present}


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
        settings = self.resolved(data)
        return Stage(
            balancer=self.balancer(data),
            objective=self.objective(data),
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            betas=(0.9, 0.95),
            schedule="coslog4",
            decay_schedule="flat_cosine",
            rates=rates_of([name for name, _ in model.named_parameters()], settings["lr"]),
            clip=None,
            patience=None,
            ties="latest",
            drop_last=True,
            paced=True,
            listen=True,
        )

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
