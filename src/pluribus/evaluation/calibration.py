"""Calibration of probabilities: Platt scaling, isotonic regression, prior correction; cross-fitted; reliability tables.

- Platt (1999): p' = σ(a·logit p + b), fitted by Newton's method on his smoothed targets (n⁺ + 1)/(n⁺ + 2) and 1/(n⁻ + 2), which
  keep a and b finite on separable data. He scales margins f; here f = logit p, so that a = 1, b = 0 changes nothing.
- Isotonic (Zadrozny & Elkan 2002): the pool-adjacent-violators fit, linear between its points as in scikit-learn.
- Prior correction (Elkan 2001): logit p' = logit p − log(ratio), where the model saw positives `ratio` times too heavily.

Probabilities of several classes [n, C] are calibrated class by class, one against the rest, and scaled to sum 1.

Cross-fitting: every row is calibrated by a fit on the other folds; that is what a calibration may be judged on. The calibrator
that is kept is fitted on all rows. States are plain JSON values; applying them needs numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput, unknown
from pluribus.evaluation.metrics import BINS, EPS, Array, compute

Method = Literal["none", "platt", "isotonic"]
FEWEST = 10  # rows of each class that a fit needs


def _logit(p: Array) -> Array:
    clipped = np.clip(p, EPS, 1 - EPS)
    logit: Array = np.log(clipped) - np.log1p(-clipped)
    return logit


def _sigmoid(z: Array) -> Array:
    probability: Array = np.exp(-np.logaddexp(0, -z))
    return probability


@dataclass(frozen=True)
class Identity:
    """Leaves probabilities as they are."""

    def apply(self, p: Array) -> Array:
        return np.asarray(p, float)

    def to_dict(self) -> dict[str, Any]:
        return {"method": "none"}


@dataclass(frozen=True)
class Platt:
    """p' = σ(a·logit p + b)."""

    a: float
    b: float

    def apply(self, p: Array) -> Array:
        return _sigmoid(self.a * _logit(np.asarray(p, float)) + self.b)

    def to_dict(self) -> dict[str, Any]:
        return {"method": "platt", "a": self.a, "b": self.b}


@dataclass(frozen=True)
class Isotonic:
    """A non-decreasing broken line through (x, y); constant beyond its ends."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def apply(self, p: Array) -> Array:
        calibrated: Array = np.interp(np.asarray(p, float), self.x, self.y)
        return calibrated

    def to_dict(self) -> dict[str, Any]:
        return {"method": "isotonic", "x": list(self.x), "y": list(self.y)}


@dataclass(frozen=True)
class Prior:
    """logit p' = logit p − log(ratio): undoes positives that were weighted or sampled `ratio` times more than negatives."""

    ratio: float

    def __post_init__(self) -> None:
        if not (self.ratio > 0 and np.isfinite(self.ratio)):
            raise BadInput(f"ratio must be positive and finite, not {self.ratio}", where="prior correction")

    def apply(self, p: Array) -> Array:
        return _sigmoid(_logit(np.asarray(p, float)) - np.log(self.ratio))

    def to_dict(self) -> dict[str, Any]:
        return {"method": "prior", "ratio": self.ratio}


@dataclass(frozen=True)
class PerClass:
    """One calibrator a class; [n, C] is scaled to sum 1 (uniform where every class got 0)."""

    classes: tuple[Calibrator, ...]

    def apply(self, p: Array) -> Array:
        p = np.asarray(p, float)
        each = np.stack([one.apply(p[:, c]) for c, one in enumerate(self.classes)], 1)
        total = each.sum(1, keepdims=True)
        scaled: Array = np.divide(each, total, out=np.full_like(each, 1 / len(self.classes)), where=total > 0)
        return scaled

    def to_dict(self) -> dict[str, Any]:
        return {"method": "per class", "classes": [one.to_dict() for one in self.classes]}


Calibrator = Identity | Platt | Isotonic | Prior | PerClass


