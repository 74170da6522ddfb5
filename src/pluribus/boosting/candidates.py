"""Vector-leaf boosting and R-MTGB as candidates of a study.

What is decided here: the table goes in as LightGBM's baselines read it (numbers, then category codes, NaN where missing);
ordinal tasks are multiclass; rounds end by each task's own loss on its validation cells; a fit out of budget keeps what it has.
After the trees of all tasks each task goes on alone (`own_trees`); below 2,000 rows its own trees have leaves of 5 rows, not 20.
That was chosen on enb, jura, slump, sf2 and wq; leaves of 5 rows in the shared trees too were better on sf2, worse on enb and on
slump.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.boosting.baselines import _joined, features
from pluribus.boosting.objectives import BY_LIKELIHOOD
from pluribus.boosting.rmtgb import RMTGBClassifier, RMTGBRegressor
from pluribus.boosting.storage import load
from pluribus.boosting.treeshap import shap_values
from pluribus.boosting.vector_leaf import MultiTaskBoosting
from pluribus.data.columns import FittedColumns
from pluribus.data.prepared import Cells, Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Candidate, Choice, Costs, FitRecord, Fitted, IntRange, LogUniform, SearchSpace, Uniform
from pluribus.modeling.artefact.fitted import Array, Wanted, alike
from pluribus.modeling.artefact.importance import Importance, by_shapley
from pluribus.tasks import Task

FOLDER = "booster"
OWN_ROUNDS = 150  # of a task's own trees to their early stop, roughly
SMALL_LEAF, FEW_ROWS = 5, 2000  # least rows of a leaf of the tasks' own trees below so many training rows


class Boosted(Fitted):
    """One of this package's boosters; `scale` is what a regression label was divided by and `centre` what was taken off it."""

    artefact = "booster"
    columns: FittedColumns

    def __init__(
        self, tasks: Sequence[Task], columns: FittedColumns, model: Any, centre: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__(tasks, columns)
        self.model, self.centre, self.scale = model, centre, scale

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Array]:
        by_name = {task.name: task for task in self.tasks}
        found: dict[str, Array] = {}
        for rows, names in alike(wanted):
            if not len(rows):
                found |= {name: np.empty((0, *by_name[name].record.shape(by_name[name]))) for name in names}
                continue
            said = self.model.answers(features(data, rows, np.float64), names)
            for name in names:
                task = by_name[name]
                found[name] = self._spread(said[name], task) if task.classes else self.centre + self.scale * said[name]
        return {name: found[name] for name in wanted}

    def _spread(self, p: Array, task: Task) -> Array:
        """P(positive) [n] of a binary task, else P(class) [n, C]: classes that training lacks have probability 0."""
        spread = np.zeros((len(p), len(task.classes)))
        seen = np.asarray(self.model.classes_of(task.name)).astype(np.int64)
        spread[:, seen] = p[:, : len(seen)]
        return spread[:, 1] if task.record.positive else spread

    def importance(self, data: Prepared, wanted: Wanted, seconds: float = 10.0) -> dict[str, Importance]:
        """TreeSHAP of each task's raw score."""

        def values(name: str, rows: NDArray[np.int64]) -> Array:
            return shap_values(self.model, features(data, rows, np.float64), name)[0]

        each = seconds / max(1, len(wanted))
        return {name: by_shapley(partial(values, name), data, rows, each) for name, rows in wanted.items()}

    def costs(self) -> Costs:
        """A comparison a level; rows per second are timed here, on one thread, for all tasks."""
        depth, parameters, size = 0.0, 0, 0
        for forest in self.model._forests():
            leaf = forest.feature < 0
            leaves = np.add.reduceat(leaf, forest.first[:-1]) if len(forest) else np.zeros(0)
            depth += float(np.log2(np.maximum(leaves, 1)).sum())
            parameters += int(2 * (~leaf).sum() + leaf.sum() * forest.value.shape[1])
            size += sum(getattr(forest, f.name).nbytes for f in fields(forest))
        rows = np.zeros((256, len(self.columns.names)))
        begin = time.perf_counter()
        self.model.answers(rows, [task.name for task in self.tasks])
        seconds = time.perf_counter() - begin
        return Costs(parameters, max(depth, 1.0), size, float(self.record.get("seconds", 0.0)), len(rows) / seconds)

    def write(self, folder: Path) -> dict[str, Any]:
        self.model.save(folder / FOLDER)
        return {"centre": self.centre, "scale": self.scale}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Boosted:
        model = load(folder / FOLDER)
        if set(model.tasks_) != {task.name for task in tasks} or model.n_features_in_ != len(columns.names):
            raise BadInput(
                "the booster is not that of these tasks and columns", where=str(folder / FOLDER), remedy="restore the folder"
            )
        return cls(tasks, columns, model, float(manifest["centre"]), float(manifest["scale"]))


