"""Next items: the kind, its metrics, and the road from a table to a list of keys, in a study and in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data import ItemTable, Prepared, Table, prepare, split
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, load
from pluribus.tabular.m2trec import M2TRecNetwork
from pluribus.tabular.next_item import NEXT_ITEM, RANKED, ranked
from pluribus.tabular.two_tower import TwoTower


def shop(n: int = 600, items: int = 40, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sessions of items of one kind; what comes next is of the same kind."""
    rng = np.random.default_rng(seed)
    catalogue = pd.DataFrame(
        {
            "sku": [f"i{i}" for i in range(items)],
            "kind": [f"k{i % 4}" for i in range(items)],
            "price": rng.normal(size=items),
            "title": [f"thing {['red', 'green', 'blue', 'grey'][i % 4]} number {i}, as good as new" for i in range(items)],
        }
    )
    kind = rng.integers(4, size=n)
    viewed = [[f"i{4 * rng.integers(items // 4) + k}" for _ in range(rng.integers(1, 6))] for k in kind]
    following = [f"i{4 * rng.integers(items // 4) + k}" for k in kind]
    return pd.DataFrame({"viewed": viewed, "hour": rng.normal(size=n), "next": following}), catalogue


def prepared(**changes: Any) -> tuple[pd.DataFrame, Prepared]:
    frame, catalogue = shop()
    frame = frame.assign(**changes)
    table = Table(frame, ["next:next_item"], split="random", items={"item": ItemTable(catalogue, "sku", ["viewed", "next"])})
    return frame, prepare(table, split(table, 0))


def test_what_the_catalogue_lacks_is_said_as_it_is_meant() -> None:
    """An unknown item of a session counts as unseen; as the item that comes next it is no label."""
    frame, catalogue = shop()
    frame.at[0, "viewed"] = ["i1", "gone"]
    frame.at[1, "next"] = "gone"
    table = Table(frame, ["next:next_item"], split="random", items={"item": ItemTable(catalogue, "sku", ["viewed", "next"])})
    notes = "\n".join(table.notes)
    assert "in 'viewed' are not in 'item' (such as 'gone'): they count as unseen" in notes
    assert "in 'next' are not in 'item' (such as 'gone'): their rows have no label" in notes
    assert 1 not in prepare(table, split(table, 0)).cells["next"].rows


@given(st.integers(0, 99), st.sampled_from([3, RANKED, RANKED + 1, 130]))
def test_ranks_equal_a_sort(seed: int, items: int) -> None:
    """The fast way to the best items must be the sort's; of equal scores the earlier item comes first."""
    scores = torch.randn(5, items, generator=torch.Generator().manual_seed(seed))
    if items <= 2 * RANKED:
        scores = scores.round()
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :RANKED]
    found = ranked(scores)
    assert found.shape == (5, RANKED)
    assert np.array_equal(found[:, :items].numpy(), expected)
    assert (found[:, items:] == -1).all()


def test_metrics_by_hand() -> None:
    """Recall counts places, MRR weighs them, weights weigh rows, and the constant predictor names the most frequent items."""
    p = np.array([np.arange(50), np.arange(50)[::-1], np.full(50, -1)])
    y = np.array([3, 30, 0])
    assert metrics.compute("recall@10", p, y) == pytest.approx(1 / 3)
    assert metrics.compute("recall@20", p, y) == pytest.approx(2 / 3)
    assert metrics.compute("recall@50", p, y, weight=[1, 1, 2]) == pytest.approx(0.5)
    assert metrics.compute("mrr", p, y) == pytest.approx((1 / 4 + 1 / 20) / 3)
    best = metrics.constant("mrr", [5, 5, 2, 7, 7, 7])
    assert isinstance(best, np.ndarray)
    assert best[:3].tolist() == [7, 5, 2]
    assert metrics.of_constant("mrr", best, [7, 5, 2]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    with pytest.raises(BadInput, match="needs ranked items"):
        metrics.compute("recall@10", y, y)


def test_the_kind_is_a_softmax() -> None:
    """Its loss has its minimum where scores are log frequencies."""
    values = torch.tensor([0.0, 1, 1, 2])
    outputs = NEXT_ITEM.start(values, 3).requires_grad_()
    NEXT_ITEM.loss(outputs.expand(4, -1), values).mean().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, torch.zeros(3), atol=5e-3, rtol=0)


def test_labels_are_rows_of_the_catalogue() -> None:
    """An item that the catalogue lacks is no label."""
    frame, _ = prepared()
    names = frame["next"].tolist()
    names[7] = "gone"
    _, data = prepared(next=names)
    cells = data.cells["next"]
    assert 7 not in cells.rows
    assert [f"i{int(v)}" for v in cells.values[:5]] == names[:5]


def test_predictions_are_lists_of_keys(tmp_path: Path) -> None:
    """From the folder, and through Parquet: keys of the session's kind, which is all there is to learn."""
    frame, data = prepared()
    fitted = M2TRecNetwork(epochs=8, width=16, top=5).fit(data, Budget(60.0), 0)
    fitted.save(tmp_path / "m")
    found = load(tmp_path / "m").predict(frame.drop(columns="next").head(20))
    assert list(found) == ["next"]
    assert all(len(cell) == 5 and set(cell) <= {f"i{i}" for i in range(40)} for cell in found["next"])
    same = [(int(key[1:]) - int(row[0][1:])) % 4 == 0 for cell, row in zip(found["next"], frame["viewed"]) for key in cell]
    assert np.mean(same) > 0.8, "what it ranks first is not of the session's kind"
    found.to_parquet(tmp_path / "p.parquet")
    assert [*pd.read_parquet(tmp_path / "p.parquet")["next"][0]] == found["next"][0]


