"""Metrics, weighted by rows, for one weighting or for R of them at once.

`compute(name, prediction, target, weight)` with weight [n] gives a number, with weight [R, n] gives R numbers. A row of
weight 2 counts as two rows; a row of weight 0 is not there. Two families:

- **additive** metrics are functions of sums over rows, so R weightings cost one matrix product;
- **ranked** metrics sort the rows once and then need one pass of cumulated weights per weighting.

What the definitions decide, where libraries differ:

- rank metrics give ties half a point (mid-ranks); with one class only, or no rows, a metric is NaN, never .5 and no error;
- `logloss` clips probabilities at 1e-7; `ne` is logloss over the entropy of the base rate (He et al. 2014, "Practical
  Lessons from Predicting Clicks on Ads at Facebook");
- `brier` is the mean squared error of the probability (binary) or its sum over classes (Brier 1950; multiclass);
- `pr_auc` is average precision (a sum of steps, no interpolation); `ks` the largest distance between the two classes'
  distribution functions; `gini` = 2·auc − 1; `macro_auc` averages one-against-rest AUCs over the classes that occur;
- classes are decided by p ≥ ½ or by the largest probability; `f1` is of the positive class (binary) or the mean over classes
  that occur or are predicted; `balanced_accuracy` the mean recall of classes that occur;
- `gauc` weighs the AUC of each group by the group's rows, `uauc` counts groups alike; only groups with both classes count;
- `ece` uses 15 bins of equal weight, rows with equal p share a bin; `pcoc` = Σp / Σy, and what is judged is |pcoc − 1|;
- `qwk` is Cohen's kappa with quadratic weights (Cohen 1968); `spearman` is Pearson's correlation of mid-ranks;
- `poisson_deviance` is the mean unit deviance; `mape` skips rows whose target is 0;
- tags [n, W] hold −1 behind a row's last word: `token_accuracy` counts words, `span_f1` whole spans of BIO tags whose borders
  and type are right, over all rows together (as the CoNLL-2000 scorer; class indices as in `pluribus.text.tagging`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput, unknown

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

EPS = 1e-7
BINS = 15
_CHUNK = 1 << 20  # weights held at a time by a ranked metric: 8 MB


# --- weightings -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weightings:
    """R weightings of n rows: row i has weight ``counts[r, unit[i]] * base[i]``.

    base [n], unit [n] (whole numbers below G), counts [R, G]. A resampling unit moves as one, with all its rows.
    """

    base: Array
    unit: Ints
    counts: Array

    @classmethod
    def of_rows(cls, weight: Array) -> Weightings:
        """Each row its own unit: weight [R, n]."""
        n = weight.shape[1]
        return cls(np.ones(n), np.arange(n), weight)

    def sums(self, terms: Array) -> Array:
        """Σ_i w_ri terms_ik → [R, k]: rows are first summed within units."""
        size = self.counts.shape[1]
        by_unit: Array = np.stack([np.bincount(self.unit, self.base * column, size) for column in terms.T], 1)
        total: Array = self.counts @ by_unit
        return total

    def rows(self, order: Ints) -> Iterator[Array]:
        """The weights in the given order of rows, a few weightings at a time: [r, n]."""
        unit, base = self.unit[order], self.base[order]
        step = max(1, _CHUNK // max(1, len(order)))
        for start in range(0, len(self.counts), step):
            weight = np.take(self.counts[start : start + step], unit, axis=1)
            weight *= base
            yield weight


# --- additive: terms(p, y) [n, k], finish(sums [R, k]) → [R] --------------------------------------------------------------


def _mean(terms: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Weightings], Array]:
    """The weighted mean of a per-row loss."""

    def metric(p: Array, y: Array, w: Weightings) -> Array:
        s = w.sums(np.stack((np.ones(len(y)), terms(p, y)), 1))
        mean: Array = s[:, 1] / s[:, 0]
        return mean

    return metric


def _of_target(p: Array, y: Array) -> Array:
    """The probability given to what happened."""
    if p.ndim == 2:
        return p[np.arange(len(y)), y.astype(np.intp)]
    return np.where(y > 0, p, 1 - p)


def _logloss_rows(p: Array, y: Array) -> Array:
    return -np.log(np.clip(_of_target(p, y), EPS, 1 - EPS))


def _brier_rows(p: Array, y: Array) -> Array:
    if p.ndim == 2:
        loss: Array = (p**2).sum(1) - 2 * _of_target(p, y) + 1
        return loss
    return (p - y) ** 2


def _deviance_rows(p: Array, y: Array) -> Array:
    mean = np.maximum(p, EPS)
    ratio = np.divide(y, mean, out=np.ones_like(y), where=y > 0)
    return 2 * (y * np.log(ratio) - y + mean)


def _decided(p: Array) -> Array:
    return p.argmax(1).astype(float) if p.ndim == 2 else (p >= 0.5).astype(float)


_logloss = _mean(_logloss_rows)
_squared = _mean(lambda p, y: (p - y) ** 2)


def _rmse(p: Array, y: Array, w: Weightings) -> Array:
    return np.sqrt(_squared(p, y, w))


def _mape(p: Array, y: Array, w: Weightings) -> Array:
    there = (y != 0).astype(float)
    s = w.sums(np.stack((there, there * np.abs(p - y) / np.where(y != 0, np.abs(y), 1)), 1))
    return s[:, 1] / s[:, 0]


def _ne(p: Array, y: Array, w: Weightings) -> Array:
    s = w.sums(np.stack((np.ones(len(y)), y, _logloss_rows(p, y)), 1))
    rate = s[:, 1] / s[:, 0]
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return _undefined_unless(entropy > 0, s[:, 2] / s[:, 0] / entropy)


def _pcoc(p: Array, y: Array, w: Weightings) -> Array:
    s = w.sums(np.stack((p, y), 1))
    return _undefined_unless(s[:, 1] > 0, s[:, 0] / s[:, 1])


def _r2(p: Array, y: Array, w: Weightings) -> Array:
    centred = y - (y.mean() if len(y) else 0.0)  # for accuracy: the sums below cancel
    s = w.sums(np.stack((np.ones(len(y)), centred, centred**2, (p - y) ** 2), 1))
    spread = s[:, 2] - s[:, 1] ** 2 / s[:, 0]
    return _undefined_unless(spread > 1e-12 * s[:, 2], 1 - s[:, 3] / spread)


def _explained_variance(p: Array, y: Array, w: Weightings) -> Array:
    error = p - y
    error, centred = (v - (v.mean() if len(y) else 0.0) for v in (error, y))
    s = w.sums(np.stack((np.ones(len(y)), centred, centred**2, error, error**2), 1))
    spread = s[:, 2] - s[:, 1] ** 2 / s[:, 0]
    left = s[:, 4] - s[:, 3] ** 2 / s[:, 0]
    return _undefined_unless(spread > 1e-12 * s[:, 2], 1 - left / spread)


def _confusion(p: Array, y: Array, w: Weightings) -> tuple[Array, Array, Array]:
    """Per class: weight that is it, weight predicted as it, weight of both, each [R, C]."""
    classes = np.arange(p.shape[1] if p.ndim == 2 else 2)
    is_ = (y[:, None] == classes).astype(float)
    said = (_decided(p)[:, None] == classes).astype(float)
    return w.sums(is_), w.sums(said), w.sums(is_ * said)


def _balanced_accuracy(p: Array, y: Array, w: Weightings) -> Array:
    is_, _, both = _confusion(p, y, w)
    return _mean_where(is_ > 0, both / is_)


def _f1(p: Array, y: Array, w: Weightings) -> Array:
    is_, said, both = _confusion(p, y, w)
    score = 2 * both / (is_ + said)
    if p.ndim == 1:
        return _undefined_unless(is_.sum(1) > 0, np.where(is_[:, 1] + said[:, 1] > 0, score[:, 1], 0.0))
    return _mean_where(is_ + said > 0, score)


def _qwk(p: Array, y: Array, w: Weightings) -> Array:
    said = _decided(p)
    s = w.sums(np.stack((np.ones(len(y)), y, y**2, said, said**2, (y - said) ** 2), 1))
    m = s[:, 1:] / s[:, :1]
    by_chance = m[:, 1] + m[:, 3] - 2 * m[:, 0] * m[:, 2]  # E(i − j)² were the two independent
    return _undefined_unless(by_chance > 1e-12, 1 - m[:, 4] / by_chance)


# --- ranked ---------------------------------------------------------------------------------------------------------------


def _starts(*keys: npt.NDArray[Any]) -> Ints:
    """Where blocks of equal keys begin, in sorted keys."""
    if not len(keys[0]):
        return np.zeros(0, np.intp)
    new = np.ones(len(keys[0]), bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(new)


def _blocks(weight: Array, starts: Ints) -> Array:
    """Sums within blocks of ties [r, n] → [r, b]."""
    return weight if len(starts) == weight.shape[1] else np.add.reduceat(weight, starts, axis=1)


def _two_classes(p: Array, y: Array, w: Weightings, finish: Callable[[Array, Array], Array]) -> Array:
    """`finish(positive, negative)` sees the classes' weights [r, b] by ascending score, ties in one block."""
    order = np.argsort(p, kind="stable")
    starts, positive = _starts(p[order]), y[order] > 0
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        ones = weight * positive
        zeros = weight - ones
        found.append(finish(_blocks(ones, starts), _blocks(zeros, starts)))
    return np.concatenate(found)


