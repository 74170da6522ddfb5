"""Ranking items: the artefact that answers next items, its training loop, and what its candidates share.

A `Ranking` model has vectors of items and queries of rows; a row's items are ranked by ⟨query, vector⟩. As the vectors come from
the catalogue that the artefact carries, items added to it later (`Fitted.add_items`) are ranked without training.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pluribus import catalog
from pluribus.data import Batch, Labels
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, Candidate, Costs, Fitted, Losses, Objective
from pluribus.modeling.artefact.fitted import Array, Wanted
from pluribus.modeling.model import Slices
from pluribus.tabular.fields import Catalogue
from pluribus.tabular.network import WEIGHTS, _one_thread, blank, check_weights, read_weights
from pluribus.tabular.next_item import RANKED, ranked
from pluribus.tabular.settings import batch_of, check
from pluribus.tasks import Task
from pluribus.training import Step
from pluribus.training.fitting import plain_curves, reproducible

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.data.columns import FittedColumns

STEP = 1024  # rows ranked at a time
JUDGED = 5000  # validation rows that early stopping looks at, at most


class Ranking(nn.Module):
    """Vectors of items, queries of rows, and a loss. All of its parameters serve the one task that it has in training.

    session: the input without which a row cannot be ranked, if any.
    """

    session: str | None = None
    tasks: Mapping[str, Task] = MappingProxyType({})

    @abstractmethod
    def vectors(self, inputs: Mapping[str, Any]) -> Tensor:
        """Encoded items → [M, d]."""

    @abstractmethod
    def queries(self, inputs: Mapping[str, Any], catalogue: Catalogue, items: Tensor) -> Tensor:
        """Encoded rows → [B, d]. items: the vectors of the whole catalogue, the unknown item last."""

    @abstractmethod
    def loss(self, data: Prepared, rows: Tensor, target: Tensor, weight: Tensor, train: Labelled, catalogue: Catalogue) -> Tensor:
        """The loss of a step. rows: [B] of `data`. target: [B] rows of the catalogue. weight: [B]."""

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def parameters_of(self, task: str) -> Slices:
        return []


@dataclass(frozen=True)
class Labelled:
    """The training labels. rows, target, weight: [m]. mentioned: catalogue rows that training rows mention, ascending. share:
    [I], how often each item is drawn into a sample, ∝ √(1 + labels)."""

    rows: Tensor
    target: Tensor
    weight: Tensor
    mentioned: Tensor
    share: Tensor

    @classmethod
    def of(cls, data: Prepared, task: str, catalogue: Catalogue) -> Labelled:
        cells = data.labelled(task, "train")
        target = torch.from_numpy(cells.numbers.astype(np.int64))
        weight = torch.ones(len(cells)) if cells.weight is None else torch.from_numpy(cells.weight).float()
        seen = catalogue.seen.clone()
        seen[target] = True
        share = (1.0 + torch.bincount(target, minlength=catalogue.count)).sqrt()
        return cls(torch.from_numpy(cells.rows), target, weight, seen.nonzero()[:, 0], share)


class RankingLoss(Objective):
    """The model's own loss, a mean over the rows of a step.

    data, train, catalogue: what `Ranking.loss` is handed.
    """

    couples_rows = True

    def __init__(self, data: Prepared, train: Labelled, catalogue: Catalogue) -> None:
        self.data, self.train, self.catalogue = data, train, catalogue

    def batch(self, task: str, at: Tensor) -> Batch:
        """The training labels at these places (int64 [B])."""
        labels = Labels(self.train.target[at], torch.arange(len(at)), weight=self.train.weight[at])
        return Batch({}, len(at), {task: labels}, context={"row": self.train.rows[at]})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys(batch.labels, torch.ones(()))

    def losses(self, model: Any, batch: Batch) -> Losses:
        sums = {
            name: model.loss(self.data, batch.context["row"], labels.values, labels.weight, self.train, self.catalogue)
            for name, labels in batch.labels.items()
        }
        return Losses(sums, self.counts(batch))


class Retrieval(Fitted):
    """A fitted ranking. config: {"candidate", "task", "items", "ids", "attributes", "settings"}; names are the catalog's."""

    artefact = "retrieval"
    columns: FittedColumns
    unanswered = "the session is empty; give it an item"

    def __init__(
        self, tasks: Sequence[Task], columns: FittedColumns, config: Mapping[str, Any], model: Ranking | None = None
    ) -> None:
        super().__init__(tasks, columns)
        self.config = dict(config)
        made: type[RankingCandidate] = catalog.get("candidate", config["candidate"]).resolve()
        self.model = model if model is not None else made.build(self.catalogue(), columns, config["settings"])
        self.model.eval()
        self._ready: tuple[FittedColumns, Catalogue, Tensor] | None = None

    def catalogue(self) -> Catalogue:
        return Catalogue(self.columns.items[self.config["items"]], self.config["ids"], self.config["attributes"])

    def ready(self) -> tuple[Catalogue, Tensor]:
        """The catalogue as it stands, and its items' vectors [I + 1, d]."""
        if self._ready is None or self._ready[0] is not self.columns:
            catalogue = self.catalogue()
            self._ready = self.columns, catalogue, vectors_of(self.model, catalogue)
        return self._ready[1], self._ready[2]

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Array]:
        """Task → [m, RANKED] rows of the catalogue, best first (−1 behind the last); NaN for a row that cannot be ranked because
        its session is empty."""
        catalogue, vectors = self.ready()
        return {name: rank_rows(self.model, data, rows, catalogue, vectors) for name, rows in wanted.items()}

    def item_scores(self, data: Prepared, rows: NDArray[np.int64]) -> Tensor:
        """The score of every item [m, I], in the catalogue's order."""
        catalogue, vectors = self.ready()
        inputs = data.batch(torch.from_numpy(np.asarray(rows, np.int64)), tasks=()).inputs
        with torch.no_grad():
            return self.model.queries(inputs, catalogue, vectors) @ vectors[:-1].T

    def predict(self, table: pd.DataFrame, tasks: Sequence[str] | None = None) -> pd.DataFrame:
        """Task → a list of the keys of its `top` best items, best first.

        Raises
        ------
        BadInput: a session is empty, beside what any artefact refuses.
        """
        session = self.config["settings"].get("session")
        if session is not None and self.requested(tasks):
            lengths = self.columns.prepare(table, ()).ragged[session].lengths
            if (lengths == 0).any():
                what = f"the session is empty in row {int((lengths == 0).argmax()) + 1} ({int((lengths == 0).sum())} such rows)"
                raise BadInput(what, where=f"table, column {session!r}", remedy="give it an item, or leave the row out")
        return super().predict(table, tasks)

    def decoded(self, task: Task, value: Array) -> dict[str, Any]:
        keys = self.columns.items[self.config["items"]].keys
        cells: NDArray[Any] = np.empty(len(value), object)
        for place, best in enumerate(value[:, : self.config["top"]]):
            cells[place] = None if np.isnan(best).any() else [keys[int(row)] for row in best if row >= 0]
        return {task.name: cells}

    def costs(self) -> Costs:
        """Of one row: its query and its product with every item, whose vectors are computed once."""
        catalogue, vectors = self.ready()
        inputs = blank(self.columns, 64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model.queries(inputs, catalogue, vectors) @ vectors.T
        with _one_thread(), torch.no_grad():
            times = []
            for _ in range(5):
                start = time.perf_counter()
                ranked(self.model.queries(inputs, catalogue, vectors) @ vectors[:-1].T)
                times.append(time.perf_counter() - start)
        state = self.model.state_dict().values()
        return Costs(
            parameters=sum(p.numel() for p in self.model.parameters()),
            flops_per_row=counter.get_total_flops() / 64,
            bytes=sum(value.numel() * value.element_size() for value in state),
            train_seconds=float(self.record.get("seconds", 0.0)),
            rows_per_second=64 / min(times),
        )

    def write(self, folder: Path) -> dict[str, Any]:
        save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, folder / WEIGHTS)
        return {"config": self.config}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Retrieval:
        state = read_weights(folder / WEIGHTS)
        with torch.random.fork_rng(devices=[]):
            found = cls(tasks, columns, manifest["config"])
        check_weights(state, found.model.state_dict())
        found.model.load_state_dict(state)
        return found


