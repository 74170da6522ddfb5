"""Robust-Multi-Task Gradient Boosting, R-MTGB (Emami, Suárez and others, arXiv 2507.11411, 2025), and MTGB (2023).

Model: F(x, t) = F_sh(x) + (1 - s_t) F_non(x) + s_t F_out(x) + F_t(x),  s_t = 1 / (1 + exp(-theta_t)).

  block 1   r = -dl/dF at F_sh;  tree(X, r);  F_sh += nu tree                                   (shared by all tasks)
  block 2   r at F;  A = tree(X, s_t r),  B = tree(X, (1 - s_t) r), both at the same point;
            F_out += nu A,  F_non += nu B;
            d_t = -sum_{i in t} <r_i, F_out - F_non> s_t (1 - s_t),  theta_t -= nu d_t           (scores before A and B)
  block 3   r at F;  for each task a tree on its rows;  F_t += nu tree

Losses: half squared error, or softmax cross-entropy over K >= 2 scores; a leaf holds the mean of its residuals. All parts
start at 0. MTGB is the same without block 2. Which side is called "outlier" is arbitrary, so the outlier score of a task is
|s_t - median s|.

Where the public code (GAA-UAM/R-MTGB) departs from this, or we from it:
- its trees are always stumps; here depth and leaves are free (`max_leaf_nodes=2` gives its trees);
- it numbers the tasks anew on the rows given to predict; here the map of task ids is fitted;
- its subsample multiplies the weights round after round, and its early stopping never stops; here rows are drawn anew each
  round, and every block, and every task in block 3, stops by itself on held-out rows;
- theta is drawn from the global generator there, from `random_state` here;
- the row sum in d_t makes s_t jump to 0 or 1 with thousands of rows; `theta_step="mean"`, `theta_lr` and `theta_l2` (an L2
  term of the kind that the first abstract speaks of and the code lacks) are offered, the sum is the default;
- every part starts at 0, as there; `start="constant"` starts F_sh at the best constant of all rows instead, which spares
  the first rounds where labels lie far from 0;
- an unseen task gets F_sh and the majority's mix (the median s), and no F_t: our rule, the paper is silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logsumexp, softmax
from sklearn.utils.multiclass import check_classification_targets

from pluribus.boosting.cells import BoosterCells, task_index
from pluribus.boosting.columns import signs
from pluribus.boosting.estimator import (
    COUNT,
    NON_NEGATIVE,
    RANGES,
    Range,
    TaskBooster,
    TaskClassifier,
    TaskRegressor,
    Valid,
    threads,
)
from pluribus.boosting.histogram import Binner, Floats, Ints
from pluribus.boosting.settings import EarlyStopping, TreeSettings
from pluribus.boosting.tree import Grower, Grown, TreeArrays
from pluribus.errors import BadInput

SHARED, OUTLIER, NON_OUTLIER, TASK = "shared", "outlier", "non_outlier", "task"
BLOCKS = (SHARED, OUTLIER, NON_OUTLIER, TASK)


def theta_gradient(residual: Floats, difference: Floats, s: Floats, task: Ints, *, mean: bool = False) -> Floats:
    """d_t = -sum_{i in t} <r_i, (F_out - F_non)_i> s_t (1 - s_t) for every task; residual and difference are [n, K]."""
    inner = np.einsum("ik,ik->i", residual, difference)
    total: Any = np.bincount(task, weights=inner, minlength=len(s))
    if mean:
        total = total / np.maximum(np.bincount(task, minlength=len(s)), 1)
    gradient: Floats = -total * s * (1.0 - s)
    return gradient


class _Stopper:
    """Counts rounds without improvement of a held-out loss; `best` is the number of rounds to keep."""

    def __init__(self, start: float, patience: int) -> None:
        self.loss, self.best, self.patience, self.round, self.stopped = start, 0, patience, 0, False

    def step(self, loss: float) -> None:
        self.round += 1
        if loss < self.loss:
            self.loss, self.best = loss, self.round
        self.stopped = self.round - self.best >= self.patience


@dataclass(eq=False, repr=False)
class _Blocks(EarlyStopping, TreeSettings):
    _: KW_ONLY
    max_leaf_nodes: int | None = 8
    cat_smooth: float = 10.0
    start: str = "zero"


@dataclass(eq=False, repr=False)
class RMTGBSettings(_Blocks):
    """The parameters of R-MTGB."""

    n_shared: int = 50
    n_outlier: int = 50
    n_task: int = 50
    _: KW_ONLY
    theta_init: Any = None
    theta_lr: float | None = None
    theta_l2: float = 0.0
    theta_step: str = "sum"


@dataclass(eq=False, repr=False)
class MTGBSettings(_Blocks):
    """The parameters of MTGB: those of R-MTGB without its second block."""

    n_shared: int = 100
    n_task: int = 50
    n_outlier = 0


class _RMTGB(RMTGBSettings, TaskBooster):
    _ranges: ClassVar[dict[str, Range]] = RANGES | {
        "n_shared": COUNT,
        "n_outlier": COUNT,
        "n_task": COUNT,
        "theta_lr": Range(0, none=True),
        "theta_l2": NON_NEGATIVE,
    }
    _choices: ClassVar[dict[str, tuple[Any, ...]]] = TaskBooster._choices | {
        "theta_step": ("sum", "mean"),
        "start": ("zero", "constant"),
    }

    trees_: dict[str, TreeArrays]
    start_: Floats
    task_of_tree_: Ints
    theta_: Floats

    # the loss: provided by the regressor and the classifier ------------------------------------------------------------
    def _residual(self, y: Any, F: Floats) -> Floats:
        """r = -dl/dF, [n, K]."""
        raise NotImplementedError

    def _loss(self, y: Any, F: Floats) -> Floats:
        """The loss of each row, [n]."""
        raise NotImplementedError

    def _constant(self, y: Any, w: Floats | None) -> Floats:
        """The best constant score, [K]."""
        raise NotImplementedError

    def _outputs(self) -> int:
        raise NotImplementedError

    def _signs(self) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------------
    def _boost(self, table: Floats, cells: BoosterCells, y: Any, valid: Valid | None, rng: np.random.RandomState) -> None:
        T, K = len(cells.names), self._outputs()
        order = np.argsort(cells.task, kind="stable")  # the rows of a task side by side: its tree's root is a range
        task, y = cells.task[order], y[order]
        w = None if cells.weight is None else cells.weight[order]
        distinct = np.unique(cells.row)  # rows that carry a label; the others must not shape the bins
        used = table if len(distinct) == len(table) else table[distinct]
        binner = Binner.fit(used, self.columns_.categorical, self.max_bins, rng)
        bins = binner.transform(used)[np.searchsorted(distinct, cells.row[order])]
        del order, distinct, used  # a fit's memory is the binned matrix, the scores and little else
        grower = Grower(
            bins,
            binner,
            self.max_depth,
            self.max_leaf_nodes,
            self.min_samples_leaf,
            0.0,
            self.l2_regularization,
            self.min_split_gain,
            self.cat_smooth,
            self._signs(),
        )
        self.start_ = np.zeros(K) if self.start == "zero" else self._constant(y, w)
        fit = _Fit(self, grower, task, y, w, T, K, valid, rng, self._theta_start(T, rng))
        self.trees_ = dict.fromkeys(BLOCKS, TreeArrays.empty(K))
        with ThreadPoolExecutor(max(threads(self.n_jobs), 1)) as pool:
            fit.block_1(self.trees_)
            fit.block_2(self.trees_, pool)
            self.task_of_tree_ = fit.block_3(self.trees_, pool, threads(self.n_jobs))
        self.theta_ = fit.theta
        self.n_iter_shared_ = len(self.trees_[SHARED])
        self.n_iter_outlier_ = len(self.trees_[OUTLIER])
        self.n_iter_task_ = np.bincount(self.task_of_tree_, minlength=T)

    def _theta_start(self, T: int, rng: np.random.RandomState) -> Floats:
        theta: Floats = 0.1 * rng.standard_normal(T)
        if self.theta_init is None:
            return theta
        if isinstance(self.theta_init, Mapping):
            start = [self.theta_init.get(name, theta[t]) for t, name in enumerate(self.tasks_)]
        else:
            start = list(np.broadcast_to(np.asarray(self.theta_init, dtype=np.float64), (T,)))
        given = np.array(start, dtype=np.float64)
        if np.isnan(given).any():
            raise BadInput("holds NaN", where="theta_init", remedy="give a number a task")
        return given

    # ------------------------------------------------------------------------------------------------------------------
    @property
    def sigma_(self) -> Floats:
        """s_t of every task, in the order of `tasks_`: the weight of F_out."""
        s: Floats = expit(self.theta_)
        return s

    @property
    def outlier_score_(self) -> Floats:
        """|s_t - median s| of every task: how far it stands from the majority, whichever side is called "outlier"."""
        s = self.sigma_
        score: Floats = np.abs(s - np.median(s))
        return score

    def _mix(self, task: Ints | int) -> Any:
        """s of each row's task; an unseen one (-1) gets the majority's, the median."""
        return np.append(self.sigma_, np.median(self.sigma_))[task]

    def _parts(self, table: Floats) -> tuple[Floats, Floats, Floats]:
        parts = []
        for block in (SHARED, OUTLIER, NON_OUTLIER):
            out = np.zeros((len(table), self._outputs()))
            self.trees_[block].add_to(out, table, self.learning_rate, threads=threads(self.n_jobs))
            parts.append(out)
        return self.start_ + parts[0], parts[1], parts[2]

    def _own(self, table: Floats, rows: Ints | None, t: int) -> Floats:
        out = np.zeros((len(table) if rows is None else len(rows), self._outputs()))
        trees = np.flatnonzero(self.task_of_tree_ == t)
        if len(trees):
            self.trees_[TASK].add_to(out, table, self.learning_rate, rows, trees, threads(self.n_jobs))
        return out

    def _raw(self, table: Floats, task: Ints | None) -> Any:
        shared, out, non = self._parts(table)
        if task is None:
            return [shared + (1 - s) * non + s * out + self._own(table, None, t) for t, s in enumerate(self.sigma_)]
        s = self._mix(task)[:, None]
        F = shared + (1 - s) * non + s * out
        for t in np.unique(task[task >= 0]):
            rows = np.flatnonzero(task == t)
            F[rows] += self._own(table, rows, int(t))
        return F

    def answers(self, X: Any, tasks: Sequence[Any]) -> dict[Any, Any]:
        """What some tasks answer at the same rows: task -> values [n], or class probabilities [n, classes]."""
        return {name: self.predict(X, task=[name] * len(X)) for name in tasks}

    # importances ------------------------------------------------------------------------------------------------------
    def importances(self, task: Any = None) -> dict[str, Floats]:
        """Total gain a feature, [d], by block; the "task" block is that of `task`, or the sum over tasks.

        With `task`, the outlier and non-outlier parts are weighted as they enter its score (s_t^2 and (1 - s_t)^2: gains
        are quadratic).
        """
        d = len(self.columns_.categories)
        found = {block: self.trees_[block].importance(d).sum(axis=1) for block in BLOCKS}
        if task is not None:
            t = self._task_number(task)
            s = float(self.sigma_[t])
            found[OUTLIER], found[NON_OUTLIER] = s * s * found[OUTLIER], (1 - s) ** 2 * found[NON_OUTLIER]
            found[TASK] = self.trees_[TASK].importance(d, np.flatnonzero(self.task_of_tree_ == t)).sum(axis=1)
        return found

    def _task_number(self, task: Any) -> int:
        return int(task_index(self.tasks_, np.array([task], dtype=object), "error")[0])

    @property
    def feature_importances_(self) -> Floats:
        """Gain a feature over all blocks, [d], summing to 1 (or all 0 without a split)."""
        total = np.sum(list(self.importances().values()), axis=0)
        share: Floats = total / total.sum() if total.sum() > 0 else total
        return share

    def _pieces(self, t: int) -> list[tuple[TreeArrays, float]]:
        """The trees that make task t's score and the factor each enters with."""
        nu, s = self.learning_rate, float(self._mix(t))
        own = self.trees_[TASK].take(np.flatnonzero(self.task_of_tree_ == t))
        factors = {SHARED: nu, OUTLIER: nu * s, NON_OUTLIER: nu * (1 - s)}
        return [(self.trees_[block], factor) for block, factor in factors.items()] + [(own, nu)]

    def _forests(self) -> list[TreeArrays]:
        return list(self.trees_.values())

    def _check_loaded(self) -> None:
        for block in BLOCKS:
            self.trees_[block].check(len(self.columns_.categories), self._outputs())

    def _start(self, t: int) -> Floats:
        return self.start_


