"""Rows of several requests, each for its own tasks, in one forward; and what their cells answer.

The artefact answers all of them at once (`Fitted.answer`). Where that fails, each task is tried alone, so that one broken head
costs the others nothing but time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import calibration
from pluribus.modeling import Fitted
from pluribus.modeling.artefact.fitted import Wanted
from pluribus.serving.encoding import RowEncoder
from pluribus.tasks import Task
from pluribus.tasks.forms import Maps, Ragged
from pluribus.tasks.kinds.record import Predictions

PROBES = 64  # encodings spent on finding the rows that cannot be encoded
_log = logging.getLogger("pluribus.serving")


def shielded(fitted: Fitted, data: Prepared, wanted: Wanted) -> tuple[dict[str, Any], dict[str, str]]:
    """Predictions, calibrated, and the tasks that failed with the reason; one failing task does not stop the others."""
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    try:
        found = fitted.answer(data, wanted)
    except Exception:
        for task, rows in wanted.items():
            try:
                found |= fitted.answer(data, {task: rows})
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


def decoded(fitted: Fitted, task: Task, value: Predictions) -> dict[str, list[Any]]:
    """A task's columns of a prediction file, as plain lists."""
    found = fitted.decoded(task, value).items()
    return {name: cells.tolist() if isinstance(cells, np.ndarray) else [_plain(cell) for cell in cells] for name, cells in found}


def _plain(cell: Any) -> Any:
    return cell.tolist() if isinstance(cell, np.ndarray | np.generic) else cell


def answered(value: Predictions) -> NDArray[np.bool_]:
    """Which rows have an answer: all of their numbers are finite; of a map, some are."""
    if isinstance(value, Maps):
        return np.asarray(np.isfinite(value.values).reshape(len(value), -1).any(1))
    if isinstance(value, Ragged):
        flat = np.isfinite(value.values).reshape(len(value.values), math.prod(value.values.shape[1:]))
        return np.asarray(value.sums(np.asarray(~flat.all(1))) == 0)
    return np.asarray(np.isfinite(value.reshape(len(value), -1)).all(1))


class Answerer:
    """Answers rows of one artefact. Slots: `{"values": {column: value}}`, with `"failed": {task: why}` where a task failed,
    or `{"error": why}` where the row cannot be encoded."""

    def __init__(self, fitted: Fitted, names: Sequence[str]) -> None:
        self.fitted = fitted
        self._named: tuple[tuple[Task, ...], dict[str, Task]] = ((), {})
        self.names = list(names)
        self.encode = RowEncoder(fitted.columns, fitted.tasks, names)

    @property
    def by_name(self) -> dict[str, Task]:
        """The artefact's tasks, those added at run time too."""
        if self._named[0] is not self.fitted.tasks:
            self._named = self.fitted.tasks, {task.name: task for task in self.fitted.tasks}
        return self._named[1]

    def __call__(self, rows: Sequence[Sequence[Any]], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """One slot a row. rows: cells in the order of `names`; tasks: what each row asks for."""
        slots: list[dict[str, Any]] = [{} for _ in rows]
        data, good = self._encode(rows, slots)
        if data is None:
            return slots
        if len(good) == len(rows) and all(names is tasks[0] or names == tasks[0] for names in tasks):
            everything = np.arange(len(rows))
            order = {name: everything for name in self.by_name if name in tasks[0]}
        else:
            wanted: dict[str, list[int]] = {}
            for position, place in enumerate(good):
                for task in tasks[place]:
                    wanted.setdefault(task, []).append(position)
            order = {name: np.asarray(wanted[name], np.int64) for name in self.by_name if name in wanted}
        found, failed = shielded(self.fitted, data, order)
        if order and not failed and all(len(value) == len(rows) and answered(value).all() for value in found.values()):
            return self._whole(found)
        for place in good:
            slots[place]["values"] = {}
        for name, positions in order.items():
            if name in failed:
                for position in positions.tolist():
                    slots[good[position]].setdefault("failed", {})[name] = failed[name]
                continue
            value = found[name]
            finite = answered(value)
            for column, cells in decoded(self.fitted, self.by_name[name], value).items():
                for position, sound, cell in zip(positions.tolist(), finite.tolist(), cells):
                    if sound:
                        slots[good[position]]["values"][column] = cell
            if not finite.all():
                for position in positions[~finite].tolist():
                    slots[good[position]].setdefault("failed", {})[name] = self.fitted.unanswered
        return slots

    def _whole(self, found: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Slots where every row asked for the same tasks and every cell has its answer."""
        columns: dict[str, list[Any]] = {}
        for name, task in self.by_name.items():
            if name in found:
                columns |= decoded(self.fitted, task, found[name])
        return [{"values": dict(zip(columns, cells))} for cells in zip(*columns.values())]

    def _encode(self, rows: Sequence[Sequence[Any]], slots: list[dict[str, Any]]) -> tuple[Prepared | None, list[int]]:
        """The rows that can be encoded, and their places; the others' slots get their error."""
        good = list(range(len(rows)))
        if not good:
            return None, []
        if self.encode.columns is not self.fitted.columns or self.encode.tasks is not self.fitted.tasks:
            # a catalogue has grown, a task was added
            self.encode = RowEncoder(self.fitted.columns, self.fitted.tasks, self.names)
        try:
            return self.encode(rows), good
        except Exception:
            good = []
        stack, probes = [(0, len(rows))], 0
        while stack:  # halve until the bad rows stand alone
            low, high = stack.pop()
            probes += 1
            try:
                self.encode(rows[low:high])
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
        return (self.encode([rows[place] for place in good]), good) if good else (None, [])
