"""Words and categories: one categorical feature, its training categories from the most frequent down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.inputs.reading import called, sound
from pluribus.data.inputs.record import (
    CellLimits,
    ColumnFeatures,
    Filler,
    FittedInput,
    Fitting,
    InputColumn,
    InputType,
    Saved,
    Schema,
    Statistics,
    Unfit,
    Words,
    register,
)
from pluribus.data.statistics import FIRST, MAX_CATEGORIES, MIN_COUNT, MISSING, UNSEEN
from pluribus.errors import BadInput
from pluribus.tasks.columns import word_of
from pluribus.tasks.kinds.labels import MAX_CLASSES

PLAIN_OBJECTS = ("", "string", "boolean", "empty", "integer", "floating", "mixed-integer-float", "decimal")
"""What a column of objects may hold, in pandas' words."""


class CategoryType(InputType):
    """Words, and whatever is no other type: asked last."""

    name = "category"
    order = 9
    plain = True

    def infer(self, column: InputColumn) -> str | None:
        """Every column; one whose cells are of several or unknown types is refused."""
        if column.inferred not in PLAIN_OBJECTS:
            what = f"holds values of several or unknown types ({column.inferred})"
            raise BadInput(what, where=column.where, remedy="give it one type, or --ignore it")
        if column.is_text and column.distinct > MAX_CLASSES and column.distinct == int(column.series.notna().sum()):
            return f"{column.name!r} has another value in every row and cannot help: --id or --ignore it"
        if column.is_text and column.distinct > MAX_CATEGORIES:
            line = f"{column.name!r} has {column.distinct} categories: the {MAX_CATEGORIES} most frequent are told apart"
            return f"{line}, those in fewer than {MIN_COUNT} training rows and all others count as one"
        return ""

    def read(self, column: InputColumn) -> Words:
        """The cells' positions among the distinct words."""
        return words_of(column)

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """Nothing beside the statistics of its feature."""
        return FittedCategory(column.name)

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        return FittedCategory(saved.name, (), saved.categorical)

    def read_cells(self, inputs: Sequence[FittedInput], values: Sequence[Any], limits: CellLimits) -> list[Any]:
        """One row's words."""
        return short_words(values, limits.text)

    def filler(self, inputs: Sequence[FittedInput], statistics: Statistics) -> Filler | None:
        """One look-up a cell."""
        return filler_of_words(inputs, statistics)


@dataclass(frozen=True)
class FittedCategory(FittedInput):
    """A column of words; its feature is called like the column."""

    record = register(CategoryType())

    def features(self, read: Any) -> ColumnFeatures:
        """The words as they are."""
        return ColumnFeatures({}, {self.name: read})

    def schema(self, statistics: Statistics) -> Schema:
        """Text or null; categories are examples only, as an unseen one is encoded as unseen."""
        return word_schema(self, statistics)

    def read_cell(self, value: Any, limits: CellLimits) -> str | None:
        """Text; numbers and booleans as the words that they are."""
        return word(value, limits.text)


def words_of(column: InputColumn) -> Words:
    """The cells as positions among the distinct words."""
    import pandas as pd

    series = column.series
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        raise BadInput("was fitted on words but holds dates", where=column.where, remedy="give it words")
    if isinstance(series.dtype, pd.CategoricalDtype):
        return Words(np.asarray(series.cat.codes, np.int64), [word_of(word) for word in series.cat.categories])
    if series.dtype == np.dtype(bool):
        return Words(series.to_numpy(np.int64), ["False", "True"])
    codes, distinct = pd.factorize(series)
    return Words(np.asarray(codes, np.int64), [word_of(word) for word in np.asarray(distinct, object)])


def word_schema(source: FittedInput, statistics: Statistics) -> Schema:
    """The JSON schema of a word, with the most frequent ones as examples."""
    known = list(statistics.categories[source.name].categories[:5]) if source.name in statistics.categories else []
    return {"type": ["string", "null"], "maxLength": 10_000, **({"examples": known} if known else {})}


def short_words(values: Sequence[Any], limit: int) -> list[str | None]:
    """Several words; a short ASCII string, which most cells are, is taken at a look."""
    return [v if type(v) is str and len(v) <= limit and v.isascii() else word(v, limit) for v in values]


def word(value: Any, limit: int) -> str | None:
    """A JSON value as a word, None for null."""
    if value is None or (type(value) is str and sound(value, limit)):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 and 1 are one category
    if isinstance(value, str | bool | int | float) and not (isinstance(value, float) and not math.isfinite(value)):
        if not sound(value, limit):
            raise Unfit(f"is longer than {limit} characters or not Unicode")
        return str(value)
    raise Unfit(f"takes text, not {called(value)}")


def filler_of_words(inputs: Sequence[FittedInput], statistics: Statistics) -> Filler:
    """Encodes cells that are words: one look-up a cell."""
    known: list[dict[str | None, int]] = []
    for one in inputs:
        (feature,) = one.categorical
        codes: dict[str | None, int] = {word: i for i, word in enumerate(statistics.categories[feature].categories, FIRST)}
        known.append({**codes, None: MISSING})
    places = np.array([statistics.place(feature) for one in inputs for feature in one.categorical], np.int64)

    def fill(cells: Sequence[Sequence[Any]], numeric: NDArray[np.float32], categorical: NDArray[np.int32]) -> None:
        found = [list(map(codes.get, column, repeat(UNSEEN))) for codes, column in zip(known, cells)]
        categorical[:, places] = np.array(found, np.int32).T

    return fill


CATEGORY = FittedCategory.record
