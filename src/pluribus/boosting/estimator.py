"""What all boosters share: the scikit-learn contract, the shapes in which tables, tasks and labels come, saving.

A subclass fits itself in `_boost` on encoded cells and answers `_raw(table, task)`; everything a user sees is here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pluribus.boosting import cells as cells_
from pluribus.boosting import storage
from pluribus.boosting.cells import BoosterCells
from pluribus.boosting.columns import Columns, is_frame
from pluribus.boosting.histogram import Floats, Ints
from pluribus.errors import BadInput, unknown


@dataclass(frozen=True)
class Range:
    """The values a numeric parameter may take: low <= value <= high, open ends where said; None where allowed."""

    low: float
    high: float = np.inf
    open_low: bool = False
    whole: bool = False
    none: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise BadInput unless `value` lies in the range."""
        if value is None and self.none:
            return
        number = isinstance(value, int | np.integer) or (not self.whole and isinstance(value, float | np.floating))
        if number and not isinstance(value, bool) and self.low <= value <= self.high and (value > self.low or not self.open_low):
            return
        what = "a whole number" if self.whole else "a number"
        span = f"{'above' if self.open_low else 'from'} {self.low:g}" + (f" to {self.high:g}" if np.isfinite(self.high) else "")
        raise BadInput(f"{value!r} is not {what} {span}", where=name, remedy="give one" + (" or None" if self.none else ""))


COUNT = Range(0, whole=True)
POSITIVE_COUNT = Range(1, whole=True)
NON_NEGATIVE = Range(0)
SHARE = Range(0, 1, open_low=True)

# the parameters of trees and rounds that the boosters of this package share
RANGES: dict[str, Range] = {
    "learning_rate": Range(0, open_low=True),
    "max_depth": Range(1, whole=True, none=True),
    "max_leaf_nodes": Range(2, whole=True, none=True),
    "min_samples_leaf": POSITIVE_COUNT,
    "min_child_weight": NON_NEGATIVE,
    "l2_regularization": NON_NEGATIVE,
    "min_split_gain": NON_NEGATIVE,
    "cat_smooth": NON_NEGATIVE,
    "subsample": SHARE,
    "colsample": SHARE,
    "max_bins": Range(2, 255, whole=True),
    "validation_fraction": Range(0, 1, open_low=True),
    "n_iter_no_change": POSITIVE_COUNT,
    "n_jobs": Range(-64, whole=True, none=True),
}


@dataclass(frozen=True)
class Valid:
    """Held-out cells for early stopping: table[row[i]] has the encoded label y[i] in task[i]; unit: what it belongs to."""

    table: Floats
    row: Ints
    task: Ints
    y: Any
    weight: Floats | None
    unit: Ints


