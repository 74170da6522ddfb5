"""Sequences and texts: batches equal a loop over rows, what is fitted travels, what does not fit is named with its row."""

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

from pluribus.data import ItemTable, Prepared, Ragged, Table, leakage, prepare, split
from pluribus.data.ragged import Texts, looks_like_lists, read_lists
from pluribus.errors import BadInput

N = 240


def frame(**columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    lists = {
        "clicks": [[int(c) for c in rng.integers(0, 12, rng.integers(0, 7))] for _ in range(N)],
        "tags": [[str(c) for c in rng.choice(["a", "b", "c"], rng.integers(0, 4))] for _ in range(N)],
        "delays": [rng.random(rng.integers(0, 4)).tolist() for _ in range(N)],
        "item": rng.integers(0, 12, N),
        "note": [f"remark number {i} on this and on that" if i % 9 else None for i in range(N)],
        "x": rng.normal(size=N),
        "y": rng.integers(0, 2, N),
    }
    return pd.DataFrame({**lists, **columns})


def items(n: int = 12, **columns: Any) -> pd.DataFrame:
    made = {
        "key": range(n),
        "brand": [f"b{i % 3}" for i in range(n)],
        "price": np.arange(n) / n,
        "kinds": [[f"k{i % 4}", "all"] for i in range(n)],
    }
    return pd.DataFrame({**made, **columns})


def made(data: pd.DataFrame | None = None, **roles: Any) -> tuple[Table, Prepared]:
    table = Table(frame() if data is None else data, ["y:binary"], split="random", **roles)
    return table, prepare(table, split(table, 0))


def joined(**roles: Any) -> tuple[Table, Prepared]:
    return made(items={"item": ItemTable(items(), "key", ["clicks", "item"])}, **roles)


rows_of_codes = st.lists(st.lists(st.integers(0, 99), max_size=7), min_size=1, max_size=12)


@given(rows_of_codes, st.data())
def test_padded_equals_a_loop(rows: list[list[int]], data: Any) -> None:
    """A gather in place of a loop over rows must not move an element, nor let padding show."""
    ragged = Ragged.of(rows)
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=24))
    found = ragged.padded(torch.tensor(picked, dtype=torch.int64))
    longest = max([1, *(len(rows[i]) for i in picked)])
    assert found["values"].shape == found["mask"].shape == (len(picked), longest)
    for place, i in enumerate(picked):
        assert found["values"][place].tolist() == rows[i] + [0] * (longest - len(rows[i]))
        assert found["mask"][place].tolist() == [True] * len(rows[i]) + [False] * (longest - len(rows[i]))


def test_padding_of_numbers_is_zero_beside_missing_ones() -> None:
    """A missing number is NaN in its own place only."""
    found = Ragged.of([[1.0], [np.nan, np.nan]], np.float32).padded(torch.tensor([0, 1]))
    assert found["values"][0].tolist() == [1.0, 0.0]
    assert found["values"][1].isnan().all()


@given(rows_of_codes, st.integers(1, 5), st.data())
def test_latest_take_and_join_equal_loops(rows: list[list[int]], limit: int, data: Any) -> None:
    ragged = Ragged.of(rows)
    picked = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), np.int64)
    assert [ragged.latest(limit).row(i).tolist() for i in range(len(rows))] == [row[-limit:] for row in rows]
    taken = ragged.take(picked)
    assert [taken.row(i).tolist() for i in range(len(picked))] == [rows[i] for i in picked]
    both = ragged.followed_by(taken)
    assert [both.row(i).tolist() for i in range(len(both))] == [*rows, *(rows[i] for i in picked)]


def test_ragged_checks_itself() -> None:
    for starts in ([0, 2], [1, 3], [0, 2, 1, 3], []):
        with pytest.raises(BadInput, match="starts must ascend"):
            Ragged(np.zeros(3, np.int32), np.array(starts, np.int64))
    with pytest.raises(BadInput, match="int32 or float32"):
        Ragged(np.zeros(3), np.array([0, 3]))  # type: ignore[arg-type]


@given(st.lists(st.none() | st.text(max_size=9), max_size=9))
def test_texts_come_back(texts: list[str | None]) -> None:
    """Through bytes and back: an empty text is not a missing one (half a surrogate, which UTF-8 lacks, becomes '?')."""
    expected = [None if t is None else t.encode("utf-8", "replace").decode() for t in texts]
    found = Texts.of(texts)
    assert list(found) == expected
    assert list(found.followed_by(found)) == expected * 2
    assert found[1:] == expected[1:]