def _area(positive: Array, negative: Array) -> Array:
    below = np.cumsum(negative, 1) - 0.5 * negative
    pairs = positive.sum(1) * negative.sum(1)
    return _undefined_unless(pairs > 0, np.einsum("rb,rb->r", positive, below) / pairs)


def _auc(p: Array, y: Array, w: Weightings) -> Array:
    if 2 * w.counts.shape[1] > len(w.counts):
        return _two_classes(p, y, w, _area)
    pairs = _won(p, y, w)  # few units, many weightings: a quadratic form of the units' counts
    ones, zeros = w.sums(np.stack((y, 1 - y), 1)).T
    won: Array = ((w.counts @ pairs) * w.counts).sum(1)
    return _undefined_unless(ones * zeros > 0, won / (ones * zeros))


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
    return 2 * _auc(p, y, w) - 1


def _ks(p: Array, y: Array, w: Weightings) -> Array:
    def distance(positive: Array, negative: Array) -> Array:
        one, zero = np.cumsum(positive, 1), np.cumsum(negative, 1)
        both = (one[:, -1] > 0) & (zero[:, -1] > 0)
        return _undefined_unless(both, np.abs(one / one[:, -1:] - zero / zero[:, -1:]).max(1))

    return _two_classes(p, y, w, distance)


