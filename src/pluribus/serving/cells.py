"""Rows of several requests, each for its own tasks, in one forward; and what their cells answer.

A network runs once on all rows: a task's sharing and head see the rows that asked for it. Each member of a committee runs
once on what it answers for. Other artefacts run once for each set of rows. Where a forward fails, each task is tried alone, so
that one broken head costs the others nothing but time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import calibration
from pluribus.modeling import Fitted, MultiTaskModel
from pluribus.modeling.candidate import Array
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

STEP = 4096  # rows of a forward
PROBES = 64  # encodings spent on finding the rows that cannot be encoded
_log = logging.getLogger("pluribus.serving")

Wanted = Mapping[str, NDArray[np.int64]]


def scores(fitted: Fitted, data: Prepared, wanted: Wanted) -> dict[str, Array]:
    """Uncalibrated predictions of the wanted cells: task → [m] or [m, C], in the order of its rows (ascending)."""
    if not wanted:
        return {}
    members = getattr(fitted, "members", None)
    if isinstance(members, Mapping):
        answers: Mapping[str, str] = fitted.answers  # type: ignore[attr-defined]
        found: dict[str, Array] = {}
        for name, member in members.items():
            found |= scores(member, data, {task: rows for task, rows in wanted.items() if answers[task] == name})
        return found
    model = getattr(fitted, "model", None)
    if isinstance(model, MultiTaskModel):
        return _forward(model, data, wanted)
    found = {}
    groups: dict[bytes, list[str]] = {}
    for task, rows in wanted.items():
        groups.setdefault(rows.tobytes(), []).append(task)
    for tasks in groups.values():
        found |= fitted.scores(data, wanted[tasks[0]], tasks)
    return found


def _forward(model: MultiTaskModel, data: Prepared, wanted: Wanted) -> dict[str, Array]:
    used = np.unique(np.concatenate(list(wanted.values())))
    found: dict[str, list[torch.Tensor]] = {task: [] for task in wanted}
    for start in range(0, len(used), STEP):
        rows = used[start : start + STEP]
        cells: dict[str, torch.Tensor | None] = {}
        for task, mine in wanted.items():
            here = mine[(mine >= rows[0]) & (mine <= rows[-1])]
            if len(here):
                cells[task] = None if len(here) == len(rows) else torch.from_numpy(np.searchsorted(rows, here))
        batch = data.batch(torch.from_numpy(rows), tasks=())
        for task, value in model.predict(batch.inputs, cells, batch.context).items():
            found[task].append(value)
    return {task: torch.cat(values).double().numpy() for task, values in found.items() if values}


def shielded(fitted: Fitted, data: Prepared, wanted: Wanted) -> tuple[dict[str, Array], dict[str, str]]:
    """`scores`, calibrated, and the tasks that failed with the reason; one failing task does not stop the others."""
    found: dict[str, Array] = {}
    failed: dict[str, str] = {}
    try:
        found = scores(fitted, data, wanted)
    except Exception:
        for task, rows in wanted.items():
            try:
                found |= scores(fitted, data, {task: rows})
            except Exception as error:
                _log.exception("task %r failed on %d rows", task, len(rows))
                failed[task] = f"the model failed on this task ({type(error).__name__}); its log has the details"
    for task in list(found):
        if task in fitted.calibration:
            try:
                found[task] = calibration.from_dict(fitted.calibration[task]).apply(found[task])
            except Exception as error:
                _log.exception("the calibration of task %r failed", task)
                failed[task] = f"the calibration of this task failed ({type(error).__name__}); its log has the details"
                del found[task]
    return found, failed


def decoded(task: Task, value: Array, thresholds: Mapping[str, float]) -> dict[str, list[Any]]:
    """A task's columns of a prediction file, as plain lists."""
    if task.kind == "binary":
        labels = np.asarray(task.classes, object)[(value >= thresholds.get(task.name, 0.5)).astype(int)]
        return {task.name: labels.tolist(), task.columns[0]: value.tolist()}
    if task.classes:
        columns = {column: value[:, i].tolist() for i, column in enumerate(task.columns)}
        return {task.name: np.asarray(task.classes, object)[value.argmax(1)].tolist(), **columns}
    return {task.name: value.tolist()}


