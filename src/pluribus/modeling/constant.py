"""The constant predictor: of each task one answer for every row, the best by its main metric on the training labels.

It is what a model must beat. Where a road does worse than it (few rows, labels that nothing explains), it is what to deploy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.evaluation.skill import best_constant
from pluribus.files import read_json
from pluribus.modeling.artefact.fitted import Array, Costs, Fitted, Wanted
from pluribus.modeling.artefact.preprocessing import Preprocessing
from pluribus.modeling.artefact.record import FitRecord
from pluribus.modeling.budget import Budget
from pluribus.modeling.candidate import Candidate
from pluribus.tasks import Task
from pluribus.tasks.forms import Maps

FILE = "constants.json"


class Constants(Fitted):
    """One answer a task.

    Parameters
    ----------
    tasks : sequence of Task
        What it predicts.
    columns : Preprocessing
        What prepares the tables that it predicts; it reads nothing of them but the number of rows.
    values : mapping
        Task → its answer: a number, the probabilities of its classes [C], its quantiles [L], a map [H, W] or [H, W, c].
    """

    artefact = "constants"

    def __init__(self, tasks: Sequence[Task], columns: Preprocessing, values: Mapping[str, Any]) -> None:
        super().__init__(tasks, columns)
        self.values: dict[str, Array] = {task.name: np.asarray(values[task.name], np.float64) for task in self.tasks}

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in self.tasks:
            if task.name in wanted:
                value, n = self.values[task.name], len(wanted[task.name])
                if task.record.per == "map":
                    found[task.name] = Maps(value[None], np.zeros(n, np.int64))  # one map, which every row points to
                else:
                    found[task.name] = np.tile(value, (n, *(1 for _ in value.shape)))
        return {name: found[name] for name in wanted}

    def costs(self) -> Costs:
        """A number stored and one copied for each that it answers."""
        size = sum(value.size for value in self.values.values())
        rows, began = 1024, time.perf_counter()
        for value in self.values.values():
            np.tile(value, (rows, *(1 for _ in value.shape)))
        seconds = max(time.perf_counter() - began, 1e-9)
        return Costs(size, float(size), 8 * size, float(self.record.get("seconds", 0.0)), rows / seconds)

    def write(self, folder: Path) -> dict[str, Any]:
        (folder / FILE).write_text(json.dumps({name: value.tolist() for name, value in self.values.items()}), "utf-8")
        return {}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: Any) -> Constants:
        found = read_json(folder / FILE, what="file of constants")
        if not isinstance(found, dict) or set(found) != {task.name for task in tasks}:
            raise BadInput("holds no constant for each of the tasks", where=FILE, remedy="restore the folder")
        try:
            values = {name: np.asarray(value, np.float64) for name, value in found.items()}
        except (TypeError, ValueError) as error:
            raise BadInput(f"holds what is not a number ({error})", where=FILE, remedy="restore the folder") from error
        for task in tasks:
            value = values[task.name]
            if not np.isfinite(value).all():
                raise BadInput("is not finite", where=f"{FILE}, task {task.name!r}", remedy="restore the folder")
            if task.record.per == "value" and value.shape != task.record.shape(task):
                what = f"has shape {list(value.shape)}, not {list(task.record.shape(task))}"
                raise BadInput(what, where=f"{FILE}, task {task.name!r}", remedy="restore the folder")
        return cls(tasks, columns, values)


class Constant(Candidate):
    """The constant predictor of each task: it reads no input, and learns in no time."""

    name = "constant"
    road = "train"
    label = "the constant predictor"
    per_task = True
    cells = frozenset({"value", "map"})

    def ignored(self, data: Prepared) -> list[str]:
        """None in particular: no input changes its answer."""
        return []

    def estimate(self, data: Prepared) -> float:
        """A few looks at every label."""
        return 1e-4 * len(data.tasks) + sum(1e-8 * len(data.labelled(task.name, "train")) for task in data.tasks)

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Constants:
        """Take the best constant of each task; the budget and the seed play no part."""
        began = time.process_time()
        values: dict[str, Any] = {}
        curves: dict[str, list[float | None]] = {}
        for task in data.tasks:
            train, valid = data.labelled(task.name, "train"), data.labelled(task.name, "valid")
            if not len(train):
                raise BadInput("has no label in the training part", where=f"task {task.name!r}", remedy="drop the task")
            values[task.name] = best_constant(task, train.values, train.weight)
            metric, score = task.main_metric, float("nan")
            if len(valid):
                groups = data.units[valid.rows] if metric.grouped else None
                score = float(metrics.of_constant(metric, values[task.name], valid.values, valid.weight, groups))
            curves[task.name] = [score if np.isfinite(score) else None]
        fitted = Constants(data.tasks, data.columns, values)
        seconds = time.process_time() - began
        fitted.record = FitRecord(settings={}, seed=seed, curves=curves, undertrained=[], seconds=seconds)
        return fitted