def test_types_of_lists_are_found() -> None:
    """Whole numbers and words are categories, decimals are numbers, however pandas, Arrow or JSON hold them."""
    table, data = made()
    kinds = {i.name: i.type for i in data.columns.inputs}
    lists = dict.fromkeys(("clicks", "tags", "delays"), "sequence")
    assert kinds == {**lists, "item": "number", "note": "text", "x": "number"}
    types = {name: e.type for name, e in data.columns.sequences.items()}
    assert types == {"clicks": "category", "tags": "category", "delays": "number"}
    raw = table.frame
    for row in (0, 1, 17, N - 1):
        words = data.columns.sequences["clicks"].category
        assert words is not None
        known = {word: code for code, word in enumerate(words.categories, 2)}
        assert data.ragged["clicks"].row(row).tolist() == [known.get(str(c), 1) for c in raw["clicks"][row]]
        number = data.columns.sequences["delays"].number
        assert number is not None
        expected = (np.array(raw["delays"][row], float) - number.centre) / number.scale
        np.testing.assert_allclose(data.ragged["delays"].row(row), expected, rtol=1e-6)
    assert data.texts["note"][0] is None
    assert data.texts["note"][1] == raw["note"][1]
    as_json = {name: [json.dumps(cell) for cell in raw[name]] for name in ("clicks", "tags", "delays")}
    as_arrays = {name: [np.array(cell) for cell in raw[name]] for name in ("clicks", "delays")}
    for held in (as_json, as_arrays):
        again = made(frame(**held))[1]
        for name in held:
            assert np.array_equal(again.ragged[name].values, data.ragged[name].values), name
            assert np.array_equal(again.ragged[name].starts, data.ragged[name].starts), name


def test_vocabulary_is_fitted_on_training_rows() -> None:
    """A word in test rows only, or too rare in training, is unseen; an empty element is missing."""
    data = frame()
    data["tags"] = [["often", *(["rare"] if i == 0 else [])] for i in range(N)]
    table = Table(data, ["y:binary"], split="random")
    parts = split(table, 0)
    for row in parts.parts["test"]:
        table.frame.at[int(row), "tags"] = ["later", None]
    table = Table(table.frame, ["y:binary"], split="random")
    prepared = prepare(table, parts)
    category = prepared.columns.sequences["tags"].category
    assert category is not None
    assert category.categories == ("often",)
    assert prepared.ragged["tags"].row(int(parts.parts["test"][0])).tolist() == [1, 0]


def test_the_latest_are_kept() -> None:
    table, data = made(max_length=2)
    assert data.ragged["clicks"].lengths.max() == 2
    whole = made()[1]
    assert data.ragged["clicks"].row(5).tolist() == whole.ragged["clicks"].row(5)[-2:].tolist()
    assert any("the latest 2 of which are kept" in note for note in table.notes)
    with pytest.raises(BadInput, match="max_length must be"):
        made(max_length=0)


def test_batches_hold_them() -> None:
    """Networks find {values, mask}; what was there before is unchanged."""
    _, data = made()
    rows = torch.tensor([3, 0, 3])
    inputs = data.batch(rows).inputs
    assert set(inputs) == {"numeric", "categorical", "clicks", "tags", "delays"}
    assert inputs["delays"]["values"].dtype == torch.float32
    assert torch.equal(inputs["clicks"]["values"][0], inputs["clicks"]["values"][2])
    more = data.with_ragged("note.tokens", Ragged.of([[1, 2]] * N))
    assert more.batch(rows).inputs["note.tokens"]["values"].tolist() == [[1, 2]] * 3
    assert "note.tokens" not in data.ragged
    assert set(more.only(["y"]).ragged) == set(more.with_parts(train=rows.numpy()).ragged) == set(more.ragged)
    with pytest.raises(BadInput, match="2 rows for a table of 240"):
        data.with_ragged("a", Ragged.of([[1], [2]]))
    with pytest.raises(BadInput, match="choose another name"):
        data.with_ragged("numeric", Ragged.of([[1]] * N))


def test_plain_tables_are_as_before(tmp_path: Path) -> None:
    """No key more in a batch, on disk or in the manifest where there is neither list nor text."""
    _, data = made(frame()[["x", "item", "y"]])
    assert set(data.batch(torch.arange(3)).inputs) == {"numeric", "categorical"}
    data.save(tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "prepared.json").read_text())
    assert set(manifest) == {"cells", "parts", "context", "columns"}
    assert not {"sequences", "items"} & set(manifest["columns"])
    assert Prepared.load(tmp_path / "p").ragged == {}


