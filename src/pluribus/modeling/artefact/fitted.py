"""A fitted artefact, whatever is inside (a network, trees, a committee, a merge container).

It predicts tables, knows its costs, and travels as a folder (`pluribus.modeling.artefact.folder`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.data.columns import FittedColumns
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.evaluation import calibration
from pluribus.modeling.artefact import folder as folder_of_model
from pluribus.modeling.artefact.importance import Importance, by_exchange
from pluribus.modeling.artefact.preprocessing import Preprocessing
from pluribus.modeling.artefact.record import FitRecord
from pluribus.modeling.pieces import bytes_per_row, pieces
from pluribus.tasks import Task
from pluribus.tasks.metrics import Additive

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.data.columns import FittedColumns

Array = NDArray[np.float64]
Wanted = Mapping[str, NDArray[np.int64]]
"""The cells asked for: task → rows of a data set [m], in any order."""


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

    @classmethod
    def together(cls, each: Sequence[Costs]) -> Costs:
        """The costs of several artefacts that answer one after another; rows per second where all are measured."""
        rates = [cost.rows_per_second for cost in each if cost.rows_per_second]
        return cls(
            sum(cost.parameters for cost in each),
            sum(cost.flops_per_row for cost in each),
            sum(cost.bytes for cost in each),
            sum(cost.train_seconds for cost in each),
            1 / sum(1 / rate for rate in rates) if rates and len(rates) == len(each) else None,
        )


class Fitted(ABC):
    """A fitted artefact.

    Parameters
    ----------
    tasks : sequence of Task
        What it predicts.
    columns : Preprocessing
        What prepares the tables that it predicts.

    Attributes
    ----------
    artefact : str
        The name under which `pluribus.load` finds the class (catalog family "artefact").
    thresholds : dict
        Task with a positive class → P(positive) from which on the label is positive; 0.5 where it is not there.
    calibration : dict
        Task → state of a calibrator (`pluribus.evaluation.calibration.from_dict`).
    record : FitRecord
        What should travel along: settings, hashes, learning curves.
    """

    artefact: ClassVar[str]
    unanswered: ClassVar[str] = "the prediction is not finite"
    """Why a row has no answer whose scores are NaN."""
    tasks: tuple[Task, ...]
    columns: Preprocessing

    def __init__(self, tasks: Sequence[Task], columns: Preprocessing) -> None:
        self.tasks, self.columns = tuple(tasks), columns
        self.thresholds: dict[str, float] = {}
        self.calibration: dict[str, dict[str, Any]] = {}
        self.record = FitRecord()

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
            Task → predictions in the order of its rows, uncalibrated, as the kind's link gives them: [m], [m, C], `Ragged` or
            `Maps`. A row that cannot be answered has NaN (`unanswered` says why).
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

    def terms(self, data: Prepared, cells: Mapping[str, Cells]) -> dict[str, dict[str, Array]]:
        """The terms of the tasks' additive metrics, which take the place of predictions that are too large to keep.

        Rows go through in pieces that fit into memory: no more maps or lists are held at a time.

        Parameters
        ----------
        data : Prepared
            A table encoded by `columns`.
        cells : mapping
            Task → labelled cells of `data`, as `data.labelled` gives them.

        Returns
        -------
        dict
            Task → metric → terms [m, k] in the order of the cells. Metrics that are not additive are left out.
        """
        metrics = {task.name: [m for m in task.metrics if isinstance(m, Additive)] for task in self.tasks}
        found: dict[str, dict[str, list[Array]]] = {name: {m.name: [] for m in metrics[name]} for name in cells}
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *(own.rows for own in cells.values())]))

        def run(piece: slice) -> tuple[dict[str, Any], dict[str, Cells]]:
            true = {name: _at(own, rows[piece]) for name, own in cells.items()}
            return self.answer(data, {name: own.rows for name, own in true.items() if len(own)}), true

        def held(piece: slice) -> Any:
            said, true = run(piece)
            return said, [own.values for own in true.values()]

        for piece in pieces(len(rows), bytes_per_row(held, len(rows))):
            said, true = run(piece)
            for name, prediction in said.items():
                for metric in metrics[name]:
                    found[name][metric.name].append(metric.each(*metric.checked(prediction, true[name].values)))
        return {name: {m: np.concatenate(parts) for m, parts in each.items() if parts} for name, each in found.items()}

    def importance(self, data: Prepared, wanted: Wanted, seconds: float = 10.0) -> dict[str, Importance]:
        """Which inputs the predictions of each task rest on; see `pluribus.modeling.artefact.importance`.

        An artefact with a better way than exchanging inputs between rows overrides it.

        Parameters
        ----------
        data : Prepared
            A table encoded by `columns`.
        wanted : mapping
            Task → rows of `data` to measure it on.
        seconds : float, default 10.0
            What it may take; what the time does not reach is named.

        Returns
        -------
        dict
            Task → its importance. Tasks that answer with lists or maps are left out.
        """
        groups = list(alike(wanted))
        found: dict[str, Importance] = {}
        for rows, names in groups:
            found |= by_exchange(self.answer, data, rows, names, seconds / len(groups))
        return {name: found[name] for name in wanted if name in found}

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
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: Any) -> Fitted:
        """Undo `write`.

        Parameters
        ----------
        folder : Path
            The model folder.
        manifest : dict
            What `write` returned.
        tasks : tuple of Task
            What it predicts.
        columns : Preprocessing
            What `read_columns` gave.

        Raises
        ------
        BadInput
            The folder is damaged; file and field are named.
        """

    @property
    def record(self) -> FitRecord:
        """What the fit left to know; a plain mapping that is set becomes one."""
        return self._record

    @record.setter
    def record(self, record: FitRecord | Mapping[str, Any]) -> None:
        self._record = record if isinstance(record, FitRecord) else FitRecord.of(record)

    @classmethod
    def open(cls, folder: Path) -> Fitted | None:
        """Read a folder that has a form of the artefact's own, and no part of this class in its manifest (`pluribus merge` writes
        such folders, which know nothing of tables); None where there is no such form."""
        return None

    @classmethod
    def read_columns(cls, folder: Path, manifest: dict[str, Any]) -> Preprocessing:
        """Undo `columns.write`, from the folder and what it returned; the columns of a table unless the artefact says otherwise.

        Raises
        ------
        BadInput
            They are damaged; file and field are named.
        """
        return FittedColumns.read(folder, manifest)

    def requested(self, tasks: Sequence[str] | None) -> list[str]:
        names = [task.name for task in self.tasks]
        for name in tasks or ():
            if name not in names:
                raise unknown("task", name, names)
        return names if tasks is None else [name for name in names if name in tasks]

    def calibrated(self, data: Prepared, rows: NDArray[np.int64], tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Predictions of the same rows for some tasks, as files and metrics see them (see `calibrated_answer`)."""
        return self.calibrated_answer(data, dict.fromkeys(self.requested(tasks), np.asarray(rows, np.int64)))

    def calibrated_answer(self, data: Prepared, wanted: Wanted) -> dict[str, Any]:
        """`answer`, calibrated where the artefact carries a calibration."""
        return {
            name: calibration.from_dict(self.calibration[name]).apply(value) if name in self.calibration else value
            for name, value in self.answer(data, wanted).items()
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

    def decoded(self, task: Task, value: Any) -> dict[str, Any]:
        """A task's columns of a prediction file, one cell a row, from what `calibrated` yields."""
        return dict(task.record.write(task, value, self.thresholds.get(task.name, 0.5)))

    def add_items(self, **items: pd.DataFrame) -> None:
        """Put new items into the catalogues of item tables: `add_items(TABLE=frame)`, with the frame's key and attributes as they
        were fitted. Changes no parameter and no earlier item's code."""
        self.columns = self.columns.grown(items)

    def save(self, folder: str | Path) -> None:
        """Write the model folder; an existing one is replaced only once the new one is whole."""

        def write(aside: Path) -> dict[str, Any]:
            own = self.write(aside)
            return {"columns": self.columns.write(aside), "own": own}

        about = {
            "kind": self.artefact,
            "tasks": [task.to_dict() for task in self.tasks],
            "thresholds": self.thresholds,
            "calibration": self.calibration,
            "record": self.record.to_dict(),
        }
        folder_of_model.save(folder, about, write)


def alike(wanted: Wanted) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """The rows asked for, each with the tasks that ask for just these: what depends on rows alone is computed once for all."""
    groups: dict[bytes, tuple[NDArray[np.int64], list[str]]] = {}
    for task, rows in wanted.items():
        groups.setdefault(rows.tobytes(), (rows, []))[1].append(task)
    yield from groups.values()


def _at(cells: Cells, rows: NDArray[np.int64]) -> Cells:
    """The cells whose row is among some (ascending)."""
    first = np.searchsorted(cells.rows, rows)
    return cells[first[np.searchsorted(cells.rows, rows, "right") > first]]


def _answer_by_scores(fitted: Fitted, data: Prepared, wanted: Wanted) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows, names in alike(wanted):
        found |= fitted.scores(data, rows, names)
    return {name: found[name] for name in wanted}
