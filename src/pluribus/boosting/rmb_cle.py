"""RMB-CLE: robust multi-task boosting by clustering and local ensembling (Emami, Hernández-Lobato, Martínez-Muñoz,
arXiv 2602.14231, 2026).

1. one booster a task, fitted on part of its rows;
2. cross-error matrix E[s, t]: the mean loss of task s's booster on the held-out rows of task t;
3. distance D[s, t] = (E[s, t] - E[t, t]) / 2 c_t + (E[t, s] - E[s, s]) / 2 c_s, at least 0: what the two lose by trading
   boosters, in units of c_t, the loss of task t's best constant;
4. agglomerative clustering of D (average linkage);
5. in each cluster a pooled booster, then a small booster a task on its score (`PooledOffset…`).

Inferred here, since we know the abstract only: the scaling in 3, the linkage, the number of clusters (the largest mean
silhouette, one cluster where it is below 0.25 or two tasks are all there is to compare), and that the local ensemble is
the pooled booster plus the task's own rounds. With one cluster the method is `PooledOffset…` exactly.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import silhouette_score

from pluribus.boosting.cells import BoosterCells
from pluribus.boosting.columns import signs
from pluribus.boosting.estimator import Range, Valid, hold_out
from pluribus.boosting.histogram import Floats, Ints
from pluribus.boosting.kind_booster import KindClassifier, KindRegressor
from pluribus.boosting.objectives import Classes
from pluribus.boosting.wrappers import (
    LightGBMSettings,
    PerTaskClassifier,
    PerTaskRegressor,
    PooledOffsetClassifier,
    PooledOffsetRegressor,
    _LightGBM,
)
from pluribus.errors import BadInput

NO_STRUCTURE = 0.25  # a mean silhouette below it is commonly read as "no substantial structure"


def clusters(distance: Floats, n_clusters: int | None = None) -> Ints:
    """The cluster of every task, numbered from 0 in the order of the tasks."""
    T = len(distance)
    if T == 1:
        return np.zeros(1, dtype=np.int64)
    tree = linkage(squareform(distance, checks=False), method="average")
    if n_clusters is not None:
        labels = fcluster(tree, min(n_clusters, T), criterion="maxclust")
    else:
        labels, best = np.ones(T, dtype=np.int64), NO_STRUCTURE
        for k in range(2, T):
            cut = fcluster(tree, k, criterion="maxclust")
            if 2 <= len(np.unique(cut)) < T:
                score = silhouette_score(distance, cut, metric="precomputed")
                if score > best:
                    labels, best = cut, score
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    numbered: Ints = rank[inverse]
    return numbered


@dataclass(eq=False, repr=False)
class RMBCLESettings(LightGBMSettings):
    """The parameters of RMB-CLE."""

    n_task: int = 50
    _: KW_ONLY
    n_clusters: int | None = None
    validation_fraction: float = 0.25


class _RMBCLE(RMBCLESettings, _LightGBM):
    """After fit: `cross_error_` and `distance_` [tasks, tasks], `cluster_` [tasks]."""

    _ranges: ClassVar[dict[str, Range]] = _LightGBM._ranges | {"n_clusters": Range(1, whole=True, none=True)}

    cluster_: Ints
    fitted_: list[Any]
    _single: type[_LightGBM]
    _offset: type[_LightGBM]

    early_stopping = False

    def _shares_objective(self, cells: BoosterCells) -> bool:
        return True

    def _member(self, kind: type[_LightGBM], seed: int) -> Any:
        """A booster of this one's settings; its tables hold codes, and constraints are read by position."""
        names = set(kind._get_param_names()) & set(self._get_param_names()) - {"validation_fraction", "unknown_task"}
        given = {name: value for name, value in self.get_params(deep=False).items() if name in names}
        given["monotone_constraints"] = signs(self.monotone_constraints, self.columns_).tolist()
        given["categorical_features"] = self.columns_.categorical.tolist()
        return kind(**(given | {"random_state": seed}))

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        T, o = len(cells.names), self.objectives_[0]
        seed = int(rng.randint(2**31 - 1))
        kept, held = hold_out(cells, self.validation_fraction, rng)

        def fit(model: Any, which: Ints) -> Any:
            weight = None if cells.weight is None else cells.weight[which]
            return model.fit(table[cells.row[which]], cells.y[which], task=cells.task[which], sample_weight=weight)

        self.cross_error_ = np.zeros((T, T))
        if T > 1 and self.n_clusters != 1:
            singles = fit(self._member(self._single, seed), kept)
            scores = singles._raw(table[cells.row[held]], None)
            count = np.maximum(np.bincount(cells.task[held], minlength=T), 1)
            constant = np.zeros(T)
            for t in range(T):
                own = kept[cells.task[kept] == t]
                start = o.start(y[own], np.ones(len(own)))
                mine = held[cells.task[held] == t]
                constant[t] = o.loss(y[mine], np.tile(start, (len(mine), 1))).mean() if len(mine) else 1.0
            for s in range(T):
                classes = singles.objectives_[s].classes
                F = scores[s] if np.array_equal(classes, o.classes) else np.tile(o.start(y, np.ones(len(y))), (len(held), 1))
                self.cross_error_[s] = np.bincount(cells.task[held], weights=o.loss(y[held], F), minlength=T) / count
            excess = (self.cross_error_ - np.diag(self.cross_error_)[None, :]) / np.maximum(constant, 1e-12)[None, :]
            self.distance_ = np.maximum(0.5 * (excess + excess.T), 0.0)
            np.fill_diagonal(self.distance_, 0.0)
            self.cluster_ = clusters(self.distance_, self.n_clusters)
        else:
            self.distance_, self.cluster_ = np.zeros((T, T)), np.zeros(T, dtype=np.int64)
        self.fitted_ = [
            fit(self._member(self._offset, seed), np.flatnonzero(self.cluster_[cells.task] == c))
            for c in range(int(self.cluster_.max()) + 1)
        ]

    def _of(self, t: int, table: Floats) -> Floats:
        """Raw scores of task t on this booster's columns (a cluster may lack classes)."""
        member, o = self.fitted_[self.cluster_[t]], self.objectives_[0]
        place = np.full(len(table), t)
        if not isinstance(o, Classes) or np.array_equal(member.objectives_[0].classes, o.classes):
            raw: Floats = member._raw(table, _within(member, place))
            return raw
        p = np.full((len(table), len(o.classes)), 1e-9)
        p[:, np.searchsorted(o.classes, member.classes_)] = member.predict_proba(table, task=place)
        return o.scores(np.log(p))

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        T = len(self.tasks_)
        if task is None:
            return [self._of(t, table) for t in range(T)]
        if (task < 0).any():  # an unseen task has the mean over the fitted ones
            return self._pick([self._of(t, table) for t in range(T)], task)
        found = np.zeros((len(table), self.objectives_[0].outputs))
        for t in np.unique(task):
            rows = np.flatnonzero(task == t)
            found[rows] = self._of(int(t), table[rows])
        return found

    def _contributions(self, table: Floats, t: int) -> tuple[Floats, Floats]:
        member = self.fitted_[self.cluster_[t]]
        if not member.objectives_[0].like(self.objectives_[0]):
            raise BadInput("its cluster lacks a class", where=f"task {self.tasks_[t]!r}", remedy="explain the booster in fitted_")
        found: tuple[Floats, Floats] = member._contributions(table, int(_within(member, np.array([t]))[0]))
        return found

    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, {"shared": [d], "task": [d]}, over all clusters or of one task and its cluster."""
        if task is not None:
            t = self._task_number(task)
            found: dict[str, Floats] = self.fitted_[self.cluster_[t]].importances(t)
            return found
        each = [member.importances() for member in self.fitted_]
        return {block: np.sum([e[block] for e in each], axis=0) for block in ("shared", "task")}


def _within(member: Any, task: Ints) -> Ints:
    """Positions of the tasks among those of a cluster's booster."""
    return np.searchsorted(np.array(member.tasks_), task)


class RMBCLERegressor(_RMBCLE, KindRegressor):
    """RMB-CLE for regression."""

    _single, _offset = PerTaskRegressor, PooledOffsetRegressor


class RMBCLEClassifier(_RMBCLE, KindClassifier):
    """RMB-CLE for classification."""

    _single, _offset = PerTaskClassifier, PooledOffsetClassifier
