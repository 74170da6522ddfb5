"""Cells of a few rows straight into the model's arrays: a frame costs more to make than a small batch to predict.

Numbers, words, booleans and dates, which most columns are, are encoded here: one array for all numbers, one look-up a word. The
other columns (items, texts, lists) take `FittedColumns.prepare`, which a part of the columns is enough for. The numbers are those
of `FittedColumns.prepare`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.columns import FittedColumns, Input
from pluribus.data.features import calendar
from pluribus.data.prepared import Cells, Prepared
from pluribus.data.statistics import FIRST, MISSING, UNSEEN
from pluribus.errors import BadInput
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

SIMPLE = ("number", "category", "boolean", "datetime")


@dataclass(frozen=True)
class _Frame:
    """What `FittedColumns` reads of a frame."""

    columns: Mapping[str, pd.Series]
    rows: int

    def __getitem__(self, name: str) -> pd.Series:
        return self.columns[name]

    def __len__(self) -> int:
        return self.rows


class RowEncoder:
    """Encodes rows of cells for one artefact. names: the order of a row's cells.

    Cells are as `Reader` gives them: a number is a float (NaN where missing), a word or boolean a str or None, a date a datetime
    without zone or None.
    """

    def __init__(self, columns: FittedColumns, tasks: Sequence[Task], names: Sequence[str]) -> None:
        self.columns, self.tasks, self.names = columns, tuple(tasks), list(names)
        place = {name: i for i, name in enumerate(self.names)}
        features = {name: i for group in (columns.numbers, columns.categories) for i, name in enumerate(group)}
        simple = [source for source in columns.inputs if source.type in SIMPLE]
        rest = [source for source in columns.inputs if source.type not in SIMPLE]
        numbers = [source.name for source in simple if source.type == "number"]
        self.number_cells = [place[name] for name in numbers]
        self.number_places = np.array([features[name] for name in numbers], np.int64)
        self.centre = np.array([columns.numbers[name].centre for name in numbers])
        self.scale = np.array([columns.numbers[name].scale for name in numbers])
        self.words: list[tuple[int, dict[str | None, int]]] = []
        word_places: list[int] = []
        for source in simple:
            if source.type in ("category", "boolean"):
                for feature in source.categorical:
                    known = columns.categories[feature].categories
                    codes: dict[str | None, int] = {word: i for i, word in enumerate(known, FIRST)}
                    self.words.append((place[source.name], {**codes, None: MISSING}))
                    word_places.append(features[feature])
        self.word_places = np.array(word_places, np.int64)
        self.dates = [(place[source.name], source) for source in simple if source.type == "datetime"]
        self.features = features
        mine = {feature for source in simple for feature in (*source.numeric, *source.categorical)}
        self.rest = replace(
            columns,
            inputs=tuple(rest),
            numbers={name: number for name, number in columns.numbers.items() if name not in mine},
            categories={name: category for name, category in columns.categories.items() if name not in mine},
        )
        self.rest_cells = [(source.name, place[source.name]) for source in rest]
        if columns.task_column is not None:
            self.rest_cells.append((columns.task_column, place[columns.task_column]))
        self.rest_numbers = np.array([features[name] for name in self.rest.numbers], np.int64)
        self.rest_categories = np.array([features[name] for name in self.rest.categories], np.int64)
        self.nothing = {task.name: Cells(np.empty(0, np.int64), np.empty(0)) for task in self.tasks}

    def __call__(self, rows: Sequence[Sequence[Any]]) -> Prepared:
        """The rows as an encoded table without labels. Raises where a cell is not what its column takes."""
        count = len(rows)
        cells = list(zip(*rows))
        numeric = np.empty((count, len(self.columns.numbers)), np.float32)
        categorical = np.empty((count, len(self.columns.categories)), np.int32)
        if self.number_cells:
            values = np.array([cells[i] for i in self.number_cells], np.float64).T
            if np.isinf(values).any():
                raise BadInput("holds an infinite number", where="row", remedy="give null where it is missing")
            with np.errstate(over="ignore"):  # a number beyond float32 ends as "not finite" in its own slot
                numeric[:, self.number_places] = (values - self.centre) / self.scale
        if self.words:
            words = [list(map(codes.get, cells[i], repeat(UNSEEN))) for i, codes in self.words]
            categorical[:, self.word_places] = np.array(words, np.int32).T
        for i, source in self.dates:
            self._date(source, np.array(cells[i], "datetime64[us]"), numeric, categorical)
        if not self.rest_cells:
            return Prepared(self.tasks, self.columns, numeric, categorical, self.nothing, parts={}, units=np.arange(count))
        rest = self.rest.prepare(self._frame(cells, count), self.tasks)
        numeric[:, self.rest_numbers] = rest.numeric
        categorical[:, self.rest_categories] = rest.categorical
        return replace(rest, columns=self.columns, numeric=numeric, categorical=categorical)

    def _date(
        self, source: Input, stamps: NDArray[np.datetime64], numeric: NDArray[np.float32], categorical: NDArray[np.int32]
    ) -> None:
        found = calendar(stamps, source.name, source.name == self.columns.time, source.numeric)
        for feature, values in found.numeric.items():
            number = self.columns.numbers[feature]
            numeric[:, self.features[feature]] = (values - number.centre) / number.scale
        for feature, (codes, words) in found.categorical.items():
            categorical[:, self.features[feature]] = self.columns.codes(feature, codes, words)

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