REFUSED: dict[str, tuple[Any, str]] = {
    "no item table": (lambda: Table(shop()[0], ["next:next_item"]), "column 'next': kind next_item needs an item table"),
    "sequence of the wrong type": (lambda: _predict(viewed=[[0.5, 1.5]] * 600), "column 'viewed'.*holds 0.5 in row 1"),
    "no sequence at all": (lambda: _predict(viewed="i1"), "'viewed': holds 'i1' in row 1, where the other rows hold lists"),
    "empty session": (lambda: _predict(viewed=[["i1"]] * 3 + [[]] * 597), "the session is empty in row 4"),
    "column missing": (lambda: _predict(drop=True), "lacks 1 input column: 'viewed'"),
    "empty session in training": (
        lambda: M2TRecNetwork().fit(prepared(viewed=[["i1"]] * 9 + [[]] + [["i2"]] * 590)[1], Budget(9.0), 0),
        "the session is empty in 1 rows .row 10 first.: leave them out",
    ),
    "no such rivals": (lambda: M2TRecNetwork(rivals="catalog").fit(prepared()[1], Budget(9.0), 0), "did you mean 'catalogue'"),
    "no such session": (lambda: M2TRecNetwork(session="veiwed").fit(prepared()[1], Budget(9.0), 0), "did you mean 'viewed'"),
}


def _predict(drop: bool = False, **changes: Any) -> Any:
    _, data = prepared()
    fitted = M2TRecNetwork(epochs=1, width=16).fit(data, Budget(60.0), 0)
    frame = shop()[0].assign(**changes)
    return fitted.predict(frame.drop(columns="viewed") if drop else frame)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(BadInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_unseen_items_and_words_at_prediction() -> None:
    """An item that the catalogue lacks is an item of which nothing is known: a list comes back all the same."""
    found = _predict(viewed=[["who knows", "i3"]] * 600)
    assert len(found["next"][0]) == 20


def test_an_empty_session_spoils_no_other_row() -> None:
    """In a server's batch the row with an empty session is not a number, the others are what they are alone."""
    frame, data = prepared()
    fitted = M2TRecNetwork(epochs=1, width=16).fit(data, Budget(60.0), 0)
    some = fitted.columns.prepare(frame.head(3).assign(viewed=[["i1"], [], ["i2", "i6"]]), data.tasks)
    found = fitted.scores(some, np.arange(3), ["next"])["next"]
    alone = fitted.scores(fitted.columns.prepare(frame.head(1).assign(viewed=[["i2", "i6"]]), data.tasks), np.arange(1), ["next"])
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[2], alone["next"][0])


def test_a_table_of_other_tasks_is_left_to_others(mixed: Prepared) -> None:
    """Rankers say why they do not run on plain targets, and other candidates that they do not rank."""
    from pluribus.tabular import SingleNetworks

    assert M2TRecNetwork().unreadable(mixed) == "it predicts next items and nothing else"
    assert M2TRecNetwork().unfit(mixed) is not None
    assert SingleNetworks().unreadable(prepared()[1]) == "it does not rank items"
    assert TwoTower().unreadable(prepared()[1]) is None


def test_keys_of_items_are_read_as_written(tmp_path: Path) -> None:
    """In CSV, for training and by `pluribus predict`: 007 is an item's key, not the number 7."""
    from click.testing import CliRunner

    from pluribus.cli.predict import command
    from pluribus.tabular import SingleNetworks

    rng = np.random.default_rng(0)
    keys = [f"{i:03d}" for i in range(12)]
    sku = rng.choice(keys, 400)
    frame = pd.DataFrame({"sku": sku, "x": rng.normal(size=400), "y": (np.char.str_len(sku) + sku.astype(int) % 2).astype(float)})
    frame["viewed"] = [json.dumps([str(key) for key in rng.choice(keys, 2)]) for _ in range(400)]
    frame.to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"sku": keys, "odd": np.arange(12) % 2}).to_csv(tmp_path / "items.csv", index=False)
    items = {"sku": ItemTable.read(tmp_path / "items.csv", "sku")}
    table = Table.read(tmp_path / "t.csv", ["y:regression"], split="random", items=items)
    data = prepare(table, split(table, 0))
    assert data.ragged["sku"].values.min() >= 2, "no row's item was found in the table of items"
    fitted = SingleNetworks(epochs=3).fit(data, Budget(30.0), 0)
    fitted.save(tmp_path / "m")
    done = CliRunner().invoke(command, [str(tmp_path / "m"), str(tmp_path / "t.csv"), "-o", str(tmp_path / "p.parquet")])
    assert done.exit_code == 0, done.output
    expected = fitted.predict(frame)["y"].to_numpy()
    np.testing.assert_allclose(pd.read_parquet(tmp_path / "p.parquet")["y"], expected, rtol=1e-6)
    assert np.ptp(expected) > 0
