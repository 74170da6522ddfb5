"""The verdict from per-row scores: somebody else measured each row, the mean of the scores is the metric.

Both sides scored the same rows, so that a task's gain is the mean of the rows' differences; whole units are resampled (rows of
one group, or the row), one draw for all tasks and both sides. Words and Holm's adjustment are those of `evaluation.verdict`; the
tolerance is 1 % of the reference's score, for there is no constant predictor. Each side is one file; the claim is about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.evaluation.delta_m import relative
from pluribus.evaluation.intervals import draw_units, holm, t_interval, units_component
from pluribus.evaluation.verdict import (
    FEWEST_UNITS,
    OVERALL,
    RELATIVE,
    Comparison,
    Overall,
    Scoped,
    TaskVerdict,
    Verdict,
    _word,
    headline,
)

Array = NDArray[np.float64]
SCOPE = "this file only"


@dataclass(frozen=True)
class Scored:
    """A task's rows, whose mean score is its metric.

    Parameters
    ----------
    metric : str
        What the metric is called.
    direction : {"max", "min"}
        Whether more is better.
    unit : array [m]
        What is resampled: rows of one unit move together.
    score : array of float [m]
        Each row's score.
    """

    metric: str
    direction: str
    unit: NDArray[Any]
    score: Array


def compare_scores(
    challenger: Mapping[str, Scored],
    references: Mapping[str, Mapping[str, Array]],
    *,
    name: str,
    unit: str = "row",
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Verdict:
    """Judge per-row scores against others of the same rows, in the same order.

    Parameters
    ----------
    challenger : mapping of str to Scored
        Task → its rows.
    references : mapping
        Name → task → scores [m] of the same rows.
    name : str
        What the challenger is called.
    unit : str, default "row"
        What a unit is called.
    level : float, default 0.95
        Of the intervals.
    repeats : int, default 1000
        Resamples.
    seed : int, default 0
        Of the resamples.
    notes : sequence of str
        What a reader must know; the verdict carries them.
    """
    tasks = list(challenger)
    sizes = [len(challenger[t].score) for t in tasks]
    units = np.concatenate([challenger[t].unit.astype(str) for t in tasks])
    drawn = draw_units(units, repeats=repeats, seed=seed)
    ends = np.cumsum(sizes)
    codes = {t: drawn.code[end - size : end] for t, size, end in zip(tasks, sizes, ends)}

    def resampled(task: str, score: Array) -> Array:
        groups = drawn.counts.shape[1]
        total = np.bincount(codes[task], score, minlength=groups)
        rows = np.bincount(codes[task], minlength=groups)
        with np.errstate(invalid="ignore"):
            means: Array = (drawn.counts @ total) / (drawn.counts @ rows)
        return means

    def scoped(value: float, replicates: Array, count: int) -> Scoped:
        return Scoped(t_interval(value, [units_component(replicates, count)], level), None)

    comparisons = []
    for reference, scores in references.items():
        sign = np.array([1.0 if challenger[t].direction == "max" else -1.0 for t in tasks])
        one, other = [resampled(t, challenger[t].score) for t in tasks], [resampled(t, scores[t]) for t in tasks]
        m, b = np.array([challenger[t].score.mean() for t in tasks]), np.array([scores[t].mean() for t in tasks])
        counts = [len(np.unique(challenger[t].unit)) for t in tasks]
        gains = [scoped(float(s * (x - y)), s * (u - v), n) for s, x, y, u, v, n in zip(sign, m, b, one, other, counts)]
        p = [gain.file.p_value() if math.isfinite(gain.file.se) else math.nan for gain in gains]
        p_holm = holm(p).tolist()
        rows = []
        for i, task in enumerate(tasks):
            tolerance = RELATIVE * abs(float(b[i]))
            few = f"{counts[i]} resampling units hold scores, fewer than {FEWEST_UNITS}"
            word, reason = _word(gains[i].file, p[i], p_holm[i], tolerance, level, few if counts[i] < FEWEST_UNITS else "")
            rows.append(
                TaskVerdict(
                    task,
                    "main",
                    challenger[task].metric,
                    challenger[task].direction,
                    sizes[i],
                    None,
                    counts[i],
                    (float(m[i]),),
                    (float(b[i]),),
                    scoped(float(m[i]), one[i], counts[i]),
                    scoped(float(b[i]), other[i], counts[i]),
                    gains[i],
                    math.nan,
                    math.nan,
                    tolerance,
                    p[i],
                    p_holm[i],
                    word,
                    reason,
                )
            )
        value = 100 * float(np.mean(relative(m, b, sign)))
        delta = scoped(value, 100 * np.mean(relative(np.array(one), np.array(other), sign[:, None]), axis=0), min(counts))
        shaky = [t for t, base, row in zip(tasks, b, rows) if not base > 0 or not row.reference.file.low > 0]
        blocked = ""
        if shaky:
            what = f"{challenger[shaky[0]].metric} of the reference on {shaky[0]}"
            blocked = f"{what} is not clearly above 0, so a relative change means nothing"
        elif min(counts) < FEWEST_UNITS:
            blocked = "too few test rows"
        q = delta.file.p_value() if math.isfinite(delta.file.se) else math.nan
        word, reason = _word(delta.file, q, q, OVERALL, level, blocked)
        overall = Overall("mean-relative", delta, OVERALL, q, word, reason)
        comparisons.append(
            Comparison(reference, SCOPE, tuple(rows), overall, headline(rows, overall, SCOPE, name, reference, level))
        )
    return Verdict(name, tuple(comparisons), level, repeats, sum(sizes), drawn.count, unit, tuple(notes))