@cache
def compiled() -> None:
    """Compile the loops of the trees, or load what an earlier process compiled: half a minute once a machine, then a second.

    It fits a few rows, so that all of them are called with the types that fits use.
    """
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(90, 3)), columns=["a", "b", "number"])
    frame["word"], frame["class"] = rng.choice(["x", "y"], 90), rng.integers(0, 2, 90)
    frame.loc[::7, "number"] = np.nan
    table = Table(frame, ["number:regression", "class:binary"], split="random")
    VectorLeafCandidate(rounds=2).fit(prepare(table, split(table, 0)), Budget(math.inf), 0)


class _Boosting(Candidate):
    libraries = ("pluribus.boosting.candidates:compiled",)
    road = "boost"

    def unfit(self, data: Prepared) -> str | None:
        other = [task.name for task in data.tasks if task.record.likelihood not in BY_LIKELIHOOD]
        return f"the booster has no loss for task {other[0]!r}" if other else None

    def estimate(self, data: Prepared) -> float:
        """450 rounds (or fewer set) of a tree: a visit of every row, column and output, a search of every leaf's bins.

        Measured on six tables of 389 to 60,000 rows; a second more loads the compiled code.
        """
        outputs = sum(math.prod(task.record.shape(task)) for task in data.tasks)
        return float(1.0 + min(450, self.settings["rounds"]) * self._tree(data, len(data.parts["train"]), outputs))

    def _tree(self, data: Prepared, rows: int, outputs: int) -> float:
        """Seconds of one tree."""
        leaf = 1.2e-6 * self.settings["max_leaf_nodes"]
        return float(len(data.columns.names) * (1 + outputs) * (6e-9 * rows + leaf))

    def _settings(self, data: Prepared, budget: Budget, seed: int) -> dict[str, Any]:
        numeric, columns = data.numeric.shape[1], len(data.columns.names)
        own = {key: value for key, value in self.settings.items() if key not in ("rounds", "patience", "shared", "outlier")}
        return {
            **own,
            "n_iter_no_change": self.settings["patience"],
            "early_stopping": True,
            "random_state": seed % 2**31,
            "n_jobs": budget.threads,
            "categorical_features": list(range(numeric, columns)),
            "unknown_task": "error",
        }

    def _run(
        self,
        data: Prepared,
        budget: Budget,
        seed: int,
        model: Any,
        train: tuple[Any, ...],
        valid: tuple[Any, ...],
        weight: Any,
        centre: float = 0.0,
        scale: float = 1.0,
    ) -> Boosted:
        """Fit until every task has stopped or the budget is spent. train: (X, y) or (X, y, task); valid: as `eval_set`."""
        began = time.process_time()
        names = [task.name for task in data.tasks]
        curves: dict[str, list[float]] = {name: [] for name in names}
        late: list[str] = []

        def watch(round_: dict[str, Any]) -> bool:
            for name, value in round_.get("by_task", {}).items():
                if np.isfinite(value):
                    curves[name].append(float(value))
            if time.process_time() - began > budget.seconds:
                late[:] = round_.get("unfinished", names)
                return False
            return True

        model.set_params(progress=watch)
        has_valid = len(valid[1]) > 0
        if not has_valid:
            model.set_params(early_stopping=False, **({"own_trees": False} if "own_trees" in self.settings else {}))
        task = train[2] if len(train) == 3 else None
        model.fit(train[0], train[1], task=task, sample_weight=weight, eval_set=valid if has_valid else None)
        model.set_params(progress=False)
        fitted = Boosted(data.tasks, data.columns, model, centre, scale)
        fitted.record = FitRecord(
            settings=dict(self.settings), seed=seed, curves=curves, undertrained=late, seconds=time.process_time() - began
        )
        return fitted


class VectorLeafCandidate(_Boosting):
    """All tasks in one ensemble: shared structures, a leaf value a task, missing labels masked; then trees of each task alone."""

    name = "vector_leaf"
    label = "vector-leaf boosting"
    defaults = {  # noqa: RUF012
        "learning_rate": 0.05,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 20,
        "colsample": 0.9,
        "l2_regularization": 0.0,
        "split_by": "sum_of_gains",
        "own_trees": True,
        "own_min_samples_leaf": None,  # 5 below 2,000 training rows, else as the shared trees
        "rounds": 1000,
        "patience": 50,
    }
    space = SearchSpace(
        {
            "max_leaf_nodes": IntRange(7, 127),
            "learning_rate": LogUniform(0.02, 0.2),
            "min_samples_leaf": IntRange(5, 100),
            "colsample": Uniform(0.5, 1.0),
            "l2_regularization": LogUniform(1e-3, 10.0),
        }
    )

    def estimate(self, data: Prepared) -> float:
        """Of the trees of all tasks, and of each task's own, which need about a third of the rounds."""
        found = super().estimate(data)
        if self.settings["own_trees"]:
            for task in data.tasks:
                rows = len(data.labelled(task.name, "train"))
                found += min(OWN_ROUNDS, self.settings["rounds"]) * self._tree(data, rows, math.prod(task.record.shape(task)))
        return found

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Boosted:
        tasks = {task.name: BY_LIKELIHOOD[task.record.likelihood].kind for task in data.tasks}
        parts = {part: [data.labelled(task.name, part) for task in data.tasks] for part in ("train", "valid")}
        for task, cells in zip(data.tasks, parts["train"]):
            if not len(cells):
                raise BadInput("has no label in the training part", where=f"task {task.name!r}", remedy="drop the task")
        train, rows = _wide(data, parts["train"])
        weight = None
        if any(cells.weight is not None for cells in parts["train"]):
            ones = [Cells(c.rows, np.ones(len(c)) if c.weight is None else c.weight) for c in parts["train"]]
            weight = {name: np.nan_to_num(column) for name, column in _wide(data, ones)[0].items()}
        known = [_known(*pair) for pair in zip(data.tasks, parts["train"], parts["valid"])]
        seen = [(t, c) for t, c in zip(data.tasks, known) if len(c)]
        held, held_rows = _wide(data.only([t.name for t, _ in seen]), [c for _, c in seen]) if seen else ({}, rows[:0])
        settings = self._settings(data, budget, seed)
        if settings["own_min_samples_leaf"] is None and len(rows) < FEW_ROWS:
            settings["own_min_samples_leaf"] = min(SMALL_LEAF, settings["min_samples_leaf"])
        model = MultiTaskBoosting(tasks, self.settings["rounds"], **settings)
        valid = (features(data, held_rows, np.float64), held, None, data.units[held_rows])
        return self._run(data, budget, seed, model, (features(data, rows, np.float64), train), valid, weight)


