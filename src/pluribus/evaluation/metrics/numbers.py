"""Metrics of numbers: a prediction and a label a row [n].

- `mape` skips rows whose label is 0. `poisson_deviance` is the mean unit deviance.
- `r2`, `explained_variance` and `pearson` centre first, for accuracy far from zero, so they need all rows at once.
- `spearman` is Pearson's correlation of mid-ranks. Correlations are NaN where either side is constant.
"""

from __future__ import annotations

import numpy as np

from pluribus.evaluation.metrics import checks
from pluribus.evaluation.metrics.classes import EPS
from pluribus.evaluation.metrics.parts import blocks, mean, starts_of, undefined_unless, with_ones
from pluribus.tasks.kinds import constants
from pluribus.tasks.metrics import Additive, Ranked
from pluribus.tasks.weightings import Array, Ints, Weightings

_NUMBERS = ("regression", "count")


def _squares(p: Array, y: Array) -> Array:
    return (p - y) ** 2


def _rmse(s: Array) -> Array:
    return np.sqrt(mean(s))


def _distances(p: Array, y: Array) -> Array:
    return np.abs(p - y)


def median(y: Array, weight: Array) -> float:
    """The weighted median of labels [n]: the best constant for absolute errors."""
    return float(constants.quantiles(y, weight, (0.5,))[0])


def _mape_terms(p: Array, y: Array, mask: None) -> Array:
    there = (y != 0).astype(float)
    return np.stack((there, there * np.abs(p - y) / np.where(y != 0, np.abs(y), 1)), 1)


def _deviance_rows(p: Array, y: Array) -> Array:
    positive = np.maximum(p, EPS)
    ratio = np.divide(y, positive, out=np.ones_like(y), where=y > 0)
    return 2 * (y * np.log(ratio) - y + positive)


def _centred(values: Array) -> Array:
    centre: float = values.mean() if len(values) else 0.0
    return values - centre


def _r2(p: Array, y: Array, w: Weightings) -> Array:
    centred = _centred(y)  # for accuracy: the sums below cancel
    s = w.sums(np.stack((np.ones(len(y)), centred, centred**2, (p - y) ** 2), 1))
    spread = s[:, 2] - s[:, 1] ** 2 / s[:, 0]
    return undefined_unless(spread > 1e-12 * s[:, 2], 1 - s[:, 3] / spread)


def _explained_variance(p: Array, y: Array, w: Weightings) -> Array:
    error, centred = _centred(p - y), _centred(y)
    s = w.sums(np.stack((np.ones(len(y)), centred, centred**2, error, error**2), 1))
    spread = s[:, 2] - s[:, 1] ** 2 / s[:, 0]
    left = s[:, 4] - s[:, 3] ** 2 / s[:, 0]
    return undefined_unless(spread > 1e-12 * s[:, 2], 1 - left / spread)


def _pearson(p: Array, y: Array, w: Weightings) -> Array:
    a, b = _centred(p), _centred(y)
    s = w.sums(np.stack((np.ones(len(y)), a, b, a * a, b * b, a * b), 1))
    m = s[:, 1:] / s[:, :1]
    aa, bb, ab = m[:, 2] - m[:, 0] ** 2, m[:, 3] - m[:, 1] ** 2, m[:, 4] - m[:, 0] * m[:, 1]
    return undefined_unless((aa > 1e-12 * m[:, 2]) & (bb > 1e-12 * m[:, 3]), ab / np.sqrt(aa * bb))


def _spearman(p: Array, y: Array, w: Weightings) -> Array:
    order = np.argsort(p, kind="stable")
    starts = starts_of(p[order])
    inner = np.argsort(y[order], kind="stable")  # from the order of p to the order of y
    inner_starts = starts_of(y[order][inner])
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        rank = _mid_ranks(weight, starts)
        other = np.empty_like(weight)
        other[:, inner] = _mid_ranks(weight[:, inner], inner_starts)
        total = weight.sum(1, keepdims=True)
        a = rank - (weight * rank).sum(1, keepdims=True) / total
        b = other - (weight * other).sum(1, keepdims=True) / total
        cross, aa, bb = ((weight * u * v).sum(1) for u, v in ((a, b), (a, a), (b, b)))
        scale = 1e-12 * total[:, 0] ** 3
        found.append(undefined_unless((aa > scale) & (bb > scale), cross / np.sqrt(aa * bb)))
    return np.concatenate(found)


def _mid_ranks(weight: Array, starts: Ints) -> Array:
    """Ranks [r, n] of rows in sorted order: the weight before the row's block, plus half the block's."""
    mass = blocks(weight, starts)
    middle = np.cumsum(mass, 1) - 0.5 * mass
    return np.repeat(middle, np.diff(np.append(starts, weight.shape[1])), axis=1)


RMSE = Additive("rmse", "min", _NUMBERS, terms=with_ones(_squares), finish=_rmse, check=checks.numbers, label="RMSE")
MAE = Additive(
    "mae", "min", _NUMBERS, terms=with_ones(_distances), finish=mean, check=checks.numbers, constant=median, label="MAE"
)
MAPE = Additive("mape", "min", _NUMBERS, terms=_mape_terms, finish=mean, check=checks.numbers)
POISSON_DEVIANCE = Additive(
    "poisson_deviance",
    "min",
    ("count",),
    terms=with_ones(_deviance_rows),
    finish=mean,
    check=checks.numbers,
    label="Poisson deviance",
)
R2 = Ranked("r2", "max", _NUMBERS, value=_r2, check=checks.numbers, best=1.0, label="R²")
EXPLAINED_VARIANCE = Ranked("explained_variance", "max", _NUMBERS, value=_explained_variance, check=checks.numbers, best=1.0)
PEARSON = Ranked("pearson", "max", _NUMBERS, value=_pearson, check=checks.numbers, best=1.0, chance=0.0)
SPEARMAN = Ranked("spearman", "max", _NUMBERS, value=_spearman, check=checks.numbers, best=1.0, chance=0.0)