def from_dict(state: Mapping[str, Any]) -> Calibrator:
    """Rebuild a calibrator from its `to_dict`; a state that is damaged or unknown is an error."""
    try:
        match state["method"]:
            case "none":
                return Identity()
            case "platt":
                return Platt(float(state["a"]), float(state["b"]))
            case "isotonic":
                x, y = (tuple(float(v) for v in state[key]) for key in ("x", "y"))
                if len(x) != len(y) or not x or any(np.diff(x) < 0) or any(np.diff(y) < 0):
                    raise BadInput("isotonic points are not ascending", where="calibration")
                return Isotonic(x, y)
            case "prior":
                return Prior(float(state["ratio"]))
            case "per class":
                return PerClass(tuple(from_dict(one) for one in state["classes"]))
            case other:
                raise unknown("calibration method", str(other), ("none", "platt", "isotonic", "prior", "per class"))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"calibration state is damaged ({error})", where="calibration") from error


def fit_platt(p: npt.ArrayLike, y: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Platt:
    """Newton's method with step halving on the smoothed cross-entropy; p [n] in [0, 1], y [n] in {0, 1}."""
    z, target, w = _inputs(p, y, weight)
    z = _logit(z)
    positive, negative = float((w * target).sum()), float((w * (1 - target)).sum())
    smooth = np.where(target > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.stack((z, np.ones_like(z)), 1)

    def loss(t: Array) -> float:
        s = design @ t
        return float((w * (np.logaddexp(0, s) - smooth * s)).sum())

    theta = np.array([1.0, 0.0])
    now = loss(theta)
    for _ in range(100):
        q = _sigmoid(design @ theta)
        gradient = design.T @ (w * (q - smooth))
        hessian = (design * (w * q * (1 - q))[:, None]).T @ design + 1e-10 * max(1.0, float(w.sum())) * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-10 and loss(theta - size * step) > now:
            size /= 2
        theta = theta - size * step
        previous, now = now, loss(theta)
        if previous - now <= 1e-12 * (1 + abs(now)):
            break
    return Platt(float(theta[0]), float(theta[1]))


def fit_isotonic(p: npt.ArrayLike, y: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Isotonic:
    """Pool adjacent violators on rows sorted by p; rows with equal p are one point."""
    x, target, w = _inputs(p, y, weight)
    kept = w > 0
    x, inverse = np.unique(x[kept], return_inverse=True)
    mass = np.bincount(inverse, w[kept], len(x))
    mean = np.bincount(inverse, (w * target)[kept], len(x)) / mass
    level: list[float] = []
    weights: list[float] = []
    counts: list[int] = []
    for value, m in zip(mean.tolist(), mass.tolist()):
        level.append(value)
        weights.append(m)
        counts.append(1)
        while len(level) > 1 and level[-2] >= level[-1]:
            total = weights[-2] + weights[-1]
            level[-2:] = [(level[-2] * weights[-2] + level[-1] * weights[-1]) / total]
            weights[-2:] = [total]
            counts[-2:] = [counts[-2] + counts[-1]]
    fitted = np.repeat(level, counts)
    corner = np.ones(len(x), bool)  # inner points of a flat stretch say nothing
    corner[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Isotonic(tuple(x[corner].tolist()), tuple(fitted[corner].tolist()))


_FITS: dict[str, Callable[..., Calibrator]] = {"platt": fit_platt, "isotonic": fit_isotonic}


def fit(method: str, p: npt.ArrayLike, y: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> Calibrator:
    """Fit "none", "platt" or "isotonic" to p [n] (y 0/1) or p [n, C] (y class index)."""
    if method != "none" and method not in _FITS:
        raise unknown("calibration method", method, ("none", *_FITS))
    p, y = np.asarray(p, float), np.asarray(y, float)
    if method == "none":
        return Identity()
    if p.ndim == 2:
        return PerClass(tuple(_FITS[method](p[:, c], (y == c).astype(float), weight) for c in range(p.shape[1])))
    return _FITS[method](p, y, weight)


@dataclass(frozen=True)
class CrossFitted:
    """`calibrator` is fitted on all rows; `held_out` [n] or [n, C] are calibrated by fits that did not see the row."""

    method: str
    calibrator: Calibrator
    held_out: Array


def cross_fit(
    method: str,
    p: npt.ArrayLike,
    y: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    units: npt.ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> CrossFitted:
    """Fit on all rows, and on all folds but one for each fold in turn.

    units [n]: rows of one unit stay in one fold. A class with fewer than 10 rows is an error: nothing can be fitted to it.
    """
    p, y = np.asarray(p, float), np.asarray(y, float)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    classes = p.shape[1] if p.ndim == 2 else 2
    if p.ndim not in (1, 2) or p.shape[:1] != y.shape or (units is not None and np.shape(units) != y.shape):
        raise BadInput("probabilities, labels and units must be one per row", where="calibration")
    if not np.isin(y, np.arange(classes)).all():
        raise BadInput(f"a label is missing or not a class index below {classes}", where="calibration")
    if w.shape != y.shape or not (np.isfinite(w).all() and (w >= 0).all()):
        raise BadInput("weights must be finite, not negative, and one per row", where="calibration")
    counts = np.bincount(y[w > 0].astype(np.intp), minlength=classes)
    if method != "none" and counts.min() < FEWEST:
        raise BadInput(f"a class has {counts.min()} rows, fewer than {FEWEST}", where="calibration", remedy="leave it out")
    code = np.arange(len(y)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    if not 2 <= folds <= len(np.unique(code)):
        raise BadInput(f"cannot make {folds} folds of {len(np.unique(code))} units", where="calibration")
    fold = (np.random.default_rng(seed).permutation(code.max() + 1) % folds)[code]
    held_out = np.empty_like(p)
    for k in range(folds):
        out = fold == k
        held_out[out] = fit(method, p[~out], y[~out], w[~out]).apply(p[out])
    return CrossFitted(method, fit(method, p, y, w), held_out)


def choose(
    p: npt.ArrayLike,
    y: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    methods: Sequence[str] = ("none", "platt", "isotonic"),
    units: npt.ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> CrossFitted:
    """The method with the smallest cross-fitted logloss; the first of `methods` wins ties. Use validation rows."""
    tried = [cross_fit(method, p, y, weight, units=units, folds=folds, seed=seed) for method in methods]
    return min(tried, key=lambda one: float(compute("logloss", one.held_out, y, weight)))


@dataclass(frozen=True)
class Reliability:
    """One bin of a reliability table: rows, summed weight, mean prediction, observed rate and its Wilson interval."""

    rows: int
    weight: float
    predicted: float
    observed: float
    low: float
    high: float


def reliability(
    p: npt.ArrayLike, y: npt.ArrayLike, weight: npt.ArrayLike | None = None, *, bins: int = BINS, level: float = 0.95
) -> list[Reliability]:
    """The reliability table of a binary task in bins of equal weight; rows with equal p share a bin, empty bins are left out.

    The Wilson (1927) interval takes (Σw)²/Σw² as the number of rows. The weighted mean of |predicted − observed| is `ece`.
    """
    from scipy.special import ndtri

    p, target, w = _inputs(p, y, weight)
    if not len(p) or not w.sum() > 0:
        return []
    _, block = np.unique(p, return_inverse=True)
    mass = np.bincount(block, w)
    middle = (np.cumsum(mass) - 0.5 * mass) / mass.sum()
    bin_ = np.clip(middle * bins, 0, bins - 1).astype(np.intp)[block]
    z = float(ndtri(0.5 + level / 2))
    found = []
    for k in range(bins):
        inside = (bin_ == k) & (w > 0)
        if not inside.any():
            continue
        total = float(w[inside].sum())
        mean, rate = (float((w * v)[inside].sum()) / total for v in (p, target))
        n = total**2 / float((w[inside] ** 2).sum())
        centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
        reach = z / (1 + z**2 / n) * float(np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)))
        found.append(Reliability(int(inside.sum()), total, mean, rate, max(0.0, centre - reach), min(1.0, centre + reach)))
    return found


def _inputs(p: npt.ArrayLike, y: npt.ArrayLike, weight: npt.ArrayLike | None) -> tuple[Array, Array, Array]:
    p, y = np.asarray(p, float), np.asarray(y, float)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    if p.ndim != 1 or p.shape != y.shape or w.shape != y.shape:
        raise BadInput("probabilities, labels and weights must be one per row", where="calibration")
    if len(p) and not (p.min() >= 0 and p.max() <= 1):  # also catches NaN
        raise BadInput("a probability is missing or not in [0, 1]", where="calibration")
    if not np.isin(y, (0, 1)).all():
        raise BadInput("labels must be 0 or 1", where="calibration")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise BadInput("weights must be finite and not negative", where="calibration")
    return p, y, w