@pytest.mark.parametrize("mmap", [True, False])
def test_save_and_load(mmap: bool, tmp_path: Path) -> None:
    """The folder holds sequences, texts and the catalogue; new rows are encoded the same way after."""
    table, data = joined()
    data.save(tmp_path / "p")
    again = Prepared.load(tmp_path / "p", mmap=mmap)
    for name, ragged in data.ragged.items():
        assert np.array_equal(again.ragged[name].values, ragged.values)
        assert np.array_equal(again.ragged[name].starts, ragged.starts)
    assert list(again.texts["note"]) == list(data.texts["note"])
    assert again.columns.sequences.keys() == data.columns.sequences.keys()
    held, before = again.columns.items["item"], data.columns.items["item"]
    assert list(held.keys) == list(before.keys) == [str(i) for i in range(12)]
    assert np.array_equal(held.seen, before.seen)
    assert np.array_equal(held.data.numeric, before.data.numeric)
    assert np.array_equal(held.data.ragged["kinds"].values, before.data.ragged["kinds"].values)
    new = again.columns.prepare(table.frame.head(9), data.tasks)
    for name in data.ragged:
        assert np.array_equal(new.ragged[name].values, data.ragged[name].take(np.arange(9)).values), name
    assert new.texts["note"][:] == list(data.texts["note"])[:9]


def test_items_are_joined() -> None:
    """Code 2 + i is row i of the catalogue, for one item a row as for a list of them; one item a row is a category too."""
    table, data = joined()
    for row in (0, 5, 77):
        assert data.ragged["clicks"].row(row).tolist() == [c + 2 for c in table.frame["clicks"][row]]
        assert data.ragged["item"].row(row).tolist() == [table.frame["item"][row] + 2]
    assert "item" in data.columns.categories
    assert "item" not in data.columns.numbers
    brand = data.items["item"].columns.categories["brand"].categories
    assert [brand[code - 2] for code in data.items["item"].categorical[:, 0]] == [f"b{i % 3}" for i in range(12)]
    assert data.columns.ragged_size("item") == data.columns.ragged_size("clicks") == 14
    assert data.columns.ragged_size("delays") == 0


def test_attributes_of_one_item_a_row_are_features() -> None:
    """A left join: what a candidate without item tables reads is the item's attributes, as columns of their own."""
    table, data = joined()
    catalogue = items().set_index("key")
    assert data.columns.names == ("item.price", "x", "item", "item.brand")
    price = data.columns.numbers["item.price"]
    expected = catalogue["price"].loc[table.frame["item"]].to_numpy()
    np.testing.assert_allclose(data.numeric[:, 0] * price.scale + price.centre, expected, atol=1e-6)
    assert price.centre == pytest.approx(expected[split(table, 0).parts["train"]].mean(), abs=1e-6)
    words = data.columns.categories["item.brand"].categories
    assert [words[code - 2] for code in data.categorical[:, 1]] == catalogue["brand"].loc[table.frame["item"]].tolist()
    some = table.frame.head(3).astype({"item": object}).assign(item=[None, 77, 3])
    new = data.columns.prepare(some, data.tasks)
    assert new.categorical[:, 1].tolist()[:2] == [0, 1], "missing with the item, unseen with an item that is not there"
    assert np.isnan(new.numeric[:2, 0]).all()
    assert np.isfinite(new.numeric[2, 0])
    lone = made(frame(**{"item.brand": "x"}), items={"a": ItemTable(items(), "key", ["clicks"])})[1]
    assert "item.brand" in lone.columns.categories


def test_statistics_are_those_of_items_that_training_rows_mention() -> None:
    """An item nobody has seen must not move the attributes' means, nor bring its own words into the vocabulary."""
    more = pd.concat([items(), items(1, key=[99], brand=["alien"], price=[1e6])])
    _, data = made(items={"item": ItemTable(more, "key", ["clicks", "item"])})
    catalogue = data.columns.items["item"]
    assert catalogue.seen.tolist() == [True] * 12 + [False]
    assert catalogue.data.columns.numbers["price"].centre < 1
    assert "alien" not in catalogue.data.columns.categories["brand"].categories
    assert catalogue.data.categorical[12, 0] == 1