@torch.no_grad()
def vectors_of(model: Ranking, catalogue: Catalogue) -> Tensor:
    """The vectors of the whole catalogue [I + 1, d], in evaluation mode."""
    training = model.training
    model.eval()
    rows = torch.arange(catalogue.count + 1)
    found = torch.cat([model.vectors(catalogue.inputs(part)) for part in torch.split(rows, 4 * STEP)])
    model.train(training)
    return found


@torch.no_grad()
def rank_rows(model: Ranking, data: Prepared, rows: NDArray[np.int64], catalogue: Catalogue, vectors: Tensor) -> Array:
    """[m, RANKED] (see `Retrieval.answer`)."""
    places = torch.from_numpy(np.asarray(rows, np.int64))
    found = []
    for start in range(0, max(1, len(places)), STEP):
        inputs = data.batch(places[start : start + STEP], tasks=()).inputs
        queries = model.queries(inputs, catalogue, vectors)
        best = ranked(queries @ vectors[:-1].T).double()
        if model.session is not None:
            best[~inputs[model.session]["mask"].any(1)] = math.nan
        found.append(best)
    return torch.cat(found).numpy()


def session_of(data: Prepared, items: str, named: str) -> str:
    """The sequence column that holds sessions: the one named, else the only one that is joined to the items."""
    joined: set[str] = {name for name in data.columns.lists if data.columns.sequences[name].items == items}
    if named != "auto":
        if named not in joined:
            raise unknown("session column", named, sorted(joined), where="setting session")
        return named
    first: str = sorted(joined, key=list(data.columns.sequences).index)[0]
    return first