def _pr_auc(p: Array, y: Array, w: Weightings) -> Array:
    def average(positive: Array, negative: Array) -> Array:
        one, zero = np.cumsum(positive[:, ::-1], 1), np.cumsum(negative[:, ::-1], 1)
        precision = np.divide(one, one + zero, out=np.zeros_like(one), where=one + zero > 0)
        both = (one[:, -1] > 0) & (zero[:, -1] > 0)
        return _undefined_unless(both, (positive[:, ::-1] * precision).sum(1) / one[:, -1])

    return _two_classes(p, y, w, average)


def _macro_auc(p: Array, y: Array, w: Weightings) -> Array:
    areas = np.stack([_auc(p[:, c], (y == c).astype(float), w) for c in range(p.shape[1])], 1)
    return _mean_where(~np.isnan(areas), areas)


def _ece(p: Array, y: Array, w: Weightings) -> Array:
    order = np.argsort(p, kind="stable")
    starts, ordered, target = _starts(p[order]), p[order], y[order]
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        mass = _blocks(weight, starts)
        gap = _blocks(weight * (ordered - target), starts)
        total = mass.sum(1, keepdims=True)
        middle = (np.cumsum(mass, 1) - 0.5 * mass) / total
        bin_ = np.clip(np.nan_to_num(middle) * BINS, 0, BINS - 1).astype(np.intp)
        flat = bin_ + BINS * np.arange(len(weight))[:, None]
        gaps = np.bincount(flat.ravel(), gap.ravel(), BINS * len(weight)).reshape(-1, BINS)
        found.append(np.abs(gaps).sum(1) / total[:, 0])
    return np.concatenate(found)


def _spearman(p: Array, y: Array, w: Weightings) -> Array:
    order = np.argsort(p, kind="stable")
    starts = _starts(p[order])
    inner = np.argsort(y[order], kind="stable")  # from the order of p to the order of y
    inner_starts = _starts(y[order][inner])
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
        found.append(_undefined_unless((aa > scale) & (bb > scale), cross / np.sqrt(aa * bb)))
    return np.concatenate(found)


def _mid_ranks(weight: Array, starts: Ints) -> Array:
    """Ranks [r, n] of rows in sorted order: the weight before the row's block, plus half the block's."""
    mass = _blocks(weight, starts)
    middle = np.cumsum(mass, 1) - 0.5 * mass
    return np.repeat(middle, np.diff(np.append(starts, weight.shape[1])), axis=1)


