"""The verdict: is the one model, task by task, better than its reference, as good, or worse; or is that undecided?

The input is predictions of one test split: for every task a list over seeds, of the challenger and of each reference.

Rule, for one task with its main metric; gain = challenger − reference, both averaged over their seeds, signed so that more is
better:

1. The interval of the gain resamples whole units and adds the between-seed variance of both sides (`intervals`).
2. The p-value of "no gain" is adjusted by Holm over the tasks of the same role, for each reference separately.
3. tolerance = 2 % of the reference's skill, skill = what the reference gains over a constant predictor fitted on training
   labels (a task's own `tolerance` counts relative to the reference's value instead).
4. **better**: adjusted p < 1 − level and gain > 0. **as good**: the interval's lower bound lies above −tolerance.
   **worse**: adjusted p < 1 − level and gain < 0. **undecided**: anything else, with the reason.
5. Undecided in any case: fewer than 50 test rows of a binary task's rarer class; fewer than 10 units with labels (binary:
   with labels of the rarer class); no skill of the reference over the constant predictor (tolerance 0); metric undefined, in the
   data or in more than 5 % of the resamples; a doubt from outside (`doubts`: "undertrained", …). The overall word is undecided
   where a main task lacks rows or units, where a doubt touches one, or where a reference near 0 makes Δm meaningless.

"As good" is not adjusted for the number of tasks: "no task suffers" needs every task to pass, and such an intersection of
tests keeps its level without adjustment (Berger 1982). A significant loss smaller than the tolerance is "as good".

Two scopes: *the method* (other seeds and other units of the same kind) and *this file* (these trained models on other units).
A side with one seed has no between-seed variance: the claim is then about that side's one file, and says so.

Overall: Δm, "mean-relative" over main tasks (`delta_m`), numerator and reference resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.evaluation.delta_m import relative
from pluribus.evaluation.intervals import (
    Component,
    Interval,
    Units,
    draw_units,
    holm,
    seeds_component,
    t_interval,
    units_component,
)
from pluribus.evaluation.metrics import Array, Ints, Weightings
from pluribus.files.plain import plain
from pluribus.tasks import Task
from pluribus.tasks.forms import Maps, Ragged, Values

Word = Literal["better", "as good", "worse", "undecided"]
WORDS: tuple[Word, ...] = ("better", "as good", "worse", "undecided")

TOLERANCE = 0.02
FEWEST_POSITIVES = 50
FEWEST_UNITS = 10
MOST_UNDEFINED = 0.05

Predictions = Mapping[str, Sequence[npt.ArrayLike]]  # task -> one array per seed, [m] or [m, C], in the order of the truth


@dataclass(frozen=True)
class TaskTruth:
    """The labelled test cells of one task.

    rows [m]: positions of the cells' rows among all test rows.
    target [m]: 0/1, class index, or value; lists; maps.
    weight [m]: row weights, or None.
    groups [m]: groups of "gauc" and "uauc", or None.
    """

    rows: Ints
    target: Values
    weight: Array | None = None
    groups: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Scoped:
    """One figure in both scopes: `file` (units) and `method` (seeds and units; None where no side has two seeds)."""

    file: Interval
    method: Interval | None

    @property
    def deciding(self) -> Interval:
        return self.method or self.file


@dataclass(frozen=True)
class TaskVerdict:
    """One task against one reference; `gain` is positive where the challenger is better.

    rows, positives (rarer class of a binary task, else None), units: the test cells it rests on.
    challenger_seeds, reference_seeds: the metric of each seed; challenger, reference: their means with intervals.
    constant: the metric of the constant predictor; skill: what the reference gains over it; tolerance: in the metric's unit.
    p, p_holm: of "no gain", alone and adjusted. reason: why it is undecided, else "".
    """

    task: str
    role: str
    metric: str
    direction: str
    rows: int
    positives: int | None
    units: int
    challenger_seeds: tuple[float, ...]
    reference_seeds: tuple[float, ...]
    challenger: Scoped
    reference: Scoped
    gain: Scoped
    constant: float
    skill: float
    tolerance: float
    p: float
    p_holm: float
    word: Word
    reason: str


@dataclass(frozen=True)
class Overall:
    """Δm over the main tasks, in per cent, positive is better; `tolerance` is the tasks' tolerances on the same scale."""

    convention: str
    delta: Scoped
    tolerance: float
    p: float
    word: Word
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The challenger against one reference."""

    reference: str
    scope: str
    tasks: tuple[TaskVerdict, ...]
    overall: Overall
    headline: str

    def of(self, task: str) -> TaskVerdict:
        """The verdict on one task."""
        for row in self.tasks:
            if row.task == task:
                return row
        raise KeyError(task)

    def counts(self) -> dict[Word, int]:
        """How many main tasks got each word."""
        words = [row.word for row in self.tasks if row.role == "main"]
        return {word: words.count(word) for word in WORDS}


@dataclass(frozen=True)
class Verdict:
    """The challenger against every reference, the first one first.

    units, unit: how many resampling units the test split has, and what one is ("row", "day", "customer", …).
    notes: facts the reader must know (where the constant predictor came from, rows left out, …).
    """

    challenger: str
    comparisons: tuple[Comparison, ...]
    level: float
    repeats: int
    rows: int
    units: int
    unit: str
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """One sentence, computed from the words against the first reference."""
        return self.comparisons[0].headline

    def against(self, reference: str) -> Comparison:
        """The comparison with one reference."""
        for comparison in self.comparisons:
            if comparison.reference == reference:
                return comparison
        raise KeyError(reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values (NaN and infinity become None); `Verdict.from_dict` undoes it."""
        return {**cast(dict[str, Any], plain(asdict(self))), "schema": 1, "headline": self.headline}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Verdict:
        """Rebuild from `to_dict`."""
        try:
            comparisons = tuple(
                Comparison(
                    c["reference"],
                    c["scope"],
                    tuple(_task_from(t) for t in c["tasks"]),
                    Overall(
                        **{
                            **c["overall"],
                            "delta": _scoped_from(c["overall"]["delta"]),
                            **{k: _float(c["overall"][k]) for k in ("tolerance", "p")},
                        }
                    ),
                    c["headline"],
                )
                for c in row["comparisons"]
            )
            rest = {key: row[key] for key in ("challenger", "level", "repeats", "rows", "units", "unit")}
            return cls(**rest, comparisons=comparisons, notes=tuple(row["notes"]))
        except (KeyError, TypeError) as error:
            raise BadInput(f"is not a verdict ({error})", where="verdict") from error

    def text(self) -> str:
        """The verdict as plain text."""
        lines = [self.headline]
        unit = f"{self.units} units (unit: {self.unit})" if self.unit != "row" else "each row its own unit"
        how = f"{self.level:.0%} intervals, {self.repeats} resamples, Holm over tasks"
        lines.append(f"{self.rows} test rows, {unit}; {how}.")
        for c in self.comparisons:
            lines += ["", f"{self.challenger} against {c.reference} (scope: {c.scope})"]
            last = ("gain", "interval", "this file", "tolerance", "p (Holm)", "word")
            table: list[tuple[str, ...]] = [("task", "metric", self.challenger, c.reference, *last)]
            for t in c.tasks:
                table.append(
                    (
                        t.task + ("" if t.role == "main" else " (auxiliary)"),
                        t.metric,
                        number(t.challenger.file.value),
                        number(t.reference.file.value),
                        number(t.gain.file.value, "+"),
                        span(t.gain.deciding),
                        span(t.gain.file),
                        number(t.tolerance),
                        number(t.p_holm),
                        t.word,
                    )
                )
            widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
            lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
            o = c.overall
            because = f" ({o.reason})" if o.reason else ""
            lines.append(
                f"  overall: delta_m {number(o.delta.file.value, '+')} % {span(o.delta.deciding)}, "
                f"{o.convention}, higher is better: {o.word}{because}"
            )
            lines += [f"  {t.task}: {t.word} because {t.reason}" for t in c.tasks if t.reason]
        if self.notes:
            lines += ["", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)


