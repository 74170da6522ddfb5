"""The verdict: is the one model, task by task, better than its reference, as good, or worse; or is that undecided?

The input is predictions of one test split: for every task a list over seeds, of the challenger and of each reference.

Rule, for one task with its main metric; gain = challenger − reference, signed so that more is better:

1. The first scope is what would be deployed: the artefacts' own predictions (`deployed`), else the mean over the given draws. Its
   interval resamples whole units. It decides the word.
2. The second scope is the method: the mean over the draws (seeds, folds), with the between-draw variance of both sides added
   (`intervals`). It has a word of its own, where both sides have at least 3 draws.
3. The p-value of "no gain" is adjusted by Holm over the tasks of the same role, for each reference separately.
4. tolerance: .005 for a metric that is bounded by 1 (AUC, accuracy, F1, R²), 1 % of the reference's value for any other; or what
   the task says: "0.01" in the metric's unit, "2%" of the reference's value.
5. **better**: adjusted p < 1 − level and gain > 0. **as good**: the interval's lower bound lies above −tolerance.
   **worse**: adjusted p < 1 − level and gain < 0. **undecided**: anything else, with the reason, and with how many units would
   decide if the gain stayed what it is.
6. A doubt blocks the words that it could undo, and no other. The reference is undertrained: no "better", no "as good". The
   challenger is undertrained: no "worse". The reference has no skill over the constant predictor: no "as good", no "worse"; and
   no "better" where the challenger has none either.
7. No word in any case: fewer than 50 test rows of a binary task's rarer class; fewer than 10 units with labels (binary: with
   labels of the rarer class); metric undefined, in the data or in more than 5 % of the resamples. The overall word is undecided
   where a main task lacks rows or units, or where a reference near 0 makes Δm meaningless.

"As good" is not adjusted for the number of tasks: "no task suffers" needs every task to pass, and such an intersection of
tests keeps its level without adjustment (Berger 1982). A significant loss smaller than the tolerance is "as good".

Overall: Δm, "mean-relative" over main tasks (`delta_m`), numerator and reference resampled together; its tolerance is 1 %.
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

BOUNDED, RELATIVE = 0.005, 0.01
"""Tolerances: of metrics that are bounded by 1, in their unit; of others, as a share of the reference's value."""
OVERALL = 1.0
"""Tolerance of Δm, in per cent."""
FEWEST_DRAWS = 3
"""Draws of each side from which on the method has a word."""
MOST_NEEDED = 10_000_000
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
    """One figure in both scopes: `file`, what would be deployed (units), and `method` (draws and units; None where no side has
    two draws)."""

    file: Interval
    method: Interval | None

    @property
    def deciding(self) -> Interval:
        """The scope that decides the word: what would be deployed."""
        return self.file


