"""One task's metric by slice (a region, a customer segment, a protected group): where is a good mean bad for some?

Slices are looked at, not judged: many of them, chosen after the fact, carry no error rate. Their figures are exploratory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.evaluation.calibration import Reliability, reliability
from pluribus.evaluation.verdict import Scoped, TaskTruth, gain_of, value_of
from pluribus.tasks import Task


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
        part = replace(
            truth,
            rows=truth.rows[here],
            target=truth.target[here],
            weight=None if truth.weight is None else truth.weight[here],
            groups=None if truth.groups is None else truth.groups[here],
        )
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
