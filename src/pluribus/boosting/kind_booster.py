"""Boosters whose tasks each have an `BoosterObjective`: labels to numbers and scores to predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pluribus.boosting.cells import WIDE, BoosterCells, task_index
from pluribus.boosting.estimator import TaskBooster, TaskClassifier, TaskRegressor
from pluribus.boosting.histogram import Floats, Ints
from pluribus.boosting.objectives import BoosterObjective, Softmax, Squared
from pluribus.errors import BadInput


class KindBooster(TaskBooster):
    """A booster with one objective a task, `objectives_`, and the columns of its scores side by side."""

    objectives_: list[BoosterObjective]

    def _objective(self, task: Any, y: Any) -> BoosterObjective:
        """The objective of one task's labels."""
        raise NotImplementedError

    def _shares_objective(self, cells: BoosterCells) -> bool:
        """Whether all tasks have one objective, with the same classes: so it is unless labels are wide."""
        return cells.form != WIDE

    def _encode(self, cells: BoosterCells, fit: bool) -> Any:
        T = len(cells.names)
        own = [cells.task == t for t in range(T)]
        if fit:
            shared = self._objective("of all rows", cells.y) if self._shares_objective(cells) else None
            self.objectives_ = [shared or self._objective(cells.names[t], cells.y[own[t]]) for t in range(T)]
        codes = np.empty(len(cells.row))
        for t in range(T):
            codes[own[t]] = self.objectives_[t].encode(cells.y[own[t]], f"task {cells.names[t]!r}" if T > 1 else "y")
        return codes

    @property
    def _first(self) -> Ints:
        """Where each task's columns start, [T + 1]."""
        return np.cumsum([0, *(o.outputs for o in self.objectives_)])

    def _task_number(self, task: Any) -> int:
        return int(task_index(self.tasks_, np.array([task], dtype=object), "error")[0])

    def _pick(self, per_task: list[Floats], task: Ints) -> Floats:
        """The scores of each row's task from those of all tasks; for an unseen task (-1) the mean over tasks."""
        kinds = {(o.kind, o.outputs) for o in self.objectives_}
        widest = max(width for _, width in kinds)
        stacked = np.stack([np.pad(p, ((0, 0), (0, widest - p.shape[1]))) for p in per_task], axis=1)
        if (task < 0).any():
            if len(kinds) > 1:
                raise BadInput("an unseen task has no kind", where="task", remedy="predict fitted tasks only")
            stacked = np.concatenate([stacked, stacked.mean(axis=1, keepdims=True)], axis=1)
        picked: Floats = stacked[np.arange(len(task)), task]
        return picked

    def _decode(self, raw: Floats, task: int | Ints) -> Any:
        return self._by_task(raw, task, lambda o, F: o.decode(F))

    def _by_task(self, raw: Floats, task: int | Ints, of: Callable[[BoosterObjective, Floats], Any]) -> Any:
        if isinstance(task, int):
            return of(self.objectives_[task], raw)
        if all(o.like(self.objectives_[0]) for o in self.objectives_):
            return of(self.objectives_[0], raw)
        parts = {int(t): of(self.objectives_[t], raw[task == t][:, : self.objectives_[t].outputs]) for t in np.unique(task)}
        numeric = all(p.dtype.kind in "fiub" for p in parts.values())
        kind = np.result_type(*(p.dtype for p in parts.values())) if numeric else object
        if next(iter(parts.values())).ndim == 1:
            found = np.empty(len(task), dtype=kind)
            for t, part in parts.items():
                found[task == t] = part
            return found
        found = np.zeros((len(task), max(p.shape[1] for p in parts.values())), dtype=kind)
        for t, part in parts.items():  # probabilities: 0 beyond a task's own classes
            found[task == t, : part.shape[1]] = part
        return found


class KindRegressor(KindBooster, TaskRegressor):
    """All tasks are regressions."""

    def _objective(self, task: Any, y: Any) -> BoosterObjective:
        return Squared.of(y, f"task {task!r}")


class KindClassifier(KindBooster, TaskClassifier):
    """All tasks are classifications."""

    def _objective(self, task: Any, y: Any) -> BoosterObjective:
        return Softmax.of(y, f"task {task!r}")

    @property
    def classes_(self) -> Any:
        """Class labels: one array, or a list of arrays where the tasks have their own (wide labels)."""
        if all(o.like(self.objectives_[0]) for o in self.objectives_) and self.form_ != WIDE:
            return self.objectives_[0].classes
        return [o.classes for o in self.objectives_]

    def predict_proba(self, X: Any, task: Any = None) -> Any:
        """Class probabilities [n, classes]. Wide labels: a dict over tasks."""
        return self._answer(X, task, lambda raw, t: self._by_task(raw, t, lambda o, F: o.proba(F)), dictionary=True)

    def decision_function(self, X: Any, task: Any = None) -> Any:
        """Raw scores: [n] for two classes, else [n, classes]. Wide labels: a dict over tasks."""
        return self._answer(X, task, lambda raw, t: raw[:, 0] if raw.shape[1] == 1 else raw, dictionary=True)
