"""The baselines that every report must carry, on LightGBM's trees, under the same interface as the multi-task boosters.

PerTask…       one booster a task; on wide labels it is the multi-output wrapper, with missing labels left out.
Pooled…        one booster for all rows, without the task id, or with it as a categorical feature (`task_id=True`).
PooledOffset…  a pooled booster whose raw score is the initial score of a small booster a task.

LightGBM's `predict` does not add an initial score back; here every score starts at the best constant (or at the pooled
score) and the starts are added back.
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import lightgbm
import numpy as np

from pluribus.boosting.cells import BoosterCells
from pluribus.boosting.columns import signs
from pluribus.boosting.estimator import COUNT, POSITIVE_COUNT, RANGES, Range, Valid, threads
from pluribus.boosting.histogram import Floats, Ints
from pluribus.boosting.kind_booster import KindBooster, KindClassifier, KindRegressor
from pluribus.boosting.objectives import BoosterObjective
from pluribus.boosting.settings import EarlyStopping, TreeSettings
from pluribus.errors import BadInput


@dataclass(eq=False, repr=False)
class LightGBMSettings(TreeSettings):
    """The parameters that go to LightGBM."""

    n_estimators: int = 100
    _: KW_ONLY
    min_samples_leaf: int = 20
    min_child_weight: float = 1e-3
    params: dict[str, Any] | None = None


@dataclass(eq=False, repr=False)
class StoppedSettings(EarlyStopping, LightGBMSettings):
    """The same with early stopping."""


@dataclass(eq=False, repr=False)
class PooledSettings(StoppedSettings):
    """The same, with or without the task id."""

    _: KW_ONLY
    task_id: bool = False


@dataclass(eq=False, repr=False)
class OffsetSettings(StoppedSettings):
    """The same, with the rounds of each task."""

    n_task: int = 50


class _LightGBM(LightGBMSettings, KindBooster):
    """Trees by LightGBM. `params`: further LightGBM parameters, which win over the named ones."""

    _ranges: ClassVar[dict[str, Range]] = RANGES | {"n_estimators": POSITIVE_COUNT, "n_task": COUNT}

    starts_: list[Floats]

    def _settings(self, o: BoosterObjective, seed: int, constraints: Any) -> dict[str, Any]:
        return {
            "objective": o.lightgbm,
            "learning_rate": self.learning_rate,
            "max_depth": self.max_depth or -1,
            "num_leaves": self.max_leaf_nodes or min(2 ** (self.max_depth or 17), 131072),
            "min_data_in_leaf": self.min_samples_leaf,
            "min_sum_hessian_in_leaf": self.min_child_weight,
            "lambda_l2": self.l2_regularization,
            "min_gain_to_split": self.min_split_gain,
            "bagging_fraction": self.subsample,
            "bagging_freq": int(self.subsample < 1),
            "feature_fraction": self.colsample,
            "max_bin": self.max_bins,
            "num_threads": threads(self.n_jobs),
            "boost_from_average": False,
            "verbose": -1,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "min_data_in_bin": 1,
            **({"num_class": o.outputs} if o.outputs > 1 else {}),
            **({"monotone_constraints": constraints.tolist()} if constraints.any() else {}),
            **(self.params or {}),
        }

    def _train(
        self,
        table: Floats,
        y: Floats,
        w: Floats | None,
        start: Floats,
        o: BoosterObjective,
        rounds: int,
        seed: int,
        name: str,
        valid: tuple[Floats, Floats, Floats] | None,
        extra_category: bool = False,
    ) -> Any:
        """A LightGBM booster from initial scores `start` [n, K]; None where there is nothing to learn.

        valid: held-out (table, labels, initial scores). extra_category: the last column is a category of its own.
        """
        if rounds == 0 or len(np.unique(y)) < (1 if len(np.unique(start)) > 1 else 2):
            return None
        sign = signs(self.monotone_constraints, self.columns_)
        if sign.any() and o.outputs > 1:
            raise BadInput(f"{len(o.classes)} classes have no order", where="monotone_constraints", remedy="drop them")
        categorical = np.append(self.columns_.categorical, True) if extra_category else self.columns_.categorical
        sign = np.append(sign, 0) if extra_category else sign
        settings = self._settings(o, seed, sign)
        given: dict[str, Any] = {"categorical_feature": np.flatnonzero(categorical).tolist(), "params": settings}
        data = lightgbm.Dataset(table, y, weight=w, init_score=start.ravel(order="F"), **given)
        callbacks: list[Any] = []
        held = []
        if valid is not None and len(valid[1]):
            held = [lightgbm.Dataset(valid[0], valid[1], init_score=valid[2].ravel(order="F"), reference=data, params=settings)]
            callbacks.append(lightgbm.early_stopping(self.n_iter_no_change, verbose=False))
        if self.progress:
            callbacks.append(lambda env: self._report(name, env.iteration + 1, rounds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lightgbm.train(settings, data, rounds, valid_sets=held or None, callbacks=callbacks)

    def _predict(self, booster: Any, table: Floats, outputs: int) -> Floats:
        if booster is None or not len(table):
            return np.zeros((len(table), outputs))
        found: Floats = booster.predict(table, raw_score=True, num_threads=threads(self.n_jobs)).reshape(len(table), outputs)
        return found

    def _contributions_of(self, booster: Any, table: Floats, outputs: int, width: int) -> tuple[Floats, Floats]:
        if booster is None:
            return np.zeros((len(table), width, outputs)), np.zeros(outputs)
        found = booster.predict(table, pred_contrib=True, num_threads=threads(self.n_jobs))
        found = found.reshape(len(table), outputs, width + 1).transpose(0, 2, 1)
        return found[:, :-1], found[0, -1] if len(table) else np.zeros(outputs)

    def _gain(self, booster: Any, width: int) -> Floats:
        if booster is None:
            return np.zeros(width)
        gain: Floats = booster.feature_importance("gain")
        return gain

    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, [d], by block ("shared" and "task", as far as the method has them)."""
        raise NotImplementedError

    @property
    def feature_importances_(self) -> Floats:
        """Gain a feature over all blocks, summing to 1 (or all 0 without a split)."""
        total = np.sum(list(self.importances().values()), axis=0)
        share: Floats = total / total.sum() if total.sum() > 0 else total
        return share

    def _seed(self, rng: np.random.RandomState) -> int:
        return int(rng.randint(2**31 - 1))


