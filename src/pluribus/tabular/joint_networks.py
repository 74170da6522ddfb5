"""Joint networks as candidates: one encoder, a sharing architecture, a balancer, trained by `Trainer`.

A subclass names its sharing architecture (catalog family "sharing") and makes its balancer. Settings of the encoder, their
search space and the encoder itself are those of the single networks.
"""

from __future__ import annotations

import inspect
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from pluribus import catalog
from pluribus.balancing import Balancer, EqualWeighting
from pluribus.data.prepared import Prepared
from pluribus.modeling import Budget, Candidate, Choice, MultiTaskModel, Objective, SearchSpace, Supervised
from pluribus.tabular.cost import SPEED, training_seconds
from pluribus.tabular.embeddings import EMBEDDINGS
from pluribus.tabular.network import Network, build
from pluribus.tabular.settings import AUTO, DEFAULTS, SPACE, batch_of, check, encoder_settings
from pluribus.training import Stage, Trainer
from pluribus.training.fitting import plain_curves, reproducible


def balancer_of(settings: Mapping[str, Any], data: Prepared) -> Balancer:
    """A fresh balancer by its catalog name, the setting "balancer"."""
    method: type[Balancer] = catalog.get("balancer", settings["balancer"]).resolve()
    return method.for_training(lr=settings["lr"], classification=[task.name for task in data.tasks if task.record.classes])


def tower_of(sharing: str, units: int) -> dict[str, int]:
    """The setting `tower` of a sharing architecture by its catalog name, where it has one (a star's layers are its towers)."""
    known = inspect.signature(catalog.get("sharing", sharing).resolve()).parameters.values()
    return {"tower": units} if any(one.name == "tower" or one.kind is one.VAR_KEYWORD for one in known) else {}


class JointNetwork(Candidate):
    """One network for all tasks.

    Attributes
    ----------
    sharing : str
        Name of the sharing architecture.
    sharing_settings : tuple of str
        Those of the candidate's settings that go to it.
    speed : float
        FLOPs a second of its training steps, see `pluribus.tabular.cost`.
    automatic : tuple of str
        Settings that may be "auto".
    embeddings : tuple of str
        The embeddings of numbers that it knows.
    """

    road = "train"
    encoder: ClassVar[str] = "tabular_mlp"
    processes = True
    speed: ClassVar[float] = SPEED
    sharing: ClassVar[str]
    sharing_settings: ClassVar[tuple[str, ...]] = ()

    automatic: ClassVar[tuple[str, ...]] = AUTO
    embeddings: ClassVar[tuple[str, ...]] = EMBEDDINGS

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        check(self.settings, f"candidate {self.name!r}", self.automatic, self.embeddings)

    @abstractmethod
    def balancer(self, data: Prepared) -> Balancer | None:
        """A fresh balancer for the tasks of `data`; None: the plain sum of their losses."""

    def objective(self, data: Prepared) -> Objective:
        """How labels become losses."""
        return Supervised()

    def config(self, data: Prepared) -> dict[str, Any]:
        """What `pluribus.tabular.network.build` makes the model of."""
        return {
            "encoder": {"name": self.encoder, "settings": encoder_settings(self.settings, data, self.encoder)},
            "sharing": {"name": self.sharing, "settings": {name: self.settings[name] for name in self.sharing_settings}},
        }

    def begin(self, model: MultiTaskModel, data: Prepared, seed: int) -> None:
        """What a fresh model is shown of the training part before it learns."""

    def unfit(self, data: Prepared) -> str | None:
        return "one task alone has nothing to share" if len(data.tasks) < 2 else None

    def size(self, data: Prepared) -> tuple[float, int]:
        """FLOPs of one row's forward pass, two a weight (a table of embeddings does not count), and trained tensors."""
        with torch.device("meta"):
            named = dict(build(data.tasks, data.columns, self.config(data)).named_parameters())
        return 2.0 * sum(p.numel() for name, p in named.items() if not name.endswith("table")), len(named)

    def estimate(self, data: Prepared) -> float:
        rows, (flops, tensors) = len(data.parts["train"]), self.size(data)
        batch = batch_of(self.settings, rows)
        return training_seconds(rows, batch, flops, tensors, epochs=self.settings["epochs"], speed=self.speed)

    def stage(self, data: Prepared, model: MultiTaskModel) -> Stage:
        """How a model of `config` trains."""
        return Stage(
            balancer=self.balancer(data),
            objective=self.objective(data),
            epochs=self.settings["epochs"],
            batch_size=batch_of(self.settings, len(data.parts["train"])),
            lr=self.settings["lr"],
            weight_decay=self.settings["weight_decay"],
            patience=self.settings["patience"],
            listen=True,
        )

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Network:
        began = time.process_time()
        config = self.config(data)
        with reproducible(seed, budget.threads):
            model = build(data.tasks, data.columns, config)
            self.begin(model, data, seed)
            deadline = max(0.0, budget.seconds - (time.process_time() - began))
            clock, stages = time.process_time, [self.stage(data, model)]
            trainer = Trainer(model, stages, seed=seed, deadline=deadline, clock=clock, folder=budget.folder)
            history = trainer.fit(data)
        fitted = Network(data.tasks, data.columns, config, model)
        fitted.record = {
            "settings": dict(self.settings),
            "seed": seed,
            "curves": plain_curves(history.scores),
            "undertrained": history.undertrained(),
            "seconds": time.process_time() - began,
            "rules": history.rule,
            "times": history.times,
            "diagnostics": history.diagnostics,
        }
        return fitted


class _SharedBottomNetwork(JointNetwork):
    sharing = "shared_bottom"
    sharing_settings = ("tower",)
    defaults: ClassVar[Mapping[str, Any]] = {**DEFAULTS, "tower": 128}
    space = SearchSpace({**SPACE.ranges, "tower": Choice((0, 32, 64, 128))})


class SharedBottomEqual(_SharedBottomNetwork):
    """Shared bottom, the plain sum of the tasks' losses."""

    name = "shared_bottom_equal"
    label = "Shared bottom, equal weights"

    def balancer(self, data: Prepared) -> Balancer:
        return EqualWeighting()


class SharedBottomUncertainty(_SharedBottomNetwork):
    """Shared bottom, weights learnt as homoscedastic uncertainties (Kendall, Gal, Cipolla 2018)."""

    name = "shared_bottom_uncertainty"
    label = "Shared bottom, uncertainty weighting"

    def balancer(self, data: Prepared) -> Balancer:
        return balancer_of({**self.settings, "balancer": "uncertainty"}, data)


class SharedBottomBalanced(_SharedBottomNetwork):
    """Shared bottom under any balancer of the catalog: setting `balancer`, its name there. A study spells it
    `shared_bottom+NAME`."""

    name = "shared_bottom"
    label = "Shared bottom"
    defaults: ClassVar[Mapping[str, Any]] = {**_SharedBottomNetwork.defaults, "balancer": "equal"}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.entry = catalog.get("balancer", self.settings["balancer"])
        method: type[Balancer] = self.entry.resolve()
        vars(self)["label"] = f"Shared bottom, {method.__name__}"
        vars(self)["processes"] = method.distributed

    def balancer(self, data: Prepared) -> Balancer:
        return balancer_of(self.settings, data)

    def estimate(self, data: Prepared) -> float:
        """Gradient balancers pass through the heads once more a task."""
        heads = 1.0 if self.entry.signal == ("losses",) else 1.0 + 0.1 * len(data.tasks)
        return heads * super().estimate(data)
