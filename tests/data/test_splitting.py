"""Parts partition the rows, groups do not straddle, time goes forward, and every task can be learnt and judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data import Split, Table, split
from pluribus.errors import BadInput


def table(n: int = 500, seed: int = 0, rare: int = 0, **roles: Any) -> Table:
    rng = np.random.default_rng(seed)
    data = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "y": rng.integers(0, 2, n),
            "z": np.where(rng.random(n) < 0.5, np.nan, rng.normal(size=n)),
            "who": rng.integers(0, max(3, n // 8), n),
            "when": pd.Timestamp("2022-01-01") + pd.to_timedelta(rng.integers(0, 50 * 24, n), unit="h"),
        }
    )
    if rare:
        data["rare"] = 0
        data.loc[rng.choice(n, rare, replace=False), "rare"] = 1
    targets = ["y", "z:regression", *(["rare"] if rare else [])]
    return Table(data, targets, **roles)


def assert_partition(found: Split, n: int) -> None:
    rows = np.concatenate([found.parts[name] for name in ("train", "valid", "test")])
    assert np.array_equal(np.sort(rows), np.arange(n))
    for part in found.parts.values():
        assert (np.diff(part) > 0).all()
    assert len(found.units) == n


@given(st.integers(200, 700), st.integers(0, 100))
def test_random_rows(n: int, seed: int) -> None:
    found = split(table(n, split="random", ignore=["when"]), seed)
    assert_partition(found, n)
    assert found.unit == "row"
    shares = [len(found.parts[name]) / n for name in ("train", "valid", "test")]
    assert np.allclose(shares, (0.6, 0.2, 0.2), atol=3 / n)


@given(st.integers(300, 700), st.integers(0, 100))
def test_groups_never_straddle(n: int, seed: int) -> None:
    data = table(n, seed, split="random", group="who", ignore=["when"])
    found = split(data, seed)
    assert_partition(found, n)
    who = data.frame["who"].to_numpy()
    parts = [set(who[rows]) for rows in found.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)), "no group stands in two parts"
    assert found.unit == "group"
    assert len(np.unique(np.stack([found.units, who]), axis=1).T) == len(np.unique(who)), "a unit is a group"
    assert np.array_equal(found.new_groups, found.parts["test"])
    shares = [len(found.parts[name]) / n for name in ("train", "valid", "test")]
    assert np.allclose(shares, (0.6, 0.2, 0.2), atol=0.05)


def test_rare_labels_reach_every_part() -> None:
    """Ten positives in 5,000 rows: left to chance, one part in nine would have none."""
    for seed in range(20):
        data = table(5000, rare=10, split="random", ignore=["when"])
        positives = data.frame["rare"].to_numpy() == 1
        found = split(data, seed)
        assert [int(positives[found.parts[name]].sum()) for name in ("train", "valid", "test")] == [6, 2, 2]


def test_rare_labels_of_groups_reach_every_part() -> None:
    for seed in range(20):
        data = table(5000, rare=10, split="random", group="who", ignore=["when"])
        positives = data.frame["rare"].to_numpy() == 1
        found = split(data, seed)
        assert all(positives[rows].any() for rows in found.parts.values())


def test_seeds_matter_and_repeat() -> None:
    data = table(split="random", ignore=["when"])
    assert np.array_equal(split(data, 1).parts["test"], split(data, 1).parts["test"])
    assert not np.array_equal(split(data, 1).parts["test"], split(data, 2).parts["test"])


def test_by_time() -> None:
    data = table()
    assert data.split == "time:when"
    found = split(data)
    assert_partition(found, 500)
    day = data.frame["when"].dt.floor("D").to_numpy()
    spans = [(day[found.parts[name]].min(), day[found.parts[name]].max()) for name in ("train", "valid", "test")]
    assert spans[0][1] < spans[1][0]
    assert spans[1][1] < spans[2][0]
    assert [len(np.unique(day[found.parts[name]])) for name in ("train", "valid", "test")] == [30, 10, 10]
    assert found.unit == "day"
    assert (np.unique(np.stack([found.units, day.astype(np.int64)]), axis=1).shape[1]) == 50


def test_by_time_with_groups() -> None:
    """Groups stay where time puts them, are counted, and rows of new groups are listed."""
    data = table(group="who")
    found = split(data)
    who = data.frame["who"].to_numpy()
    new = ~np.isin(who[found.parts["test"]], who[found.parts["train"]])
    assert np.array_equal(found.new_groups, found.parts["test"][new])
    assert found.unit == "group"
    assert f"{len(found.new_groups)} test rows are of new groups" in found.notes[0]
    assert f"({int((~new).sum())} of {len(new)} test rows)" in found.notes[0]


def test_by_number_as_time() -> None:
    data = table()
    later = Table(data.frame.assign(year=np.arange(500) // 50), ["y"], split="time:year", ignore=["when"])
    assert np.array_equal(split(later).parts["test"], np.arange(400, 500))


def test_by_column() -> None:
    data = table()
    words = np.where(np.arange(500) % 5 == 3, "valid", np.where(np.arange(500) % 5 == 4, "test", "train"))
    found = split(Table(data.frame.assign(part=words), ["y"], split="column:part"))
    assert_partition(found, 500)
    assert np.array_equal(found.parts["valid"], np.flatnonzero(words == "valid"))
    for wrong, message in (
        (np.where(words == "test", "tst", words), "holds 'tst' in row 5"),
        (np.where(words == "test", None, words), "is empty in row 5"),
        (np.where(words == "test", "train", words), "gives no row to test"),
    ):
        with pytest.raises(BadInput, match=message):
            split(Table(data.frame.assign(part=wrong), ["y"], split="column:part"))


def test_too_few_labels() -> None:
    data = table().frame.drop(columns="when")
    few = data.assign(y=np.where(np.arange(500) < 25, data["y"], np.nan))
    with pytest.raises(BadInput, match=r"task 'y': has 15 labels in train, and 20 are the least"):
        split(Table(few, ["y"], split="random"))
    words = np.repeat(["train", "valid", "test"], [300, 100, 100])
    for start, name in ((300, "valid"), (400, "test")):
        holes = data["y"].astype(float).where((np.arange(500) < start) | (np.arange(500) >= start + 100))
        with pytest.raises(BadInput, match=f"task 'y': has no label in {name}"):
            split(Table(data.assign(y=holes, part=words), ["y"], split="column:part"))
    late = np.where(np.arange(500) < 300, 0, data["y"])
    with pytest.raises(BadInput, match="has one class only in train"):
        split(Table(data.assign(y=late, part=words), ["y"], split="column:part"))


def test_too_few_days_or_groups() -> None:
    data = table().frame
    two = data.assign(when=np.where(np.arange(500) < 250, np.datetime64("2022-01-01"), np.datetime64("2022-01-02")))
    with pytest.raises(BadInput, match="has 2 days, and a split by time needs 3"):
        split(Table(two, ["y"], split="time:when"))
    with pytest.raises(BadInput, match="has 2 groups, and three parts need 3"):
        split(Table(data.assign(who=np.arange(500) % 2), ["y"], group="who", split="random"))
    with pytest.raises(BadInput, match="neither dates nor numbers"):
        split(Table(data.assign(t=pd.Categorical(["a", "b"] * 250)), ["y"], split="time:t"))


def test_a_giant_group_starves_no_part() -> None:
    data = table().frame.assign(who=np.where(np.arange(500) < 400, 0, np.arange(500) % 7 + 1))
    found = split(Table(data, ["y"], group="who", split="random", ignore=["when"]))
    assert all(len(rows) for rows in found.parts.values())


def test_split_file() -> None:
    data = table()
    named = Table(data.frame.assign(key=[f"k{i}" for i in range(500)]), ["y"], id="key")
    found = split(named)
    written = found.to_frame(named)
    assert list(written.columns) == ["key", "part"]
    assert written.loc[found.parts["test"], "part"].eq("test").all()
    assert (written["part"] == "test").sum() == len(found.parts["test"])
