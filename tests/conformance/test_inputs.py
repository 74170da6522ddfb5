"""Every type of input column of the catalog keeps the protocol: found, fitted, encoded, saved, and read from a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.conformance.entries import entries_for

from pluribus.catalog import Entry
from pluribus.data import FittedColumns, ItemTable, Table, prepare, split
from pluribus.data.inputs import INPUTS
from pluribus.data.prepared import Prepared
from pluribus.serving.bodies import Limits

N = 120
LISTED = entries_for(__name__, "input", "columns")
each = pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry.name)


def _cells(name: str) -> list[Any]:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(["a long word", "and", "another", "of many"], 8)) + f" {i}" for i in range(N)]
    made: dict[str, list[Any]] = {
        "number": rng.normal(size=N).tolist(),
        "category": rng.choice(["a", "b", "c"], N).tolist(),
        "boolean": (rng.random(N) < 0.5).tolist(),
        "datetime": pd.date_range("2020-01-01", periods=N, freq="7h").strftime("%Y-%m-%dT%H:%M:%S").tolist(),
        "text": texts,
        "sequence": [rng.choice(["x", "y", "z"], rng.integers(1, 5)).tolist() for _ in range(N)],
        "item": [f"i{k}" for k in rng.integers(0, 9, N)],
    }
    return made[name]


def _table(name: str, holes: bool = False) -> Table:
    """A table with one column of the type, one number beside it, and a target."""
    cells = _cells(name)
    if holes:
        cells = [None if i % 10 == 3 else cell for i, cell in enumerate(cells)]
    frame = pd.DataFrame({"c": pd.Series(cells), "x": np.arange(float(N)), "y": np.arange(N) % 3})
    items = ItemTable(pd.DataFrame({"k": [f"i{i}" for i in range(9)], "price": np.arange(9.0)}), "k", ["c"])
    return Table(frame, ["y:count"], split="random", items={"item": items} if name == "item" else None)


def test_the_catalog_lists_them_all() -> None:
    """All types of tables; a merge's own type is no table's, and is there once the merge is loaded."""
    of_tables = {name for name, record in INPUTS.items() if type(record).__module__.startswith("pluribus.data.")}
    assert {entry.name for entry in LISTED} == of_tables


@each
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "with holes"])
def test_found_encoded_and_read_again(entry: Entry, holes: bool, tmp_path: Path) -> None:
    """A column of the type is recognised; what encodes it survives a folder; batches hold its rows, mapped from disk or not."""
    table = _table(entry.name, holes)
    data = prepare(table, split(table, 0))
    fitted = next(one for one in data.columns.inputs if one.name == "c")
    assert fitted.record is entry.resolve()
    assert fitted.type == entry.name
    data.save(tmp_path / "prepared")
    again = Prepared.load(tmp_path / "prepared", mmap=True)
    rows = torch.tensor([3, 0, 77])
    for one, other in zip(_leaves(data.batch(rows).inputs), _leaves(again.batch(rows).inputs), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    manifest = json.loads(json.dumps(data.columns.write(_folder(tmp_path))))
    columns = FittedColumns.read(tmp_path / "columns", manifest)
    fresh = columns.prepare(table.frame, ())
    for one, other in zip(_leaves(fresh.batch(rows, ()).inputs), _leaves(data.batch(rows, ()).inputs), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@each
def test_a_cell_of_a_request(entry: Entry) -> None:
    """What a server takes is what the schema says, and is encoded as the table's own cell."""
    table = _table(entry.name)
    columns = FittedColumns.fit(table)
    fitted = next(one for one in columns.inputs if one.name == "c")
    schema = fitted.schema(columns)
    assert "null" in schema["type"]
    cell = fitted.read_cell(_cells(entry.name)[5], Limits())
    frame = table.frame.iloc[[5]].assign(c=pd.Series([cell], [5], dtype=object))
    one, other = columns.prepare(frame, ()), columns.prepare(table.frame.iloc[[5]], ())
    pairs = (_leaves(data.batch(torch.tensor([0]), ()).inputs) for data in (one, other))
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("entry", entries_for(__name__, "columns", "table"), ids=lambda entry: entry.name)
def test_columns_are_what_a_prepared_table_reads_back(entry: Entry, mixed: Prepared, tmp_path: Path) -> None:
    mixed.save(tmp_path / "prepared")
    again = Prepared.load(tmp_path / "prepared")
    assert type(again.columns) is entry.resolve()
    assert again.columns.names == mixed.columns.names
    np.testing.assert_array_equal(again.numeric, mixed.numeric)


def _leaves(inputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "columns").mkdir()
    return tmp_path / "columns"
