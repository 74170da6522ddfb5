"""Δm: one figure for "how much better than the reference", in each published convention under its own name.

M, B: a method's and the reference's score; s = +1 where more is better, else −1; tasks t, metrics m.

| name            | formula, in per cent                              | better | where it comes from                     |
|-----------------|---------------------------------------------------|--------|-----------------------------------------|
| mean-relative   | 100/T Σ_t s (M_t − B_t)/B_t, main metric          | higher | Maninis 2019; Vandenhende 2021 (survey) |
| per-task-mean   | 100/T Σ_t 1/n_t Σ_m s (M_tm − B_tm)/B_tm          | higher | LibMTL (Lin & Zhang 2023), its Δp       |
| all-metrics     | −100/N Σ_tm s (M_tm − B_tm)/B_tm, all N metrics   | lower  | Nash-MTL (2022), FAMO (2023): their Δm% |
| relaimpr        | 100/T Σ_t ((M_t − ½)/(B_t − ½) − 1), main AUC     | higher | Yan 2014 (RelaImpr)                     |
| error-reduction | 100/T Σ_t s (M_t − B_t)/|best − B_t|, main metric | higher | share of what is left to perfection     |

LibMTL's default baseline is the first epoch of the same run; here the caller always names the reference. A relative change
against a reference near 0 or below (R², correlations) means nothing: NaN at or below 0; error-reduction is made for these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput, unknown
from pluribus.tasks.metrics import METRICS
from pluribus.tasks.weightings import Array

Scores = Mapping[str, Mapping[str, float]]  # task -> metric -> value; the task's main metric comes first


@dataclass(frozen=True)
class Convention:
    """One way to average: `higher` says whether a larger figure is better; `tex` is the formula for LaTeX."""

    name: str
    formula: str
    higher: bool
    tex: str

    @property
    def sign(self) -> str:
        return "higher is better" if self.higher else "lower is better"


CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(
            "mean-relative",
            "100/T Σ_t s_t (M_t − B_t)/B_t over tasks, main metric of each",
            True,
            r"$\frac{100}{T} \sum_t s_t (M_t - B_t) / B_t$ over tasks, main metric of each",
        ),
        Convention(
            "per-task-mean",
            "100/T Σ_t 1/n_t Σ_m s_tm (M_tm − B_tm)/B_tm: metrics within a task, then tasks",
            True,
            r"$\frac{100}{T} \sum_t \frac{1}{n_t} \sum_m s_{tm} (M_{tm} - B_{tm}) / B_{tm}$: metrics within a task, then "
            "tasks",
        ),
        Convention(
            "all-metrics",
            "−100/N Σ_tm s_tm (M_tm − B_tm)/B_tm over all N metrics alike",
            False,
            r"$-\frac{100}{N} \sum_{tm} s_{tm} (M_{tm} - B_{tm}) / B_{tm}$ over all $N$ metrics alike",
        ),
        Convention(
            "relaimpr",
            "100/T Σ_t ((M_t − 0.5)/(B_t − 0.5) − 1) over tasks, main AUC of each",
            True,
            r"$\frac{100}{T} \sum_t ((M_t - 0.5) / (B_t - 0.5) - 1)$ over tasks, main AUC of each",
        ),
        Convention(
            "error-reduction",
            "100/T Σ_t s_t (M_t − B_t)/|best_t − B_t| over tasks, main metric of each",
            True,
            r"$\frac{100}{T} \sum_t s_t (M_t - B_t) / |\mathrm{best}_t - B_t|$ over tasks, main metric of each",
        ),
    )
}


def convention(name: str) -> Convention:
    """The convention called `name`; the bare word "delta_m" is not one."""
    if name not in CONVENTIONS:
        raise unknown("Δm convention", name, CONVENTIONS)
    return CONVENTIONS[name]


def relative(value: npt.ArrayLike, reference: npt.ArrayLike, sign: npt.ArrayLike) -> Array:
    """s (M − B)/B; NaN where B is not positive. Any shapes that broadcast."""
    m, b, s = (np.asarray(x, float) for x in (value, reference, sign))
    with np.errstate(all="ignore"):
        return np.where(b > 0, s * (m - b) / b, np.nan)


def delta(name: str, scores: Scores, reference: Scores, directions: Mapping[str, str]) -> float:
    """Δm of one method in per cent.

    Parameters
    ----------
    name: a convention.
    scores, reference: task → metric → value, main metric first; both hold the same tasks and metrics.
    directions: metric → "max" | "min".

    Returns
    -------
    The figure in the convention's own sign; NaN where a ratio has no meaning.
    """
    chosen = convention(name)
    if not scores:
        raise BadInput("there is no task to average over", where=name)
    for task in {*scores, *reference}:
        if set(scores.get(task, {})) != set(reference.get(task, {})) or not scores.get(task):
            raise BadInput("method and reference do not hold the same metrics", where=f"task {task!r}", remedy="log both")
    signs = {metric: 1.0 if directions[metric] == "max" else -1.0 for task in scores for metric in scores[task]}
    changes = {
        task: [float(relative(value, reference[task][metric], signs[metric])) for metric, value in row.items()]
        for task, row in scores.items()
    }
    if chosen.name == "mean-relative":
        return 100 * float(np.mean([row[0] for row in changes.values()]))
    if chosen.name == "per-task-mean":
        return 100 * float(np.mean([np.mean(row) for row in changes.values()]))
    if chosen.name == "all-metrics":
        return -100 * float(np.mean([change for row in changes.values() for change in row]))
    gains = []
    for task, row in scores.items():
        metric, value = next(iter(row.items()))
        base, record = reference[task][metric], METRICS.get(metric)
        if chosen.name == "relaimpr":
            if record is None or not record.area:
                raise BadInput(
                    f"relaimpr compares AUCs, and the main metric is {metric!r}",
                    where=f"task {task!r}",
                    remedy="use mean-relative or error-reduction",
                )
            gains.append((value - 0.5) / (base - 0.5) - 1 if base > 0.5 else np.nan)
        else:
            best = 0.0 if directions[metric] == "min" else None if record is None else record.best
            if best is None:
                raise BadInput(
                    f"the perfect value of {metric!r} is not known", where=f"task {task!r}", remedy="use mean-relative"
                )
            left = abs(best - base)
            gains.append(signs[metric] * (value - base) / left if left > 0 else np.nan)
    return 100 * float(np.mean(gains))


def mean_rank(scores: Mapping[str, Scores], directions: Mapping[str, str]) -> dict[str, float]:
    """Method → mean over all (task, metric) of its rank among the methods (1 is best, ties share the mean rank)."""
    methods = list(scores)
    cells = [(task, metric) for task, row in scores[methods[0]].items() for metric in row] if methods else []
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    for task, metric in cells:
        try:
            values = np.array([scores[m][task][metric] for m in methods])
        except KeyError as error:
            raise BadInput(f"a method lacks {metric!r}", where=f"task {task!r}", remedy="log every metric for it") from error
        losses = -values if directions[metric] == "max" else values
        for method, loss in zip(methods, losses):
            ranks[method].append(float((losses < loss).sum() + ((losses == loss).sum() + 1) / 2))
    return {method: float(np.mean(row)) if row else float("nan") for method, row in ranks.items()}


def negative_transfer(gains: Sequence[tuple[float, float]]) -> float:
    """The share of tasks whose gain is negative with its whole interval; `gains` holds (low, high) of each task's gain."""
    return float(np.mean([high < 0 for _, high in gains])) if gains else float("nan")


def hypervolume(points: npt.ArrayLike, bound: npt.ArrayLike) -> float:
    """The volume that points [n, T] dominate below `bound` [T], all objectives minimised; exact.

    By slices along the last objective (HSO, While et al. 2006); meant for fronts of some dozens of points.
    """
    p, r = np.atleast_2d(np.asarray(points, float)), np.asarray(bound, float)
    if p.shape[1] != len(r):
        raise BadInput(f"points have {p.shape[1]} objectives and the bound has {len(r)}")
    if not (np.isfinite(p).all() and np.isfinite(r).all()):
        raise BadInput("points and bound must be finite")
    return _volume(p[(p < r).all(1)], r)


def _volume(p: Array, r: Array) -> float:
    if not len(p):
        return 0.0
    if len(r) == 1:
        return float(r[0] - p.min())
    p = p[np.argsort(p[:, -1], kind="stable")]
    edges = np.append(p[:, -1], r[-1])
    return sum(
        float(edges[i + 1] - edges[i]) * _volume(p[: i + 1, :-1], r[:-1]) for i in range(len(p)) if edges[i + 1] > edges[i]
    )