@dataclass(frozen=True)
class TaskVerdict:
    """One task against one reference; `gain` is positive where the challenger is better.

    rows, positives (rarer class of a binary task, else None), units: the test cells it rests on.
    challenger_seeds, reference_seeds: the metric of each seed; challenger, reference: their means with intervals.
    constant: the metric of the constant predictor; skill: what the reference gains over it; tolerance: in the metric's unit.
    p, p_holm: of "no gain", alone and adjusted. reason: why it is undecided, else "".
    method_word: the word on the method, where both sides have three draws. units_needed: how many units would decide an undecided
    task, if the gain stayed what it is; None where none would.
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
    method_word: Word | None = None
    units_needed: int | None = None


@dataclass(frozen=True)
class Overall:
    """Δm over the main tasks, in per cent, positive is better; `tolerance` on the same scale; `method_word` as of a task."""

    convention: str
    delta: Scoped
    tolerance: float
    p: float
    word: Word
    reason: str
    method_word: Word | None = None


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
        """Plain JSON values (NaN and infinity become None); `Verdict.from_dict` undoes it.

        What older files do not have (`method_word`, `units_needed`) is left out where it is None.
        """
        found = cast(dict[str, Any], plain(asdict(self)))
        for comparison in found["comparisons"]:
            for row in (comparison["overall"], *comparison["tasks"]):
                for name in ("method_word", "units_needed"):
                    if name in row and row[name] is None:
                        del row[name]
        return {**found, "schema": 1, "headline": self.headline}

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
            last = ("gain", "interval", "tolerance", "p (Holm)", "word", "the method")
            table: list[tuple[str, ...]] = [("task", "metric", self.challenger, c.reference, *last)]
            for t in c.tasks:
                table.append(
                    (
                        t.task + ("" if t.role == "main" else " (auxiliary)"),
                        t.metric,
                        number(t.challenger.file.value),
                        number(t.reference.file.value),
                        number(t.gain.file.value, "+"),
                        span(t.gain.file),
                        number(t.tolerance),
                        number(t.p_holm),
                        t.word,
                        t.method_word or "",
                    )
                )
            widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
            lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
            o = c.overall
            because = f" ({o.reason})" if o.reason else ""
            lines.append(
                f"  overall: delta_m {number(o.delta.file.value, '+')} % {span(o.delta.file)}, "
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
    deployed: Mapping[str, Mapping[str, Any]] | None = None,
    doubts: Mapping[str, Mapping[str, str] | str] | None = None,
    notes: Sequence[str] = (),
) -> Verdict:
    """Judge a challenger against its references on one test split.

    Parameters
    ----------
    tasks: what to judge; each by its first metric.
    truth: task → its labelled test cells.
    units: the resampling unit of every test row [N], or N where each row is its own unit.
    challenger: task → predictions of each draw (seed, fold); every task. Numbers of draws may differ between sides.
    references: name → the same; the first carries the headline. A reference may lack tasks: it is compared on those it has.
    constants: task → the constant predictor's prediction, from training labels (`metrics.constant`).
    unit: what a unit is called.
    level, repeats, seed: of the intervals, of the bootstrap.
    deployed: `challenger_name` or name of a reference → task → what the artefact predicts that would be deployed (an average of
        the draws, say); a side that is not named is the mean over its draws.
    doubts: task → {"challenger" or "reference": why that side could still become better}; a reason alone blocks every word.

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
    own = (deployed or {}).get(challenger_name, {})
    measured = {name: _measure(by_name[name], truth, given, drawn, challenger, "challenger", own.get(name)) for name in by_name}
    comparisons = []
    for reference, predictions in references.items():
        shared = [name for name in by_name if name in predictions]
        if not shared:
            raise BadInput("holds no prediction of any judged task", where=f"reference {reference!r}")
        own = (deployed or {}).get(reference, {})
        where = f"reference {reference!r}"
        pairs = {
            name: (measured[name], _measure(by_name[name], truth, given, drawn, predictions, where, own.get(name)))
            for name in shared
        }
        known = [by_name[name] for name in shared]
        comparisons.append(_compare(reference, known, pairs, truth, constants, level, doubts or {}, challenger_name))
    return Verdict(challenger_name, tuple(comparisons), level, repeats, len(drawn.code), drawn.count, unit, tuple(notes))


@dataclass(frozen=True)
class _Measured:
    """One side's main metric on one task: per draw [k], per draw and resample [k, R]; of what would be deployed, a number and
    [R]; and what the test cells hold."""

    values: Array
    replicates: Array
    value: float
    sample: Array
    rows: int
    positives: int | None
    units: int