class RMTGBCandidate(_Boosting):
    """R-MTGB on a long table: shared trees, outlier trees, and a task's own."""

    name = "rmtgb"
    label = "R-MTGB"
    defaults = {  # noqa: RUF012
        "learning_rate": 0.1,
        "max_leaf_nodes": 8,
        "min_samples_leaf": 5,
        "colsample": 1.0,
        "shared": 50,
        "outlier": 150,
        "rounds": 300,
        "patience": 30,
    }
    space = SearchSpace(
        {
            "max_leaf_nodes": IntRange(2, 32),
            "learning_rate": LogUniform(0.03, 0.3),
            "min_samples_leaf": IntRange(2, 50),
            "shared": Choice((0, 20, 50, 100)),
            "outlier": Choice((0, 50, 150)),
        }
    )

    def unfit(self, data: Prepared) -> str | None:
        if data.columns.task_column is None:
            return "R-MTGB needs the long layout (--task-column): in a wide table the tasks' targets are not one quantity"
        if len({(task.kind, task.classes) for task in data.tasks}) > 1:
            return "the tasks are of different kinds"
        if data.tasks[0].record.likelihood == "poisson":
            return "R-MTGB has no loss for counts"
        return super().unfit(data)

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Boosted:
        reason = self.unfit(data)
        if reason:
            raise BadInput(reason, where=f"candidate {self.name!r}")
        table = features(data, dtype=np.float64)[:, : len(data.columns.names)]
        task_column = data.columns.names.index(data.columns.task_column or "")
        table[:, task_column] = 0.0  # R-MTGB knows the task; as a feature it would turn shared trees into the tasks' own
        parts = []
        fitted_on = [data.labelled(task.name, "train") for task in data.tasks]
        held_out = [_known(task, _joined(fitted_on), data.labelled(task.name, "valid")) for task in data.tasks]
        for cells in (fitted_on, held_out):
            names = np.repeat(np.array([task.name for task in data.tasks], dtype=object), [len(c) for c in cells])
            rows = np.concatenate([c.rows for c in cells])
            parts.append((table[rows], np.concatenate([c.values for c in cells]), names))
        weight = _joined(fitted_on).weight
        classify = bool(data.tasks[0].classes)
        centre, scale = (0.0, 1.0) if classify else (float(parts[0][1].mean()), float(parts[0][1].std()) or 1.0)
        (X, y, task), (X_valid, y_valid, task_valid) = parts
        if classify:
            y, y_valid = y.astype(np.int64), y_valid.astype(np.int64)
        else:
            y, y_valid = (y - centre) / scale, (y_valid - centre) / scale
        kind = RMTGBClassifier if classify else RMTGBRegressor
        settings = self._settings(data, budget, seed)
        model = kind(self.settings["shared"], self.settings["outlier"], self.settings["rounds"], start="constant", **settings)
        return self._run(data, budget, seed, model, (X, y, task), (X_valid, y_valid, task_valid), weight, centre, scale)


def _known(task: Task, train: Cells, valid: Cells) -> Cells:
    """The validation cells without classes that training lacks: a booster has no score for them."""
    if not task.classes:
        return valid
    return valid.within(valid.rows[np.isin(valid.values, train.values)])


def _wide(data: Prepared, cells: Sequence[Cells]) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """The labelled rows and, for each task, its values there, NaN where it has none."""
    rows = np.unique(np.concatenate([c.rows for c in cells]))
    found = {}
    for task, own in zip(data.tasks, cells):
        column = np.full(len(rows), np.nan)
        column[np.searchsorted(rows, own.rows)] = own.values
        found[task.name] = column
    return found, rows
