"""Dates and times: what of the calendar may matter, as numbers and categories.

Numeric features are `COL.days` (since 1970-01-01), `COL.yearday` (from 0), and `COL.hour` where the time of day varies.
Categorical ones are `COL.weekday` and `COL.month`. Of the time that the table is split by only what recurs within the training
range is kept: `COL.weekday` and `COL.hour`.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.dates import is_text, looks_like_dates, order_assumed, parse_dates
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
    Words,
    register,
)
from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

_EPOCH = np.datetime64("1970-01-01T00:00:00", "us")
_DAY = 86_400_000_000  # microseconds
_MANY = 256
_EACH: Any = slice(None)
_WORDS = {
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": tuple(str(month) for month in range(1, 13)),
}


class Calendar:
    """Dates, and what of the calendar each of them is.

    Parameters
    ----------
    stamps : ndarray of datetime64[us]
        [n], as the dates' own clock shows them; NaT where missing.
    """

    def __init__(self, stamps: NDArray[np.datetime64]) -> None:
        self._missing = np.isnat(stamps)
        micros = (np.where(self._missing, _EPOCH, stamps) - _EPOCH).astype(np.int64)
        self._days, self._rest = np.divmod(micros, _DAY)
        self._found: dict[tuple[bool, bool], tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]] = {}

    @property
    def varies(self) -> bool:
        """Whether any of them has a time of day."""
        return bool(self._rest.any())

    def features(self, recurring: bool, hourly: bool) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]:
        """Numbers (NaN where missing) and codes (−1 where missing) by their names, computed once.

        Parameters
        ----------
        recurring : bool
            Whether only what comes back is wanted.
        hourly : bool
            Whether the hour is.
        """
        if (recurring, hourly) not in self._found:
            self._found[recurring, hourly] = self._features(recurring, hourly)
        return self._found[recurring, hourly]

    def _features(self, recurring: bool, hourly: bool) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]:
        missing, days = self._missing, self._days
        numbers: dict[str, NDArray[np.float64]] = {}
        codes: dict[str, NDArray[np.int64]] = {}
        # Calendar features are functions of the day: where rows outnumber days, computed once for each day, then spread.
        distinct, place = days, _EACH
        if len(days) > _MANY and (span := int(days.max()) - int(days.min())) < len(days):
            distinct, place = np.arange(span + 1) + days.min(), days - days.min()
        if not recurring:
            dates = distinct.astype("datetime64[D]")
            yearday = (dates - dates.astype("datetime64[Y]")).astype(np.float64)
            numbers["days"] = np.where(missing, np.nan, days.astype(np.float64))
            numbers["yearday"] = np.where(missing, np.nan, yearday[place])
        if hourly:
            numbers["hour"] = np.where(missing, np.nan, self._rest / (_DAY / 24))
        weekday = (distinct + 3) % 7  # 1970-01-01 was a Thursday
        codes["weekday"] = np.where(missing, -1, weekday[place])
        if not recurring:
            month = dates.astype("datetime64[M]").astype(np.int64) % 12
            codes["month"] = np.where(missing, -1, month[place])
        return numbers, codes


class DateType(InputType):
    """Datetimes, and text that reads like ISO dates."""

    name = "datetime"
    order = 3
    plain = True

    def infer(self, column: InputColumn) -> str | None:
        """Columns of datetimes; text whose values start like an ISO date, or that orders the rows."""
        import pandas as pd

        if pd.api.types.is_datetime64_any_dtype(column.series.dtype):
            return ""
        if not column.is_text or not (column.ordering or looks_like_dates(column.series)):
            return None
        return order_assumed(column.name, column.series)

    def clean(self, column: InputColumn) -> pd.Series:
        """Text becomes datetimes."""
        return parse_dates(column.series, column.where) if column.is_text else column.series

    def read(self, column: InputColumn) -> Calendar:
        """The dates; values with a zone that are text become UTC."""
        import pandas as pd

        series = column.series
        if is_text(series):
            series = parse_dates(series, column.where)
        elif not pd.api.types.is_datetime64_any_dtype(series.dtype):
            if pd.api.types.is_numeric_dtype(series.dtype) and series.notna().any():
                raise BadInput("was fitted on dates but holds numbers", where=column.where, remedy="give it dates")
            series = pd.to_datetime(series, errors="coerce")
        if getattr(series.dtype, "tz", None) is not None:
            series = series.dt.tz_localize(None)
        return Calendar(np.asarray(series.to_numpy(), "datetime64[us]"))

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """Whether the time of day varies."""
        return FittedDate(column.name, recurring=fitting.splits, hourly=read.varies)

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        hourly = f"{saved.name}.hour" in saved.numeric
        return FittedDate(saved.name, saved.numeric, saved.categorical, recurring=saved.splits, hourly=hourly)

    def filler(self, inputs: Sequence[FittedInput], statistics: Statistics) -> Filler | None:
        """One column after another, without a frame."""

        encoded: dict[str, NDArray[np.int32]] = {}  # feature → the code of each of its words, and of none
        for one in inputs:
            for feature, words in one.features(Calendar(np.empty(0, "datetime64[us]"))).categorical.items():
                encoded[feature] = statistics.codes(feature, np.append(np.arange(len(words.words)), -1), words.words)

        def fill(cells: Sequence[Sequence[Any]], numeric: NDArray[np.float32], categorical: NDArray[np.int32]) -> None:
            for one, column in zip(inputs, cells):
                found = one.features(Calendar(np.array(column, "datetime64[us]")))
                for feature, values in found.numeric.items():
                    number = statistics.numbers[feature]
                    numeric[:, statistics.place(feature)] = (values - number.centre) / number.scale
                for feature, words in found.categorical.items():
                    categorical[:, statistics.place(feature)] = encoded[feature][words.codes]

        return fill


@dataclass(frozen=True)
class FittedDate(FittedInput):
    """A column of dates.

    Parameters
    ----------
    recurring : bool
        Whether only what recurs is kept, as the table is split by this time.
    hourly : bool
        Whether the hour is a feature.
    """

    recurring: bool = False
    hourly: bool = False

    record = register(DateType())

    def features(self, read: Any) -> ColumnFeatures:
        """The features of the calendar."""
        numbers, codes = read.features(self.recurring, self.hourly)
        return ColumnFeatures(
            {f"{self.name}.{name}": values for name, values in numbers.items()},
            {f"{self.name}.{name}": Words(values, _WORDS[name], _WORDS[name]) for name, values in codes.items()},
        )

    def schema(self, statistics: Statistics) -> Schema:
        """ISO 8601 text, or null."""
        return {"type": ["string", "null"], "format": "date-time", "description": "ISO 8601; a zone becomes UTC"}

    def read_cell(self, value: Any, limits: CellLimits) -> datetime.datetime | None:
        """ISO 8601 text, or a timestamp of a table; without a zone."""
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError:
                raise Unfit("takes a date as 2013-12-31 or 2013-12-31T23:59:00") from None
        if not isinstance(value, datetime.date):
            raise Unfit(f"takes a date as text, not {called(value)}")
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        if hasattr(value, "to_pydatetime"):  # an Arrow timestamp in nanoseconds
            value = value.floor("us").to_pydatetime()
        if value.tzinfo is not None:
            try:
                value = value.astimezone(datetime.UTC).replace(tzinfo=None)
            except OverflowError:
                raise Unfit("is a date outside the calendar") from None
        assert isinstance(value, datetime.datetime)
        return value


DATE = FittedDate.record