def judge(
    tasks: Sequence[Task],
    truth: Mapping[str, TaskTruth],
    units: npt.ArrayLike | int,
    challenger: Predictions,
    references: Mapping[str, Predictions],
    *,
    constants: Mapping[str, float | Array],
    challenger_name: str = "the one model",
    unit: str = "row",
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
    doubts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Verdict:
    """Judge a challenger against its references on one test split.

    Parameters
    ----------
    tasks: what to judge; each by its first metric.
    truth: task → its labelled test cells.
    units: the resampling unit of every test row [N], or N where each row is its own unit.
    challenger: task → per-seed predictions; every task. Numbers of seeds may differ between sides.
    references: name → the same; the first carries the headline. A reference may lack tasks: it is compared on those it has.
    constants: task → the constant predictor's prediction, from training labels (`metrics.constant`).
    unit: what a unit is called.
    level, repeats, seed: of the intervals, of the bootstrap.
    doubts: task → why no word should be given.

    Raises
    ------
    BadInput: shapes that do not fit, missing values, no seeds, a task without truth.
    """
    if not references:
        raise BadInput("there is no reference to compare with")
    if not 0.5 <= level < 1:
        raise BadInput(f"level must lie in [0.5, 1), not {level}")
    given, drawn = _draw(units, repeats, seed)
    by_name = {task.name: task for task in tasks}
    measured = {name: _measure(by_name[name], truth, given, drawn, challenger, "challenger") for name in by_name}
    comparisons = []
    for reference, predictions in references.items():
        shared = [name for name in by_name if name in predictions]
        if not shared:
            raise BadInput("holds no prediction of any judged task", where=f"reference {reference!r}")
        pairs = {
            name: (measured[name], _measure(by_name[name], truth, given, drawn, predictions, f"reference {reference!r}"))
            for name in shared
        }
        known = [by_name[name] for name in shared]
        comparisons.append(_compare(reference, known, pairs, truth, constants, level, doubts or {}, challenger_name))
    return Verdict(challenger_name, tuple(comparisons), level, repeats, len(drawn.code), drawn.count, unit, tuple(notes))


@dataclass(frozen=True)
class _Measured:
    """One side's main metric on one task: per seed [k], per seed and resample [k, R], and what the test cells hold."""

    values: Array
    replicates: Array
    rows: int
    positives: int | None
    units: int


def _measure(
    task: Task, truth: Mapping[str, TaskTruth], given: Ints, drawn: Units, predictions: Predictions, side: str
) -> _Measured:
    where = f"task {task.name!r}, {side}"
    if task.name not in truth:
        raise BadInput("has no test labels", where=f"task {task.name!r}")
    if not predictions.get(task.name):
        raise BadInput("has no predictions", where=where)
    cells = truth[task.name]
    rows = np.asarray(cells.rows, np.intp)
    target = cells.target if isinstance(cells.target, Ragged | Maps) else np.asarray(cells.target, float)
    if len(rows) != len(target) or (len(rows) and not (rows.min() >= 0 and rows.max() < len(drawn.code))):
        raise BadInput("labelled rows do not fit the test split", where=f"task {task.name!r}")
    weight = np.ones(len(rows)) if cells.weight is None else np.asarray(cells.weight, float)
    metric = task.main_metric
    weightings = Weightings(weight, drawn.code[rows], drawn.counts)
    values, replicates = [], []
    for prediction in predictions[task.name]:
        try:
            value = metrics.compute(metric, prediction, target, weight, cells.groups)
            sample = metrics.resampled(metric, prediction, target, weightings, cells.groups)
        except BadInput as error:
            raise BadInput(error.what, where=f"{where}, {error.where}", remedy=error.remedy) from error
        values.append(metric.judged(np.asarray(value)))
        replicates.append(metric.judged(sample))
    there, positives = weight > 0, None
    if task.record.positive and isinstance(target, np.ndarray):
        few = 2 * np.count_nonzero(there & (target > 0)) <= np.count_nonzero(there)
        there &= target > 0 if few else target <= 0
        positives = int(there.sum())
    informative = len(np.unique(given[rows[there]]))
    return _Measured(np.array(values), np.array(replicates), int((weight > 0).sum()), positives, informative)


def value_of(
    task: Task,
    truth: TaskTruth,
    units: npt.ArrayLike | int,
    predictions: Sequence[npt.ArrayLike],
    *,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> tuple[Scoped, int, int]:
    """A task's main metric, averaged over seeds, in both scopes; with it the numbers of test rows and informative units."""
    measured = _measure(task, {task.name: truth}, *_draw(units, repeats, seed), {task.name: predictions}, "predictions")
    return _value(measured, level), measured.rows, measured.units


def gain_of(
    task: Task,
    truth: TaskTruth,
    units: npt.ArrayLike | int,
    one: Sequence[npt.ArrayLike],
    other: Sequence[npt.ArrayLike],
    *,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> Scoped:
    """The gain of one model over another on a task (positive: the first is better), without a word."""
    drawn = _draw(units, repeats, seed)
    a, b = (_measure(task, {task.name: truth}, *drawn, {task.name: side}, "predictions") for side in (one, other))
    return _gain(task, a, b, level)


def _draw(units: npt.ArrayLike | int, repeats: int, seed: int) -> tuple[Ints, Units]:
    """Each row's unit as a number, and the resamples."""
    given = np.arange(units) if isinstance(units, int) else np.unique(np.asarray(units), return_inverse=True)[1]
    return given.astype(np.intp), draw_units(units, repeats=repeats, seed=seed)


def _value(one: _Measured, level: float) -> Scoped:
    return _scoped(float(one.values.mean()), one.replicates.mean(0), one.units, (seeds_component(one.values),), level)


def _gain(task: Task, one: _Measured, other: _Measured, level: float) -> Scoped:
    sign = task.main_metric.sign
    value = sign * float(one.values.mean() - other.values.mean())
    replicates = sign * (one.replicates.mean(0) - other.replicates.mean(0))
    return _scoped(value, replicates, one.units, (seeds_component(one.values), seeds_component(other.values)), level)


def _scoped(value: float, replicates: Array, units: int, seeds: Sequence[Component | None], level: float) -> Scoped:
    of_units = units_component(replicates, units)
    of_seeds = [component for component in seeds if component is not None]
    file = t_interval(value, [of_units], level)
    return Scoped(file, t_interval(value, [of_units, *of_seeds], level) if of_seeds else None)


def _compare(
    reference: str,
    tasks: Sequence[Task],
    pairs: Mapping[str, tuple[_Measured, _Measured]],
    truth: Mapping[str, TaskTruth],
    constants: Mapping[str, float | Array],
    level: float,
    doubts: Mapping[str, str],
    challenger_name: str,
) -> Comparison:
    gains = {task.name: _gain(task, *pairs[task.name], level) for task in tasks}
    p = {name: gain.deciding.p_value() for name, gain in gains.items()}
    p_holm: dict[str, float] = {}
    for role in ("main", "auxiliary"):
        names = [task.name for task in tasks if task.role == role]
        p_holm |= dict(zip(names, holm([p[name] for name in names]).tolist()))
    found = []
    for task in tasks:
        one, other = pairs[task.name]
        metric, cells, gain = task.main_metric, truth[task.name], gains[task.name]
        if task.name not in constants:
            raise BadInput("has no constant prediction", where=f"task {task.name!r}", remedy="pass constants=")
        floor = metrics.of_constant(metric, constants[task.name], cells.target, cells.weight, cells.groups)
        constant = float(metric.judged(np.asarray(floor)))
        skill = metric.sign * (float(other.values.mean()) - constant)
        if not skill > 0:
            tolerance = 0.0
        elif task.tolerance is None:
            tolerance = TOLERANCE * skill
        else:
            tolerance = task.tolerance * abs(float(other.values.mean()))
        blocked = _blocked(one, other, skill, constant, metric.name) or doubts.get(task.name, "")
        word, reason = _word(gain.deciding, p[task.name], p_holm[task.name], tolerance, level, blocked)
        found.append(
            TaskVerdict(
                task.name,
                task.role,
                metric.name,
                metric.direction,
                one.rows,
                one.positives,
                one.units,
                tuple(one.values.tolist()),
                tuple(other.values.tolist()),
                _value(one, level),
                _value(other, level),
                gain,
                constant,
                skill,
                tolerance,
                p[task.name],
                p_holm[task.name],
                word,
                reason,
            )
        )
    overall = _overall(tasks, pairs, found, level, doubts)
    scope = _scope([pairs[task.name] for task in tasks])
    return Comparison(reference, scope, tuple(found), overall, headline(found, overall, scope, challenger_name, reference, level))


def _blocked(one: _Measured, other: _Measured, skill: float, constant: float, metric: str) -> str:
    """Why no word may be given, or ""."""
    if not (np.isfinite(one.values).all() and np.isfinite(other.values).all()):
        return f"{metric} is not defined on these test labels"
    if one.positives is not None and one.positives < FEWEST_POSITIVES:
        return f"the rarer class has {one.positives} test rows, fewer than {FEWEST_POSITIVES}"
    if one.units < FEWEST_UNITS:
        what = "labels of the rarer class" if one.positives is not None else "labels"
        return f"{one.units} resampling units hold {what}, fewer than {FEWEST_UNITS}"
    undefined = max(float((~np.isfinite(side.replicates)).mean()) for side in (one, other))
    if undefined > MOST_UNDEFINED:
        return f"{metric} is undefined in {undefined:.0%} of the resamples"
    if not skill > 0:
        return f"the reference has no skill over a constant predictor ({metric} {constant:.4g})"
    return ""


def _word(gain: Interval, p: float, p_adjusted: float, tolerance: float, level: float, blocked: str) -> tuple[Word, str]:
    alpha = 1 - level
    if blocked:
        return "undecided", blocked
    if not math.isfinite(gain.low):
        return "undecided", "its variance cannot be estimated"
    if p_adjusted < alpha and gain.value > 0:
        return "better", ""
    if gain.low > -tolerance:
        return "as good", ""
    if p_adjusted < alpha:
        return "worse", ""
    if p < alpha:
        return "undecided", f"p {number(p)} is not significant among this many tasks (Holm {number(p_adjusted)})"
    return "undecided", f"the interval {span(gain)} reaches from beyond -tolerance ({number(-tolerance)}) to above 0"


def _overall(
    tasks: Sequence[Task],
    pairs: Mapping[str, tuple[_Measured, _Measured]],
    found: Sequence[TaskVerdict],
    level: float,
    doubts: Mapping[str, str],
) -> Overall:
    """Δm with its interval: units resampled for both sides together, seeds by the first-order (delta) method.

    Seed i of one task belongs with seed i of the others (one joint model) where all tasks have equally many seeds; else the
    tasks' seeds count as independent.
    """
    main = [task for task in tasks if task.role == "main"]
    name = "mean-relative"
    if not main:
        none = Interval(math.nan, math.nan, math.nan, math.nan, math.nan)
        return Overall(name, Scoped(none, None), 0.0, math.nan, "undecided", "there is no main task")
    sign = np.array([task.main_metric.sign for task in main])
    one, other = ([pairs[task.name][side] for task in main] for side in (0, 1))
    m, b = (np.array([x.values.mean() for x in side]) for side in (one, other))
    value = 100 * float(np.mean(relative(m, b, sign)))
    replicates = 100 * np.mean(
        relative(np.array([x.replicates.mean(0) for x in one]), np.array([x.replicates.mean(0) for x in other]), sign[:, None]),
        axis=0,
    )
    with np.errstate(all="ignore"):
        slopes = (100 / len(main) * sign / b, -100 / len(main) * sign * m / b**2)
        seeds = [_linear_seeds([x.values for x in side], slope) for side, slope in zip((one, other), slopes)]
    units = min(x.units for x in one)
    delta = _scoped(value, replicates, units, seeds, level)
    by_name = {row.task: row for row in found}
    with np.errstate(all="ignore"):
        tolerance = 100 * float(np.mean([by_name[t.name].tolerance / base for t, base in zip(main, b)]))
    shaky = [
        t.name
        for t, base in zip(main, b)
        if not base > 0 or (by_name[t.name].direction == "max" and not by_name[t.name].reference.file.low > 0)
    ]
    weak = [
        t.name
        for t in main
        if by_name[t.name].units < FEWEST_UNITS or (by_name[t.name].positives or FEWEST_POSITIVES) < FEWEST_POSITIVES
    ]
    blocked = ""
    if shaky:
        metric = by_name[shaky[0]].metric
        blocked = f"{metric} of the reference on {shaky[0]} is not clearly above 0, so a relative change means nothing"
    elif weak:
        blocked = f"too few test labels of {', '.join(weak)}"
    else:
        blocked = next((f"{t.name}: {doubts[t.name]}" for t in main if t.name in doubts), "")
    p = delta.deciding.p_value() if math.isfinite(delta.deciding.se) else math.nan
    word, reason = _word(delta.deciding, p, p, tolerance, level, blocked)
    return Overall(name, delta, tolerance, p, word, reason)


def _linear_seeds(values: Sequence[Array], slopes: Array) -> Component | None:
    """The variance of Σ_t slope_t · mean of task t's seeds."""
    if len({len(v) for v in values}) == 1:
        return seeds_component(np.stack(values, 1) @ slopes)
    parts = [seeds_component(slope * v) for v, slope in zip(values, slopes)]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    total = sum(part.variance for part in known)
    spread = sum(part.variance**2 / part.df for part in known)
    return Component(total, total**2 / spread if spread > 0 else min(part.df for part in known))


def _scope(pairs: Sequence[tuple[_Measured, _Measured]]) -> str:
    one, other = (min(len(pair[side].values) for pair in pairs) > 1 for side in (0, 1))
    if one and other:
        return "the method"
    if one:
        return "the method, against this file of the reference only"
    if other:
        return "this file only, against the reference's method"
    return "this file only"


def headline(rows: Sequence[TaskVerdict], overall: Overall, scope: str, challenger: str, reference: str, level: float) -> str:
    """One sentence from the words of the main tasks."""
    by_word: dict[str, list[str]] = {word: [r.task for r in rows if r.role == "main" and r.word == word] for word in WORDS}
    said = "; ".join(f"{word} on {_names(names)}" for word, names in by_word.items() if names)
    if not said:
        answer = f"no main task was judged, so nothing is said of {challenger} against {reference}"
    elif by_word["worse"]:
        answer = f"{challenger} cannot replace {reference} on every task: {said}"
    elif by_word["undecided"]:
        answer = f"whether {challenger} can replace {reference} is not decided on every task: {said}"
    else:
        answer = f"{challenger} can replace {reference}: {said}"
    delta = overall.delta.deciding
    if math.isfinite(delta.low) and not (overall.word == "undecided" and "means nothing" in overall.reason):
        answer += f" (delta_m {delta.value:+.2f} %, {level:.0%} interval {delta.low:+.2f} to {delta.high:+.2f})"
    prefix = "" if scope == "the method" else f"For {scope.replace('this file only', 'these predictions only')}: "
    return prefix + (answer if prefix else answer[0].upper() + answer[1:]) + "."


def _names(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"


def number(value: float, sign: str = "") -> str:
    """A figure for people: four significant places, "n/a" where there is none."""
    return f"{value:{sign}.4g}" if math.isfinite(value) else "n/a"


def span(interval: Interval) -> str:
    """The bounds of an interval for people."""
    return f"[{number(interval.low, '+')}, {number(interval.high, '+')}]" if math.isfinite(interval.low) else "[n/a]"


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _interval_from(row: Mapping[str, Any]) -> Interval:
    return Interval(*(_float(row[key]) for key in ("value", "low", "high", "se", "df")))


def _scoped_from(row: Mapping[str, Any]) -> Scoped:
    return Scoped(_interval_from(row["file"]), None if row["method"] is None else _interval_from(row["method"]))


def _task_from(row: Mapping[str, Any]) -> TaskVerdict:
    read: dict[str, Callable[[Any], Any]] = dict.fromkeys(("challenger", "reference", "gain"), _scoped_from)
    read |= dict.fromkeys(("challenger_seeds", "reference_seeds"), lambda v: tuple(map(_float, v)))
    read |= dict.fromkeys(("constant", "skill", "tolerance", "p", "p_holm"), _float)
    return TaskVerdict(**{key: read[key](value) if key in read else value for key, value in row.items()})
