"""Candidates, what they search over, and what a fit leaves behind.

A `Candidate` is a road with its settings; a `Fitted` is one artefact, whatever is inside (network, trees, committee, merge
container): it predicts tables, knows its costs, and travels as a folder.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.data.columns import FittedColumns

Array = NDArray[np.float64]
Wanted = Mapping[str, NDArray[np.int64]]
"""The cells asked for: task → rows of a data set [m], in any order."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(map(repr, self.options))

    def sample(self, rng: np.random.Generator) -> Any:
        return self.options[int(rng.integers(len(self.options)))]


@dataclass(frozen=True)
class Uniform:
    """A real number between two bounds."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class LogUniform:
    """A positive number whose logarithm is uniform between two bounds."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g} (log)"

    def sample(self, rng: np.random.Generator) -> float:
        return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))


@dataclass(frozen=True)
class IntRange:
    """A whole number between two bounds, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} … {self.high} (whole)"

    def sample(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True)
class SearchSpace:
    """Setting → where it is searched. The defaults of the candidate are always the first configuration tried."""

    ranges: Mapping[str, Choice | Uniform | LogUniform | IntRange] = field(default_factory=dict)

    def sample(self, seed: int, count: int) -> list[dict[str, Any]]:
        """`count` configurations: the defaults (an empty dict), then seeded random draws."""
        rng = np.random.default_rng(seed)
        draws = [{name: r.sample(rng) for name, r in sorted(self.ranges.items())} for _ in range(count - 1)]
        return [{}, *draws] if self.ranges else [{}]


@dataclass(frozen=True)
class Budget:
    """What one fit may spend: core-seconds (CPU time of the process, so that a busy machine takes nothing away; of each
    process where several fit together), and threads at a time. folder: where an unfinished fit may keep what it needs to go
    on, if anywhere."""

    seconds: float
    threads: int = 1
    folder: Path | None = None


def in_turn(sizes: Sequence[float], go_on: Callable[[int, float], bool], until: float) -> None:
    """Train parts one after another until all have ended or this process has spent `until` CPU seconds.

    go_on(i, deadline) trains part i from where it stands to its end (True) or to the deadline. Each part is given its share, by
    size, of the seconds that are left; those whose share was too short go on with what the others did not need.
    """
    left = list(range(len(sizes)))
    while left:
        waiting = sum(sizes[i] for i in left)
        cut = []
        for i in left:
            now = time.process_time()
            if not go_on(i, now + max(0.0, until - now) * sizes[i] / max(1e-9, waiting)):
                cut.append(i)
            waiting -= sizes[i]
        left = cut if time.process_time() < until else []


@dataclass(frozen=True)
class Costs:
    """What an artefact costs: stored parameters (tree nodes count as two), FLOPs per row, bytes on disk, training
    core-seconds, and rows predicted per second (measured, one thread; None where not measured)."""

    parameters: int
    flops_per_row: float
    bytes: int
    train_seconds: float
    rows_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Fitted(ABC):
    """A fitted artefact.

    Attributes
    ----------
    artefact: the name under which `pluribus.load` finds the class (catalog family "artefact").
    tasks, columns: what it predicts, and the fitted preprocessing.
    thresholds: binary task → P(positive) from which on the label is positive.
    calibration: task → state of a calibrator (`pluribus.evaluation.calibration.from_dict`).
    record: whatever should travel along: settings, hashes, metrics with intervals, learning curves ("curves"),
        and "undertrained": tasks whose training ran out of budget before its early stop.
    """

    artefact: ClassVar[str]
    unanswered: ClassVar[str] = "the prediction is not finite"
    """Why a row has no answer whose scores are NaN."""
    tasks: tuple[Task, ...]
    columns: FittedColumns

    def __init__(self, tasks: Sequence[Task], columns: FittedColumns) -> None:
        self.tasks, self.columns = tuple(tasks), columns
        self.thresholds: dict[str, float] = {}
        self.calibration: dict[str, dict[str, Any]] = {}
        self.record: dict[str, Any] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "scores" in vars(cls) and "answer" not in vars(cls):  # written for the first edition, whose primitive was `scores`
            setattr(cls, "answer", _answer_by_scores)  # noqa: B010

    @abstractmethod
    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Any]:
        """Predict the cells asked for. Everything else that an artefact answers rests on this.

        Parameters
        ----------
        data : Prepared
            A table encoded by `columns`.
        wanted : mapping
            Task → rows of `data` (int64 [m]), in any order; a task may ask for other rows than the next one.

        Returns
        -------
        dict
            Task → predictions in the order of its rows, uncalibrated, as the kind's link gives them: [m], [m, C], lists or
            maps. A row that cannot be answered has NaN (`unanswered` says why).
        """

    def scores(self, data: Prepared, rows: NDArray[np.int64], tasks: Sequence[str]) -> dict[str, Any]:
        """Predict the same rows for some tasks (see `answer`).

        Parameters
        ----------
        data : Prepared
            A table encoded by `columns`.
        rows : ndarray of int64
            [m], in any order.
        tasks : sequence of str
            Their names.

        Returns
        -------
        dict
            Task → predictions [m, …].
        """
        return self.answer(data, dict.fromkeys(tasks, np.asarray(rows, np.int64)))

    def features(self, data: Prepared, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What the artefact computes of rows on its way to their predictions: name → [m, …]; nothing unless it says so."""
        return {}

    @property
    def dials(self) -> Mapping[str, Any]:
        """What a request may turn: name → what it takes, for people. None unless the artefact says so."""
        return {}

    def at(self, **dials: Any) -> Fitted:
        """The artefact with some dials turned; it shares the weights.

        Raises
        ------
        BadInput
            The artefact has no dial of that name.
        """
        for name in dials:
            if name not in self.dials:
                known = f"its dials are {', '.join(self.dials)}" if self.dials else "it has none"
                raise BadInput(f"has no dial {name!r}", where=f"model of type {self.artefact!r}", remedy=known)
        return self

    @abstractmethod
    def costs(self) -> Costs: ...

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Write the artefact's own files into `folder` and return its own part of the manifest (plain JSON)."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Fitted:
        """Undo `write`. Damage is a `BadInput` that names file and field."""

    def requested(self, tasks: Sequence[str] | None) -> list[str]:
        names = [task.name for task in self.tasks]
        for name in tasks or ():
            if name not in names:
                raise unknown("task", name, names)
        return names if tasks is None else [name for name in names if name in tasks]

    def calibrated(self, data: Prepared, rows: NDArray[np.int64], tasks: Sequence[str] | None = None) -> dict[str, Array]:
        """Predictions as files and metrics see them: `scores`, calibrated where the artefact carries a calibration."""
        from pluribus.evaluation import calibration

        found = self.scores(data, rows, self.requested(tasks))
        return {
            name: calibration.from_dict(self.calibration[name]).apply(value) if name in self.calibration else value
            for name, value in found.items()
        }

    def predict(self, table: pd.DataFrame, tasks: Sequence[str] | None = None) -> pd.DataFrame:
        """Predict a table that has the input columns: row order and index are kept; columns as in prediction files.

        Regression and count: `TASK`. Binary: `TASK` (label) and `TASK__p`. Classes: `TASK` and `TASK__p_CLASS`. Tags: `TASK`, a
        list for each row.
        Missing input columns are an error, extra ones are ignored.
        """
        import pandas as pd

        names = self.requested(tasks)
        data = self.columns.prepare(table, [task for task in self.tasks if task.name in names])
        values = self.calibrated(data, np.arange(data.n_rows), names)
        found: dict[str, Any] = {}
        for task in self.tasks:
            if task.name not in values:
                continue
            found |= self.decoded(task, values[task.name])
        return pd.DataFrame(found, index=table.index)

    def decoded(self, task: Task, value: Array) -> dict[str, Any]:
        """A task's columns of a prediction file, one cell a row, from what `calibrated` yields."""
        if task.kind == "binary":
            positive = value >= self.thresholds.get(task.name, 0.5)
            return {task.name: np.asarray(task.classes)[positive.astype(int)], task.columns[0]: value}
        if task.record.cell == "list":  # a list of classes, as long as the row's words
            lists = np.empty(len(value), object)
            for place, row in enumerate(value):
                lists[place] = [task.classes[int(i)] for i in row if i >= 0]
            return {task.name: lists}
        if task.classes:
            labels = np.asarray(task.classes)[value.argmax(1)]
            return {task.name: labels, **{column: value[:, i] for i, column in enumerate(task.columns)}}
        return {task.name: value}

    def add_items(self, **items: pd.DataFrame) -> None:
        """Put new items into the catalogues of item tables: `add_items(TABLE=frame)`, with the frame's key and attributes as they
        were fitted. Changes no parameter and no earlier item's code."""
        self.columns = self.columns.grown(items)

    def save(self, folder: str | Path) -> None:
        """Write the model folder atomically (see `pluribus.modeling.checkpoint`)."""
        from pluribus.modeling.checkpoint import save

        save(self, folder)