def _measure(
    task: Task,
    truth: Mapping[str, TaskTruth],
    given: Ints,
    drawn: Units,
    predictions: Predictions,
    side: str,
    deployed: Any = None,
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

    def scored(prediction: Any) -> tuple[Array, Array]:
        try:
            value = metrics.compute(metric, prediction, target, weight, cells.groups)
            sample = metrics.resampled(metric, prediction, target, weightings, cells.groups)
        except BadInput as error:
            raise BadInput(error.what, where=f"{where}, {error.where}", remedy=error.remedy) from error
        return metric.judged(np.asarray(value)), metric.judged(sample)

    each = [scored(prediction) for prediction in predictions[task.name]]
    values, replicates = np.array([value for value, _ in each]), np.array([sample for _, sample in each])
    there, positives = weight > 0, None
    if task.record.positive and isinstance(target, np.ndarray):
        few = 2 * np.count_nonzero(there & (target > 0)) <= np.count_nonzero(there)
        there &= target > 0 if few else target <= 0
        positives = int(there.sum())
    informative = len(np.unique(given[rows[there]]))
    value, sample = (values.mean(), replicates.mean(0)) if deployed is None else scored(deployed)
    return _Measured(values, replicates, float(value), sample, int((weight > 0).sum()), positives, informative)


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
    mean = float(one.values.mean()), one.replicates.mean(0)
    return _scoped((one.value, one.sample), mean, one.units, (seeds_component(one.values),), level)


def _gain(task: Task, one: _Measured, other: _Measured, level: float) -> Scoped:
    sign = task.main_metric.sign
    file = sign * (one.value - other.value), sign * (one.sample - other.sample)
    mean = sign * float(one.values.mean() - other.values.mean()), sign * (one.replicates.mean(0) - other.replicates.mean(0))
    return _scoped(file, mean, one.units, (seeds_component(one.values), seeds_component(other.values)), level)


def _scoped(
    file: tuple[float, Array], mean: tuple[float, Array], units: int, draws: Sequence[Component | None], level: float
) -> Scoped:
    """What would be deployed (value and resamples), and the mean over draws with their variance."""
    of_draws = [component for component in draws if component is not None]
    first = t_interval(file[0], [units_component(file[1], units)], level)
    return Scoped(first, t_interval(mean[0], [units_component(mean[1], units), *of_draws], level) if of_draws else None)


def tolerance_of(task: Task, reference: float) -> float:
    """How much may be lost on a task and still be as good, in the unit of its main metric.

    Parameters
    ----------
    task : Task
        Its `tolerance` decides where it has one: a number is a share of the reference's value; text is in the metric's unit
        ("0.01"), or in per cent of the reference's value ("2%").
    reference : float
        The reference's value of the main metric.
    """
    given = task.tolerance
    if given is None:
        return BOUNDED if task.main_metric.bounded else RELATIVE * abs(reference)
    if isinstance(given, str) and not given.endswith("%"):
        return float(given)
    share = float(given[:-1]) / 100 if isinstance(given, str) else given
    return share * abs(reference)


def _compare(
    reference: str,
    tasks: Sequence[Task],
    pairs: Mapping[str, tuple[_Measured, _Measured]],
    truth: Mapping[str, TaskTruth],
    constants: Mapping[str, float | Array],
    level: float,
    doubts: Mapping[str, Mapping[str, str] | str],
    challenger_name: str,
) -> Comparison:
    gains = {task.name: _gain(task, *pairs[task.name], level) for task in tasks}
    p = {name: gain.file.p_value() for name, gain in gains.items()}
    p_holm = _adjusted(tasks, p)
    drawn = {task.name: min(len(side.values) for side in pairs[task.name]) >= FEWEST_DRAWS for task in tasks}
    method = {name: gain.method if drawn[name] else None for name, gain in gains.items()}
    p_method = {name: math.nan if interval is None else interval.p_value() for name, interval in method.items()}
    method_holm = _adjusted(tasks, p_method)
    found = []
    for task in tasks:
        one, other = pairs[task.name]
        metric, cells, gain = task.main_metric, truth[task.name], gains[task.name]
        if task.name not in constants:
            raise BadInput("has no constant prediction", where=f"task {task.name!r}", remedy="pass constants=")
        floor = metrics.of_constant(metric, constants[task.name], cells.target, cells.weight, cells.groups)
        constant = float(metric.judged(np.asarray(floor)))
        skill = metric.sign * (other.value - constant)
        tolerance = tolerance_of(task, other.value)
        blocked = _blocked(one, other, metric.name)
        blocks = _blocks(doubts.get(task.name, {}), skill, metric.sign * (one.value - constant), f"{metric.name} {constant:.4g}")
        word, reason = _word(gain.file, p[task.name], p_holm[task.name], tolerance, level, blocked, blocks)
        second: Word | None = None
        if (interval := method[task.name]) is not None:
            second, _ = _word(interval, p_method[task.name], method_holm[task.name], tolerance, level, blocked, blocks)
        needed = None if blocked or reason in blocks.values() else _needed(gain.file, tolerance, word, one.units, level)
        if needed is not None:
            reason += f"; about {needed:,} units would decide it"
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
                second,
                needed,
            )
        )
    overall = _overall(tasks, pairs, found, level, doubts)
    scope = _scope([pairs[task.name] for task in tasks])
    return Comparison(reference, scope, tuple(found), overall, headline(found, overall, scope, challenger_name, reference, level))


def _adjusted(tasks: Sequence[Task], p: Mapping[str, float]) -> dict[str, float]:
    """Holm's p-values, main and auxiliary tasks apart."""
    found: dict[str, float] = {}
    for role in ("main", "auxiliary"):
        names = [task.name for task in tasks if task.role == role]
        found |= dict(zip(names, holm([p[name] for name in names]).tolist()))
    return found


def _blocked(one: _Measured, other: _Measured, metric: str) -> str:
    """Why no word may be given, or ""."""
    if not (np.isfinite([*one.values, one.value]).all() and np.isfinite([*other.values, other.value]).all()):
        return f"{metric} is not defined on these test labels"
    if one.positives is not None and one.positives < FEWEST_POSITIVES:
        return f"the rarer class has {one.positives} test rows, fewer than {FEWEST_POSITIVES}"
    if one.units < FEWEST_UNITS:
        what = "labels of the rarer class" if one.positives is not None else "labels"
        return f"{one.units} resampling units hold {what}, fewer than {FEWEST_UNITS}"
    undefined = max(float((~np.isfinite(np.vstack([side.replicates, side.sample]))).mean()) for side in (one, other))
    if undefined > MOST_UNDEFINED:
        return f"{metric} is undefined in {undefined:.0%} of the resamples"
    return ""


