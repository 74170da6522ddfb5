"""Cells of a few rows straight into the model's arrays: a frame costs more to make than a small batch to predict.

Columns whose type says how (`InputType.filler`: numbers, words, booleans and dates, which most columns are) are encoded here.
The others (items, texts, lists) take `FittedColumns.prepare`, which a part of the columns is enough for. The numbers are those of
`FittedColumns.prepare`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pluribus.data.cells import Cells
from pluribus.data.inputs.record import Filler, FittedInput, InputType
from pluribus.data.prepared import Prepared
from pluribus.modeling.artefact.preprocessing import Preprocessing
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class _Frame:
    """What a `Preprocessing` reads of a frame."""

    columns: Mapping[str, pd.Series]
    rows: int

    def __getitem__(self, name: str) -> pd.Series:
        return self.columns[name]

    def __len__(self) -> int:
        return self.rows


class RowEncoder:
    """Encodes rows of cells for one artefact.

    Parameters
    ----------
    columns : Preprocessing
        The artefact's columns.
    tasks : sequence of Task
        What it predicts.
    names : sequence of str
        The order of a row's cells, which are as `FittedInput.read_cell` gives them.
    """

    def __init__(self, columns: Preprocessing, tasks: Sequence[Task], names: Sequence[str]) -> None:
        self.columns, self.tasks, self.names = columns, tuple(tasks), list(names)
        place = {name: i for i, name in enumerate(self.names)}
        groups: dict[InputType, list[FittedInput]] = {}
        for one in columns.inputs:
            groups.setdefault(one.record, []).append(one)
        self.fillers: list[tuple[Filler, list[int]]] = []
        rest: list[str] = []
        for record, own in groups.items():
            filler = record.filler(own, columns)
            if filler is None:
                rest += [one.name for one in own]
            else:
                self.fillers.append((filler, [place[one.name] for one in own]))
        self.rest = columns.only(rest)
        self.rest_cells = [(one.name, place[one.name]) for one in self.rest.inputs]
        if columns.task_column is not None:
            self.rest_cells.append((columns.task_column, place[columns.task_column]))
        self.rest_numbers = np.array([columns.place(name) for name in self.rest.numbers], np.int64)
        self.rest_categories = np.array([columns.place(name) for name in self.rest.categories], np.int64)
        self.nothing = {task.name: Cells(np.empty(0, np.int64), np.empty(0)) for task in self.tasks}

    def __call__(self, rows: Sequence[Sequence[Any]]) -> Prepared:
        """The rows as an encoded table without labels. Raises where a cell is not what its column takes."""
        count = len(rows)
        cells = list(zip(*rows))
        numeric = np.empty((count, len(self.columns.numbers)), np.float32)
        categorical = np.empty((count, len(self.columns.categories)), np.int32)
        for fill, places in self.fillers:
            fill([cells[i] for i in places], numeric, categorical)
        if not self.rest_cells:
            return Prepared(self.tasks, self.columns, numeric, categorical, self.nothing, parts={}, units=np.arange(count))
        rest = self.rest.prepare(self._frame(cells, count), self.tasks)
        numeric[:, self.rest_numbers] = rest.numeric
        categorical[:, self.rest_categories] = rest.categorical
        return replace(rest, columns=self.columns, numeric=numeric, categorical=categorical)

    def _frame(self, cells: Sequence[Sequence[Any]], count: int) -> Any:
        import pandas as pd

        index = pd.RangeIndex(count)
        columns: dict[str, pd.Series] = {}
        for name, i in self.rest_cells:
            column = np.empty(count, object)
            for row, cell in enumerate(cells[i]):  # a slice would unpack lists
                column[row] = cell
            columns[name] = pd.Series(column, index, dtype=column.dtype)
        return _Frame(columns, count)