class TaskBooster(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Base of the boosters.

    Attributes
    ----------
    tasks_ : tuple
        The ids of the fitted tasks, in the order of every attribute that has one entry per task.
    n_features_in_ : int
        Columns of the table.
    feature_names_in_ : ndarray of str
        Their names; of frames only.
    """

    _ranges: ClassVar[dict[str, Range]] = RANGES
    _choices: ClassVar[dict[str, tuple[Any, ...]]] = {"unknown_task": ("majority", "error")}

    random_state: Any
    categorical_features: Any
    unknown_task: str
    early_stopping: bool
    validation_fraction: float
    progress: bool | Callable[[dict[str, Any]], Any]
    n_jobs: int | None
    tasks_: tuple[Any, ...]
    columns_: Columns
    form_: str
    container_: str

    # what a subclass provides -----------------------------------------------------------------------------------------
    def _encode(self, cells: BoosterCells, fit: bool) -> Any:
        """The labels of the cells as numbers."""
        raise NotImplementedError

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        raise NotImplementedError

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        """Raw scores: [n, K] of each row's task, or for task None a list over tasks of [n, K_t]."""
        raise NotImplementedError

    def _decode(self, raw: Floats, task: int | Ints) -> Any:
        """Predictions from raw scores of one task (an int) or of each row's task."""
        raise NotImplementedError

    def _check_loaded(self) -> None:
        """Refuse what a stranger's file may hold: raises BadInput unless the loaded state is sound."""

    # fitting ----------------------------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None, eval_set: tuple[Any, ...] | None = None) -> Self:
        """Fit the booster.

        Parameters
        ----------
        X : array, frame or dict
            [N, d], NaN where a value is missing (in frames category and string columns are categorical); or task -> table.
        y : array, frame or dict
            Long: labels [N] with `task`. Wide: [N, T], or task -> [N], NaN where a label is missing. With a dict X a dict of
            labels, by task.
        task : array or str, optional
            Task ids [N], or the name of the column of X that holds them. None: a single task (or wide labels).
        sample_weight : array or dict, optional
            [N]; for wide labels also [N, T] or a dict. Rows of weight 0 are as if they were not there.
        eval_set : tuple, optional
            (X, y), (X, y, task) or (X, y, task, units) to stop early on, instead of a held-out share of the rows. task: None for
            wide labels; units [rows]: rows with the same one are no independent evidence (default: each row its own).

        Raises
        ------
        BadInput
            Something cannot be used; the message names the argument.
        """
        self._check_parameters()
        rng = check_random_state(self.random_state)
        table, task, y = self._read_table(X, task, y, reset=True)
        cells = cells_.read_cells(y, len(table), task, sample_weight)
        if cells.weight is not None and (cells.weight == 0).any():
            keep = cells.weight > 0
            cells = replace(cells, row=cells.row[keep], task=cells.task[keep], y=cells.y[keep], weight=cells.weight[keep])
            for t in np.setdiff1d(np.arange(len(cells.names)), cells.task):
                raise BadInput("has no label with a positive weight", where=f"task {cells.names[t]!r}", remedy="drop the task")
        self.tasks_, self.form_ = cells.names, cells.form
        self.container_ = "dict" if isinstance(X, Mapping) else cells.container
        codes = self._encode(cells, True)
        valid = None
        if eval_set is not None:
            if not self.early_stopping:
                raise BadInput("is given but early_stopping is off", where="eval_set", remedy="set early_stopping=True")
            valid = self._read_valid(eval_set)
        elif self.early_stopping:
            kept, held = hold_out(cells, self.validation_fraction, rng)
            if len(held):
                weight = None if cells.weight is None else cells.weight[held]
                used, place = np.unique(cells.row[held], return_inverse=True)
                valid = Valid(table[used], place, cells.task[held], codes[held], weight, place)
                weight = None if cells.weight is None else cells.weight[kept]
                cells = replace(cells, row=cells.row[kept], task=cells.task[kept], y=cells.y[kept], weight=weight)
                codes = codes[kept]
        self._boost(table, cells, codes, valid, rng)
        return self

    def _check_parameters(self) -> None:
        given = self.get_params(deep=False)
        for name, allowed in self._ranges.items():
            if name in given:
                allowed.check(name, given[name])
        for name, options in self._choices.items():
            if name in given and given[name] not in options:
                raise unknown("value", str(given[name]), [str(o) for o in options], where=name)

    def _read_table(self, X: Any, task: Any, y: Any = None, *, reset: bool = False) -> tuple[Floats, Any, Any]:
        if isinstance(X, Mapping) and not hasattr(X, "tocsr"):  # some sparse matrices are mappings
            if task is not None:
                raise BadInput("is given together with a dict of tables", where="task", remedy="leave it out")
            if y is not None:
                if not isinstance(y, Mapping) or set(y) != set(X):
                    raise BadInput("must be a dict with the tasks of X", where="y", remedy="give labels for each table")
                parts = [np.asarray(y[name]) for name in X]
                for name, part in zip(X, parts):
                    if len(part) != len(X[name]):
                        raise BadInput(f"{len(X[name])} rows but {len(part)} labels", where=f"task {name!r}")
                y = np.concatenate(parts)
            X, task = cells_.stack(X)
        X, task = cells_.split_table(X, task)
        try:
            if is_frame(X):
                if len(X) == 0:
                    raise BadInput("Found array with 0 sample(s) in X while a minimum of 1 is required")
                if X.shape[1] == 0:
                    raise BadInput("Found array with 0 feature(s) in X while a minimum of 1 is required")
                validate_data(self, X, reset=reset, skip_check_array=True)
            else:
                X = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        except ValueError as error:
            raise error if isinstance(error, BadInput) else BadInput(str(error)) from error
        if y is None and reset:
            raise BadInput(f"{type(self).__name__} requires y to be passed, but the target y is None")
        if reset:
            self.columns_ = Columns.fit(X, self.categorical_features)
        return self.columns_.matrix(X), task, y

    def _read_valid(self, eval_set: tuple[Any, ...]) -> Valid:
        if len(eval_set) not in (2, 3, 4):
            remedy = "give (X, y), (X, y, task) or (X, y, task, units)"
            raise BadInput(f"has {len(eval_set)} parts", where="eval_set", remedy=remedy)
        X, y, task, units = (*eval_set, None, None)[:4]
        table, task, y = self._read_table(X, task, y)
        cells = cells_.read_cells(y, len(table), task)
        unit = np.arange(len(table)) if units is None else np.asarray(units)
        if unit.shape != (len(table),):
            what = f"has units of shape {unit.shape} for {len(table)} rows"
            raise BadInput(what, where="eval_set", remedy="give one unit a row")
        if cells.form == self.form_ == cells_.WIDE and len(cells.names) == len(self.tasks_) and cells.container == "array":
            index = np.arange(len(self.tasks_))
        else:
            index = cells_.task_index(self.tasks_, np.array(cells.names, dtype=object), "error")
        cells = replace(cells, names=self.tasks_, task=index[cells.task])
        return Valid(table, cells.row, cells.task, self._encode(cells, False), cells.weight, unit[cells.row])

    def _report(self, block: str, done: int, total: int, **values: Any) -> bool:
        """Tell `progress` of a finished round; True if it answers False: stop here."""
        if callable(self.progress):
            return self.progress({"block": block, "round": done, "rounds": total, **values}) is False
        if self.progress and (done == total or done % max(total // 10, 1) == 0):
            loss = "".join(f", {name} {value:.6g}" for name, value in values.items() if isinstance(value, float))
            print(f"{block}: {done}/{total}{loss}", file=sys.stderr)
        return False

    # predicting -------------------------------------------------------------------------------------------------------
    def predict(self, X: Any, task: Any = None) -> Any:
        """Predictions in the container that the labels came in.

        Parameters
        ----------
        X : array, frame or dict
            As in `fit`.
        task : array or str, optional
            Task ids or the name of their column: one prediction a row, [n]. None: all tasks, for wide labels; a booster
            that was fitted on long labels of several tasks needs the task.
        """
        return self._answer(X, task, self._decode)

    def _answer(self, X: Any, task: Any, decode: Callable[[Floats, Any], Any], *, dictionary: bool = False) -> Any:
        check_is_fitted(self, "tasks_")
        table, ids, _ = self._read_table(X, task)
        if ids is None and self.form_ == cells_.LONG and len(self.tasks_) > 1:
            raise BadInput("the booster was fitted on several tasks", where="task", remedy="say which task each row belongs to")
        if ids is not None or self.form_ != cells_.WIDE:
            index = np.zeros(len(table), dtype=np.int64)
            if ids is not None:
                index = cells_.task_index(self.tasks_, cells_.read_task(ids, len(table)), self.unknown_task)
            found = decode(self._raw(table, index), index)
            if isinstance(X, Mapping):
                return {name: found[[i == name for i in ids]] for name in X}
            return found
        columns = [decode(raw, t) for t, raw in enumerate(self._raw(table, None))]
        if dictionary or self.container_ == "dict":
            return dict(zip(self.tasks_, columns))
        if self.container_ == "frame":
            import pandas as pd

            return pd.DataFrame(dict(zip(self.tasks_, columns)), index=X.index if is_frame(X) else None)
        return np.column_stack(columns)

    def _score(self, X: Any, y: Any, task: Any, sample_weight: Any, metric: Callable[..., float]) -> float:
        table, ids, labels = self._read_table(X, task, y)
        cells = cells_.read_cells(labels, len(table), ids, sample_weight)
        found = self._answer(X, task, self._decode, dictionary=True)
        if cells.form != cells_.WIDE:
            if isinstance(found, dict):
                found = np.concatenate([found[name] for name in X])
            return float(metric(cells.y, found, sample_weight=cells.weight))
        each = []
        for t, name in enumerate(cells.names):
            own = cells.task == t
            weight = None if cells.weight is None else cells.weight[own]
            predicted = found[self.tasks_[t] if cells.container == "array" else name][cells.row[own]]
            each.append(metric(cells.y[own], predicted, sample_weight=weight))
        return float(np.mean(each))

    # saving -----------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write the fitted booster to a folder (JSON and npz; nothing is pickled); `pluribus.boosting.load` reads it."""
        check_is_fitted(self, "tasks_")
        storage.save(self, folder)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.multi_output = True
        return tags


def hold_out(cells: BoosterCells, share: float, rng: np.random.RandomState) -> tuple[Ints, Ints]:
    """Indices of the cells to fit on and to hold out: whole rows of wide labels, else a share of every task's rows.

    A task keeps at least one cell to fit on.
    """
    if cells.form == cells_.WIDE:
        held_row = np.zeros(cells.n_rows, dtype=bool)
        held_row[rng.permutation(cells.n_rows)[: round(share * cells.n_rows)]] = True
        held = held_row[cells.row]
    else:
        held = np.zeros(len(cells.row), dtype=bool)
        order = np.argsort(cells.task, kind="stable")
        for own in np.split(order, np.cumsum(np.bincount(cells.task, minlength=len(cells.names)))[:-1]):
            held[rng.permutation(own)[: round(share * len(own))]] = True
    for t in range(len(cells.names)):
        own = cells.task == t
        if own.any() and held[own].all():
            held[own] = False
    return np.flatnonzero(~held), np.flatnonzero(held)


def threads(n_jobs: int | None) -> int:
    """How many threads `n_jobs` means: None 1, -1 all cores, -2 all but one."""
    import os

    if n_jobs is None or n_jobs == 0:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return n_jobs if n_jobs > 0 else max(cores + 1 + n_jobs, 1)


class TaskRegressor(RegressorMixin, TaskBooster):  # type: ignore[misc]
    """A booster of regression tasks."""

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """R^2 of all rows together; for wide labels the mean over tasks of R^2 on their labelled cells."""
        return self._score(X, y, task, sample_weight, r2_score)


class TaskClassifier(ClassifierMixin, TaskBooster):  # type: ignore[misc]
    """A booster of classification tasks."""

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """Accuracy of all rows together; for wide labels the mean over tasks of the accuracy on their labelled cells."""
        return self._score(X, y, task, sample_weight, accuracy_score)
