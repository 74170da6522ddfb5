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
from pluribus.modeling.pieces import bytes_per_row, collected, pieces
from pluribus.tasks import Task
from pluribus.tasks.forms import joined
from pluribus.tasks.metrics import Additive
from pluribus.tasks.weightings import Weightings


@torch.no_grad()
def predict(
    model: MultiTaskModel,
    data: Dataset,
    rows: Mapping[str, Tensor],
    *,
    bytes_each: float | None = None,
    keep: Mapping[str, Callable[[Any, NDArray[np.int64]], Any]] | None = None,
) -> dict[str, Any]:
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
    keep : mapping of str to callable or None
        Task → what is kept of a piece's predictions, from (predictions, their positions among the task's rows); default: the
        predictions.

    Returns
    -------
    dict of str to ndarray, Ragged or Maps
        Task → predictions, or what is kept of them, in the order of its rows: [m] or [m, C], lists, maps.
    """
    union, run = _passes(model, data, rows)
    if not len(union):
        return {name: np.zeros(0) for name in rows}
    places = {name: torch.searchsorted(union, wanted.contiguous()).numpy() for name, wanted in rows.items()}
    kept: dict[str, list[Any]] = {name: [] for name in rows}
    order: dict[str, list[NDArray[np.int64]]] = {name: [] for name in rows}
    for piece in pieces(len(union), bytes_per_row(run, len(union)) if bytes_each is None else bytes_each):
        for name, value in run(piece)[1].items():
            here = np.flatnonzero((places[name] >= piece.start) & (places[name] < piece.stop))
            if len(here) or not kept[name]:  # a task without a row has an empty answer in its own form
                own = collected(model.form[name], [value])[places[name][here] - piece.start]
                kept[name].append(keep[name](own, here) if keep and name in keep else own)
                order[name].append(here)
    return {name: joined(kept[name])[np.argsort(np.concatenate(order[name]))] for name in rows}


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


def watched(task: Task) -> Task:
    """The task as training watches it: by the cheap metric that its kind names, where there is one."""
    cheap = task.record.watch
    return task if cheap is None else task.with_(metrics=(cheap, *task.metrics))


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

    @property
    def by_terms(self) -> bool:
        """Whether terms are kept in place of predictions: maps and lists are large, and their metric is a function of sums."""
        return isinstance(self.task.main_metric, Additive) and not isinstance(self.cells.values, np.ndarray)

    def score(self, prediction: Any) -> float:
        """The metric of predictions of all cells; NaN where there is none."""
        if not len(self.cells):
            return math.nan
        value = metrics.compute(self.task.main_metric, prediction, self.cells.values, self.cells.weight, groups=self.groups)
        return float(np.asarray(value))

    def terms(self, prediction: Any, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """The metric's terms [m, k] of predictions of some cells, by their positions."""
        metric = self.task.main_metric
        assert isinstance(metric, Additive)
        return metric.each(*metric.checked(prediction, self.cells.values[at]))

    def score_of(self, terms: NDArray[np.float64]) -> float:
        """The metric from the terms of all cells; NaN where there is none."""
        metric = self.task.main_metric
        assert isinstance(metric, Additive)
        if not len(self.cells):
            return math.nan
        weight = np.ones(len(self.cells)) if self.cells.weight is None else self.cells.weight
        return float(metric.finished(Weightings.of_rows(weight[None]).sums(terms))[0])

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