@dataclass(frozen=True)
class _Columns:
    """What `FittedColumns` reads of a frame, without the frame, which costs more to make than a small batch to predict."""

    columns: Mapping[str, pd.Series]
    rows: int

    def __getitem__(self, name: str) -> pd.Series:
        return self.columns[name]

    def __len__(self) -> int:
        return self.rows


class Answerer:
    """Answers rows of one artefact. Slots: `{"values": {column: value}}`, with `"failed": {task: why}` where a task failed,
    or `{"error": why}` where the row cannot be encoded."""

    def __init__(self, fitted: Fitted, names: Sequence[str]) -> None:
        self.fitted, self.names = fitted, list(names)
        self.by_name = {task.name: task for task in fitted.tasks}
        kinds = {i.name: i.type for i in fitted.columns.inputs}
        self.kinds = [kinds.get(name, "category") for name in self.names]

    def __call__(self, rows: Sequence[Sequence[Any]], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """One slot a row. rows: cells in the order of `names`; tasks: what each row asks for."""
        slots: list[dict[str, Any]] = [{} for _ in rows]
        data, good = self._encode(rows, slots)
        if data is None:
            return slots
        wanted: dict[str, list[int]] = {}
        for position, place in enumerate(good):
            slots[place]["values"] = {}
            for task in tasks[place]:
                wanted.setdefault(task, []).append(position)
        order = {name: np.asarray(wanted[name], np.int64) for name in self.by_name if name in wanted}
        found, failed = shielded(self.fitted, data, order)
        for name, positions in order.items():
            if name in failed:
                for position in positions:
                    slots[good[position]].setdefault("failed", {})[name] = failed[name]
                continue
            value = found[name]
            finite = np.asarray(np.isfinite(value.reshape(len(value), -1)).all(axis=1))
            for column, cells in decoded(self.by_name[name], value, self.fitted.thresholds).items():
                for position, sound, cell in zip(positions, finite.tolist(), cells):
                    if sound:
                        slots[good[position]]["values"][column] = cell
            if not finite.all():
                for position in np.asarray(positions)[~finite]:
                    slots[good[position]].setdefault("failed", {})[name] = "the prediction is not finite"
        return slots

    def _encode(self, rows: Sequence[Sequence[Any]], slots: list[dict[str, Any]]) -> tuple[Prepared | None, list[int]]:
        """The rows that can be encoded, and their places; the others' slots get their error."""
        good = list(range(len(rows)))
        if not good:
            return None, []
        try:
            return self._prepare(rows), good
        except Exception:
            good = []
        stack, probes = [(0, len(rows))], 0
        while stack:  # halve until the bad rows stand alone
            low, high = stack.pop()
            probes += 1
            try:
                self._prepare(rows[low:high])
                good += range(low, high)
            except Exception as error:
                if high - low > 1 and probes < PROBES:
                    middle = (low + high) // 2
                    stack += [(middle, high), (low, middle)]
                    continue
                what = str(error) if isinstance(error, BadInput) else f"cannot be encoded ({type(error).__name__})"
                for place in range(low, high):
                    slots[place]["error"] = what
        good.sort()
        return (self._prepare([rows[place] for place in good]), good) if good else (None, [])

    def _prepare(self, rows: Sequence[Sequence[Any]]) -> Prepared:
        import pandas as pd

        index = pd.RangeIndex(len(rows))
        columns: dict[str, pd.Series] = {}
        for name, kind, cells in zip(self.names, self.kinds, zip(*rows)):
            if kind == "number":
                columns[name] = pd.Series(np.array(cells, np.float64), index)
            elif kind == "datetime":
                columns[name] = pd.Series(np.array(cells, "datetime64[us]"), index)
            else:
                column = np.empty(len(rows), object)
                column[:] = cells
                columns[name] = pd.Series(column, index, dtype=object)
        frame: Any = _Columns(columns, len(rows))
        with np.errstate(over="ignore"):  # a number beyond float32 ends as "not finite" in its own slot
            return self.fitted.columns.prepare(frame, self.fitted.tasks)