class _Fit:
    """The state of one fit: cached scores P of the training rows, and of the held-out ones."""

    def __init__(
        self,
        model: _RMTGB,
        grower: Grower,
        task: Ints,
        y: Any,
        w: Floats | None,
        T: int,
        K: int,
        valid: Valid | None,
        rng: np.random.RandomState,
        theta: Floats,
    ) -> None:
        self.model, self.grower, self.task, self.y, self.w = model, grower, task, y, w
        self.T, self.K, self.valid, self.rng, self.theta = T, K, valid, rng, theta
        n = len(task)
        self.roots = np.searchsorted(task, np.arange(T + 1))
        self.P_sh = np.zeros((n, K)) + model.start_
        self.P_out = self.P_non = self.P_task = np.zeros((0, K))  # each block makes its own; until then it is 0 everywhere
        m = 0 if valid is None else len(valid.y)
        self.V_sh, self.V_out, self.V_non, self.V_task = (np.zeros((m, K)) for _ in range(4))
        self.V_sh += model.start_
        self.H = np.empty((n, 0)) if w is None else w[:, None]
        self.nu = model.learning_rate
        self.patience = model.n_iter_no_change

    def F(self) -> Floats:
        """The full score of the training rows."""
        full: Floats = self.P_sh.copy()
        if len(self.P_out):
            s = expit(self.theta)
            full += (1 - s)[self.task][:, None] * self.P_non
            full += s[self.task][:, None] * self.P_out
        if len(self.P_task):
            full += self.P_task
        return full

    def V(self) -> Floats:
        """The full score of the held-out rows."""
        assert self.valid is not None
        s = expit(self.theta)[self.valid.task][:, None]
        full: Floats = self.V_sh + (1 - s) * self.V_non + s * self.V_out + self.V_task
        return full

    def loss(self, F: Floats) -> float:
        """Mean training loss."""
        return float(np.average(self.model._loss(self.y, F), weights=self.w))

    def valid_losses(self, F: Floats) -> Floats:
        assert self.valid is not None
        return self.model._loss(self.valid.y, F)

    def draw(self, ranges: list[tuple[int, int]]) -> tuple[list[Ints], Ints | None]:
        """The rows of this round, a fresh share of each range, and the features."""
        rows = [np.arange(a, b, dtype=np.int32) for a, b in ranges]
        if self.model.subsample < 1:
            share = self.model.subsample
            rows = [np.sort(self.rng.permutation(own)[: max(round(share * len(own)), min(len(own), 1))]) for own in rows]
        features = None
        if self.model.colsample < 1:
            d = len(self.grower.binner.n_values)
            features = np.sort(self.rng.permutation(d)[: max(round(self.model.colsample * d), 1)])
        return rows, features

    def gradient(self, target: Floats) -> Floats:
        """Turn targets [n, K] into the gradients of their (weighted) squared error, in place."""
        target *= -1.0 if self.w is None else -self.w[:, None]
        return target

    def tree(self, G: Floats, rows: list[Ints], features: Ints | None) -> Grown:
        """A tree for each set of rows, grown on the gradients [n, K]."""
        roots = np.cumsum([0, *(len(own) for own in rows)])
        return self.grower.grow(rows[0] if len(rows) == 1 else np.concatenate(rows), roots, G, self.H, features=features)

    def add(self, P: Floats, grown: Grown, tree_of_task: Ints) -> None:
        """P += nu tree, also for the rows that were not drawn; tree_of_task: which tree a task's rows go down, or -1."""
        grown.add_leaves(P, self.nu)
        if self.model.subsample < 1:
            left_out = tree_of_task[self.task] >= 0
            left_out[grown.rows] = False
            rows = np.flatnonzero(left_out)
            grown.add_binned(P, self.nu, self.grower.bins, rows, tree_of_task[self.task[rows]])

    def block_1(self, trees: dict[str, TreeArrays]) -> None:
        model, parts = self.model, []
        everyone, one_tree = [(0, len(self.task))], np.zeros(self.T, dtype=np.int64)
        stop = None if self.valid is None else _Stopper(float(self.valid_losses(self.V_sh).mean()), self.patience)
        best = (self.V_sh, self.P_sh) if stop is None else (self.V_sh.copy(), self.P_sh.copy())
        for m in range(model.n_shared):
            grown = self.tree(self.gradient(model._residual(self.y, self.P_sh)), *self.draw(everyone))
            self.add(self.P_sh, grown, one_tree)
            parts.append(grown.trees)
            if stop is not None and self.valid is not None:
                grown.trees.add_to(self.V_sh, self.valid.table, self.nu, self.valid.row)
                stop.step(float(self.valid_losses(self.V_sh).mean()))
                if stop.best == stop.round:
                    best = self.V_sh.copy(), self.P_sh.copy()
            if self._note(SHARED, m + 1, model.n_shared, self.P_sh) or (stop is not None and stop.stopped):
                break
        if stop is not None:
            parts, (self.V_sh, self.P_sh) = parts[: stop.best], best
        trees[SHARED] = TreeArrays.join(parts, self.K)

    def block_2(self, trees: dict[str, TreeArrays], pool: ThreadPoolExecutor) -> None:
        model, A_parts, B_parts = self.model, [], []
        everyone, one_tree = [(0, len(self.task))], np.zeros(self.T, dtype=np.int64)
        rate = self.nu if model.theta_lr is None else model.theta_lr
        if model.n_outlier:
            self.P_out, self.P_non = np.zeros_like(self.P_sh), np.zeros_like(self.P_sh)
        stop = None if self.valid is None else _Stopper(float(self.valid_losses(self.V()).mean()), self.patience)
        best = self._state()
        for m in range(model.n_outlier):
            s = expit(self.theta)
            r = model._residual(self.y, self.F())
            weighted = r if self.w is None else self.w[:, None] * r
            step = theta_gradient(weighted, self.P_out - self.P_non, s, self.task, mean=model.theta_step == "mean")
            del weighted
            target_A = s[self.task][:, None] * r
            r *= (1 - s)[self.task][:, None]  # the target of B
            drawn = self.draw(everyone)
            A_job = pool.submit(self.tree, self.gradient(target_A), *drawn)  # both at the same point
            if threads(model.n_jobs) == 1:
                A_job.result()
            B = self.tree(self.gradient(r), *drawn)
            A = A_job.result()
            del r, target_A
            self.add(self.P_out, A, one_tree)
            self.add(self.P_non, B, one_tree)
            self.theta = self.theta - rate * (step + model.theta_l2 * self.theta)
            A_parts.append(A.trees)
            B_parts.append(B.trees)
            if stop is not None and self.valid is not None:
                A.trees.add_to(self.V_out, self.valid.table, self.nu, self.valid.row)
                B.trees.add_to(self.V_non, self.valid.table, self.nu, self.valid.row)
                stop.step(float(self.valid_losses(self.V()).mean()))
                if stop.best == stop.round:
                    best = self._state()
            if self._note(OUTLIER, m + 1, model.n_outlier) or (stop is not None and stop.stopped):
                break
        if stop is not None:
            A_parts, B_parts = A_parts[: stop.best], B_parts[: stop.best]
            self.theta, self.P_out, self.P_non, self.V_out, self.V_non = best
        trees[OUTLIER], trees[NON_OUTLIER] = TreeArrays.join(A_parts, self.K), TreeArrays.join(B_parts, self.K)

    def _state(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        if self.valid is None:
            return self.theta, self.P_out, self.P_non, self.V_out, self.V_non
        return self.theta, self.P_out.copy(), self.P_non.copy(), self.V_out.copy(), self.V_non.copy()

    def block_3(self, trees: dict[str, TreeArrays], pool: ThreadPoolExecutor, n_threads: int) -> Ints:
        """Trees of each task on what is left; all tasks' trees of a round in one pass. Returns the task of each tree."""
        model, parts, owners = self.model, [], []
        active = np.flatnonzero(np.diff(self.roots))
        stops: dict[int, _Stopper] = {}
        if self.valid is not None:
            losses = self.valid_losses(self.V())
            for t in active:  # a task without held-out rows runs all its rounds
                own = self.valid.task == t
                if own.any():
                    stops[int(t)] = _Stopper(float(losses[own].mean()), self.patience)
        self.P_sh = self.F()  # what this block starts from; the other blocks' parts are not looked at again
        self.P_out = self.P_non = np.zeros((0, self.K))
        self.P_task = np.zeros_like(self.P_sh)
        for m in range(model.n_task):
            if not len(active):
                break
            G = self.gradient(model._residual(self.y, self.F()))
            rows, features = self.draw([(int(self.roots[t]), int(self.roots[t + 1])) for t in active])
            chunks = np.array_split(active, min(n_threads, len(active)))
            ends = np.cumsum([0, *(len(chunk) for chunk in chunks)])
            own_rows = [rows[a:b] for a, b in pairwise(ends)]
            grown = list(pool.map(lambda mine, G=G, features=features: self.tree(G, mine, features), own_rows))
            for chunk, found in zip(chunks, grown):
                tree_of_task = np.full(self.T, -1)
                tree_of_task[chunk] = np.arange(len(chunk))
                self.add(self.P_task, found, tree_of_task)
                parts.append(found.trees)
                owners.append(chunk)
            if stops and self.valid is not None:
                for chunk, found in zip(chunks, grown):
                    for i, t in enumerate(chunk):
                        own = np.flatnonzero(self.valid.task == t)
                        if len(own):
                            out = np.zeros((len(own), self.K))
                            found.trees.add_to(out, self.valid.table, self.nu, self.valid.row[own], np.array([i]))
                            self.V_task[own] += out
                losses = self.valid_losses(self.V())
                for t in active:
                    if t in stops:
                        stops[int(t)].step(float(losses[self.valid.task == t].mean()))
                active = np.array([t for t in active if t not in stops or not stops[int(t)].stopped], dtype=np.int64)
            if self._note(TASK, m + 1, model.n_task):
                break
        forest = TreeArrays.join(parts, self.K)
        owner = np.concatenate(owners) if owners else np.empty(0, dtype=np.int64)
        if stops:
            rank = np.array([np.count_nonzero(owner[:i] == t) for i, t in enumerate(owner)], dtype=np.int64)
            keep = np.array([t not in stops or k < stops[int(t)].best for t, k in zip(owner, rank)], dtype=bool)
            forest, owner = forest.take(keep), owner[keep]
        trees[TASK] = forest
        return owner

    def _note(self, block: str, done: int, total: int, F: Floats | None = None) -> bool:
        """Tell `progress` the losses after a round; True if it asks to stop."""
        if not self.model.progress:
            return False
        values: dict[str, Any] = {"train": self.loss(self.F() if F is None else F)}
        if self.valid is not None:
            losses = self.valid_losses(self.V())
            values["valid"] = float(losses.mean())
            count = np.bincount(self.valid.task, minlength=self.T)
            mean = np.bincount(self.valid.task, weights=losses, minlength=self.T) / np.maximum(count, 1)
            values["by_task"] = {name: mean[t] for t, name in enumerate(self.model.tasks_) if count[t]}
        return self.model._report(block, done, total, **values)


class RMTGBRegressor(_RMTGB, TaskRegressor):
    """R-MTGB for regression (half squared error).

    Parameters
    ----------
    n_shared, n_outlier, n_task: rounds of the three blocks (M1, M2, M3; each may be 0). A pooled first block costs outlier
        tasks: try n_shared=0.
    learning_rate: nu.
    max_depth, max_leaf_nodes: limits of a tree (None: no limit); with a limit on the leaves the leaf of the largest gain is
        split first. max_leaf_nodes=2 are the paper's stumps.
    min_samples_leaf: rows; l2_regularization: added to the rows' weight in a leaf's mean; min_split_gain: a split must gain
        more (sum of squared error).
    subsample, colsample: share of the rows (in block 3 of every task's) and of the features drawn for each round.
    max_bins: at most this many bins a numeric feature (2 to 255); cat_smooth: weight added when categories are sorted.
    start: "zero" (the paper) or "constant", the best constant score of all rows.
    theta_init: first theta, a number, one a task, or a mapping task -> number; None: 0.1 N(0, 1).
    theta_lr: rate of theta (None: learning_rate; 0 freezes it); theta_l2: weight of theta^2 / 2; theta_step: "sum" over a
        task's rows (the paper) or their "mean".
    monotone_constraints: mapping column -> -1, 0 or 1 (by name or number), or one a column.
    categorical_features: "from_dtype" (a frame's category, string and object columns), names, numbers or a mask.
    unknown_task: "majority" (shared parts, the median mix) or "error".
    early_stopping: keep each block's best round, and each task's in block 3, by the loss on held-out rows:
        validation_fraction of every task's, or fit's eval_set; a block ends after n_iter_no_change rounds without a better one.
        Block 2 starts out as plain pooling and needs patience before its sides part.
    progress: True prints; a function gets {"block", "round", "rounds", "train", …} and ends the block by answering False.
    n_jobs: threads for the two trees of block 2, the tasks of block 3, and prediction; results do not depend on it.
    random_state: seeds theta, the draws and the held-out rows.

    Attributes
    ----------
    tasks_, theta_, sigma_, outlier_score_ [T]; n_iter_shared_, n_iter_outlier_, n_iter_task_ [T]; feature_importances_ [d].

    Example
    -------
    >>> import numpy as np
    >>> from pluribus.boosting import RMTGBRegressor
    >>> rng = np.random.default_rng(0)
    >>> X, task = rng.uniform(-1, 1, (300, 2)), np.repeat(["a", "b", "c"], 100)
    >>> y = np.where(task == "c", -1, 1) * X[:, 0]
    >>> model = RMTGBRegressor(0, 30, 30, random_state=0).fit(X, y, task=task)
    >>> dict(zip(model.tasks_, model.outlier_score_ > 0.5))["c"]
    np.True_
    """

    def _encode(self, cells: BoosterCells, fit: bool) -> Any:
        return numbers(cells.y)

    def _outputs(self) -> int:
        return 1

    def _constant(self, y: Any, w: Floats | None) -> Floats:
        return np.array([np.average(y, weights=w)])

    def _signs(self) -> Any:
        return signs(self.monotone_constraints, self.columns_)[:, None]

    def _residual(self, y: Any, F: Floats) -> Floats:
        r: Floats = y[:, None] - F
        return r

    def _loss(self, y: Any, F: Floats) -> Floats:
        loss: Floats = 0.5 * (y - F[:, 0]) ** 2
        return loss

    def _decode(self, raw: Floats, task: int | Ints) -> Any:
        return raw[:, 0]


class RMTGBClassifier(_RMTGB, TaskClassifier):
    """R-MTGB for classification: softmax cross-entropy over the classes of all tasks together (a task may lack some).

    Parameters and attributes as `RMTGBRegressor`, and `classes_`: the class labels, the columns of `predict_proba`.
    Monotone constraints hold for P(second class) of two classes.
    """

    classes_: Any

    def _encode(self, cells: BoosterCells, fit: bool) -> Any:
        if fit:
            check_classification_targets(cells.y)
            self.classes_ = np.unique(cells.y)
            if len(self.classes_) < 2:
                raise BadInput(f"only one class, {self.classes_[0]!r}, in y", remedy="give at least two classes")
        codes = np.searchsorted(self.classes_, cells.y)
        if not fit and (self.classes_[np.minimum(codes, len(self.classes_) - 1)] != cells.y).any():
            raise BadInput("holds a class that was not there at fit", where="eval_set", remedy="drop these rows")
        return codes

    def _outputs(self) -> int:
        return len(self.classes_)

    def _constant(self, y: Any, w: Floats | None) -> Floats:
        share = np.bincount(y, weights=w, minlength=len(self.classes_))
        prior = np.log(share / share.sum())
        centred: Floats = prior - prior.mean()  # as the residuals are
        return centred

    def _signs(self) -> Any:
        sign = signs(self.monotone_constraints, self.columns_)
        if not sign.any():
            return np.zeros((len(sign), self._outputs()), dtype=np.int8)
        if self._outputs() != 2:
            raise BadInput(
                f"{self._outputs()} classes have no order", where="monotone_constraints", remedy="constrain binary tasks only"
            )
        return np.column_stack([-sign, sign])  # P(second class) follows the sign

    def _residual(self, y: Any, F: Floats) -> Floats:
        r: Floats = -softmax(F, axis=1)
        r[np.arange(len(y)), y] += 1.0
        return r

    def _loss(self, y: Any, F: Floats) -> Floats:
        loss: Floats = logsumexp(F, axis=1) - F[np.arange(len(y)), y]
        return loss

    def _decode(self, raw: Floats, task: int | Ints) -> Any:
        return self.classes_[np.argmax(raw, axis=1)]

    def answers(self, X: Any, tasks: Sequence[Any]) -> dict[Any, Any]:
        return {name: self.predict_proba(X, task=[name] * len(X)) for name in tasks}

    def classes_of(self, task: Any) -> Any:
        """The classes of one task, as its probabilities are ordered: those of all."""
        return self.classes_

    def decision_function(self, X: Any, task: Any = None) -> Any:
        """Raw scores [n, K]; for two classes their difference [n]. Wide labels: a dict over tasks."""
        return self._answer(X, task, lambda raw, t: raw[:, 1] - raw[:, 0] if raw.shape[1] == 2 else raw, dictionary=True)

    def predict_proba(self, X: Any, task: Any = None) -> Any:
        """Class probabilities [n, K], columns as `classes_`. Wide labels: a dict over tasks."""
        return self._answer(X, task, lambda raw, t: softmax(raw, axis=1), dictionary=True)


class MTGBRegressor(MTGBSettings, RMTGBRegressor):
    """Multi-Task Gradient Boosting (Emami et al., 2023) for regression: F(x, t) = F_sh(x) + F_t(x)."""


class MTGBClassifier(MTGBSettings, RMTGBClassifier):
    """Multi-Task Gradient Boosting (Emami et al., 2023) for classification: F(x, t) = F_sh(x) + F_t(x)."""


def numbers(y: Any) -> Floats:
    """Regression labels as floats; anything that is not a finite number is refused."""
    if np.iscomplexobj(y):
        raise BadInput("Complex data not supported", where="y")
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput("holds labels that are not numbers", where="y", remedy="encode them or use a classifier") from error
    if not np.isfinite(values).all():
        raise BadInput("Input y contains infinity or NaN among the labels", remedy="drop these rows")
    return values
