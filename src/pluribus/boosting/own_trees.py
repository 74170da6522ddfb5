"""Each task on its own, from where trees of all tasks have left it: F(x) + sum of trees of this task alone.

Every round grows one tree for each task that still learns, on its own gradients at its labelled rows:
  g, h at F_t;  tree;  F_t += nu tree.
A task stops after `patience` rounds without a smaller loss on its held-out cells and keeps its best round. It keeps its trees at
all only where they help by more than chance explains: with d_i = loss_i(before) - loss_i(after) on its held-out cells,
  gain = sum w_i d_i / sum w_i,   error = sqrt(J / (J - 1) * sum_j (sum_{i in j} w_i (d_i - gain))^2) / sum w_i,
over the J units that the cells belong to, gain > error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluribus.boosting.histogram import Floats, Ints
from pluribus.boosting.objectives import BoosterObjective
from pluribus.boosting.tree import Grower, TreeArrays


@dataclass
class LoneTask:
    """One task while it goes on alone.

    Parameters
    ----------
    objective : BoosterObjective
        Its loss.
    grower : Grower
        How its trees are grown, on the bins of all training rows.
    rows, y, weight, F : ndarray
        Its labelled rows, their labels, weights (None: all 1) and the scores of all training rows [N, K], which are added to.
    held, held_y, held_weight, held_unit, V : ndarray
        The same of its held-out cells: rows of the held-out table, labels, weights, units, scores [cells, K].
    """

    objective: BoosterObjective
    grower: Grower
    rows: Ints
    y: Floats
    weight: Floats | None
    F: Floats
    held: Ints
    held_y: Floats
    held_weight: Floats | None
    held_unit: Ints
    V: Floats

    def __post_init__(self) -> None:
        self.parts: list[TreeArrays] = []
        self.before = self.objective.loss(self.held_y, self.V)
        self.after, self.best, self.least = self.before, 0, self._mean(self.before)
        self.learns = len(self.held) > 0  # without held-out cells nothing says whether more trees help
        K = self.F.shape[1]
        self._G = np.zeros((len(self.F), K))
        self._H = np.zeros((len(self.F), 0 if self.objective.flat and self.weight is None else K))

    def step(self, rate: float, drawn: Ints, features: Ints | None, table: Floats) -> float:
        """Grow one tree on the rows `drawn` of its own and return the held-out loss."""
        F = self.F[self.rows]
        if F.shape[1] == 1:
            g, h = self.objective.derivatives(self.y[:, None], F)
        else:
            g, h = self.objective.derivatives(self.y, F)
        w = 1.0 if self.weight is None else self.weight[:, None]
        self._G[self.rows] = w * g
        if self._H.shape[1]:
            self._H[self.rows] = w * h
        grown = self.grower.grow(drawn, np.array([0, len(drawn)]), self._G, self._H, features=features)
        grown.add_leaves(self.F, rate)
        if len(drawn) < len(self.rows):
            rest = np.setdiff1d(self.rows, drawn)
            grown.add_binned(self.F, rate, self.grower.bins, rest, np.zeros(len(rest), dtype=np.int64))
        self.parts.append(grown.trees)
        grown.trees.add_to(self.V, table, rate, self.held)
        losses = self.objective.loss(self.held_y, self.V)
        mean = self._mean(losses)
        if mean < self.least:
            self.after, self.best, self.least = losses, len(self.parts), mean
        return mean

    def _mean(self, losses: Floats) -> float:
        return float(np.average(losses, weights=self.held_weight)) if len(losses) else np.inf

    def kept(self) -> TreeArrays | None:
        """Its trees up to the best round, or None where their gain may be chance."""
        gain, error = gain_and_error(self.before - self.after, self.held_weight, self.held_unit)
        return TreeArrays.join(self.parts[: self.best], self.F.shape[1]) if self.best and gain > error else None


def go_on_alone(
    tasks: Sequence[LoneTask],
    table: Floats,
    rate: float,
    rounds: int,
    patience: int,
    draw: Callable[[Ints], tuple[Ints, Ints | None]],
    report: Callable[[int, dict[int, float], list[int]], bool],
) -> list[TreeArrays | None]:
    """Grow the trees of each task alone, one a task and round.

    Parameters
    ----------
    tasks : sequence of LoneTask
        The tasks.
    table : ndarray
        The held-out table [n, d].
    rate : float
        What trees are multiplied by.
    rounds, patience : int
        At most so many rounds; so many without a better one end a task.
    draw : callable
        Rows → those that a tree is grown on, and the features (None: all).
    report : callable
        Told the round, the held-out losses of the tasks that learned in it, and who goes on; True ends all.

    Returns
    -------
    list
        Of each task its trees, or None where they did not help.
    """
    for m in range(rounds):
        learning = [t for t, task in enumerate(tasks) if task.learns]
        if not learning:
            break
        losses: dict[int, float] = {}
        for t in learning:
            task = tasks[t]
            losses[t] = task.step(rate, *draw(task.rows), table)
            task.learns = m + 1 - task.best < patience
        if report(m + 1, losses, [t for t in learning if tasks[t].learns]):
            break
    return [task.kept() for task in tasks]


def gain_and_error(difference: Floats, weight: Floats | None, unit: Ints) -> tuple[float, float]:
    """The weighted mean of paired differences and its standard error over units (infinite for fewer than two)."""
    w: Any = np.ones(len(difference)) if weight is None else weight
    total = float(w.sum())
    if total <= 0:
        return 0.0, np.inf
    gain = float((w * difference).sum() / total)
    _, place = np.unique(unit, return_inverse=True)
    each = np.bincount(place, weights=w * (difference - gain))
    if len(each) < 2:
        return gain, np.inf
    return gain, float(np.sqrt(len(each) / (len(each) - 1) * (each**2).sum()) / total)