def _blocks(doubt: Mapping[str, str] | str, skill: float, own: float, constant: str) -> dict[str, str]:
    """Word → why it may not be given. skill, own: what the reference and the challenger gain over the constant predictor."""
    if isinstance(doubt, str):
        return dict.fromkeys(WORDS, doubt)
    found: dict[str, str] = {}
    if "reference" in doubt:
        found |= dict.fromkeys(("better", "as good"), doubt["reference"])
    if "challenger" in doubt:
        found["worse"] = doubt["challenger"]
    if not skill > 0:
        found |= dict.fromkeys(("as good", "worse"), f"the reference has no skill over a constant predictor ({constant})")
        if not own > 0:
            found["better"] = f"neither side has skill over a constant predictor ({constant})"
    return found


def _word(
    gain: Interval,
    p: float,
    p_adjusted: float,
    tolerance: float,
    level: float,
    blocked: str = "",
    blocks: Mapping[str, str] | None = None,
) -> tuple[Word, str]:
    """The word, and why it is "undecided". blocked: why there is none at all. blocks: word → why it may not be given."""
    if blocked:
        return "undecided", blocked
    word, reason = _free_word(gain, p, p_adjusted, tolerance, level)
    if blocks and word in blocks:
        return "undecided", blocks[word]
    return word, reason


def _free_word(gain: Interval, p: float, p_adjusted: float, tolerance: float, level: float) -> tuple[Word, str]:
    alpha = 1 - level
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


def _needed(gain: Interval, tolerance: float, word: Word, units: int, level: float) -> int | None:
    """How many units would decide an undecided task: the interval's half width shrinks with their root."""
    half = gain.value - gain.low
    if word != "undecided" or not math.isfinite(half) or not half > 0:
        return None
    distance = gain.value + tolerance if gain.value > -tolerance else -gain.value
    needed = units * (half / distance) ** 2 if distance > 0 else math.inf
    return math.ceil(needed) if units < needed < MOST_NEEDED else None


def _overall(
    tasks: Sequence[Task],
    pairs: Mapping[str, tuple[_Measured, _Measured]],
    found: Sequence[TaskVerdict],
    level: float,
    doubts: Mapping[str, Mapping[str, str] | str],
) -> Overall:
    """Δm with its interval: units resampled for both sides together, draws by the first-order (delta) method.

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

    def delta_of(mine: Any, theirs: Any) -> Array:
        signs = sign[:, None] if np.ndim(mine[0]) else sign
        return np.asarray(100 * np.mean(relative(np.array(mine), np.array(theirs), signs), axis=0))

    first = (
        float(delta_of([x.value for x in one], [x.value for x in other])),
        delta_of([x.sample for x in one], [x.sample for x in other]),
    )
    mean = float(delta_of(m, b)), delta_of([x.replicates.mean(0) for x in one], [x.replicates.mean(0) for x in other])
    with np.errstate(all="ignore"):
        slopes = (100 / len(main) * sign / b, -100 / len(main) * sign * m / b**2)
        draws = [_linear_seeds([x.values for x in side], slope) for side, slope in zip((one, other), slopes)]
    delta = _scoped(first, mean, min(x.units for x in one), draws, level)
    by_name = {row.task: row for row in found}
    shaky = [
        t.name
        for t, base in zip(main, (x.value for x in other))
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
    blocks: dict[str, str] = {}
    for t in main:
        doubt = doubts.get(t.name, {})
        said = {side: f"{t.name}: {why}" for side, why in doubt.items()} if not isinstance(doubt, str) else f"{t.name}: {doubt}"
        blocks = {**_blocks(said, math.inf, math.inf, ""), **blocks}
    p = delta.file.p_value() if math.isfinite(delta.file.se) else math.nan
    word, reason = _word(delta.file, p, p, OVERALL, level, blocked, blocks)
    second: Word | None = None
    if delta.method is not None and min(len(x.values) for x in (*one, *other)) >= FEWEST_DRAWS:
        q = delta.method.p_value()
        second, _ = _word(delta.method, q, q, OVERALL, level, blocked, blocks)
    return Overall(name, delta, OVERALL, p, word, reason, second)


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
    delta = overall.delta.file
    if math.isfinite(delta.low) and not (overall.word == "undecided" and "means nothing" in overall.reason):
        answer += f". On average over the tasks it is {change(delta)}"
    return answer[0].upper() + answer[1:] + "."


def change(delta: Interval) -> str:
    """A Δm in plain words: "4.4 % worse (0.9 to 7.9)"; an interval on both sides of 0 names both."""
    word, other = ("better", "worse") if delta.value >= 0 else ("worse", "better")
    sign = 1.0 if delta.value >= 0 else -1.0
    low, high = sorted((sign * delta.low, sign * delta.high))
    if not math.isfinite(low):
        return f"{abs(delta.value):.1f} % {word}"
    if low >= 0:
        return f"{abs(delta.value):.1f} % {word} ({low:.1f} to {high:.1f})"
    return f"{abs(delta.value):.1f} % {word} (from {-low:.1f} % {other} to {high:.1f} % {word})"


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
