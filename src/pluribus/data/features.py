"""The features of one column: its cells as numbers, or as positions among words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.data.dates import is_text, parse_dates
from pluribus.data.tags import joined
from pluribus.errors import BadInput
from pluribus.tasks.columns import word_of

if TYPE_CHECKING:
    import pandas as pd

_EPOCH = np.datetime64("1970-01-01T00:00:00", "us")
_DAY = 86_400_000_000  # microseconds


@dataclass
class ColumnFeatures:
    """Of one column: numeric features [n] float64, and categorical ones as (codes [n] with −1 missing, words)."""

    numeric: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    categorical: dict[str, tuple[NDArray[np.int64], list[str]]] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()


def type_of(series: pd.Series) -> str:
    """The type of a plain input column: "number", "boolean", "datetime" or "category"."""
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    if pd.api.types.is_numeric_dtype(dtype):
        return "number"
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return "datetime"
    if dtype == np.dtype(object):
        inferred = pd.api.types.infer_dtype(series, skipna=True)
        if inferred == "boolean":
            return "boolean"
        if inferred in ("integer", "floating", "mixed-integer-float", "decimal", "empty"):
            return "number"
        if inferred in ("datetime", "datetime64", "date"):
            return "datetime"
    return "category"


def features(
    series: pd.Series, kind: str, name: str, recurring: bool, source: str, wanted: Sequence[str] | None = None
) -> ColumnFeatures:
    """The features of one column as it was fitted. recurring: only what comes back within the training range (the split's time).
    wanted: the numeric features of the fitted column (None while fitting)."""
    found = ColumnFeatures()
    where = f"{source}, column {name!r}"
    if kind in ("sequence", "text"):
        return found
    if kind == "number":
        found.numeric[name] = _as_numbers(series, where)
    elif kind == "datetime":
        return _datetime_features(series, name, recurring, where, wanted)
    else:
        found.categorical[name] = as_words(series, kind == "boolean", where)
    return found


def _as_numbers(series: pd.Series, where: str) -> NDArray[np.float64]:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype):
        values = series.to_numpy(np.float64, na_value=np.nan)
    else:
        bad = isinstance(series.dtype, pd.CategoricalDtype) or pd.api.types.is_datetime64_any_dtype(series.dtype)
        numbers = None if bad else pd.to_numeric(series, errors="coerce")
        wrong = series.notna() if numbers is None else (numbers.isna() & series.notna())
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            what = f"was fitted on numbers but holds {series.iloc[row]!r} in row {row + 1}"
            raise BadInput(what, where=where, remedy="give it numbers")
        assert numbers is not None or not len(series) or series.isna().all()
        values = np.full(len(series), np.nan) if numbers is None else numbers.to_numpy(np.float64, na_value=np.nan)
    infinite = np.isinf(values)
    if infinite.any():
        what = f"holds an infinite number in row {int(infinite.argmax()) + 1}"
        raise BadInput(what, where=where, remedy="leave the cell empty")
    return np.asarray(values)


def as_words(series: pd.Series, boolean: bool, where: str) -> tuple[NDArray[np.int64], list[str]]:
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        raise BadInput("was fitted on words but holds dates", where=where, remedy="give it words")
    if isinstance(series.dtype, pd.CategoricalDtype):
        return np.asarray(series.cat.codes, np.int64), [word_of(word) for word in series.cat.categories]
    if series.dtype == np.dtype(bool):
        return series.to_numpy(np.int64), ["False", "True"]
    codes, distinct = pd.factorize(series)
    words = [word_of(word) for word in np.asarray(distinct, object)]
    if boolean:
        same = {"0": "False", "1": "True", "false": "False", "true": "True"}
        words = [same.get(word.lower(), word) for word in words]
        wrong = [word for word in words if word not in ("False", "True")]
        if wrong:
            raise BadInput(f"was fitted on booleans but holds {wrong[0]!r}", where=where, remedy="give it true and false")
        back = np.array([*(("False", "True").index(word) for word in words), -1], np.int64)
        codes, words = back[codes], ["False", "True"]
    return np.asarray(codes, np.int64), words


def as_texts(series: pd.Series, where: str) -> list[str | None]:
    """Cells as strings, None where missing; a list of words is a text of these words."""
    series = joined(series)
    missing = series.isna().to_numpy()
    cells = series.to_numpy(object)
    for row, cell in enumerate(cells):
        if isinstance(cell, dict | list | tuple | np.ndarray):
            what = f"was fitted on text but holds {type(cell).__name__} in row {row + 1}"
            raise BadInput(what, where=where, remedy="give it text, or lists of words alone")
    return [None if absent else word_of(cell) for cell, absent in zip(cells, missing.tolist())]


def _datetime_features(series: pd.Series, name: str, recurring: bool, where: str, wanted: Sequence[str] | None) -> ColumnFeatures:
    import pandas as pd

    if is_text(series):
        series = parse_dates(series, where)
    elif not pd.api.types.is_datetime64_any_dtype(series.dtype):
        if pd.api.types.is_numeric_dtype(series.dtype) and series.notna().any():
            raise BadInput("was fitted on dates but holds numbers", where=where, remedy="give it dates")
        series = pd.to_datetime(series, errors="coerce")
    return calendar(_wall_clock(series), name, recurring, wanted)


_WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [str(month) for month in range(1, 13)]


def calendar(stamps: NDArray[np.datetime64], name: str, recurring: bool, wanted: Sequence[str] | None) -> ColumnFeatures:
    """The features of a column of dates (microseconds [n], NaT where missing). recurring, wanted: see `features`."""
    found = ColumnFeatures()
    missing = np.isnat(stamps)
    micros = (np.where(missing, _EPOCH, stamps) - _EPOCH).astype(np.int64)
    days, rest = np.divmod(micros, _DAY)
    # Calendar features are functions of the day: where rows outnumber days, computed once for each day, then spread.
    first, last = (int(days.min()), int(days.max())) if len(days) else (0, 0)
    few = last - first < len(days)
    distinct, codes = (np.arange(first, last + 1), days - first) if few else (days, np.arange(len(days)))

    def absent(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(missing, np.nan, values)

    def coded(codes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(missing, -1, codes)

    if not recurring:
        dates = distinct.astype("datetime64[D]")
        yearday = (dates - dates.astype("datetime64[Y]")).astype(np.float64)
        found.numeric[f"{name}.days"] = absent(days.astype(np.float64))
        found.numeric[f"{name}.yearday"] = absent(yearday[codes])
    hour = f"{name}.hour"
    if hour in wanted if wanted is not None else bool(rest.any()):
        found.numeric[hour] = absent(rest / (_DAY / 24))
    weekday = (distinct + 3) % 7  # 1970-01-01 was a Thursday
    found.categorical[f"{name}.weekday"] = (coded(weekday[codes]), _WEEKDAYS)
    if not recurring:
        month = dates.astype("datetime64[M]").astype(np.int64) % 12
        found.categorical[f"{name}.month"] = (coded(month[codes]), _MONTHS)
    return found


def _wall_clock(series: pd.Series) -> NDArray[np.datetime64]:
    """Datetimes as their own clock shows them, without a zone [n], in microseconds."""
    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_localize(None)
    return np.asarray(series.to_numpy(), "datetime64[us]")
