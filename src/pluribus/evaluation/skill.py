"""Skill: how much of the way from the constant predictor to perfection a score has gone; comparable across metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pluribus.evaluation import metrics
from pluribus.evaluation.metrics.scores import labels_and_weights
from pluribus.tasks import Metric, Task


def best_constant(task: Task, target: ArrayLike, weight: NDArray[Any] | None = None) -> metrics.Array | float:
    """The constant prediction that is best for the task's main metric on these labels, else for its kind's loss: one row's."""
    values, each = labels_and_weights(target, weight)
    own = task.main_metric.constant
    found: metrics.Array | float = task.record.constant(task, values, each) if own is None else own(values, each)
    return found


def skill(metric: Metric, score: float, constant: float) -> float:
    """0 for the constant predictor, 1 for a perfect score of a metric that has one; negative is worse than constant.

    Metrics where more is better: (score − constant) / (1 − constant); where less is better: 1 − score / constant. A constant
    predictor that earns no number counts as 0. NaN scores stay NaN.
    """
    constant = 0.0 if math.isnan(constant) else constant
    score, constant = (float(metric.judged(np.asarray(value))) for value in (score, constant))
    if metric.direction == "min":
        return 1 - score / constant if constant > 0 else -score
    return (score - constant) / (1 - constant) if constant < 1 else score
