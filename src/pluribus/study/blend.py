"""Greedy ensemble selection (Caruana, Niculescu-Mizil, Crew and Ksikes, ICML 2004).

For one task: begin with the best single candidate; again and again take in, with replacement, the candidate that makes the mean
of all picks best; keep the shortest prefix of the picks with the best score. A candidate's weight is its share of the picks.

The score of the picks on the rows that they were picked on is too good. What a study says of a blend is therefore measured
*cross-fitted*: the picks for each fifth of the units are made on the other units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.prepared import Prepared
from pluribus.evaluation import metrics
from pluribus.tasks import Task

PICKS = 8
MOST_ROWS = 20_000
"""Rows that picks are made on; more of them change nothing that could be told apart."""
PARTS = 5


def picks(
    task: Task,
    predictions: Mapping[str, NDArray[np.float64]],
    target: Any,
    weight: NDArray[np.float64] | None = None,
    groups: NDArray[np.int64] | None = None,
    most: int = PICKS,
) -> dict[str, float]:
    """The weights of a task's blend.

    Parameters
    ----------
    task : Task
        Its main metric is what is made best.
    predictions : mapping
        Candidate → predictions [m] or [m, C]; ties go to candidates that are in already, then to the earlier one.
    target : ndarray, Ragged or Maps
        The labels of m rows.
    weight : ndarray or None
        Weights of the rows [m].
    groups : ndarray or None
        Groups of the rows [m], where the metric needs them.
    most : int, default 8
        The most picks.

    Returns
    -------
    dict
        Candidate → weight; they sum to 1. The score on these rows is never below that of the best single candidate.
    """
    metric = task.main_metric

    def score(p: NDArray[np.float64]) -> float:
        value = metrics.compute(metric, p, target, weight, groups=groups)
        judged = metric.sign * float(metric.judged(np.asarray(value)))
        return judged if np.isfinite(judged) else -np.inf

    chosen: list[str] = []
    scores: list[float] = []
    total = np.zeros_like(next(iter(predictions.values())))
    for _ in range(most):
        known = sorted(predictions, key=lambda name: name not in chosen)  # stable: the given order within each half
        each = {name: score((total + predictions[name]) / (len(chosen) + 1)) for name in known}
        best = max(known, key=lambda name: each[name])
        total = total + predictions[best]
        chosen.append(best)
        scores.append(each[best])
    kept = chosen[: int(np.argmax(scores)) + 1]
    return {name: kept.count(name) / len(kept) for name in predictions if name in kept}


def blended(
    task: Task, data: Prepared, predictions: Mapping[str, NDArray[np.float64]], seed: int
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """A task's weights from all judged rows, and its cross-fitted predictions of them.

    Parameters
    ----------
    task : Task
        A task that answers with values.
    data : Prepared
        Its valid part is what is judged.
    predictions : mapping
        Candidate → predictions of the task's labelled cells there.
    seed : int
        Of the fifths, and of the rows where there are many.
    """
    cells = data.labelled(task.name, "valid")
    units = data.units[cells.rows]
    rng = np.random.default_rng(seed)

    def weights(rows: NDArray[np.intp]) -> dict[str, float]:
        if len(rows) > MOST_ROWS:
            rows = np.sort(rng.choice(rows, MOST_ROWS, replace=False))
        weight = None if cells.weight is None else cells.weight[rows]
        groups = units[rows] if task.main_metric.grouped else None
        return picks(task, {name: p[rows] for name, p in predictions.items()}, cells.values[rows], weight, groups)

    codes = np.unique(units, return_inverse=True)[1]
    part = rng.permutation(np.arange(codes.max(initial=-1) + 1) % PARTS)[codes]
    found = np.zeros_like(next(iter(predictions.values())))
    for held in np.unique(part):
        here, others = np.flatnonzero(part == held), np.flatnonzero(part != held)
        own = weights(others if len(others) else here)
        found[here] = sum(weight * predictions[name][here] for name, weight in own.items())
    return weights(np.arange(len(cells))), found