def test_unseen_items() -> None:
    """An item that the catalogue lacks is code 1, also beside known ones; once the catalogue has grown it has its own."""
    table, data = joined()
    rows = table.frame.head(2).assign(item=[99, 3], clicks=[[99, 4], []])
    new = data.columns.prepare(rows, data.tasks)
    assert new.ragged["item"].values.tolist() == [1, 5]
    assert new.ragged["clicks"].values.tolist() == [1, 6]
    grown = data.columns.grown({"item": items(1, key=[99], brand=["b1"])})
    again = grown.prepare(rows, data.tasks)
    assert again.ragged["item"].values.tolist() == [14, 5]
    names = list(data.columns.categories)
    at, brand = names.index("item"), names.index("item.brand")
    assert again.categorical[0, at] == new.categorical[0, at] == 1, "its own embedding was never trained: still unseen"
    assert new.categorical[0, brand] == 1
    assert data.columns.categories["item.brand"].categories[again.categorical[0, brand] - 2] == "b1"
    assert again.items["item"].n_rows == 13
    assert np.array_equal(again.items["item"].numeric[:12], data.items["item"].numeric)
    assert data.items["item"].n_rows == 12


def test_lineage_and_findings_read_lists() -> None:
    """The data's hash covers lists and item tables, and looking for leaks does not stumble over them."""
    table, data = joined()
    plain = leakage.lineage(table)
    assert leakage.lineage(joined()[0]) == plain
    other = frame()
    other["clicks"] = [[*row, 1] for row in other["clicks"]]
    assert leakage.lineage(made(other)[0]) != leakage.lineage(made()[0])
    changed = Table(frame(), ["y:binary"], split="random", items={"item": ItemTable(items(price=0.5), "key", ["clicks", "item"])})
    assert leakage.lineage(changed) != plain
    leakage.check(table, split(table, 0), data)


