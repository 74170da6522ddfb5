"""Judging a network on the validation part: its predictions, each task's score and skill, and the rule that training stops by."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data.prepared import Cells, Prepared
from pluribus.evaluation import metrics
from pluribus.evaluation.skill import best_constant, skill
from pluribus.modeling import MultiTaskModel
from pluribus.tasks import Task

EVALUATION_ROWS = 8192


@torch.no_grad()
def predict(model: MultiTaskModel, data: Prepared, rows: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Predictions of an encoded table: task → rows asked for → [m] or [m, C] float64, in batches, each row encoded once."""
    device = next(model.parameters()).device
    union = torch.unique(torch.cat(list(rows.values()))) if rows else torch.zeros(0, dtype=torch.int64)
    pieces: dict[str, list[Tensor]] = {name: [] for name in rows}
    for start in range(0, len(union), EVALUATION_ROWS):
        chunk = union[start : start + EVALUATION_ROWS]
        batch = data.batch(chunk, ()).to(device)
        for name, value in model.predict(batch.inputs, dict.fromkeys(rows), batch.context).items():
            pieces[name].append(value.double().cpu())
    found = {}
    for name, wanted in rows.items():
        whole = torch.cat(pieces[name]) if pieces[name] else torch.zeros(0, dtype=torch.float64)
        found[name] = whole[torch.searchsorted(union, wanted.contiguous())].numpy()
    return found


class Judge:
    """One task on the validation part: its cells, its main metric, and what the constant predictor scores."""

    def __init__(self, task: Task, data: Prepared) -> None:
        self.task = task
        self.cells: Cells = data.labelled(task.name, "valid")
        self.groups = data.units[self.cells.rows] if task.main_metric.name in metrics.GROUPED else None
        train = data.labelled(task.name, "train")
        self.constant = math.nan
        if len(train) and len(self.cells):
            best = best_constant(task, train.values, train.weight)
            self.constant = metrics.of_constant(task.main_metric.name, best, self.cells.values, self.cells.weight, self.groups)

    def score(self, prediction: NDArray[np.float64]) -> float:
        if not len(self.cells):
            return math.nan
        value = metrics.compute(self.task.main_metric.name, prediction, self.cells.values, self.cells.weight, groups=self.groups)
        return float(np.asarray(value))

    def skill(self, score: float) -> float:
        """See `pluribus.evaluation.skill`."""
        return skill(self.task.main_metric, score, self.constant)


def rule(name: str, skills: Mapping[str, float], tasks: Mapping[str, Task]) -> float:
    """Mean or worst skill over the main tasks (all of them where none is main), or one task's."""
    if name in skills:
        value = skills[name]
        return value if math.isfinite(value) else -math.inf
    main = [task for task in skills if tasks[task].role == "main"] or list(skills)
    known = [skills[task] for task in main if math.isfinite(skills[task])]
    if not known:
        return -math.inf
    return min(known) if name == "worst" else sum(known) / len(known)