def _by_group(p: Array, y: Array, group: Ints, w: Weightings, alike: bool) -> Array:
    """The mean over groups with both classes of their AUC; one sort by (group, score), no loop over groups."""
    order = np.lexsort((p, group))
    starts = _starts(group[order], p[order])
    begins = np.searchsorted(starts, _starts(group[order]))  # first block of each group
    sizes = np.diff(np.append(begins, len(starts)))
    positive = y[order] > 0
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        ones = _blocks(weight * positive, starts)
        zeros = _blocks(weight * ~positive, starts)
        one, zero = np.add.reduceat(ones, begins, 1), np.add.reduceat(zeros, begins, 1)
        before = np.repeat(np.cumsum(zero, 1) - zero, sizes, axis=1)
        below = np.cumsum(zeros, 1) - 0.5 * zeros - before
        area = np.add.reduceat(ones * below, begins, 1) / (one * zero)
        voice = (one * zero > 0) * (1.0 if alike else one + zero)
        total = voice.sum(1)
        found.append(_undefined_unless(total > 0, (voice * np.nan_to_num(area)).sum(1) / total))
    return np.concatenate(found)


def _undefined_unless(defined: npt.NDArray[np.bool_], value: Array) -> Array:
    return np.where(defined, value, np.nan)


def _mean_where(there: npt.NDArray[np.bool_], value: Array) -> Array:
    count = there.sum(1)
    return _undefined_unless(count > 0, np.where(there, value, 0.0).sum(1) / np.maximum(count, 1))


# --- tags [n, W], −1 where there is no word --------------------------------------------------------------------------------


def _token_accuracy(p: Array, y: Array, w: Weightings) -> Array:
    there = y >= 0
    s = w.sums(np.stack((there.sum(1), (there & (p == y)).sum(1)), 1).astype(float))
    return _undefined_unless(s[:, 0] > 0, s[:, 1] / s[:, 0])