def test_text_is_declared_or_found() -> None:
    table, data = made(frame(word=["a", "b"] * (N // 2)), text=["word"])
    assert table.text == ("word", "note")
    assert data.texts["word"][:2] == ["a", "b"]
    assert any("'note' is text" in note for note in table.notes)
    assert "note" not in data.columns.names
    numbers = made(frame(), text=["item"])[1]
    assert numbers.texts["item"][0] == str(frame()["item"][0])


def test_read_from_files(tmp_path: Path) -> None:
    """Parquet's list columns and JSON lists in CSV come out as the frame's own lists do; keys keep leading zeros."""
    data = frame(sku=[f"{i % 4:03d}" for i in range(N)])
    data.to_parquet(tmp_path / "t.parquet")
    data.assign(**{c: data[c].map(json.dumps) for c in ("clicks", "tags", "delays")}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"sku": [f"{i:03d}" for i in range(4)], "size": [1.0, 2.5, 3.5, 4.5]}).to_csv(tmp_path / "i.csv", index=False)
    found = []
    for name in ("t.parquet", "t.csv"):
        catalogue = ItemTable.read(tmp_path / "i.csv", "sku", ["sku"])
        table = Table.read(tmp_path / name, ["y:binary"], split="random", items={"sku": catalogue})
        found.append(prepare(table, split(table, 0)))
    for name in ("clicks", "tags", "delays", "sku"):
        assert np.array_equal(found[0].ragged[name].values, found[1].ragged[name].values), name
    assert found[1].ragged["sku"].values[:3].tolist() == [2, 3, 4]


REFUSED: dict[str, tuple[Any, str]] = {
    "nested": (lambda: made(frame(z=[[1]] * 7 + [[[2]]] + [[1]] * (N - 8))), "column 'z': holds a list within the list in row 8"),
    "words among numbers": (lambda: made(frame(z=[[1, 2]] * 4 + [["a"]] + [[]] * (N - 5))), "column 'z'.*a word.*'a'.*row 5"),
    "dicts": (lambda: made(frame(z=[[{"a": 1}]] * N)), "column 'z': holds a value of type dict in row 1"),
    "matrix": (lambda: made(frame(z=[np.zeros(2)] * 3 + [np.zeros((2, 2))] * (N - 3))), "array of 2 dimensions in row 4"),
    "no list": (lambda: made(frame(z=[[1]] * 9 + [3] + [[1]] * (N - 10))), "column 'z': holds 3 in row 10"),
    "broken JSON": (lambda: made(frame(z=["[1, 2]"] * 99 + ["[1, 2"] + ["[1]"] * (N - 100))), r"holds '\[1, 2' in row 100"),
    "infinite": (lambda: made(frame(z=[[0.5]] * 3 + [[0.5, np.inf]] + [[]] * (N - 4))), "infinite number in row 4"),
    "target": (lambda: Table(frame(), ["clicks"]), "column 'clicks': a list cannot be a target"),
    "called numeric": (lambda: made(frame(numeric=[[1]] * N)), "is called 'numeric'"),
    "unknown text": (lambda: made(text=["nite"]), "unknown text column 'nite'; did you mean 'note'"),
    "text is the target": (lambda: made(text=["y"]), "is named as text but is no input"),
    "text is one word": (lambda: made(text="note"), r"write \['note'\]"),
    "text is a list": (lambda: made(text=["clicks"]), "column 'clicks': was fitted on text but holds list in row 1"),
    "no such key": (lambda: made(items={"item": ItemTable(items(), "kye", ["item"])}), "column 'kye'; did you mean 'key'"),
    "key twice": (
        lambda: made(items={"item": ItemTable(items(key=[0, 1, 2, 1, *range(4, 12)]), "key", ["item"])}),
        "column 'key': the key '1' stands in row 2 and in row 4",
    ),
    "key empty": (
        lambda: made(items={"item": ItemTable(items(key=[0, None, *range(2, 12)]), "key", ["item"])}),
        "key is empty in row 2",
    ),
    "no such column": (lambda: made(items={"item": ItemTable(items(), "key", ["itme"])}), "unknown input column 'itme'"),
    "no column": (lambda: made(items={"shop": ItemTable(items(), "key")}), "items 'shop': no column holds its keys"),
    "columns are one word": (lambda: made(items={"item": ItemTable(items(), "key", "item")}), r"write \['item'\]"),
    "other keys": (lambda: made(items={"item": ItemTable(items(key=range(50, 62)), "key", ["item"])}), "no key of the items"),
    "an attribute's feature twice": (
        lambda: made(frame(**{"item.brand": "x"}), items={"item": ItemTable(items(), "key", ["item"])}),
        "two features are called 'item.brand'",
    ),
    "two tables": (
        lambda: made(items={"a": ItemTable(items(), "key", ["item"]), "b": ItemTable(items(), "key", ["item"])}),
        "joined to the items 'a' and 'b'",
    ),
    "no attributes": (lambda: made(items={"item": ItemTable(items()[["key"]], "key", ["item"])}), "no input column left"),
    "prediction: no list": (lambda: _predict(clicks=5), "column 'clicks': holds 5 in row 1, where the other rows hold lists"),
    "prediction: words": (lambda: _predict(delays=[["a"]] * N), "fitted on lists of numbers but holds 'a' in row 1"),
    "prediction: decimals": (lambda: _predict(clicks=[[]] * 9 + [[1.5]] * (N - 9)), "whole numbers but holds 1.5 in row 10"),
    "prediction: list for text": (lambda: _predict(note=[[1.5]] * N), "in row 1; give it text, or lists of words alone"),
    "growth: known": (lambda: joined()[1].columns.grown({"item": items(2)}), "the item '0' is in the catalogue already"),
    "growth: no attribute": (lambda: joined()[1].columns.grown({"item": pd.DataFrame({"key": [99]})}), "lacks 3 input columns"),
    "growth: key twice": (lambda: joined()[1].columns.grown({"item": items(2, key=[99, 99])}), "'99' stands in row 1"),
    "growth: no such table": (lambda: joined()[1].columns.grown({"itme": items(2)}), "unknown item table 'itme'"),
    "growth: no table": (lambda: joined()[1].columns.grown({"item": ["i1"]}), "new items are a list; pass a DataFrame"),
}


def _predict(**columns: Any) -> None:
    _, data = made()
    data.columns.prepare(frame(**columns), data.tasks)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(BadInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    _, data = joined()
    data.save(tmp_path / "p")
    (tmp_path / "p" / "items_0" / "items.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="not a file of items"):
        Prepared.load(tmp_path / "p")


def test_missing_cells_and_empty_lists() -> None:
    """A missing cell is an empty sequence; a column of nothing else still encodes."""
    lists = read_lists(pd.Series([None, [], [3], np.nan], dtype=object), "c")
    assert np.diff(lists.starts).tolist() == [0, 0, 1, 0]
    _, data = made(frame(z=[[]] * N))
    assert data.batch(torch.arange(2)).inputs["z"]["values"].shape == (2, 1)
    assert not data.batch(torch.arange(2)).inputs["z"]["mask"].any()
    assert not looks_like_lists(pd.Series(["a", "[b"]))