class _PerTaskLightGBM(StoppedSettings, _LightGBM):
    boosters_: list[Any]

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        self.boosters_, self.starts_ = [], []
        for t, o in enumerate(self.objectives_):
            own = np.flatnonzero(cells.task == t)
            w = None if cells.weight is None else cells.weight[own]
            start = o.start(y[own], np.ones(len(own)) if w is None else w)
            self.starts_.append(start)
            held = None
            if valid is not None:
                mine = valid.task == t
                held = (valid.table[valid.row[mine]], valid.y[mine], np.tile(start, (int(mine.sum()), 1)))
            scores = np.tile(start, (len(own), 1))
            name = f"task {self.tasks_[t]!r}"
            self.boosters_.append(
                self._train(table[cells.row[own]], y[own], w, scores, o, self.n_estimators, self._seed(rng), name, held)
            )

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        def score(t: int, rows: Any) -> Floats:
            return self.starts_[t] + self._predict(self.boosters_[t], table[rows], self.objectives_[t].outputs)

        T = len(self.tasks_)
        if task is None:
            return [score(t, slice(None)) for t in range(T)]
        if (task < 0).any():
            return self._pick([score(t, slice(None)) for t in range(T)], task)
        found = np.zeros((len(table), max(o.outputs for o in self.objectives_)))
        for t in np.unique(task):
            rows = np.flatnonzero(task == t)
            found[rows, : self.objectives_[t].outputs] = score(int(t), rows)
        return found

    def _contributions(self, table: Floats, t: int) -> tuple[Floats, Floats]:
        phi, base = self._contributions_of(self.boosters_[t], table, self.objectives_[t].outputs, table.shape[1])
        return phi, self.starts_[t] + base

    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, {"task": [d]}, of one task or summed over all."""
        chosen = self.boosters_ if task is None else [self.boosters_[self._task_number(task)]]
        d = len(self.columns_.categories)
        return {"task": np.sum([self._gain(b, d) for b in chosen], axis=0)}


class _Pooled(PooledSettings, _LightGBM):
    booster_: Any

    def _shares_objective(self, cells: BoosterCells) -> bool:
        return True

    def _with_id(self, table: Floats, task: Ints) -> Floats:
        if not self.task_id:
            return table
        return np.column_stack([table, np.where(task >= 0, task, np.nan)])

    def _fit_pool(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, seed: int) -> Floats:
        """Fit the pooled booster; returns its scores [n, K] of the cells."""
        o = self.objectives_[0]
        start = o.start(y, np.ones(len(y)) if cells.weight is None else cells.weight)
        self.starts_ = [start]
        rows = self._with_id(table[cells.row], cells.task)
        held = None
        if valid is not None:
            held = (self._with_id(valid.table[valid.row], valid.task), valid.y, np.tile(start, (len(valid.y), 1)))
        self.booster_ = self._train(
            rows, y, cells.weight, np.tile(start, (len(y), 1)), o, self.n_estimators, seed, "shared", held, self.task_id
        )
        return start + self._predict(self.booster_, rows, o.outputs)

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        self._fit_pool(table, cells, y, valid, self._seed(rng))

    def _pool_score(self, table: Floats, task: Ints) -> Floats:
        return self.starts_[0] + self._predict(self.booster_, self._with_id(table, task), self.objectives_[0].outputs)

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        if task is not None:
            return self._pool_score(table, task)
        if not self.task_id:
            return [self._pool_score(table, np.zeros(len(table), dtype=np.int64))] * len(self.tasks_)
        return [self._pool_score(table, np.full(len(table), t)) for t in range(len(self.tasks_))]

    def _contributions(self, table: Floats, t: int) -> tuple[Floats, Floats]:
        rows = self._with_id(table, np.full(len(table), t))
        phi, base = self._contributions_of(self.booster_, rows, self.objectives_[0].outputs, rows.shape[1])
        return phi, self.starts_[0] + base

    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, {"shared": [d]}; with `task_id=True` the id comes last, [d + 1]."""
        return {"shared": self._gain(self.booster_, len(self.columns_.categories) + int(self.task_id))}


