"""Metrics of P(positive) [n] with labels 0 and 1.

`ne` is logloss over the entropy of the base rate (He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook");
`ece` uses 15 bins of equal weight, rows of equal p share a bin; `pcoc` = Σp / Σy, and what is judged is |pcoc − 1|.
"""

from __future__ import annotations

import numpy as np

from pluribus.evaluation.metrics import checks
from pluribus.evaluation.metrics.classes import logloss_rows
from pluribus.evaluation.metrics.parts import blocks, starts_of, undefined_unless
from pluribus.tasks.metrics import Additive, Ranked
from pluribus.tasks.weightings import Array, Weightings

BINS = 15
_POSITIVE = ("binary",)


def _ece(p: Array, y: Array, w: Weightings) -> Array:
    order = np.argsort(p, kind="stable")
    starts, ordered, target = starts_of(p[order]), p[order], y[order]
    found = []
    for weight in w.rows(order):
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        mass = blocks(weight, starts)
        gap = blocks(weight * (ordered - target), starts)
        total = mass.sum(1, keepdims=True)
        middle = (np.cumsum(mass, 1) - 0.5 * mass) / total
        bin_ = np.clip(np.nan_to_num(middle) * BINS, 0, BINS - 1).astype(np.intp)
        flat = bin_ + BINS * np.arange(len(weight))[:, None]
        gaps = np.bincount(flat.ravel(), gap.ravel(), BINS * len(weight)).reshape(-1, BINS)
        found.append(np.abs(gaps).sum(1) / total[:, 0])
    return np.concatenate(found)


def _ne_terms(p: Array, y: Array, mask: None) -> Array:
    return np.stack((np.ones(len(y)), y, logloss_rows(p, y)), 1)


def _ne(s: Array) -> Array:
    rate = s[:, 1] / s[:, 0]
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return undefined_unless(entropy > 0, s[:, 2] / s[:, 0] / entropy)


def _pcoc(s: Array) -> Array:
    return undefined_unless(s[:, 1] > 0, s[:, 0] / s[:, 1])


NE = Additive("ne", "min", _POSITIVE, terms=_ne_terms, finish=_ne, check=checks.chances)
ECE = Ranked("ece", "min", _POSITIVE, value=_ece, check=checks.chances)
PCOC = Additive(
    "pcoc", "min", _POSITIVE, terms=lambda p, y, mask: np.stack((p, y), 1), finish=_pcoc, check=checks.numbers, ideal=1.0
)
