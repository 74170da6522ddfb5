"""Intervals and tests: whole units are resampled, between-seed variance is added, several tasks share one error rate.

The variance of a figure that is averaged over k seeds and measured on G units (rows, groups or days) is taken as

    V = V_units + s² / k

V_units: bootstrap over units (Efron 1979; Davison & Hinkley 1997, ch. 3.8), all rows of a unit together, times G/(G − 1);
s²: the sample variance of the k seeds' figures. The interval is value ± t_ν √V with Satterthwaite's (1946) degrees of
freedom ν = V² / Σ V_i²/ν_i, where ν_units = G − 1 and ν_seeds = k − 1.

What each seed makes of each unit differently (their interaction) is in both terms, so V is somewhat too large where seeds
differ by chance alone: the interval errs to the safe side. `docs/results/verdict.md` shows by how much.

More than `MOST_UNITS` units are first gathered at random into that many groups of units, which are then resampled ("random
groups", Wolter 2007, ch. 2): unbiased, and the memory stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.evaluation.metrics import Array, Ints

MOST_UNITS = 500


@dataclass(frozen=True)
class Interval:
    """A value, its bounds, its standard error and the degrees of freedom of its t distribution."""

    value: float
    low: float
    high: float
    se: float
    df: float

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided, of "the true value is `null`"; NaN where the standard error is not known."""
        from scipy.special import stdtr

        if self.se == 0:
            return 1.0 if self.value == null else 0.0
        return float(2 * stdtr(self.df, -abs(self.value - null) / self.se))

    def lower(self, confidence: float = 0.9) -> float:
        """The one-sided lower bound: the true value lies above it with this confidence; NaN where the error is not known."""
        from scipy.special import stdtrit

        return self.value if self.se == 0 else float(self.value - stdtrit(self.df, confidence) * self.se)


@dataclass(frozen=True)
class Component:
    """One source of variance: how much it adds to the figure's variance, and its degrees of freedom."""

    variance: float
    df: float


def t_interval(value: float, components: Sequence[Component], level: float = 0.95) -> Interval:
    """value ± t_ν √ΣV with Satterthwaite's degrees of freedom ν; NaN bounds where a variance is not known."""
    from scipy.special import stdtrit

    total = sum(c.variance for c in components)
    if not components or not np.isfinite(total) or not np.isfinite(value):
        return Interval(float(value), np.nan, np.nan, np.nan, np.nan)
    parts = sum(c.variance**2 / c.df for c in components if c.variance > 0)
    df = float(total**2 / parts) if parts > 0 else float(min(c.df for c in components))
    se = float(np.sqrt(total))
    reach = float(stdtrit(df, 0.5 + level / 2)) * se
    return Interval(float(value), float(value - reach), float(value + reach), se, df)


def seeds_component(values: npt.ArrayLike) -> Component | None:
    """The variance of the mean of k seeds' figures; None with one seed, of which nothing can be said."""
    v = np.asarray(values, float)
    return Component(float(v.var(ddof=1) / len(v)), len(v) - 1) if len(v) > 1 else None


def units_component(replicates: Array, units: int) -> Component:
    """The variance over resampled units [R] of a figure; `units` is how many of them carry information on it."""
    good = replicates[np.isfinite(replicates)]
    if units < 2 or len(good) < 2:
        return Component(np.nan, 1.0)
    units = min(units, MOST_UNITS)
    return Component(float(good.var(ddof=1) * units / (units - 1)), units - 1)


@dataclass(frozen=True)
class Units:
    """What is resampled: `code` [N] gives each row its unit (or random group of units), `count` is the number of units.

    `counts` [R, G] says how often each resample holds each unit. One draw serves all tasks, models and seeds.
    """

    code: Ints
    count: int
    counts: Array


def draw_units(units: npt.ArrayLike | int, *, repeats: int = 1000, seed: int = 0) -> Units:
    """Resample units with replacement.

    units: the unit of each row [N], of any type; or the number of rows N, each its own unit.
    repeats: R ≥ 2.
    """
    if repeats < 2:
        raise BadInput(f"needs at least 2 resamples, not {repeats}", where="repeats")
    random = np.random.default_rng(seed)
    if isinstance(units, int):
        count, code = units, np.arange(units)
    else:
        values, inverse = np.unique(np.asarray(units), return_inverse=True)
        count, code = len(values), inverse.astype(np.intp)
    if count == 0:
        raise BadInput("there is no row to resample")
    if count > MOST_UNITS:
        group = random.permutation(np.arange(count) % MOST_UNITS)
        code = group[code]
    size = min(count, MOST_UNITS)
    counts = random.multinomial(size, np.full(size, 1 / size), size=repeats).astype(float)
    return Units(code, count, counts)


def holm(p_values: npt.ArrayLike) -> Array:
    """Holm's (1979) adjusted p-values: reject where ≤ α, and the chance of any false rejection is ≤ α. NaN stays NaN."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    there = np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(p[there], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted


def sign_flip(differences: npt.ArrayLike) -> float:
    """Two-sided exact test of "the paired differences are symmetric about 0": all 2^k signs (20,000 random ones if k > 14).

    It cannot fall below 2 / 2^k: .0625 for five pairs. NaN without a pair.
    """
    d = np.asarray(differences, float)
    k = len(d)
    if k == 0 or not np.isfinite(d).all():
        return float("nan")
    if k <= 14:
        signs = 1 - 2 * ((np.arange(2**k)[:, None] >> np.arange(k)) & 1)
    else:
        signs = np.vstack((np.ones(k, int), np.random.default_rng(0).choice((-1, 1), (20_000, k))))
    sums = np.abs(signs @ d)
    return float((sums >= abs(d.sum()) * (1 - 1e-12) - 1e-300).mean())