class _PooledOffset(OffsetSettings, _Pooled):
    boosters_: list[Any]

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        offset = self._fit_pool(table, cells, y, valid, self._seed(rng))
        held_offset = None if valid is None else self._pool_score(valid.table[valid.row], valid.task)
        self.boosters_ = []
        for t, o in enumerate(self.objectives_):
            own = np.flatnonzero(cells.task == t)
            w = None if cells.weight is None else cells.weight[own]
            held = None
            if valid is not None and held_offset is not None:
                mine = valid.task == t
                held = (valid.table[valid.row[mine]], valid.y[mine], held_offset[mine])
            name = f"task {self.tasks_[t]!r}"
            self.boosters_.append(
                self._train(table[cells.row[own]], y[own], w, offset[own], o, self.n_task, self._seed(rng), name, held)
            )

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        K = self.objectives_[0].outputs
        shared = self._pool_score(table, np.zeros(len(table), dtype=np.int64))
        if task is None:
            return [shared + self._predict(b, table, K) for b in self.boosters_]
        for t in np.unique(task[task >= 0]):  # an unseen task has the pooled score
            rows = np.flatnonzero(task == t)
            shared[rows] += self._predict(self.boosters_[t], table[rows], K)
        return shared

    def _contributions(self, table: Floats, t: int) -> tuple[Floats, Floats]:
        K, d = self.objectives_[0].outputs, table.shape[1]
        phi, base = super()._contributions(table, t)
        own_phi, own_base = self._contributions_of(self.boosters_[t], table, K, d)
        return phi + own_phi, base + own_base

    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, {"shared": [d], "task": [d]}, the latter of one task or summed over all."""
        chosen = self.boosters_ if task is None else [self.boosters_[self._task_number(task)]]
        d = len(self.columns_.categories)
        return super().importances() | {"task": np.sum([self._gain(b, d) for b in chosen], axis=0)}


class PerTaskRegressor(_PerTaskLightGBM, KindRegressor):
    """One LightGBM regression booster a task; on wide labels the multi-output wrapper, missing labels left out.

    Parameters
    ----------
    n_estimators, learning_rate, max_depth, max_leaf_nodes, min_samples_leaf, min_child_weight, l2_regularization,
        min_split_gain, subsample, colsample, max_bins: LightGBM's num_iterations, learning_rate, max_depth, num_leaves,
        min_data_in_leaf, min_sum_hessian_in_leaf, lambda_l2, min_gain_to_split, bagging_fraction, feature_fraction, max_bin.
    params: further LightGBM parameters, which win over the named ones.
    monotone_constraints, categorical_features, early_stopping and kin, progress, random_state: as `RMTGBRegressor`.
    unknown_task: "majority" (the mean over the tasks' boosters) or "error"; n_jobs: LightGBM's threads.
    """


class PerTaskClassifier(_PerTaskLightGBM, KindClassifier):
    """One LightGBM classification booster a task; on wide labels the multi-output wrapper, missing labels left out."""


class PooledRegressor(_Pooled, KindRegressor):
    """One LightGBM regression booster for all tasks; `task_id=True` adds the task as a categorical feature."""


class PooledClassifier(_Pooled, KindClassifier):
    """One LightGBM classification booster for all tasks; `task_id=True` adds the task as a categorical feature."""


class PooledOffsetRegressor(_PooledOffset, KindRegressor):
    """A pooled LightGBM booster, then a small one a task that starts from its score (`n_task` rounds)."""


class PooledOffsetClassifier(_PooledOffset, KindClassifier):
    """A pooled LightGBM booster, then a small one a task that starts from its score (`n_task` rounds)."""
