"""Computing metrics, for one weighting of the rows or for R of them at once.

A row of weight 2 counts as two rows; a row of weight 0 is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.evaluation.metrics.checks import group_codes
from pluribus.tasks.forms import Maps, Ragged, Values
from pluribus.tasks.kinds import constants
from pluribus.tasks.metrics import Metric
from pluribus.tasks.metrics import metric as metric_named
from pluribus.tasks.weightings import Array, Ints, Weightings


def compute(
    metric: str | Metric, prediction: Any, target: Any, weight: npt.ArrayLike | None = None, groups: npt.ArrayLike | None = None
) -> Any:
    """One metric of one set of predictions.

    Parameters
    ----------
    metric : str or Metric
        A metric or its name.
    prediction : array_like, Ragged or Maps
        P(positive) [n] of a binary task, P(class) [n, C] of a multiclass or ordinal one, the value [n] else; lists; maps.
    target : array_like, Ragged or Maps
        The labels of n rows: 0 or 1, class indices or values [n]; lists; maps. Labelled rows only. Lists may be [n, L] with −1
        behind the last place.
    weight : array_like or None
        [n] or [R, n], not negative; None: all 1.
    groups : array_like or None
        The group of each row [n], none missing; for metrics that need groups.

    Returns
    -------
    float or ndarray
        A number, or [R] if weight is [R, n]. NaN where the metric is not defined (one class, no rows, …).

    Raises
    ------
    BadInput
        An unknown name, shapes that do not fit, missing or infinite values, missing groups.
    """
    record, p, y, group = _checked(metric, prediction, target, groups)
    if weight is None:
        w = np.ones((1, len(y)))
    else:
        w = np.asarray(weight, float)
        if w.shape[-1:] != (len(y),) or w.ndim > 2 or not np.isfinite(w).all() or (w < 0).any():
            raise BadInput("weights must be finite, not negative, and one per row", where=record.name)
    value = record.measured(p, y, Weightings.of_rows(np.atleast_2d(w)), group)
    return value if weight is not None and w.ndim == 2 else float(value[0])


def resampled(
    metric: str | Metric, prediction: Any, target: Any, weightings: Weightings, groups: npt.ArrayLike | None = None
) -> Array:
    """The metric under each weighting of whole units, [R]; arguments else as in `compute`."""
    record, p, y, group = _checked(metric, prediction, target, groups)
    return record.measured(p, y, weightings, group)


def judged(metric: str | Metric, value: Array) -> Array:
    """What is compared: the value itself, or its distance from the metric's ideal value where it has one."""
    return _record(metric).judged(value)


def constant(metric: str | Metric, target: Any, *, classes: int = 0, weight: npt.ArrayLike | None = None) -> float | Array:
    """The best constant prediction for a metric, from training labels.

    The metric's own where it has one (the median for "mae"); else class frequencies [C] where `classes` counts the columns of a
    prediction, or the mean.
    """
    record = _record(metric)
    y, w = labels_and_weights(target, weight)
    if record.constant is not None:
        found: float | Array = record.constant(y, w)
        return found
    values = np.asarray(y, float)
    return constants.shares(values, w, classes) if classes else constants.mean(values, w)


def labels_and_weights(target: Any, weight: npt.ArrayLike | None) -> tuple[Values, Array]:
    """Labels in one of the three forms, and a weight for each.

    Raises
    ------
    BadInput
        There is no row of positive weight.
    """
    y = target if isinstance(target, Ragged | Maps) else np.asarray(target, float)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    if not len(y) or not w.sum() > 0:
        raise BadInput("a constant predictor needs at least one labelled row")
    return y, w


def of_constant(
    metric: str | Metric,
    value: float | Array,
    target: Any,
    weight: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
) -> float:
    """The metric of a constant prediction; where a constant earns no number (spearman), what chance earns."""
    record = _record(metric)
    y = target if isinstance(target, Ragged | Maps) else np.asarray(target, float)
    one = np.asarray(value, float)
    found = float(compute(record, np.broadcast_to(one, (len(y), *one.shape)), y, weight, groups))
    return record.chance if np.isnan(found) and record.chance is not None else found


def _record(metric: str | Metric) -> Metric:
    return metric_named(metric) if isinstance(metric, str) else metric


def _checked(
    metric: str | Metric, prediction: Any, target: Any, groups: npt.ArrayLike | None
) -> tuple[Metric, Any, Any, Ints | None]:
    record = _record(metric)
    p, y = record.checked(prediction, target)
    return record, p, y, group_codes(record.name, groups, len(y)) if record.grouped else None
