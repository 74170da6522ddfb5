"""Cells in three forms. If these fail: a map or a list is cut on its way to a loss, a void place counts, or tags cost as much as
a dense array."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pluribus.data import Cells, Dataset, Labels, Prepared, Table, prepare, split
from pluribus.data.cells import feed, held_classes
from pluribus.data.sampling import TaskSampler, UniformMix
from pluribus.errors import BadInput
from pluribus.modeling.heads import Heads
from pluribus.tasks import Metric, Task
from pluribus.tasks.forms import VOID, Maps, Ragged
from pluribus.tasks.kinds import KINDS, Kind

N = 60


def plain(n: int = N) -> Prepared:
    """A table of one number, with one task of one value a row."""
    rng = np.random.default_rng(0)
    table = Table(pd.DataFrame({"x": rng.normal(size=n), "y": rng.normal(size=n)}), ["y:regression"], split="random")
    return prepare(table, split(table, 0))


def with_cells(data: Prepared, **cells: Cells) -> Prepared:
    """The table with further tasks; no kind of the library has such cells, so a task's kind says nothing here."""
    tasks = (*data.tasks, *(Task(name, "regression") for name in cells))
    return dataclasses.replace(data, tasks=tasks, cells={**data.cells, **cells})


def some_maps(n: int = N) -> Maps:
    """Classes 0 to 4 and void [n, 4, 6], each with a void corner."""
    values = np.random.default_rng(1).integers(0, 5, (n, 4, 6)).astype(np.uint8)
    values[:, :2, :2] = VOID
    return Maps(values)


def some_lists(n: int = N, width: int | None = None) -> Ragged:
    rng = np.random.default_rng(2)
    shape = () if width is None else (width,)
    return Ragged.of([rng.integers(0, 9, (int(length), *shape)) for length in rng.integers(0, 5, n)], width=width)


def all_forms() -> Prepared:
    rows = np.arange(0, N, 2)
    weight = np.linspace(0.5, 2, len(rows))
    return with_cells(
        plain(),
        areas=Cells(rows, some_maps()[rows]),
        tags=Cells(np.arange(N), some_lists()),
        spans=Cells(rows, some_lists(width=3)[rows], weight),
        depth=Cells(rows, Maps(np.random.default_rng(3).normal(size=(len(rows), 4, 6, 2)).astype(np.float16))),
    )


def test_a_prepared_table_is_a_data_set() -> None:
    data: Dataset = plain()
    assert data.n_rows == N


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_maps_are_not_cut(where: str, tmp_path: Path) -> None:
    """[4, 6, 8] with void rows stays [4, 6, 8]: it once came out as [4, 3, 8]."""
    values = np.full((N, 6, 8), VOID, np.uint8)
    values[:, :3] = 1
    data = with_cells(plain(), areas=Cells(np.arange(N), Maps(values)))
    if where == "disk":
        data.save(tmp_path / "data")
        data = Prepared.load(tmp_path / "data")
    labels = data.batch(torch.arange(4)).labels["areas"]
    assert labels.values.shape == (4, 6, 8)
    assert labels.values.dtype == torch.uint8
    assert labels.mask is not None
    assert labels.mask[:, :3].all()
    assert not labels.mask[:, 3:].any()


def test_an_array_that_is_neither_is_refused() -> None:
    for shape in ((4, 3), (4, 6, 8)):
        with pytest.raises(BadInput, match="not one value a row; give lists as Ragged"):
            Cells(np.arange(4), np.zeros(shape))
    with pytest.raises(BadInput, match="3 cells for 4 rows"):
        Cells(np.arange(4), np.zeros(3))


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=30))
def test_a_batch_holds_what_a_naive_loop_finds(rows: list[int]) -> None:
    """Each form, each row as often as it is asked for; lists padded with −1, places without a label masked out."""
    data = all_forms()
    batch = data.batch(torch.tensor(rows))
    for name, cells in data.cells.items():
        at = {int(row): place for place, row in enumerate(cells.rows)}
        wanted = [(place, at[row]) for place, row in enumerate(rows) if row in at]
        if not wanted:
            assert name not in batch.labels
            continue
        labels = batch.labels[name]
        assert labels.rows.tolist() == [place for place, _ in wanted]
        if cells.weight is not None:
            np.testing.assert_allclose(labels.weight, [cells.weight[i] for _, i in wanted], rtol=1e-6)
        for value, mask, (_, i) in zip(labels.values, labels.mask if labels.mask is not None else labels.values, wanted):
            if isinstance(cells.values, Ragged):
                row = torch.from_numpy(cells.values.row(i))
                assert value.dtype == torch.int32
                assert mask.tolist() == [True] * len(row) + [False] * (len(mask) - len(row))
                assert torch.equal(value[: len(row)], row)
                assert (value[len(row) :] == -1).all()
            elif isinstance(cells.values, Maps):
                whole = cells.values[[i]]
                assert torch.equal(value, torch.from_numpy(whole.values[0]))
                assert torch.equal(mask, torch.from_numpy(whole.there()[0]))
            else:
                assert labels.mask is None
                assert value == np.float32(cells.values[i])


@pytest.mark.parametrize("mmap", [True, False])
def test_every_form_survives_the_disk(tmp_path: Path, mmap: bool) -> None:
    data = all_forms()
    data.save(tmp_path / "data")
    back = Prepared.load(tmp_path / "data", mmap=mmap)
    for name, cells in data.cells.items():
        again = back.cells[name]
        assert np.array_equal(again.rows, cells.rows)
        assert np.array_equal(np.asarray(again.values), np.asarray(cells.values), equal_nan=True)
        assert np.array_equal(again.weight, cells.weight) if cells.weight is not None else again.weight is None
    mapped = back.cells["depth"].values
    assert isinstance(mapped, Maps)
    assert mapped.store.dtype == np.float16
    assert isinstance(mapped.store.base, np.memmap) == mmap
    tags = back.cells["tags"].values
    assert isinstance(tags, Ragged)
    assert tags.values.dtype == np.int32
    assert isinstance(tags.values.base, np.memmap) == mmap


