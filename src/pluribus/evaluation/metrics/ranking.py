"""Metrics that sort rows by a score: how well the positive class stands above the other.

- Ties count half (mid-ranks). With one class only, or no rows, a metric is NaN, never ½ and no error.
- `gini` = 2·auc − 1; `ks` is the largest distance between the two classes' distribution functions; `pr_auc` is average
  precision (a sum of steps, no interpolation); `macro_auc` is the mean of one-against-rest AUCs over the classes that occur.
- `gauc` weighs the AUC of each group by the group's rows, `uauc` counts groups alike; only groups with both classes count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pluribus.evaluation.metrics import checks
from pluribus.evaluation.metrics.parts import blocks, mean_where, starts_of, undefined_unless
from pluribus.tasks.metrics import Ranked
from pluribus.tasks.weightings import Array, Ints, Weightings

_POSITIVE = ("binary",)


def _two_classes(p: Array, y: Array, w: Weightings, finish: Callable[[Array, Array], Array]) -> Array:
    """`finish(positive, negative)` sees the classes' weights [r, b] by ascending score, ties in one block."""
    order = np.argsort(p, kind="stable")
    starts, positive = starts_of(p[order]), y[order] > 0
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        ones = weight * positive
        zeros = weight - ones
        found.append(finish(blocks(ones, starts), blocks(zeros, starts)))
    return np.concatenate(found)


def _area(positive: Array, negative: Array) -> Array:
    below = np.cumsum(negative, 1) - 0.5 * negative
    pairs = positive.sum(1) * negative.sum(1)
    return undefined_unless(pairs > 0, np.einsum("rb,rb->r", positive, below) / pairs)


def area(p: Array, y: Array, w: Weightings) -> Array:
    """The area under the ROC curve [R]."""
    if 2 * w.counts.shape[1] > len(w.counts):
        return _two_classes(p, y, w, _area)
    pairs = _won(p, y, w)  # few units, many weightings: a quadratic form of the units' counts
    ones, zeros = w.sums(np.stack((y, 1 - y), 1)).T
    won: Array = ((w.counts @ pairs) * w.counts).sum(1)
    return undefined_unless(ones * zeros > 0, won / (ones * zeros))


def _won(p: Array, y: Array, w: Weightings) -> Array:
    """[G, G]: the weight of pairs (positive of unit g, negative of unit h) that are in the right order, ties half."""
    size = w.counts.shape[1]
    order = np.argsort(p, kind="stable")
    ones, zeros = order[y[order] > 0], order[y[order] <= 0]
    zeros = zeros[np.argsort(w.unit[zeros], kind="stable")]  # by unit, then by score
    bounds = np.searchsorted(w.unit[zeros], np.arange(size + 1))
    pairs = np.zeros((size, size))
    for h in range(size):
        mine = zeros[bounds[h] : bounds[h + 1]]
        mass = np.append(0.0, np.cumsum(w.base[mine]))
        below = mass[np.searchsorted(p[mine], p[ones], "left")] + mass[np.searchsorted(p[mine], p[ones], "right")]
        pairs[:, h] = np.bincount(w.unit[ones], 0.5 * w.base[ones] * below, size)
    return pairs


def _gini(p: Array, y: Array, w: Weightings) -> Array:
    return 2 * area(p, y, w) - 1


def _ks(p: Array, y: Array, w: Weightings) -> Array:
    def distance(positive: Array, negative: Array) -> Array:
        one, zero = np.cumsum(positive, 1), np.cumsum(negative, 1)
        both = (one[:, -1] > 0) & (zero[:, -1] > 0)
        return undefined_unless(both, np.abs(one / one[:, -1:] - zero / zero[:, -1:]).max(1))

    return _two_classes(p, y, w, distance)


def _pr_auc(p: Array, y: Array, w: Weightings) -> Array:
    def average(positive: Array, negative: Array) -> Array:
        one, zero = np.cumsum(positive[:, ::-1], 1), np.cumsum(negative[:, ::-1], 1)
        precision = np.divide(one, one + zero, out=np.zeros_like(one), where=one + zero > 0)
        both = (one[:, -1] > 0) & (zero[:, -1] > 0)
        return undefined_unless(both, (positive[:, ::-1] * precision).sum(1) / one[:, -1])

    return _two_classes(p, y, w, average)


def _by_group(p: Array, y: Array, w: Weightings, group: Ints, alike: bool) -> Array:
    """The mean over groups with both classes of their AUC; one sort by (group, score), no loop over groups."""
    order = np.lexsort((p, group))
    starts = starts_of(group[order], p[order])
    begins = np.searchsorted(starts, starts_of(group[order]))  # first block of each group
    sizes = np.diff(np.append(begins, len(starts)))
    positive = y[order] > 0
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        ones = blocks(weight * positive, starts)
        zeros = blocks(weight * ~positive, starts)
        one, zero = np.add.reduceat(ones, begins, 1), np.add.reduceat(zeros, begins, 1)
        before = np.repeat(np.cumsum(zero, 1) - zero, sizes, axis=1)
        below = np.cumsum(zeros, 1) - 0.5 * zeros - before
        areas = np.add.reduceat(ones * below, begins, 1) / (one * zero)
        share = (one * zero > 0) * (1.0 if alike else one + zero)
        total = share.sum(1)
        found.append(undefined_unless(total > 0, (share * np.nan_to_num(areas)).sum(1) / total))
    return np.concatenate(found)


def _gauc(p: Array, y: Array, w: Weightings, group: Ints) -> Array:
    return _by_group(p, y, w, group, alike=False)


def _uauc(p: Array, y: Array, w: Weightings, group: Ints) -> Array:
    return _by_group(p, y, w, group, alike=True)


def _macro_auc(p: Array, y: Array, w: Weightings) -> Array:
    areas = np.stack([area(p[:, c], (y == c).astype(float), w) for c in range(p.shape[1])], 1)
    return mean_where(~np.isnan(areas), areas)


AUC = Ranked("auc", "max", _POSITIVE, value=area, check=checks.scores, best=1.0, area=True, label="AUC")
GINI = Ranked("gini", "max", _POSITIVE, value=_gini, check=checks.scores, best=1.0, label="Gini")
KS = Ranked("ks", "max", _POSITIVE, value=_ks, check=checks.scores, best=1.0, label="KS")
PR_AUC = Ranked("pr_auc", "max", _POSITIVE, value=_pr_auc, check=checks.scores, best=1.0, label="PR AUC")
GAUC = Ranked("gauc", "max", _POSITIVE, value=_gauc, check=checks.scores, best=1.0, chance=0.5, area=True, grouped=True)
UAUC = Ranked("uauc", "max", _POSITIVE, value=_uauc, check=checks.scores, best=1.0, chance=0.5, area=True, grouped=True)
MACRO_AUC = Ranked(
    "macro_auc", "max", ("multiclass", "ordinal"), value=_macro_auc, check=checks.class_scores, best=1.0, area=True
)