def alike(wanted: Wanted) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """The rows asked for, each with the tasks that ask for just these: what depends on rows alone is computed once for all."""
    groups: dict[bytes, tuple[NDArray[np.int64], list[str]]] = {}
    for task, rows in wanted.items():
        groups.setdefault(rows.tobytes(), (rows, []))[1].append(task)
    yield from groups.values()


def _answer_by_scores(fitted: Fitted, data: Prepared, wanted: Wanted) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows, names in alike(wanted):
        found |= fitted.scores(data, rows, names)
    return {name: found[name] for name in wanted}


class Candidate(ABC):
    """A road with its settings.

    Class attributes: `name` and `road` (as in the catalog), `label` for people, `space` where settings are searched.
    `settings` overrides the defaults; an unknown setting is an error.
    """

    name: ClassVar[str]
    road: ClassVar[str]
    label: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    space: ClassVar[SearchSpace] = SearchSpace()
    per_task: ClassVar[bool] = False
    """Whether this is a specialist: one model per task, nothing shared (a reference of the verdict)."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """What it reads beside plain columns: "text", "sequence" or both."""
    ranks: ClassVar[bool] = False
    """Whether it predicts tasks of kind next_item, and nothing else."""
    processes: ClassVar[bool] = False
    """Whether `fit` may be called on all ranks of a running `torch.distributed` group together, and then shares the work."""
    encoder: ClassVar[str | None] = None
    """Candidates with the same word here have the same encoder: joint and single are compared among them."""

    def __init__(self, **settings: Any) -> None:
        for key in settings:
            if key not in self.defaults:
                raise unknown("setting", key, self.defaults, where=f"candidate {self.name!r}")
        self.settings: dict[str, Any] = {**self.defaults, **settings}

    def unfit(self, data: Prepared) -> str | None:
        """Why this candidate cannot run on `data`, or None where it can."""
        return None

    def ignored(self, data: Prepared) -> list[str]:
        """Input columns that it cannot read: texts and sequences, unless `reads` names them."""
        return [i.name for i in data.columns.inputs if i.type in {"text", "sequence"} - self.reads]

    def unreadable(self, data: Prepared) -> str | None:
        """Why it cannot run on `data` for want of something to read (all inputs are of types that it does not read) or because
        it does not predict what there is to predict; else None."""
        if any((task.kind == "next_item") != self.ranks for task in data.tasks):
            return "it predicts next items and nothing else" if self.ranks else "it does not rank items"
        if any(task.record.cell == "list" for task in data.tasks) and "text" not in self.reads:
            return "it does not label words"
        kinds = sorted({i.type for i in data.columns.inputs})
        if data.columns.names or len(self.ignored(data)) < len(data.columns.inputs):
            return None
        return f"the inputs are {' and '.join(kinds)} only, which it does not read"

    def grid(self, data: Prepared) -> list[dict[str, Any]]:
        """Settings that a study tries whatever its budget, each with one of the configurations drawn from `space`."""
        return []

    @abstractmethod
    def estimate(self, data: Prepared) -> float:
        """Rough core-seconds of one fit to its early stop (for `--plan` and for sharing out the budget)."""

    @abstractmethod
    def fit(self, data: Prepared, budget: Budget, seed: int) -> Fitted:
        """Train on `data.parts["train"]`, stop early on `data.parts["valid"]`, within the budget. Deterministic in `seed`
        unless the budget cuts it short; then `record["undertrained"]` names the tasks. Never looks at other parts."""