def test_lists_of_the_first_edition_lose_their_padding(tmp_path: Path) -> None:
    """They lay as float64 [m, W] among the values, padded with −1."""
    data = with_cells(plain(), tags=Cells(np.arange(N), some_lists()))
    data.save(tmp_path / "data")
    import json

    manifest = json.loads((tmp_path / "data" / "prepared.json").read_text())
    padded = some_lists().to_padded().astype(np.float64)
    for entry in manifest["cells"]:
        entry["shape"] = list(padded.shape[1:]) if entry.pop("form") == "list" else []
    (tmp_path / "data" / "prepared.json").write_text(json.dumps(manifest))
    flat = np.concatenate((np.load(tmp_path / "data" / "values.npy"), padded.reshape(-1)))
    np.save(tmp_path / "data" / "values.npy", flat)
    back = Prepared.load(tmp_path / "data").cells["tags"].values
    assert isinstance(back, Ragged)
    assert np.array_equal(back.values, some_lists().values)
    assert np.array_equal(back.starts, some_lists().starts)


def test_a_map_without_a_valid_place_is_a_hole() -> None:
    values = some_maps().store.copy()
    values[[1, 2]] = VOID
    data = with_cells(plain(), areas=Cells(np.arange(N), Maps(values), np.arange(N) + 1.0))
    labels = data.batch(torch.arange(4)).labels["areas"]
    assert labels.rows.tolist() == [0, 3]
    assert len(labels.values) == len(labels.mask) == 2  # type: ignore[arg-type]
    assert labels.weight.tolist() == [1, 4]  # type: ignore[union-attr]
    assert "areas" not in data.batch(torch.tensor([1, 2])).labels, "a task without a label has no key"


def test_maps_are_read_when_they_are_needed() -> None:
    """A part's cells point into the whole table's maps: none is copied."""
    maps = some_maps()
    cells = Cells(np.arange(N), maps)
    part = cells.within(np.arange(0, N, 3))[::2]
    assert isinstance(part.values, Maps)
    assert part.values.store is maps.store
    assert np.array_equal(part.values.values, maps.store[::6])
    assert np.array_equal(np.concatenate([piece.values for piece in part.values.pieces(100)]), maps.store[::6])


def test_a_mixing_sampler_draws_every_form() -> None:
    data = all_forms()
    sampler = TaskSampler(data, "train", 40, UniformMix())
    for batch in (sampler.draw() for _ in range(5)):
        assert sum(len(labels) for labels in batch.labels.values()) == 40
        for name, labels in batch.labels.items():
            assert (labels.mask is None) == (name == "y")


@pytest.mark.parametrize("name", ["tags", "areas", "y"])
def test_every_loss_is_handed_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append(mask)
        return values.flatten(1).sum(1) if values.ndim > 1 else values

    kind = Kind("seen", lambda _: 1, loss, lambda z: z, lambda v, _: torch.zeros(1), ("rmse",))
    monkeypatch.setattr(KINDS, "_held", {**KINDS._held, "seen": kind})
    labels = all_forms().batch(torch.arange(8)).labels[name]
    Heads([Task(name, "seen", metrics=(Metric("mine", "min"),))], 3).loss(name, torch.zeros(len(labels), 1), labels)
    assert seen == [labels.mask] if labels.mask is None else seen[0] is labels.mask


def test_labels_move_with_their_mask() -> None:
    labels = Labels(torch.zeros(2, 3), torch.arange(2), torch.ones(2, 3, dtype=torch.bool))
    moved = labels.map(lambda tensor: tensor[:1])
    assert moved.mask is not None
    assert len(moved.mask) == 1


def test_classes_that_a_cell_holds() -> None:
    """Each form against a naive loop: strata of a random split are made of these."""
    maps, lists, values = some_maps(), some_lists(), np.array([0.0, 2.0, 1.0])
    assert held_classes(values, 3).tolist() == [[True, False, False], [False, False, True], [False, True, False]]
    for found, rows in ((held_classes(lists, 9), [lists.row(i) for i in range(N)]), (held_classes(maps, 9), maps.store)):
        assert found.tolist() == [[c in row for c in range(9)] for row in rows]


def test_the_hash_of_lists_is_that_of_the_dense_array() -> None:
    """A study that was begun with dense lists is found again."""
    lists = some_lists()
    ours, theirs = hashlib.sha256(), hashlib.sha256()
    feed(ours, lists, 7, rows=11)
    theirs.update(lists.to_padded(width=7).astype(np.float64).tobytes())
    assert ours.digest() == theirs.digest()


def test_tags_take_a_third_of_a_dense_array_or_less() -> None:
    """Sentences of 5 to 60 words as in a corpus of abstracts: bytes of the cells against float64 [n, longest]."""
    rng = np.random.default_rng(0)
    words = [["w"] * int(length) for length in np.clip(rng.gamma(4, 6, 400), 5, 60)]
    tags = [[("O", "B-A", "I-A")[int(c)] for c in rng.integers(0, 3, len(row))] for row in words]
    table = Table(pd.DataFrame({"words": words, "tags": tags, "z": rng.normal(size=400)}), ["tags"], split="random")
    cells = table.cells["tags"].values
    assert isinstance(cells, Ragged)
    assert cells.nbytes <= 0.3 * 8 * 400 * max(map(len, words))
