"""Every candidate of the catalog keeps the protocol: it learns from train and valid alone, answers what it is asked, travels
as a folder, and repeats itself for a seed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.entries import entries_for

from pluribus import catalog
from pluribus.data.prepared import Cells, Prepared
from pluribus.data.ragged import Ragged
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Candidate, Fitted, load

TABLES = ("table", "long", "funnel", "text", "sessions", "shop")
ENTRIES = entries_for(__name__, "candidate", *TABLES, extras=(None, "text"))
SHORT = {"epochs": 2, "rounds": 15, "patience": 2, "width": 16, "backbone": "small", "vocabulary": 300, "max_length": 24}
BUDGET = Budget(60.0)


@pytest.fixture(scope="session")
def long_table(mixed_frame: Any) -> Prepared:
    """One regression task in each of three shops, in the long layout."""
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table

    frame = mixed_frame[["x0", "x1", "x2", "word", "loss"]].dropna(subset="loss")
    frame = frame.assign(shop=[f"shop{i % 3}" for i in range(len(frame))])
    table = Table(frame, ["loss:regression"], task_column="shop", split="random")
    return prepare(table, split(table, 0))


@pytest.fixture(scope="session")
def texts(mixed_frame: Any) -> Prepared:
    """300 rows with a text, a number, and three tasks with holes."""
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table

    frame = mixed_frame[["x3", "default", "loss", "grade"]].head(300)
    rng = np.random.default_rng(3)
    said = [" ".join(rng.choice(["so", "and", "it", "was"], rng.integers(0, 9))) for _ in range(300)]
    good = np.where(mixed_frame["x0"].head(300).fillna(0) > 0, "good", "bad")
    frame = frame.assign(body=[f"{word} thing, {more}" for word, more in zip(good, said)])
    frame.loc[5, "body"] = None
    table = Table(frame, ["default:binary", "loss:regression", "grade:multiclass"], split="random", text=["body"])
    return prepare(table, split(table, 0))


@pytest.fixture(scope="session")
def funnel() -> Prepared:
    """1,200 exposures: click, then cart, then buy; a tenth of what was bought is not known."""
    import pandas as pd

    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table
    from pluribus.tasks import Task

    rng = np.random.default_rng(5)
    x = rng.normal(size=(1200, 3))
    click = rng.random(1200) < 1 / (1 + np.exp(-1.5 * x[:, 0]))
    cart = click & (rng.random(1200) < 1 / (1 + np.exp(-x[:, 0] - x[:, 1])))
    buy = np.where(rng.random(1200) < 0.1, np.nan, cart & (rng.random(1200) < 1 / (1 + np.exp(-x[:, 2]))))
    frame = pd.DataFrame(x, columns=list("pqr")).assign(word=rng.choice(["a", "b"], 1200), click=click * 1, cart=cart * 1)
    frame["buy"] = buy
    tasks = [Task("click", "binary"), Task("cart", "binary", after="click"), Task("buy", "binary", after="cart")]
    table = Table(frame, tasks, split="random")
    return prepare(table, split(table, 0))


@pytest.fixture(scope="session")
def sessions() -> Prepared:
    """900 sessions over 60 items of six kinds, each followed by an item of the same kind; three items in no session."""
    import pandas as pd

    from pluribus.data import ItemTable, Table, prepare, split

    rng = np.random.default_rng(6)
    items = pd.DataFrame(
        {
            "sku": [f"i{i}" for i in range(60)],
            "kind": [f"k{i % 6}" for i in range(60)],
            "price": rng.normal(size=60),
            "tags": [[f"t{i % 4}", f"u{i % 5}"] for i in range(60)],
        }
    )
    kind = rng.integers(6, size=900)
    viewed = [[f"i{6 * rng.integers(9) + k}" for _ in range(rng.integers(1, 6))] for k in kind]
    frame = pd.DataFrame({"viewed": viewed, "hour": rng.normal(size=900), "next": [row[0] for row in viewed]})
    table = Table(frame, ["next:next_item"], split="random", items={"item": ItemTable(items, "sku", ["viewed", "next"])})
    return prepare(table, split(table, 0))


@pytest.fixture(scope="session")
def shop() -> Prepared:
    """900 rows of a shop of 12 items with two behaviours: what is liked depends on what was clicked, what is bought on both."""
    import pandas as pd

    from pluribus.data import Table, prepare, split

    rng = np.random.default_rng(8)
    item = rng.integers(12, size=900)
    lists = {n: [[f"i{j}" for j in rng.integers(12, size=rng.integers(5))] for _ in item] for n in ("clicked", "bought")}
    near = {
        n: np.array([sum(int(word[1:]) % 3 == i % 3 for word in each) for each, i in zip(found, item)])
        for n, found in lists.items()
    }
    frame = pd.DataFrame({"age": rng.normal(size=900), "item": [f"i{j}" for j in item], **lists})
    frame["like"] = (near["clicked"] + rng.normal(size=900) > 1).astype(int)
    frame["buy"] = (near["clicked"] + near["bought"] + rng.normal(size=900) > 1).astype(int)
    table = Table(frame, ["like:binary", "buy:binary"], split="random")
    return prepare(table, split(table, 0))


class _Case:
    """One candidate with short settings, the data that it can learn from, and its fit with seed 0."""

    def __init__(self, entry: catalog.Entry, table: Prepared) -> None:
        self.kind: type[Candidate] = entry.resolve()
        self.settings = {key: value for key, value in SHORT.items() if key in self.kind.defaults}
        self.whole = table
        assert self.kind().unfit(table) is None
        self.data = _shown(self.whole)
        self.names = [task.name for task in self.data.tasks]
        self.fitted = self.fit(self.data, 0)

    def fit(self, data: Prepared, seed: int) -> Fitted:
        return self.kind(**self.settings).fit(data, BUDGET, seed)


def _shown(data: Prepared) -> Prepared:
    """What a candidate is handed: no test part."""
    return data.with_parts(train=data.parts["train"], valid=data.parts["valid"])


_made: dict[str, _Case] = {}


@pytest.fixture(params=ENTRIES, ids=lambda entry: entry.name)
def case(
    request: pytest.FixtureRequest,
    mixed: Prepared,
    long_table: Prepared,
    funnel: Prepared,
    texts: Prepared,
    sessions: Prepared,
    shop: Prepared,
) -> _Case:
    entry = request.param
    if entry.name not in _made:
        tables = {"table": mixed, "long": long_table, "funnel": funnel, "text": texts, "sessions": sessions, "shop": shop}
        _made[entry.name] = _Case(entry, tables[str(entry.fixture)])
    return _made[entry.name]


def test_declares_itself(case: _Case) -> None:
    """The name, the road and the settings that a study prints are those of the class."""
    entry = catalog.get("candidate", case.kind.name)
    assert entry.resolve() is case.kind
    assert case.kind.road == entry.road
    assert case.kind.label
    assert set(case.kind.space.ranges) <= set(case.kind.defaults)
    assert 0 < case.kind().estimate(case.data) < math.inf
    with pytest.raises(BadInput, match="unknown setting 'no_such_setting'"):
        case.kind(no_such_setting=1)


def test_predictions_have_the_shape_of_their_kind(case: _Case) -> None:
    rows = np.arange(50)
    for task in case.data.tasks:
        value = case.fitted.scores(case.data, rows, [task.name])[task.name]
        assert value.dtype == np.float64
        assert np.isfinite(value).all()
        if task.kind == "next_item":
            assert value.shape == (50, 50)
        elif task.classes and task.kind != "binary":
            assert value.shape == (50, len(task.classes))
            np.testing.assert_allclose(value.sum(1), 1, atol=1e-5)
        else:
            assert value.shape == (50,)
        if task.classes:
            assert ((value >= 0) & (value <= 1)).all()
        if task.kind == "count":
            assert (value >= 0).all()


def test_a_subset_of_tasks_and_rows(case: _Case) -> None:
    """Some tasks at some rows, unordered: what the whole answers there."""
    rows = np.array([7, 3, 120, 3])
    everything = case.fitted.scores(case.data, np.arange(case.data.n_rows), case.names)
    wanted = case.names[1:2] or case.names
    some = case.fitted.scores(case.data, rows, wanted)
    assert list(some) == wanted
    np.testing.assert_allclose(some[wanted[0]], everything[wanted[0]][rows], rtol=1e-5, atol=1e-6)


def test_no_rows(case: _Case) -> None:
    """An empty table is answered, in the right shape."""
    for task in case.data.tasks:
        value = case.fitted.scores(case.data, np.arange(0), [task.name])[task.name]
        assert value.shape[0] == 0
        assert value.ndim == (2 if task.kind == "next_item" or (task.classes and task.kind != "binary") else 1)


def test_save_and_load(case: _Case, tmp_path: Path) -> None:
    """The folder holds everything: same bits, same record, same costs but for the clock."""
    case.fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    rows = np.arange(case.data.n_rows)
    before, after = (fitted.scores(case.data, rows, case.names) for fitted in (case.fitted, again))
    assert all(np.array_equal(before[name], after[name]) for name in case.names)
    assert again.record == case.fitted.record
    a, b = case.fitted.costs(), again.costs()
    assert replace(a, rows_per_second=None) == replace(b, rows_per_second=None)
    assert a.parameters > 0
    assert a.bytes > 0
    assert a.flops_per_row > 0


def test_same_seed_same_model(case: _Case) -> None:
    again = case.fit(case.data, 0)
    rows = np.arange(case.data.n_rows)
    before, after = (fitted.scores(case.data, rows, case.names) for fitted in (case.fitted, again))
    assert all(np.array_equal(before[name], after[name]) for name in case.names)


def test_never_looks_at_test_rows(case: _Case) -> None:
    """Test rows with absurd inputs and labels change nothing: same bits on validation."""
    whole = case.whole
    test = whole.parts["test"]
    numeric, categorical = whole.numeric.copy(), whole.categorical.copy()
    numeric[test] = 1e6
    categorical[test] = 1
    cells = {}
    for task in whole.tasks:
        old = whole.cells[task.name]
        values = old.values.copy()
        values[np.isin(old.rows, test)] = 0 if task.classes or task.kind == "count" else 1e6
        cells[task.name] = Cells(old.rows, values, old.weight)
    said = {name: ["spoilt" if row in test else each[row] for row in range(len(each))] for name, each in whole.texts.items()}
    ragged = {}
    for name, each in whole.ragged.items():
        there = np.repeat(np.isin(np.arange(len(each)), test), each.lengths)
        ragged[name] = Ragged(np.where(there, 1, each.values).astype(each.values.dtype), each.starts)
    spoilt = replace(whole, numeric=numeric, categorical=categorical, cells=cells, texts=said, ragged=ragged)
    again = case.fit(_shown(spoilt), 0)
    rows = whole.parts["valid"]
    before, after = (fitted.scores(whole, rows, case.names) for fitted in (case.fitted, again))
    assert all(np.array_equal(before[name], after[name]) for name in case.names)


def test_record_says_how_it_went(case: _Case) -> None:
    record = case.fitted.record
    assert record["seconds"] > 0
    assert record["undertrained"] == []
    assert set(record["curves"]) == set(case.names)
    assert all(len(values) >= 1 for values in record["curves"].values())


def test_out_of_budget_is_said(case: _Case) -> None:
    """A budget that ends at once still gives a working model, and every task is called undertrained, unless that was enough."""
    fitted = case.kind(**{**case.settings, **{k: 500 for k in ("epochs", "rounds", "patience") if k in case.settings}}).fit(
        case.data, Budget(1e-3), 0
    )
    instant = case.kind().estimate(case.data) < 1e-3  # by its own word it needs no more
    assert fitted.record["undertrained"] == ([] if instant else case.names)
    for value in fitted.scores(case.data, np.arange(20), case.names).values():
        assert np.isfinite(value).all()