def _spans(tags: Array) -> tuple[Array, Ints]:
    """Where a span begins, its type there (else 0) [n, W]; and for every place the last place of the span it lies in [n, W]."""
    type_ = np.where(tags > 0, (tags + 1) // 2, 0)
    before = np.pad(type_, ((0, 0), (1, 0)))[:, :-1]
    first = (type_ > 0) & ((tags % 2 == 1) | (type_ != before))
    after = np.pad(first | (type_ == 0), ((0, 0), (0, 1)), constant_values=True)[:, 1:]
    last = np.empty(tags.shape, np.intp)
    at = np.full(len(tags), tags.shape[1])
    for place in range(tags.shape[1] - 1, -1, -1):
        at = np.where(after[:, place], place, at)
        last[:, place] = at
    return np.where(first, type_, 0), last


def _span_f1(p: Array, y: Array, w: Weightings) -> Array:
    said, said_last = _spans(np.where(y >= 0, p, 0))
    true, true_last = _spans(np.where(y >= 0, y, 0))
    both = (true > 0) & (said == true) & (said_last == true_last)
    s = w.sums(np.stack([(each > 0).sum(1) for each in (said, true, both)], 1).astype(float))
    return _undefined_unless(s[:, 0] + s[:, 1] > 0, 2 * s[:, 2] / (s[:, 0] + s[:, 1]))


# --- ranked items [n, K], best first -----------------------------------------------------------------------------------------


def _recall(k: int) -> Callable[[Array, Array, Weightings], Array]:
    """The share of rows whose item is among the first k."""
    return _mean(lambda p, y: (p[:, :k] == y[:, None]).any(1).astype(float))


def _reciprocal_rank(p: Array, y: Array) -> Array:
    """1 / place of the row's item; 0 where it is not in the list."""
    found: Array = ((p == y[:, None]) / np.arange(1, p.shape[1] + 1)).sum(1)
    return found


# --- the public face ------------------------------------------------------------------------------------------------------

COMPUTED: dict[str, Callable[[Array, Array, Weightings], Array]] = {
    "auc": _auc,
    "gini": _gini,
    "ks": _ks,
    "pr_auc": _pr_auc,
    "macro_auc": _macro_auc,
    "spearman": _spearman,
    "ece": _ece,
    "logloss": _logloss,
    "brier": _mean(_brier_rows),
    "ne": _ne,
    "pcoc": _pcoc,
    "qwk": _qwk,
    "f1": _f1,
    "accuracy": _mean(lambda p, y: (_decided(p) == y).astype(float)),
    "balanced_accuracy": _balanced_accuracy,
    "rmse": _rmse,
    "mae": _mean(lambda p, y: np.abs(p - y)),
    "mape": _mape,
    "r2": _r2,
    "explained_variance": _explained_variance,
    "poisson_deviance": _mean(_deviance_rows),
    "recall@10": _recall(10),
    "recall@20": _recall(20),
    "recall@50": _recall(50),
    "mrr": _mean(_reciprocal_rank),
    "token_accuracy": _token_accuracy,
    "span_f1": _span_f1,
}
GROUPED = ("gauc", "uauc")
_RANKED = ("recall@10", "recall@20", "recall@50", "mrr")
CHANCE = {"spearman": 0.0, "gauc": 0.5, "uauc": 0.5, "qwk": 0.0}  # what a constant prediction earns where it earns no number
BEST = dict.fromkeys(
    (
        "auc",
        "gini",
        "ks",
        "pr_auc",
        "gauc",
        "uauc",
        "macro_auc",
        "accuracy",
        "balanced_accuracy",
        "f1",
        "qwk",
        "r2",
        "explained_variance",
        *_RANKED,
        "spearman",
        "token_accuracy",
        "span_f1",
    ),
    1.0,
)
_CLASSWISE = ("macro_auc", "qwk")
_TAGS = ("token_accuracy", "span_f1")
_EITHER = ("logloss", "brier", "accuracy", "balanced_accuracy", "f1")
_BINARY = ("auc", "gini", "ks", "pr_auc", "ece", "ne", *GROUPED)
_PROBABILITY = ("logloss", "brier", "ece", "ne")


def compute(
    name: str,
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
) -> Any:
    """One metric of one set of predictions.

    Parameters
    ----------
    name: a name of `pluribus.tasks.METRICS`.
    prediction: P(positive) [n] of a binary task, P(class) [n, C] of a multiclass or ordinal one, the value [n] else; tags [n, W].
    target: [n], 0/1, the class index, or the value; labelled rows only. Tags: class indices [n, W], -1 behind the last word.
    weight: None, [n] or [R, n], not negative.
    groups: [n], none missing, needed by "gauc" and "uauc" only.

    Returns
    -------
    A float, or an array [R] if weight is [R, n]. NaN where the metric is not defined (one class, no rows, …).

    Raises
    ------
    BadInput: unknown name, shapes that do not fit, missing or infinite values, missing groups.
    """
    p, y, group = _checked(name, prediction, target, groups)
    if weight is None:
        w = np.ones((1, len(y)))
    else:
        w = np.asarray(weight, float)
        if w.shape[-1:] != y.shape[:1] or w.ndim > 2 or not np.isfinite(w).all() or (w < 0).any():
            raise BadInput("weights must be finite, not negative, and one per row", where=name)
    with np.errstate(all="ignore"):
        value = _evaluate(name, p, y, Weightings.of_rows(np.atleast_2d(w)), group)
    return value if weight is not None and w.ndim == 2 else float(value[0])


def resampled(
    name: str, prediction: npt.ArrayLike, target: npt.ArrayLike, weightings: Weightings, groups: npt.ArrayLike | None = None
) -> Array:
    """The metric under each weighting of whole units, [R]; arguments else as in `compute`."""
    p, y, group = _checked(name, prediction, target, groups)
    with np.errstate(all="ignore"):
        return _evaluate(name, p, y, weightings, group)


def judged(name: str, value: Array) -> Array:
    """What is compared: the value itself, except pcoc, of which it is the distance from 1."""
    return np.abs(value - 1) if name == "pcoc" else value


def constant(name: str, target: npt.ArrayLike, *, classes: int = 0, weight: npt.ArrayLike | None = None) -> float | Array:
    """The best constant prediction for a metric, from training labels.

    The median for "mae", the mean for other numbers, the rate for binary tasks (classes < 3 and 0/1 labels), class
    frequencies [C] where `classes` counts the columns of a multiclass or ordinal prediction.
    """
    y = np.asarray(target, float)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    if not len(y) or not w.sum() > 0:
        raise BadInput("a constant predictor needs at least one labelled row")
    if name in _TAGS:
        counts = np.bincount(y[y >= 0].astype(np.intp), np.repeat(w, (y >= 0).sum(1)), minlength=1)
        return np.full(y.shape[1], float(counts.argmax()))
    if name in _RANKED:
        return np.argsort(-np.bincount(y.astype(np.intp), w), kind="stable")[:50].astype(float)
    if classes:
        frequencies: Array = np.bincount(y.astype(np.intp), w, classes) / w.sum()
        return frequencies
    if name == "mae":
        order = np.argsort(y)
        return float(y[order][np.searchsorted(np.cumsum(w[order]), w.sum() / 2)])
    return float((w * y).sum() / w.sum())


def of_constant(
    name: str,
    value: float | Array,
    target: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
) -> float:
    """The metric of a constant prediction; where a constant earns no number (spearman), what chance earns."""
    y = np.asarray(target, float)
    one = np.asarray(value, float)
    found = float(compute(name, np.broadcast_to(one, (len(y), *one.shape)), y, weight, groups))
    return CHANCE.get(name, found) if np.isnan(found) else found


def _evaluate(name: str, p: Array, y: Array, w: Weightings, group: Ints | None) -> Array:
    if group is not None:
        return _by_group(p, y, group, w, alike=name == "uauc")
    return COMPUTED[name](p, y, w)


def _checked(
    name: str, prediction: npt.ArrayLike, target: npt.ArrayLike, groups: npt.ArrayLike | None
) -> tuple[Array, Array, Ints | None]:
    if name not in COMPUTED and name not in GROUPED:
        raise unknown("metric", name, (*COMPUTED, *GROUPED))
    p, y = np.asarray(prediction, float), np.asarray(target, float)
    if name in _TAGS:
        return (*_checked_tags(name, p, y), None)
    if name in _RANKED:
        if p.ndim != 2 or y.shape != p.shape[:1] or not (np.isfinite(p).all() and np.isfinite(y).all()):
            raise BadInput(f"needs ranked items [n, K] and one item a row, not {p.shape} and {y.shape}, all finite", where=name)
        return p, y, None
    if p.ndim not in (1, 2) or y.shape != p.shape[:1]:
        raise BadInput(f"prediction of shape {p.shape} does not fit target of shape {y.shape}", where=name)
    if p.ndim == 2 and name not in (*_CLASSWISE, *_EITHER):
        raise BadInput("needs one prediction per row, not one per class", where=name)
    if p.ndim == 1 and name in _CLASSWISE:
        raise BadInput("needs a probability per class, [n, C]", where=name)
    for what, values in (("prediction", p), ("target", y)):
        if not np.isfinite(values).all():
            raise BadInput(f"a {what} is missing or infinite", where=name, remedy="pass labelled rows with finite numbers")
    if p.ndim == 2 and len(y) and not (y.min() >= 0 and y.max() < p.shape[1]):
        raise BadInput(f"a target is not a class index below {p.shape[1]}", where=name)
    if p.ndim == 1 and name in (*_BINARY, *_EITHER) and not ((y == 0) | (y == 1)).all():
        raise BadInput("a target is neither 0 nor 1", where=name, remedy="code the positive class as 1, the other as 0")
    if name in _PROBABILITY and p.size and not (p.min() >= -1e-9 and p.max() <= 1 + 1e-9):
        raise BadInput("a probability is not in [0, 1]", where=name, remedy="pass probabilities, not scores")
    if name not in GROUPED:
        return p, y, None
    if groups is None or len(np.asarray(groups)) != len(y):
        raise BadInput("needs a group per row", where=name, remedy="pass groups=")
    return p, y, _codes(name, groups)


def _codes(name: str, groups: npt.ArrayLike) -> Ints:
    """Groups as whole numbers from 0. A missing one is refused: all of them would count as one user."""
    import pandas as pd

    values = np.asarray(groups)
    missing = np.asarray(pd.isna(values))
    if missing.any():
        row = int(missing.argmax()) + 1
        raise BadInput(f"the group is missing in row {row}", where=name, remedy="leave out the rows without a group")
    return np.unique(values, return_inverse=True)[1].astype(np.intp)


def _checked_tags(name: str, p: Array, y: Array) -> tuple[Array, Array]:
    if p.ndim != 2 or y.shape != p.shape:
        raise BadInput(f"prediction of shape {p.shape} does not fit target of shape {y.shape}; tags are [n, words]", where=name)
    if not (np.isfinite(p).all() and np.isfinite(y).all() and (y >= -1).all()):
        raise BadInput("a tag is missing, infinite or below -1", where=name, remedy="pad rows with -1")
    return p, y