class RankingCandidate(Candidate):
    """A model that ranks the items of one task of kind next_item.

    Settings: epochs, patience (epochs without a better recall on the valid part), batch_size, lr, weight_decay, top (items of a
    prediction file's lists).
    """

    road = "train"
    heads = frozenset({"catalogue"})
    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 30,
        "patience": 3,
        "batch_size": "auto",
        "lr": 2e-3,
        "weight_decay": 1e-4,
        "top": 20,
    }
    needs_session: ClassVar[bool] = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        check(self.settings, f"candidate {self.name!r}")

    @abstractmethod
    def config(self, data: Prepared) -> dict[str, Any]:
        """The parts "ids", "attributes" and "settings" of the artefact's config."""

    @staticmethod
    @abstractmethod
    def build(catalogue: Catalogue, columns: Any, settings: Mapping[str, Any]) -> Ranking:
        """The model, freshly initialised from torch's global generator."""

    def items_of(self, data: Prepared) -> str:
        """The item table that the task is joined to."""
        found: str = next(name for name, items in data.columns.items.items() if data.tasks[0].name in items.columns)
        return found

    def unreadable(self, data: Prepared) -> str | None:
        if any(task.record.head not in self.heads for task in data.tasks):
            return "it predicts next items and nothing else"
        return super().unreadable(data)

    def unfit(self, data: Prepared) -> str | None:
        if len(data.tasks) != 1 or data.tasks[0].record.head not in self.heads:
            return "it ranks the items of one task of kind next_item, alone"
        items = self.items_of(data)
        joined = [name for name in data.columns.lists if data.columns.sequences[name].items == items]
        if self.needs_session and not joined:
            return f"no sequence column is joined to the items {items!r}"
        return None

    def estimate(self, data: Prepared) -> float:
        """Ten epochs: each row's items through the tower and layers, its query against the catalogue; at 15 GFLOP/s."""
        items = data.columns.items[self.items_of(data)]
        width = int(self.settings["width"])
        lengths = [e.typical for e in data.columns.sequences.values()]
        per_row = 24 * width**2 * max([1, *lengths]) + 2 * width * min(len(items), 4096)
        return float(10 * len(data.parts["train"]) * 3 * per_row / 1.5e10 + 1.0)

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Retrieval:
        began = time.process_time()
        why = self.unfit(data)
        if why is not None:
            raise BadInput(why, where=f"candidate {self.name!r}")
        task = data.tasks[0]
        config = {
            "candidate": self.name,
            "task": task.name,
            "items": self.items_of(data),
            "top": int(self.settings["top"]),
            **self.config(data),
        }
        with reproducible(seed, budget.threads):
            fitted = Retrieval(data.tasks, data.columns, config)
            curve, cut = self._train(fitted, data, began + budget.seconds, seed)
        fitted.record = {
            "settings": dict(self.settings),
            "seed": seed,
            "curves": plain_curves({task.name: curve}),
            "undertrained": [task.name] if cut else [],
            "seconds": time.process_time() - began,
        }
        return fitted

    def _train(self, fitted: Retrieval, data: Prepared, deadline: float, seed: int) -> tuple[list[float], bool]:
        """Train to the early stop on the valid part; the curve, and whether the deadline came first. Leaves the best weights."""
        model, task, catalogue = fitted.model, data.tasks[0], fitted.catalogue()
        train = Labelled.of(data, task.name, catalogue)
        valid = data.labelled(task.name, "valid")
        judged = np.linspace(0, len(valid) - 1, min(len(valid), JUDGED)).astype(np.int64)
        batch = batch_of(self.settings, len(train.rows))
        model.tasks = {task.name: task.with_(weight=1.0)}  # alone, it weighs nothing against others
        objective = RankingLoss(data, train, catalogue)
        step = Step(
            model, objective=objective, lr=self.settings["lr"], weight_decay=self.settings["weight_decay"], precision="float32"
        )
        shuffle = torch.Generator().manual_seed(seed)
        best, since, kept, curve, cut = -math.inf, 0, deepcopy(model.state_dict()), [], False
        for _ in range(int(self.settings["epochs"])):
            model.train()
            for at in torch.split(torch.randperm(len(train.rows), generator=shuffle), batch):
                step(objective.batch(task.name, at))
                if time.process_time() > deadline:
                    cut = True
                    break
            model.eval()
            score = math.nan
            if len(valid):
                found = rank_rows(model, data, valid.rows[judged], catalogue, vectors_of(model, catalogue))
                score = float(metrics.compute(task.main_metric.name, found, valid.values[judged]))
            curve.append(score)
            if math.isnan(score) or score > best:
                best, since, kept = score if not math.isnan(score) else best, 0, deepcopy(model.state_dict())
            else:
                since += 1
            if cut or since >= int(self.settings["patience"]):
                break
        model.load_state_dict(kept)
        model.eval()
        return curve, cut


__all__ = ["RANKED", "Labelled", "Ranking", "RankingCandidate", "Retrieval", "session_of"]
