"""Logs of events as rows of sessions: what a study of next items begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pluribus.errors import BadInput, unknown

if TYPE_CHECKING:
    import pandas as pd


def next_item_rows(
    events: pd.DataFrame, session: str, item: str, time: str | None = None, *, keep: Sequence[str] = (), longest: int = 50
) -> pd.DataFrame:
    """One row for every event but a session's first: what came before it, and what it is.

    Parameters
    ----------
    events: one row an event; several of a session in the order of `time`, or of the rows without it.
    session, item, time: columns. keep: further columns of the event, known when it happens.
    longest: so many events before it are kept, the latest.

    Returns
    -------
    Columns `session`, `history` (a list, the earliest first), `time` where there is one, those of `keep`, and `next`; in the
    order of time, or of sessions without it. A session has several rows: split by time, or give `group=session` to the table.

    Raises
    ------
    BadInput: an unknown column, an empty cell in one of the three, or no session with two events.
    """
    import pandas as pd
    import pyarrow as pa

    columns = list(dict.fromkeys([session, item, *([time] if time else []), *keep]))
    for column in columns:
        if column not in events.columns:
            raise unknown("column", column, [str(name) for name in events.columns], where="events")
    for column in (session, item, *([time] if time else [])):
        empty = events[column].isna().to_numpy()
        if empty.any():
            what = f"is empty in row {int(empty.argmax()) + 1}"
            raise BadInput(what, where=f"events, column {column!r}", remedy="drop the event")
    if longest < 1:
        raise BadInput(f"longest must be at least 1, not {longest}", where="events")
    codes = pd.factorize(events[session])[0]
    order = np.argsort(codes, kind="stable") if time is None else np.lexsort((events[time].to_numpy(), codes))
    codes = codes[order]
    first = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))  # of each session
    place = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    rows = np.flatnonzero(place > 0)
    if not len(rows):
        raise BadInput("has no session of two events", where="events", remedy=f"check the session column {session!r}")
    lengths = np.minimum(place[rows], longest)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    before = np.arange(starts[-1]) + np.repeat(rows - lengths - starts[:-1], lengths)
    items = pa.array(events[item].to_numpy()[order[before]], from_pandas=True)
    history = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), items).to_pandas().to_numpy()
    found = events.iloc[order[rows]][columns].rename(columns={item: "next"}).assign(history=history)
    if time is not None:
        found = found.sort_values(time, kind="stable")
    rest = [name for name in found if name not in (session, "history", "next", time)]
    return found[[session, "history", *([time] if time else []), *rest, "next"]].reset_index(drop=True)
