"""Encoded tables: batches equal a naive loop, holes stay holes, and saved arrays are shared, not copied."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data import Prepared, Table, prepare, split
from pluribus.errors import BadInput


def prepared(n: int = 300, seed: int = 0, holes: float = 0.4, **roles: Any) -> tuple[Table, Prepared]:
    rng = np.random.default_rng(seed)
    data = pd.DataFrame(
        {
            "x": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "word": rng.choice(["a", "b", "c"], n),
            "w": rng.random(n) + 0.1,
            "school": rng.choice(["s1", "s2", "s3"], n),
            "full": rng.integers(0, 2, n),
            "part": np.where(rng.random(n) < holes, np.nan, rng.normal(3, 2, n)),
            "kind": np.where(rng.random(n) < holes, None, rng.choice(["u", "v", "w"], n)),
        }
    )
    roles.setdefault("tasks", ["full", "part:regression", "kind"])
    table = Table(data, split="random", **roles)
    return table, prepare(table, split(table, seed))


@given(st.integers(0, 1000), st.booleans(), st.integers(1, 40))
def test_batch_equals_a_naive_loop(seed: int, weighted: bool, size: int) -> None:
    table, data = prepared(seed=seed, weight="w" if weighted else None)
    rows = np.random.default_rng(seed).integers(0, 300, size)
    batch = data.batch(torch.from_numpy(rows))
    assert batch.n_rows == size
    for place, row in enumerate(rows):
        assert torch.equal(batch.inputs["numeric"][place].nan_to_num(-9), torch.from_numpy(data.numeric[row]).nan_to_num(-9))
        assert torch.equal(batch.inputs["categorical"][place], torch.from_numpy(data.categorical[row]))
    for task in table.tasks:
        expected = []
        for place, row in enumerate(rows):
            raw = table.frame[task.name][row]
            if pd.isna(raw):
                continue
            value = task.classes.index(str(raw)) if task.classes else raw
            expected.append((place, value, table.frame["w"][row]))
        if not expected:
            assert task.name not in batch.labels, "a task without a label has no key"
            continue
        labels = batch.labels[task.name]
        assert labels.rows.tolist() == [place for place, _, _ in expected]
        assert np.allclose(labels.values, [value for _, value, _ in expected])
        if weighted:
            assert np.allclose(labels.weight, [weight for _, _, weight in expected])
        else:
            assert labels.weight is None


def test_cells_of_weight_0_are_no_labels_of_a_batch() -> None:
    """A mean over cells of weight 0 alone would be 0/0; their rows stay, so that outputs keep their places."""
    n, six = 120, np.tile([0.0, 1, 2, 0, 0, 1], 20)
    frame = pd.DataFrame({"x": np.arange(n) * 1.0, "y": np.arange(n) % 2, "z": np.arange(n) * 1.0, "w": six})
    table = Table(frame, ["y:binary", "z:regression"], weight="w", split="random")
    data = prepare(table, split(table, 0))
    batch = data.batch(torch.tensor([3, 2, 0, 5]))
    assert batch.n_rows == 4
    assert batch.labels["z"].rows.tolist() == [1, 3]
    assert batch.labels["z"].values.tolist() == [2.0, 5.0]
    assert data.batch(torch.tensor([0, 3, 4])).labels == {}
    assert sum(len(data.labelled("y", part)) for part in data.parts) == n  # metrics weigh them by 0 themselves


def test_batches_visit_each_row_of_the_part_once() -> None:
    _, data = prepared()
    data = dataclasses.replace(data, numeric=np.arange(300, dtype=np.float32)[:, None].copy())
    for generator in (None, torch.Generator().manual_seed(1)):
        seen = torch.cat([batch.inputs["numeric"][:, 0] for batch in data.batches("train", 32, generator=generator)])
        assert np.array_equal(np.sort(seen.numpy()), data.parts["train"])
        assert (generator is None) == bool((seen.diff() > 0).all())


def test_cells_within_and_fewer_tasks() -> None:
    _, data = prepared()
    cells = data.labelled("part", "valid")
    assert set(cells.rows) <= set(data.parts["valid"])
    total = sum(len(data.labelled("part", name)) for name in data.parts)
    assert total == len(data.cells["part"])
    fewer = data.only(["kind"])
    assert [task.name for task in fewer.tasks] == ["kind"]
    assert set(fewer.batch(torch.arange(50)).labels) == {"kind"}


def assert_equal(a: Prepared, b: Prepared) -> None:
    assert a.tasks == b.tasks
    assert np.array_equal(a.numeric, b.numeric, equal_nan=True)
    assert np.array_equal(a.categorical, b.categorical)
    assert np.array_equal(a.units, b.units)
    assert a.parts.keys() == b.parts.keys()
    assert a.context.keys() == b.context.keys()
    for name in a.parts:
        assert np.array_equal(a.parts[name], b.parts[name])
    for name in a.context:
        assert np.array_equal(a.context[name], b.context[name])
    for name, cells in a.cells.items():
        assert np.array_equal(cells.rows, b.cells[name].rows)
        assert np.array_equal(cells.values, b.cells[name].values)
        if cells.weight is None:
            assert b.cells[name].weight is None
        else:
            assert np.array_equal(cells.weight, b.cells[name].weight)


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool) -> None:
    for roles in ({}, {"weight": "w"}, {"tasks": ["part:regression"], "task_column": "school"}):
        _, data = prepared(**roles)
        data.save(tmp_path / "data")
        back = Prepared.load(tmp_path / "data", mmap=mmap)
        assert_equal(data, back)
        assert back.columns.names == data.columns.names
        batch = back.batch(torch.arange(40))
        assert torch.equal(batch.inputs["categorical"], data.batch(torch.arange(40)).inputs["categorical"])


def test_mapped_arrays_are_not_written_back(tmp_path: Path) -> None:
    """Workers share the pages; one that writes gets its own copy of the page."""
    _, data = prepared()
    data.save(tmp_path / "data")
    one, two = Prepared.load(tmp_path / "data"), Prepared.load(tmp_path / "data")
    assert isinstance(one.numeric.base, np.memmap)
    one.numeric[:] = 7
    assert_equal(data, two)
    assert_equal(data, Prepared.load(tmp_path / "data"))


def test_damage_is_named(tmp_path: Path) -> None:
    _, data = prepared()
    data.save(tmp_path / "data")
    path = tmp_path / "data" / "numeric.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"numeric\.npy"):
        Prepared.load(tmp_path / "data")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"numeric\.npy"):
        Prepared.load(tmp_path / "data")
    with pytest.raises(BadInput, match="no such prepared table"):
        Prepared.load(tmp_path / "nothing")


def test_long_layout_has_a_task_index() -> None:
    table, data = prepared(tasks=["part:regression"], task_column="school")
    assert np.array_equal(data.context["task"], table.task_index)
    batch = data.batch(torch.arange(60))
    for index, name in enumerate(("s1", "s2", "s3")):
        assert (batch.context["task"][batch.labels[name].rows] == index).all()


def test_only_the_asked_tasks_are_labelled() -> None:
    _, data = prepared()
    assert set(data.batch(torch.arange(100), ["full"]).labels) == {"full"}
    assert data.batch(torch.arange(100), []).labels == {}
