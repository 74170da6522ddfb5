"""Boosting with vector leaves: one structure a tree, a value a task in every leaf, missing labels masked.

Sources: multi-output trees with Newton leaves (Zhang and Jung, GBDT-MO, 2020; XGBoost's multi_output_tree); SketchBoost
(Iosipoi and Vakhrushev, 2022) for many outputs; MT-GBM (Ying et al., 2022) for `split_by="gain_of_sum"`.

With m_ik = 1 where row i has a label of task k, and weights w_ik, leaf j holds
  G_jk = sum_{i in j} m_ik w_ik g_ik,   H_jk = sum m_ik w_ik h_ik,   value_jk = -G_jk / (H_jk + lambda);
sum_of_gains   score_j = sum_k a_k G_jk^2 / (H_jk + lambda), gain = score_L + score_R - score_P    (never cancels)
gain_of_sum    the same for K = 1 with G = sum_t a_t g_t / |g_t|, H = sum_t a_t h_t / |h_t|        (cancels if tasks oppose)
A leaf without any labelled row of task k keeps its parent's value for k.

Where the sources and the public codes differ, and what we do:
- XGBoost refuses missing labels, LightGBM reads them as 0, CatBoost masks them for regression only; here every kind masks;
- the sum of gains lets the output of the largest variance decide; `output_weight="auto"` divides each task's gain by the
  loss of its best constant, None leaves them as they are (the papers);
- `own_trees=True` lets each task go on alone after the shared trees (`pluribus.boosting.own_trees`): ours;
- the least weight of a child is tested on the sum over the outputs (the papers do not say);
- MT-GBM's norms are running ones: |g_t| is an exponential mean (0.9) of the root mean square, |h_t| of the mean; its
  emphasis is "equal" here by default, or a main task drawn each round, the others at 0.1 (both inferred);
- a sketch searches on k columns of G: "top" (largest norms), "sampling" (with replacement, in proportion to squared norms)
  or "projection" (random normal, with the mean Hessian); leaf values always use all columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from pluribus.boosting.cells import WIDE, BoosterCells
from pluribus.boosting.columns import signs
from pluribus.boosting.estimator import POSITIVE_COUNT, RANGES, Range, Valid, threads
from pluribus.boosting.histogram import Binner, Floats, Ints
from pluribus.boosting.kind_booster import KindBooster, KindClassifier, KindRegressor
from pluribus.boosting.objectives import OBJECTIVES, BoosterObjective, gradients, objective
from pluribus.boosting.own_trees import LoneTask, go_on_alone
from pluribus.boosting.settings import EarlyStopping, TreeSettings
from pluribus.boosting.tree import Grower, TreeArrays
from pluribus.errors import BadInput, unknown

MINOR = 0.1  # emphasis of the tasks that are not the main one of a round
MEMORY = 0.9  # of the running norms


@dataclass(eq=False, repr=False)
class VectorLeafSettings(EarlyStopping, TreeSettings):
    """The parameters of the vector-leaf boosters."""

    n_estimators: int = 100
    _: KW_ONLY
    split_by: str = "sum_of_gains"
    emphasis: str = "equal"
    sketch: str | None = None
    sketch_size: int = 5
    output_weight: Any = "auto"
    min_child_weight: float = 1e-3
    cat_smooth: float = 10.0
    own_trees: bool = False
    own_min_samples_leaf: int | None = None


@dataclass(eq=False, repr=False)
class _Kinds:
    tasks: Any = "regression"


@dataclass(eq=False, repr=False)
class MultiTaskSettings(VectorLeafSettings, _Kinds):
    """The same with, first of all, the kind of each task."""


class _VectorLeaf(VectorLeafSettings, KindBooster):
    _ranges: ClassVar[dict[str, Range]] = RANGES | {
        "n_estimators": POSITIVE_COUNT,
        "sketch_size": POSITIVE_COUNT,
        "own_min_samples_leaf": Range(1, whole=True, none=True),
    }
    _choices: ClassVar[dict[str, tuple[Any, ...]]] = KindBooster._choices | {
        "split_by": ("sum_of_gains", "gain_of_sum"),
        "emphasis": ("equal", "random"),
        "sketch": (None, "top", "sampling", "projection"),
    }

    trees_: TreeArrays
    own_trees_: dict[Any, TreeArrays]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.own_trees and not self.early_stopping:
            raise BadInput(
                "needs held-out rows, which say whether they help", where="own_trees", remedy="set early_stopping=True"
            )

    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        T, first = len(cells.names), self._first
        K = int(first[-1])
        distinct, place = np.unique(cells.row, return_inverse=True)
        used = table if len(distinct) == len(table) else table[distinct]
        N = len(used)
        Y, W = np.full((N, T), np.nan), None
        Y[place, cells.task] = y
        if cells.weight is not None:
            W = np.zeros((N, T))
            W[place, cells.task] = cells.weight
        binner = Binner.fit(used, self.columns_.categorical, self.max_bins, rng)
        signs_ = self._signs()
        grower = Grower(
            binner.transform(used),
            binner,
            self.max_depth,
            self.max_leaf_nodes,
            self.min_samples_leaf,
            self.min_child_weight,
            self.l2_regularization,
            self.min_split_gain,
            self.cat_smooth,
            signs_,
        )
        start, constant_loss = np.empty(K), np.empty(T)
        for t, o in enumerate(self.objectives_):
            known = np.flatnonzero(~np.isnan(Y[:, t]))
            y_t, w_t = Y[known, t], np.ones(len(known)) if W is None else W[known, t]
            start[first[t] : first[t + 1]] = o.start(y_t, w_t)
            scores = np.broadcast_to(start[first[t] : first[t + 1]], (len(known), o.outputs))
            constant_loss[t] = np.average(o.excess(y_t, scores), weights=w_t)
        self.start_ = start
        weight = self._weights(constant_loss)
        F = np.tile(start, (N, 1))
        V = None if valid is None else np.tile(start, (len(valid.table), 1))
        g, h = np.empty((N, K)), np.empty((N, K))
        w_out = None if W is None else np.repeat(W, np.diff(first), axis=1)
        norms = _Norms()
        best, best_loss = np.zeros(T, dtype=np.int64), np.full(T, np.inf)
        if V is not None and valid is not None:
            best_loss = self._valid_losses(valid, V)
        active = np.ones(T, dtype=bool)
        parts: list[TreeArrays] = []
        everyone = np.arange(N)
        ended = False
        for m in range(self.n_estimators):
            gradients(self.objectives_, first, Y, F, g, h)
            if w_out is not None:
                g *= w_out
                h *= w_out
            stopped = np.repeat(~active, np.diff(first))
            if stopped.any():
                g[:, stopped] = 0.0
                h[:, stopped] = 0.0
            H = self._narrow(h, W)
            search, search_weight = self._search(g, h, H, weight, norms, rng)
            rows, features = self._draw(everyone, rng)
            grown = grower.grow(rows, np.array([0, len(rows)]), g, H, features=features, search=search, weight=search_weight)
            grown.add_leaves(F, self.learning_rate)
            if self.subsample < 1:
                rest = np.setdiff1d(everyone, rows)
                grown.add_binned(F, self.learning_rate, grower.bins, rest, np.zeros(len(rest), dtype=np.int64))
            parts.append(grown.trees)
            values: dict[str, Any] = {}
            if V is not None and valid is not None:
                grown.trees.add_to(V, valid.table, self.learning_rate)
                losses = self._valid_losses(valid, V)
                better = active & (losses < best_loss)
                best[better], best_loss[better] = m + 1, losses[better]
                active &= np.isinf(best_loss) | (m + 1 - best < self.n_iter_no_change)
                values["valid"] = float(np.mean(losses[np.isfinite(losses)]))
                values["by_task"] = dict(zip(self.tasks_, losses.tolist()))
                values["unfinished"] = [name for name, goes_on in zip(self.tasks_, active) if goes_on or self.own_trees]
            ended = bool(self.progress) and self._report("trees", m + 1, self.n_estimators, **values)
            if ended or not active.any():
                break
        self.trees_ = TreeArrays.join(parts, K)
        self.n_iter_task_ = np.full(T, len(parts))
        if valid is not None:
            self.n_iter_task_ = np.where(np.isfinite(best_loss), best, len(parts))
            self.trees_ = self._cut(self.trees_, self.n_iter_task_)
        self.n_iter_ = len(self.trees_)
        self.own_trees_ = {}
        if self.own_trees and valid is not None and not ended:
            del F, V, g, h, w_out, H, search
            self._go_on(grower, used, Y, W, valid, rng)

    def _draw(self, rows: Ints, rng: np.random.RandomState) -> tuple[Ints, Ints | None]:
        """The rows of a round and its features (None: all)."""
        features = None
        if self.subsample < 1:
            rows = np.sort(rng.permutation(rows)[: max(round(self.subsample * len(rows)), 1)])
        if self.colsample < 1:
            d = len(self.columns_.categories)
            features = np.sort(rng.permutation(d)[: max(round(self.colsample * d), 1)])
        return rows, features

    def _go_on(
        self, grower: Grower, table: Floats, Y: Floats, W: Floats | None, valid: Valid, rng: np.random.RandomState
    ) -> None:
        """Trees of each task alone, from its best round on (`pluribus.boosting.own_trees`)."""
        F, V = (np.split(self._shared(each), self._first[1:-1], axis=1) for each in (table, valid.table))
        tasks = []
        for t, o in enumerate(self.objectives_):
            rows, held = np.flatnonzero(~np.isnan(Y[:, t])), np.flatnonzero(valid.task == t)
            span = slice(self._first[t], self._first[t + 1])
            own = replace(
                grower,
                min_samples_leaf=self.own_min_samples_leaf or self.min_samples_leaf,
                signs=None if grower.signs is None else np.ascontiguousarray(grower.signs[:, span]),
            )
            w, held_w = None if W is None else W[rows, t], None if valid.weight is None else valid.weight[held]
            place = valid.row[held]
            tasks.append(
                LoneTask(
                    o,
                    own,
                    rows,
                    Y[rows, t],
                    w,
                    np.ascontiguousarray(F[t]),
                    place,
                    valid.y[held],
                    held_w,
                    valid.unit[held],
                    V[t][place],
                )
            )
        del F, V

        def report(m: int, losses: dict[int, float], learning: list[int]) -> bool:
            values: dict[str, Any] = {
                "valid": float(np.mean(list(losses.values()))),
                "by_task": {self.tasks_[t]: loss for t, loss in losses.items()},
                "unfinished": [self.tasks_[t] for t in learning],
            }
            return bool(self.progress) and self._report("own trees", m, self.n_estimators, **values)

        found = go_on_alone(
            tasks,
            valid.table,
            self.learning_rate,
            self.n_estimators,
            self.n_iter_no_change,
            lambda rows: self._draw(rows, rng),
            report,
        )
        self.own_trees_ = {name: trees for name, trees in zip(self.tasks_, found) if trees is not None}

    def _cut(self, trees: TreeArrays, rounds: Ints) -> TreeArrays:
        """Every task keeps the trees up to its own best round: its values in later ones become 0."""
        trees = trees.take(slice(0, int(rounds.max())))
        tree = np.repeat(np.arange(len(trees)), np.diff(trees.first))
        late = tree[:, None] >= np.repeat(rounds, np.diff(self._first))[None, :]
        trees.value[late] = 0.0
        trees.gain[late] = 0.0
        return trees

    def _valid_losses(self, valid: Valid, V: Floats) -> Floats:
        found = np.full(len(self.objectives_), np.inf)
        first = self._first
        for t, o in enumerate(self.objectives_):
            own = np.flatnonzero(valid.task == t)
            if len(own):
                weight = None if valid.weight is None else valid.weight[own]
                F = V[valid.row[own], first[t] : first[t + 1]]
                found[t] = np.average(o.loss(valid.y[own], F), weights=weight)
        return found

    def _narrow(self, h: Floats, W: Floats | None) -> Floats:
        """The Hessian in its narrowest form: none at all where it is 1 for every row and output."""
        if W is None and all(o.flat for o in self.objectives_) and h.min(initial=1.0) == 1.0:
            return np.empty((len(h), 0))
        return h

    def _weights(self, constant_loss: Floats) -> Floats:
        """Weight of each output in the gain, [K], scaled to mean 1."""
        T = len(self.objectives_)
        given = self.output_weight
        if given is None:
            per_task = np.ones(T)
        elif isinstance(given, str):
            if given != "auto":
                raise unknown("value", given, ["auto"], where="output_weight")
            per_task = np.divide(1.0, constant_loss, out=np.zeros(T), where=constant_loss > 1e-300)
            if not per_task.any():
                per_task = np.ones(T)
            per_task = per_task / per_task.mean()
        else:
            if isinstance(given, Mapping):
                given = [given.get(name, 1.0) for name in self.tasks_]
            per_task = np.asarray(given, dtype=np.float64)
            if per_task.shape != (T,) or not np.isfinite(per_task).all() or (per_task < 0).any() or not per_task.any():
                raise BadInput(f"must be {T} weights >= 0, one a task", where="output_weight")
        return np.repeat(per_task, np.diff(self._first))

    def _search(
        self, g: Floats, h: Floats, H: Floats, weight: Floats, norms: _Norms, rng: np.random.RandomState
    ) -> tuple[tuple[Floats, Floats] | None, Floats]:
        """What the splits are searched on: None for all of (g, H), and the weights of the outputs in the gain."""
        K = g.shape[1]
        if self.split_by == "gain_of_sum":
            size, mean = norms.step(g, h)
            emphasis = np.ones(K) if isinstance(self.output_weight, str) else weight.copy()  # the norms are the "auto" scale
            if self.emphasis == "random":
                main = rng.randint(len(self.objectives_))
                emphasis *= np.where(np.repeat(np.arange(len(self.objectives_)), np.diff(self._first)) == main, 1.0, MINOR)
            sum_g = sum_columns(g, np.divide(emphasis, size, out=np.zeros(K), where=size > 0))
            sum_h = sum_columns(h, np.divide(1.0, mean, out=np.zeros(K), where=mean > 0) / K)
            return (sum_g, sum_h), np.ones(1)
        if self.sketch is None or (self.sketch == "top" and self.sketch_size >= K):
            return None, weight
        scaled = g * np.sqrt(weight)
        power = (scaled**2).sum(axis=0)
        if self.sketch == "projection":
            P = rng.standard_normal((K, self.sketch_size)) / np.sqrt(self.sketch_size)
            return (scaled @ P, h.mean(axis=1, keepdims=True)), np.ones(self.sketch_size)
        if self.sketch == "top":
            picked = np.sort(np.argsort(-power, kind="stable")[: self.sketch_size])
            picked_weight = weight[picked]
        else:
            p = power / power.sum() if power.sum() > 0 else np.full(K, 1 / K)
            counts = np.bincount(rng.choice(K, self.sketch_size, p=p), minlength=K)
            picked = np.flatnonzero(counts)
            picked_weight = weight[picked] * counts[picked] / (self.sketch_size * p[picked])
        return (np.ascontiguousarray(g[:, picked]), H if H.shape[1] == 0 else np.ascontiguousarray(h[:, picked])), picked_weight

    def _signs(self) -> Any:
        """Monotone signs [d, K]: one mapping for all tasks, or a mapping task -> mapping."""
        given = self.monotone_constraints
        if isinstance(given, Mapping) and given and all(isinstance(v, Mapping | list | tuple) for v in given.values()):
            unknown_tasks = [name for name in given if name not in self.tasks_]
            if unknown_tasks:
                raise unknown("task", str(unknown_tasks[0]), [str(t) for t in self.tasks_], where="monotone_constraints")
            per_task = [signs(given.get(name), self.columns_) for name in self.tasks_]
        else:
            per_task = [signs(given, self.columns_)] * len(self.tasks_)
        for name, o, sign in zip(self.tasks_, self.objectives_, per_task):
            if sign.any() and o.outputs > 1:
                raise BadInput(
                    f"{len(o.classes)} classes have no order",
                    where=f"monotone_constraints, task {name!r}",
                    remedy="leave multiclass tasks out: give a mapping task -> constraints",
                )
        if any(s.any() for s in per_task) and (self.split_by == "gain_of_sum" or self.sketch is not None):
            raise BadInput(
                "need the gains of all outputs",
                where="monotone_constraints",
                remedy="use split_by='sum_of_gains' without a sketch",
            )
        return np.column_stack([np.repeat(s[:, None], o.outputs, axis=1) for s, o in zip(per_task, self.objectives_)])

    # ------------------------------------------------------------------------------------------------------------------
    def _shared(self, table: Floats) -> Floats:
        """The scores [n, K] by the trees of all tasks."""
        F = np.tile(self.start_, (len(table), 1))
        self.trees_.add_to(F, table, self.learning_rate, threads=threads(self.n_jobs))
        return F

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        return self._scores(table, range(len(self.tasks_))) if task is None else self._pick(self._raw(table, None), task)

    def _scores(self, table: Floats, tasks: Sequence[int]) -> list[Floats]:
        """The scores [n, K_t] of some tasks: one pass over the shared trees, one over each task's own."""
        per_task = np.split(self._shared(table), self._first[1:-1], axis=1)
        found = []
        for t in tasks:
            F = per_task[t]
            if (own := self.own_trees_.get(self.tasks_[t])) is not None:
                F = np.ascontiguousarray(F)
                own.add_to(F, table, self.learning_rate, threads=threads(self.n_jobs))
            found.append(F)
        return found

    def answers(self, X: Any, tasks: Sequence[Any]) -> dict[Any, Any]:
        """What some tasks answer at the same rows, in one pass.

        Parameters
        ----------
        X : array or frame
            As in `fit`.
        tasks : sequence
            Ids of fitted tasks.

        Returns
        -------
        dict
            Task → values [n], or class probabilities [n, classes].
        """
        check_is_fitted(self, "tasks_")
        table, _, _ = self._read_table(X, None)
        numbers = [self._task_number(task) for task in tasks]
        own = [self.objectives_[t] for t in numbers]
        scores = self._scores(table, numbers)
        return {task: o.proba(F) if o.labelled else o.decode(F) for task, o, F in zip(tasks, own, scores)}

    def classes_of(self, task: Any) -> Any:
        """The classes of one task, as its probabilities are ordered."""
        return self.objectives_[self._task_number(task)].classes

    # ------------------------------------------------------------------------------------------------------------------
    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, {"trees": [d]}, of one task or summed over all (in units of each task's own loss); with
        `own_trees` also {"own_trees": [d]}."""
        shared, own = self._gains()
        if task is not None:
            t = self._task_number(task)
            span = slice(self._first[t], self._first[t + 1])
            shared, own = shared[:, span], own[:, span]
        return {"trees": shared.sum(axis=1)} | ({"own_trees": own.sum(axis=1)} if self.own_trees else {})

    def _gains(self) -> tuple[Floats, Floats]:
        """Total gain a feature and output [d, K] of the trees of all tasks, and of the tasks' own."""
        d = len(self.columns_.categories)
        shared = self.trees_.importance(d)
        own = np.zeros_like(shared)
        for name, trees in self.own_trees_.items():
            t = self._task_number(name)
            own[:, self._first[t] : self._first[t + 1]] = trees.importance(d)
        return shared, own

    @property
    def feature_importances_(self) -> Floats:
        """Gain a feature, [d], each task's gains taken as shares of that task's total, summing to 1."""
        gain = np.add(*self._gains())
        total = gain.sum(axis=0)
        share = np.divide(gain, total, out=np.zeros_like(gain), where=total > 0).sum(axis=1)
        found: Floats = share / share.sum() if share.sum() > 0 else share
        return found

    def _pieces(self, t: int) -> list[tuple[TreeArrays, float]]:
        span = slice(self._first[t], self._first[t + 1])
        shared = replace(self.trees_, value=np.ascontiguousarray(self.trees_.value[:, span]))
        own = [self.own_trees_[name] for name in (self.tasks_[t],) if name in self.own_trees_]
        return [(trees, self.learning_rate) for trees in (shared, *own)]

    def _forests(self) -> list[TreeArrays]:
        return [self.trees_, *self.own_trees_.values()]

    def _check_loaded(self) -> None:
        if "own_trees_" not in vars(self):  # folders of earlier versions know none
            self.own_trees_ = {}
        self.trees_.check(len(self.columns_.categories), int(self._first[-1]))
        for name, trees in self.own_trees_.items():
            trees.check(len(self.columns_.categories), self.objectives_[self._task_number(name)].outputs)

    def _start(self, t: int) -> Floats:
        start: Floats = self.start_[self._first[t] : self._first[t + 1]]
        return start


class _Norms:
    """Running norms of every column: root mean square of g, mean of h, over rows where h > 0."""

    def __init__(self) -> None:
        self.g: Floats | None = None
        self.h: Floats | None = None

    def step(self, g: Floats, h: Floats) -> tuple[Floats, Floats]:
        count = np.maximum((h > 0).sum(axis=0), 1)
        size, mean = np.sqrt((g * g).sum(axis=0) / count), h.sum(axis=0) / count
        self.g = size if self.g is None else MEMORY * self.g + (1 - MEMORY) * size
        self.h = mean if self.h is None else MEMORY * self.h + (1 - MEMORY) * mean
        return self.g, self.h


def sum_columns(a: Floats, scale: Floats) -> Floats:
    """sum_k scale_k a_k as [N, 1], added in order of the columns (so that opposite columns cancel exactly)."""
    total = np.zeros(len(a))
    for k in range(a.shape[1]):
        total += scale[k] * a[:, k]
    return total[:, None]


class VectorLeafBoostingRegressor(_VectorLeaf, KindRegressor):
    """Vector-leaf boosting of several regression targets with missing labels.

    Parameters
    ----------
    n_estimators, learning_rate: rounds (one tree each) and the rate.
    split_by: "sum_of_gains" or "gain_of_sum"; emphasis: of the tasks in the latter, "equal" or "random" (a main task a round).
    sketch, sketch_size: search splits on that many columns of the gradient: None, "top", "sampling", "projection".
    output_weight: of each task's gain: "auto" (one over the loss of its best constant), None (1), one a task, or a mapping.
    max_depth, max_leaf_nodes, min_samples_leaf, min_split_gain, subsample, colsample, max_bins, cat_smooth,
        categorical_features, early_stopping and kin, progress, random_state: as `RMTGBRegressor`; a task that stops early
        keeps its best rounds and leaves the others alone.
    min_child_weight: least Hessian of a child, summed over the outputs; l2_regularization: lambda.
    own_trees: whether each task then goes on alone, up to n_estimators rounds with an early stop of its own, and keeps these
        trees where they help on held-out rows by more than the gain's standard error; needs early_stopping.
    own_min_samples_leaf: least rows of their leaves (None: min_samples_leaf).
    monotone_constraints: column -> -1, 0 or 1 for all tasks, or task -> such a mapping.
    unknown_task: "majority" (the mean over tasks) or "error".
    n_jobs: threads for prediction (a tree is grown by one thread).

    Attributes
    ----------
    tasks_, n_iter_task_ [T]; own_trees_: task -> its own trees, where they were kept; feature_importances_ [d]; objectives_.

    Example
    -------
    >>> import numpy as np
    >>> from pluribus.boosting import VectorLeafBoostingRegressor
    >>> X = np.arange(20.0)[:, None]
    >>> Y = np.column_stack([X[:, 0] > 9, X[:, 0] < 10]).astype(float)
    >>> Y[3, 0] = np.nan
    >>> model = VectorLeafBoostingRegressor(1, learning_rate=1.0).fit(X, Y)
    >>> model.predict([[3.0], [15.0]]).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """


class VectorLeafBoostingClassifier(_VectorLeaf, KindClassifier):
    """Vector-leaf boosting of several classification targets with missing labels; parameters as for regression.

    Wide labels: every task has its own classes, `classes_` is a list; otherwise `classes_` holds those of all rows.
    """


class MultiTaskBoosting(MultiTaskSettings, _VectorLeaf):
    """Vector-leaf boosting of tasks of mixed kinds in one ensemble.

    tasks: a kind for all, a mapping task -> kind ("regression", "binary", "multiclass", "count"), or records with `name`
    and `kind` (such as `pluribus.Task`). Other parameters as `VectorLeafBoostingRegressor`.
    """

    def _kinds(self) -> str | dict[Any, str]:
        if isinstance(self.tasks, str):
            return self.tasks
        if isinstance(self.tasks, Mapping):
            return dict(self.tasks)
        return {task.name: getattr(task.kind, "name", task.kind) for task in self.tasks}

    def _shares_objective(self, cells: BoosterCells) -> bool:
        return cells.form != WIDE and isinstance(self._kinds(), str)

    def _objective(self, task: Any, y: Any) -> BoosterObjective:
        kinds = self._kinds()
        if isinstance(kinds, str):
            return objective(kinds, y, f"task {task!r}")
        if task not in kinds:
            raise BadInput(f"does not say what kind task {task!r} is", where="tasks", remedy="name every task of the labels")
        return objective(kinds[task], y, f"task {task!r}")

    def _has_classes(self) -> bool:
        kinds = self._kinds()
        named = {kinds} if isinstance(kinds, str) else set(kinds.values())
        return any(each.labelled for kind, each in OBJECTIVES.items() if kind in named)

    def _predict_proba(self, X: Any, task: Any = None) -> Any:
        """Class probabilities of the binary and multiclass tasks: a dict over them (wide labels), or [n, classes]."""
        check_is_fitted(self, "tasks_")
        if task is None and self.form_ == WIDE and not isinstance(X, Mapping):
            table, _, _ = self._read_table(X, None)
            return {
                name: o.proba(raw)
                for name, o, raw in zip(self.tasks_, self.objectives_, self._raw(table, None))
                if o.classes is not None
            }
        return self._answer(X, task, lambda raw, t: self._by_task(raw, t, lambda o, F: o.proba(F)))

    predict_proba = available_if(_has_classes)(_predict_proba)
