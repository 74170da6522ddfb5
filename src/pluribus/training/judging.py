"""Judging a network on the validation part: its predictions, each task's score and skill, and the rule that training stops by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data import Cells, Dataset
from pluribus.evaluation import metrics
from pluribus.evaluation.skill import best_constant, skill
from pluribus.modeling import MultiTaskModel
from pluribus.modeling.pieces import bytes_per_row, pieces
from pluribus.tasks import Task


@torch.no_grad()
def predict(
    model: MultiTaskModel, data: Dataset, rows: Mapping[str, Tensor], *, bytes_each: float | None = None
) -> dict[str, NDArray[np.float64]]:
    """Predictions of an encoded table, in pieces of bounded memory, each row encoded once.

    Parameters
    ----------
    model : MultiTaskModel
        The network; it predicts on its own device.
    data : Dataset
        The encoded table.
    rows : mapping of str to Tensor
        Task → the rows asked for (int64 [m]).
    bytes_each : float or None
        Bytes of a row's inputs and outputs, as `row_bytes` found them; None: measured here.

    Returns
    -------
    dict of str to ndarray of float64
        Task → [m] or [m, C], in the order of its rows.
    """
    union, run = _passes(model, data, rows)
    parts: dict[str, list[Tensor]] = {name: [] for name in rows}
    if not len(union):
        return {name: np.zeros(0) for name in rows}
    for piece in pieces(len(union), bytes_per_row(run, len(union)) if bytes_each is None else bytes_each):
        for name, value in run(piece)[1].items():
            parts[name].append(value.double().cpu())
    return {name: torch.cat(parts[name])[torch.searchsorted(union, rows[name].contiguous())].numpy() for name in rows}


def row_bytes(model: MultiTaskModel, data: Dataset, rows: Mapping[str, Tensor]) -> float:
    """Bytes of one row's inputs and outputs (see `pluribus.modeling.pieces`), for `predict` of the same rows again and again."""
    union, run = _passes(model, data, rows)
    return bytes_per_row(run, len(union))


def _passes(
    model: MultiTaskModel, data: Dataset, rows: Mapping[str, Tensor]
) -> tuple[Tensor, Callable[[slice], tuple[Any, dict[str, Tensor]]]]:
    """The rows that any task asks for, each once, and the forward pass of a piece of them: (inputs, predictions)."""
    device = next(model.parameters()).device
    union = torch.unique(torch.cat(list(rows.values()))) if rows else torch.zeros(0, dtype=torch.int64)

    def run(piece: slice) -> tuple[Any, dict[str, Tensor]]:
        batch = data.batch(union[piece], ()).to(device)
        return batch.inputs, model.predict(batch.inputs, dict.fromkeys(rows), batch.context)

    return union, run


class Judge:
    """One task on the validation part: its cells, its main metric, and what the constant predictor scores."""

    def __init__(self, task: Task, data: Dataset) -> None:
        self.task = task
        self.cells: Cells = data.labelled(task.name, "valid")
        self.groups = data.units[self.cells.rows] if task.main_metric.grouped else None
        train = data.labelled(task.name, "train")
        self.constant = math.nan
        if len(train) and len(self.cells):
            best = best_constant(task, train.values, train.weight)
            self.constant = metrics.of_constant(task.main_metric, best, self.cells.values, self.cells.weight, self.groups)

    def score(self, prediction: NDArray[np.float64]) -> float:
        if not len(self.cells):
            return math.nan
        value = metrics.compute(self.task.main_metric, prediction, self.cells.values, self.cells.weight, groups=self.groups)
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
