"""Metrics of quantiles: predictions [n, L] at the task's L levels, and one number a row [n].

`pinball` is the mean over rows and levels of max(l·(y − q_l), (l − 1)·(y − q_l)): least at the true quantiles. `coverage` is the
share of rows that lie between the first and the last quantile; what is judged is its distance from the share that the levels
promise.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.evaluation.metrics.parts import mean
from pluribus.tasks.kinds.quantile import LEVELS
from pluribus.tasks.metrics import Additive, Metric
from pluribus.tasks.weightings import Array

Levels = tuple[float, ...]
_QUANTILES = ("quantile",)


def _check(levels: Levels, name: str, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    p, y = np.asarray(prediction, float), np.asarray(target, float)
    if p.shape != (len(y), len(levels)) or y.ndim != 1:
        what = f"needs predictions [n, {len(levels)}] (levels {', '.join(map(str, levels))}), not {p.shape} for {y.shape}"
        raise BadInput(what, where=name)
    if not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise BadInput("a prediction or target is missing or infinite", where=name, remedy="pass labelled rows")
    return p, y


def _losses(levels: Levels, p: Array, y: Array, mask: None) -> Array:
    error, level = y[:, None] - p, np.asarray(levels)
    return np.stack((np.ones(len(y)), np.maximum(level * error, (level - 1) * error).mean(1)), 1)


def _inside(p: Array, y: Array, mask: None) -> Array:
    return np.stack((np.ones(len(y)), (p[:, 0] <= y) & (y <= p[:, -1])), 1)


class Pinball(Additive):
    """The pinball loss at a task's levels."""

    def of(self, task: Any) -> Metric:
        """The record for a task's levels."""
        return _pinball(task.levels or LEVELS)


class Coverage(Additive):
    """The share of rows between the outer quantiles."""

    def of(self, task: Any) -> Metric:
        """The record for a task's levels."""
        return _coverage(task.levels or LEVELS)


def _pinball(levels: Levels) -> Pinball:
    return Pinball("pinball", "min", _QUANTILES, terms=partial(_losses, levels), finish=mean, check=partial(_check, levels))


def _coverage(levels: Levels) -> Coverage:
    ideal = levels[-1] - levels[0]
    return Coverage("coverage", "min", _QUANTILES, terms=_inside, finish=mean, check=partial(_check, levels), ideal=ideal)


PINBALL = _pinball(LEVELS)
COVERAGE = _coverage(LEVELS)
