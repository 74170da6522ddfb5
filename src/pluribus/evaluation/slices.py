"""Metrics by slice (a region, a customer segment, a protected group): where is a good mean bad for some?

`by_slice` gives one task's metric; `judge_slices` the verdict on all tasks within each slice of one column.

Slices are looked at, not judged: many of them, chosen after the fact, carry no error rate. Their figures are exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.evaluation.calibration import Reliability, reliability
from pluribus.evaluation.verdict import FEWEST_UNITS, Scoped, TaskTruth, TaskVerdict, gain_of, judge, value_of
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

MOST = 20
"""Slices of a column; further categories share one."""
QUANTILES = 4
"""Slices of a column of numbers with more than `MOST` values."""
MISSING, OTHER = "(missing)", "(other)"


@dataclass(frozen=True)
class Slice:
    """One slice: its test cells, the model's metric, its gain over the reference (None without one), and, for a binary task,
    the reliability of the first seed in five bins."""

    name: str
    rows: int
    units: int
    value: Scoped
    gain: Scoped | None
    reliability: tuple[Reliability, ...]


def by_slice(
    task: Task,
    truth: TaskTruth,
    units: npt.ArrayLike | int,
    segment: Sequence[str] | npt.NDArray[np.str_],
    predictions: Sequence[npt.ArrayLike],
    reference: Sequence[npt.ArrayLike] | None = None,
    *,
    level: float = 0.95,
    repeats: int = 1000,
    seed: int = 0,
) -> list[Slice]:
    """The main metric of a task in each slice, the worst first; slices where it is undefined come last.

    segment [N]: the slice of every test row. predictions, reference: one array per seed, aligned with the truth's cells.
    """
    segment = np.asarray(segment)
    if len(truth.rows) and truth.rows.max() >= len(segment):
        raise BadInput("needs the segment of every test row", where=f"task {task.name!r}")
    found = []
    for name in np.unique(segment[truth.rows]):
        here = segment[truth.rows] == name
        part = _within(truth, here)
        mine = [np.asarray(p)[here] for p in predictions]
        value, rows, count = value_of(task, part, units, mine, level=level, repeats=repeats, seed=seed)
        gain = None
        if reference is not None:
            other = [np.asarray(p)[here] for p in reference]
            gain = gain_of(task, part, units, mine, other, level=level, repeats=repeats, seed=seed)
        bins = tuple(reliability(mine[0], part.target, part.weight, bins=5)) if task.record.positive else ()
        found.append(Slice(str(name), rows, count, value, gain, bins))
    sign = 1 if task.main_metric.direction == "max" else -1
    return sorted(found, key=lambda s: (np.isnan(s.value.file.value), sign * s.value.file.value))


@dataclass(frozen=True)
class JudgedSlice:
    """One slice of a column, on the test part.

    Parameters
    ----------
    name : str
        The column's value there, or the numbers that the slice reaches over.
    rows : int
        Test rows.
    tasks : dict of str to TaskVerdict
        The verdict on each task that has labels there; figures and words are exploratory.
    unjudged : dict of str to str
        Task → why there is no verdict on it.
    """

    name: str
    rows: int
    tasks: dict[str, TaskVerdict]
    unjudged: dict[str, str]


def segments(values: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """The slice of each row by one column's values [N].

    A column of numbers or dates with more than `MOST` values is cut at its quartiles; of other columns with more values the
    most frequent ones are slices of their own, and the rest share `(other)`. Missing values are a slice, `(missing)`.
    """
    import pandas as pd

    column = pd.Series(values).reset_index(drop=True)
    found = np.full(len(column), MISSING, dtype=object)
    there = column.notna().to_numpy()
    known = column[there]
    dated = pd.api.types.is_datetime64_any_dtype(known)
    measured = dated or (pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known))
    if measured and known.nunique() > MOST:
        numbers = _seconds(known) if dated else known.to_numpy(np.float64)
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, QUANTILES + 1)))
        place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
        ends = [str(np.datetime64(int(edge), "s"))[:10] if dated else f"{edge:.4g}" for edge in edges]
        names = [f"{low} to {high}" for low, high in pairwise(ends)]
        found[there] = np.array(names, dtype=object)[place]
    else:
        words = known.map(str)
        counts = words.value_counts()
        kept = set(counts.index if len(counts) <= MOST else counts.index[: MOST - 1])
        found[there] = [word if word in kept else OTHER for word in words]
    return found.astype(np.str_)


def judge_slices(
    tasks: Sequence[Task],
    truth: Mapping[str, TaskTruth],
    units: npt.ArrayLike | int,
    segment: Sequence[str] | npt.NDArray[np.str_],
    challenger: Mapping[str, Sequence[Any]],
    reference: Mapping[str, Sequence[Any]],
    **settings: Any,
) -> list[JudgedSlice]:
    """The verdict within each slice, the largest slice first.

    A task with fewer than `FEWEST_UNITS` units in a slice is not judged there. The p-values are adjusted over the tasks of one
    slice, and over nothing else: with many slices some words are wrong by chance.

    Parameters
    ----------
    tasks : sequence of Task
        What is judged.
    truth, units, challenger, reference, settings
        As for `pluribus.evaluation.verdict.judge`; `reference` is the predictions of the only one.
    segment : sequence of str
        [N], the slice of every test row, as `segments` gives it.

    Raises
    ------
    BadInput
        A test row has no segment.
    """
    segment = np.asarray(segment)
    for name, one in truth.items():
        if len(one.rows) and one.rows.max() >= len(segment):
            raise BadInput("needs the segment of every test row", where=f"task {name!r}")
    unit_of = np.arange(units) if isinstance(units, int) else np.asarray(units)
    names, counts = np.unique(segment, return_counts=True)
    found = []
    for name, rows in sorted(zip(names, counts), key=lambda pair: (-pair[1], pair[0])):
        here = {task.name: segment[truth[task.name].rows] == name for task in tasks}
        unjudged, able = {}, []
        for task in tasks:
            held = len(np.unique(unit_of[truth[task.name].rows[here[task.name]]]))
            if held < FEWEST_UNITS:
                unjudged[task.name] = f"{held} units with a label, fewer than {FEWEST_UNITS}"
            else:
                able.append(task)
        rows_of: dict[str, TaskVerdict] = {}
        if able:
            part = {task.name: _within(truth[task.name], here[task.name]) for task in able}
            sides = [{t.name: [p[here[t.name]] for p in side[t.name]] for t in able} for side in (challenger, reference)]
            verdict = judge(able, part, units, sides[0], {"reference": sides[1]}, **settings)
            rows_of = {row.task: row for row in verdict.comparisons[0].tasks}
        found.append(JudgedSlice(str(name), int(rows), rows_of, unjudged))
    return found


def worst(task: Task, slices: Sequence[JudgedSlice]) -> str | None:
    """The judged slice in which the challenger's main metric is worst; None where no two slices can be compared."""
    values = {each.name: each.tasks[task.name].challenger.file.value for each in slices if task.name in each.tasks}
    known = {name: value for name, value in values.items() if np.isfinite(value)}
    if len(known) < 2:
        return None
    pick = min if task.main_metric.direction == "max" else max
    return pick(known, key=lambda name: known[name])


def _seconds(dates: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Dates as seconds since 1970, by the clock that they were written by."""
    plain = dates.dt.tz_localize(None).to_numpy("datetime64[s]")
    return np.asarray(plain.astype(np.int64), np.float64)


def _within(truth: TaskTruth, keep: npt.NDArray[np.bool_]) -> TaskTruth:
    return replace(
        truth,
        rows=truth.rows[keep],
        target=truth.target[keep],
        weight=None if truth.weight is None else truth.weight[keep],
        groups=None if truth.groups is None else truth.groups[keep],
    )
