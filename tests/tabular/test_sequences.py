"""Event logs become sessions: nothing of the future in a history, and the same rows as a loop makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.tabular.sequences import next_item_rows


def log(seed: int, n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": rng.choice(["a", "b", "c", "d"], n),
            "sku": rng.integers(0, 9, n),
            "at": rng.integers(0, 1000, n),
            "price": rng.random(n),
        }
    )


@given(st.integers(0, 200), st.integers(1, 6), st.booleans())
def test_equals_a_loop(seed: int, longest: int, timed: bool) -> None:
    """A history that held the event itself, or a later one, would give the answer away."""
    events = log(seed)
    found = next_item_rows(events, "user", "sku", "at" if timed else None, keep=["price"], longest=longest)
    expected = []
    for user, own in events.groupby("user", sort=False):
        own = own.sort_values("at", kind="stable") if timed else own
        items = own["sku"].tolist()
        for i in range(1, len(items)):
            expected.append((user, items[max(0, i - longest) : i], items[i], own["price"].iloc[i], own["at"].iloc[i]))
    if timed:
        assert found["at"].is_monotonic_increasing
        expected.sort(key=lambda row: row[4])
        assert list(found) == ["user", "history", "at", "price", "next"]
    key = lambda row: (row[0], list(row[1]), row[2], row[3])  # noqa: E731
    rows = list(zip(found["user"], found["history"], found["next"], found["price"]))
    assert sorted(map(key, rows)) == sorted(map(key, expected))


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown column": (lambda: next_item_rows(log(0), "usr", "sku"), "unknown column 'usr'; did you mean 'user'"),
    "empty cell": (lambda: next_item_rows(log(0).assign(at=[1.0, None] * 20), "user", "sku", "at"), "'at': is empty in row 2"),
    "no session of two": (lambda: next_item_rows(log(0).assign(user=range(40)), "user", "sku"), "no session of two events"),
    "no history": (lambda: next_item_rows(log(0), "user", "sku", longest=0), "longest must be at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        make()
