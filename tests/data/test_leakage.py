"""What leaks is found by name; what does not is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pluribus.data import ItemTable, Table, leakage, prepare, split
from pluribus.data.leakage import Finding

N = 1500


def frame(**more: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "u": rng.normal(size=N),
            "word": rng.choice(list("abcde"), N),
            "y": rng.integers(0, 2, N),
            "z": rng.normal(size=N),
            "k": rng.choice(["p", "q", "r"], N),
            **more,
        }
    )


def check(data: pd.DataFrame, targets: list[str] | None = None, **roles: Any) -> list[Finding]:
    table = Table(data, targets or ["y", "z:regression", "k"], split="random", **roles)
    found = split(table)
    return leakage.check(table, found, prepare(table, found))


def test_clean_data_has_no_findings() -> None:
    assert check(frame()) == []


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("y", lambda d: d["y"].map({0: "no", 1: "yes"})),
        ("y", lambda d: d["y"] * 2.0 - 1 + 0.01 * d["u"]),
        ("z", lambda d: 3 * d["z"] + 2),
        ("z", lambda d: -(d["z"] ** 3)),
        ("k", lambda d: d["k"].map({"p": "x1", "q": "x2", "r": "x3"})),
        ("k", lambda d: d["k"].map({"p": 10, "q": 20, "r": 5})),
    ],
)
def test_an_input_that_determines_a_target_is_named(name: str, make: Any) -> None:
    data = frame()
    data["leak"] = make(data)
    found = check(data)
    assert [(f.kind, f.names) for f in found] == [("determines", ("leak", name))]
    assert "leak" in found[0].text


@pytest.mark.parametrize("name", ["y", "z", "k"])
def test_a_copy_is_named_once(name: str) -> None:
    data = frame()
    data["twin"] = data[name]
    assert [(f.kind, f.names) for f in check(data)] == [("copy", ("twin", name))]


def test_a_strong_honest_input_is_no_leak() -> None:
    """Skill 0.9 is a good feature."""
    data = frame()
    data["good"] = data["z"] + 0.3 * data["u"]
    assert check(data) == []


def test_an_id_like_column_is_not_mistaken_for_a_leak() -> None:
    """Another value in every row fits any target in sample; the two halves tell."""
    assert check(frame(code=[f"c{i}" for i in range(N)], number=np.arange(N))) == []


def test_identical_rows_are_counted() -> None:
    data = frame()
    table = Table(pd.concat([data, data.iloc[:200]], ignore_index=True), ["y"], split="random")
    found = split(table)
    part = found.part_of()
    texts = {f.names[0]: f.text for f in leakage.duplicates(table, found)}
    for code, name in ((1, "valid"), (2, "test")):
        twice = sum((part[i] == code and part[N + i] == 0) or (part[i] == 0 and part[N + i] == code) for i in range(200))
        assert f"{twice} of {len(found.parts[name])} rows of {name}" in texts[name]


@given(st.integers(0, 10_000))
def test_auc_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 50).astype(float), rng.integers(0, 9, 50).astype(float)
    if len(np.unique(labels)) == 2:
        assert leakage._auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_skill_is_cross_fitted() -> None:
    """Bins that hold one row each know nothing of other rows."""
    values = np.random.default_rng(0).normal(size=1000)
    assert leakage.skill(np.arange(1000), values, classes=False, binary=False) < 0.05
    codes = np.repeat(np.arange(100), 10)
    assert leakage.skill(codes, codes.astype(float), classes=False, binary=False) == pytest.approx(1)


def test_labels_that_are_missing_by_the_inputs() -> None:
    rng = np.random.default_rng(1)
    data = frame()
    hidden = rng.random(N) < 1 / (1 + np.exp(-2 * data["x"]))
    by_input = data.assign(z=data["z"].mask(hidden))
    by_chance = data.assign(z=data["z"].mask(rng.random(N) < 0.5))
    areas = []
    for d in (by_input, by_chance):
        table = Table(d, ["y", "z:regression"], split="random")
        areas.append(leakage.labelled_at_random(table, prepare(table, split(table))))
    assert areas[0].keys() == {"z"}, "a task without holes has nothing to ask"
    assert areas[0]["z"] > 0.75
    assert 0.42 < areas[1]["z"] < 0.58
    assert [f.names for f in leakage.not_at_random(areas[0])] == [("z",)]
    assert leakage.not_at_random(areas[1]) == []


def test_cells_that_do_not_apply_are_not_asked() -> None:
    """Only the rows below the parent count: there the labels are missing by chance."""
    rng = np.random.default_rng(2)
    data = frame()
    data["off"] = (data["x"] < 0).astype(int)
    data["z"] = data["z"].mask((data["off"] == 1) | (rng.random(N) < 0.5))
    table = Table(data, ["y", "z:regression"], split="random", not_applicable={"z": "off"})
    area = leakage.labelled_at_random(table, prepare(table, split(table)))["z"]
    assert 0.4 < area < 0.6


def test_keys_in_two_tasks_of_a_long_table() -> None:
    """The same person trains task a and tests task b: what the tasks share knows the test rows."""
    n = 600
    rng = np.random.default_rng(3)
    data = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "who": np.tile(np.arange(n // 2), 2),
            "task": np.repeat(["a", "b"], n // 2),
            "value": rng.normal(size=n),
            "part": rng.choice(["train", "valid", "test"], n, p=[0.6, 0.2, 0.2]),
        }
    )
    table = Table(data, ["value:regression"], task_column="task", group="who", split="column:part")
    found = leakage.overlap(table, split(table))
    part = data["part"].to_numpy()
    for finding, (mine, other) in zip(found, ((slice(0, 300), slice(300, 600)), (slice(300, 600), slice(0, 300)))):
        again = int(((part[mine] == "test") & (part[other] == "train")).sum())
        assert f"{again} of {int((part[mine] == 'test').sum())} test rows" in finding.text
    assert [f.names for f in found] == [("a",), ("b",)]
    apart = Table(data.drop(columns="part"), ["value:regression"], task_column="task", group="who", split="random")
    assert leakage.overlap(apart, split(apart)) == [], "a split by groups keeps a person in one part"


def test_lineage_changes_with_a_tasks_data_only() -> None:
    data = frame()
    roles: dict[str, Any] = {"tasks": ["y", "z:regression"], "split": "random"}
    before = leakage.lineage(Table(data, **roles))
    assert before == leakage.lineage(Table(data.copy(), **roles))
    other = data.copy()
    other.loc[3, "z"] += 1
    after = leakage.lineage(Table(other, **roles))
    assert after["y"] == before["y"]
    assert after["z"] != before["z"]
    moved = data.copy()
    moved.loc[3, "x"] += 1
    assert all(leakage.lineage(Table(moved, **roles))[name] != before[name] for name in before)


@pytest.mark.parametrize(("items", "named"), [(1200, []), (40, ["name"])])
def test_next_items_are_no_quantities(items: int, named: list[str]) -> None:
    """A number that rises with an item's place in its table says which neighbourhood, not which item: no finding. A word that
    names the item is one, where there are rows enough to see it."""
    rng = np.random.default_rng(3)
    following = rng.integers(0, items, 4800)
    near = following + rng.normal(0, items / 100, len(following))
    data = pd.DataFrame({"near": near, "name": [f"n{i}" for i in following], "next": following})
    catalogue = ItemTable(pd.DataFrame({"key": np.arange(items), "kind": np.arange(items) % 7}), "key", ["next"])
    table = Table(data, ["next:next_item"], split="random", items={"item": catalogue})
    found = leakage.determining(prepare(table, split(table, 0)))
    assert [f.names for f in found] == [(name, "next") for name in named]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=40))
def test_the_commonest_class_is_found_either_way(pairs: list[tuple[int, int]]) -> None:
    """Counted in a table or, of many codes, in a sorted list: the same classes."""
    codes, classes = (np.array(each, np.int64) for each in zip(*pairs))
    few, many = leakage._commonest(codes, classes, 6), leakage._commonest(codes, classes, 2**20)
    assert few.tolist() == many[:6].tolist()
    assert (many[6:] == np.bincount(classes).argmax()).all()
