"""Numbers: one numeric feature, centred and scaled."""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.inputs.reading import called
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
    register,
)
from pluribus.errors import BadInput


class NumberType(InputType):
    """Whole numbers and decimals; a missing one is NaN."""

    name = "number"
    order = 6
    plain = True
    keeps = False

    def infer(self, column: InputColumn) -> str | None:
        """Columns of numbers, and objects that all are numbers."""
        import pandas as pd

        if isinstance(column.series.dtype, pd.CategoricalDtype):
            return None
        numeric = pd.api.types.is_numeric_dtype(column.series.dtype)
        return "" if numeric or column.inferred in ("integer", "floating", "mixed-integer-float", "decimal", "empty") else None

    def read(self, column: InputColumn) -> NDArray[np.float64]:
        """[n]"""
        import pandas as pd

        series = column.series
        if pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype):
            values = series.to_numpy(np.float64, na_value=np.nan)
        else:
            bad = isinstance(series.dtype, pd.CategoricalDtype) or pd.api.types.is_datetime64_any_dtype(series.dtype)
            numbers = None if bad else pd.to_numeric(series, errors="coerce")
            wrong = series.notna() if numbers is None else (numbers.isna() & series.notna())
            if wrong.any():
                row = int(wrong.to_numpy().argmax())
                what = f"was fitted on numbers but holds {series.iloc[row]!r} in row {row + 1}"
                raise BadInput(what, where=column.where, remedy="give it numbers")
            values = np.full(len(series), np.nan) if numbers is None else numbers.to_numpy(np.float64, na_value=np.nan)
        infinite = np.isinf(values)
        if infinite.any():
            what = f"holds an infinite number in row {int(infinite.argmax()) + 1}"
            raise BadInput(what, where=column.where, remedy="leave the cell empty")
        return np.asarray(values)

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedNumber:
        """Nothing beside the statistics of its feature."""
        return FittedNumber(column.name)

    def restore(self, saved: Saved) -> FittedNumber:
        """The column as it was saved."""
        return FittedNumber(saved.name, saved.numeric)

    def read_cells(self, inputs: Sequence[FittedInput], values: Sequence[Any], limits: CellLimits) -> list[Any]:
        """A finite float, which most cells are, is taken at a look."""
        return [v if type(v) is float and v - v == 0 else number(v) for v in values]

    def filler(self, inputs: Sequence[FittedInput], statistics: Statistics) -> Filler:
        """All columns in one array."""
        names = [feature for one in inputs for feature in one.numeric]
        places = np.array([statistics.place(name) for name in names], np.int64)
        centre = np.array([statistics.numbers[name].centre for name in names])
        scale = np.array([statistics.numbers[name].scale for name in names])

        def fill(cells: Sequence[Sequence[Any]], numeric: NDArray[np.float32], categorical: NDArray[np.int32]) -> None:
            values = np.array(cells, np.float64).T
            if np.isinf(values).any():
                raise BadInput("holds an infinite number", where="row", remedy="give null where it is missing")
            with np.errstate(over="ignore"):  # a number beyond float32 ends as "not finite" in its own slot
                numeric[:, places] = (values - centre) / scale

        return fill


@dataclass(frozen=True)
class FittedNumber(FittedInput):
    """A column of numbers; its feature is called like the column."""

    record = register(NumberType())

    def features(self, read: Any) -> ColumnFeatures:
        """The numbers as they are."""
        return ColumnFeatures({self.name: read})

    def schema(self, statistics: Statistics) -> Schema:
        """A number or null."""
        return {"type": ["number", "null"]}

    def read_cell(self, value: Any, limits: CellLimits) -> float:
        """A finite number; null is NaN."""
        return number(value)

    def missing(self) -> float:
        """NaN"""
        return math.nan


def number(value: Any) -> float:
    """A JSON value as a number, NaN for null."""
    if value is None:
        return math.nan
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise Unfit(f"takes a number, not {called(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise Unfit("takes a finite number; give null where it is missing")
    return found


NUMBER = FittedNumber.record
