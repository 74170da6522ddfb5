"""Dates and text in a DataFrame's columns: telling them apart, and reading dates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pluribus.data.written.dates import dates_of
from pluribus.errors import BadInput
from pluribus.tasks.columns import is_text

if TYPE_CHECKING:
    import pandas as pd

_EITHER = re.compile(r"\d{1,2}[/-]\d{1,2}[/-]\d{2,4}")


def looks_like_dates(series: pd.Series) -> bool:
    """Nine in ten of the first thousand values start like an ISO date."""
    head = series.dropna().iloc[:1000].astype(str)
    return bool(len(head)) and float(head.str.match(r"\d{4}-\d{2}-\d{2}($|[T ])").mean()) >= 0.9


def _as_people_write(text: pd.Series) -> pd.Series | None:
    """Dates whose own cells say whether the day comes first; None for others."""
    import pandas as pd
    import pyarrow as pa

    found = dates_of(pa.array(text.fillna("").tolist(), pa.string()))
    stamps = pd.Series(found.stamps, index=text.index, name=text.name)
    sure = not found.conflict and (found.dayfirst is not None or not found.matters)
    return stamps if sure and not (stamps.isna() & text.notna()).any() else None


def order_assumed(name: str, series: pd.Series) -> str:
    """What to say of text that is read as dates, where day and month cannot be told apart: "" for nothing."""
    one = next(iter(series.dropna().astype(str)), "")
    if not _EITHER.match(one.strip()):
        return ""
    return f"{name!r} is read with the month first ({one!r}): --dayfirst decides"


def parse_dates(series: pd.Series, where: str) -> pd.Series:
    """Text to datetimes (ISO first, then what pandas can read); the first value that is no date is named.

    Values with a zone become UTC.
    """
    import pandas as pd

    text = series.astype("string")
    zoned = text.str.contains(r"T?\d{2}:\d{2}.*(?:Z|[+-]\d{2}:?\d{2})$", na=False).any()
    parsed = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=bool(zoned))
    wrong = (parsed.isna() & text.notna()).to_numpy()
    if wrong.all() and (read := _as_people_write(text)) is not None:
        return read
    if wrong.all():
        parsed = pd.to_datetime(text, errors="coerce", format="mixed", utc=bool(zoned))
        wrong = (parsed.isna() & text.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        what = f"{text.iloc[row]!r} in row {row + 1} is not a date ({int(wrong.sum())} such values)"
        raise BadInput(
            what,
            where=where,
            remedy=f"write dates as 2013-12-31, --na {text.iloc[row]!r} if it means missing, or --ignore the column",
        )
    return parsed


__all__ = ["is_text", "looks_like_dates", "order_assumed", "parse_dates"]
