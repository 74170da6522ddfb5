"""Dates and text in a DataFrame's columns: telling them apart, and reading dates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluribus.errors import BadInput
from pluribus.tasks.columns import is_text

if TYPE_CHECKING:
    import pandas as pd


def looks_like_dates(series: pd.Series) -> bool:
    """Nine in ten of the first thousand values start like an ISO date."""
    head = series.dropna().iloc[:1000].astype(str)
    return bool(len(head)) and float(head.str.match(r"\d{4}-\d{2}-\d{2}($|[T ])").mean()) >= 0.9


def parse_dates(series: pd.Series, where: str) -> pd.Series:
    """Text to datetimes (ISO first, then what pandas can read); the first value that is no date is named.

    Values with a zone become UTC.
    """
    import pandas as pd

    text = series.astype("string")
    zoned = text.str.contains(r"T?\d{2}:\d{2}.*(?:Z|[+-]\d{2}:?\d{2})$", na=False).any()
    parsed = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=bool(zoned))
    wrong = (parsed.isna() & text.notna()).to_numpy()
    if wrong.all():
        parsed = pd.to_datetime(text, errors="coerce", format="mixed", utc=bool(zoned))
        wrong = (parsed.isna() & text.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        what = f"{text.iloc[row]!r} in row {row + 1} is not a date ({int(wrong.sum())} such values)"
        raise BadInput(what, where=where, remedy="write dates as 2013-12-31, or --ignore the column")
    return parsed


__all__ = ["is_text", "looks_like_dates", "parse_dates"]
