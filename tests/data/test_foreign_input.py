"""A type of input that the library does not know, registered here: pictures as arrays in cells.

If these fail, who brings a type must change the library: it is not found, its store is lost on the way to a batch, a worker or a
model folder, or a request's cell is not read by the type itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus import catalog
from pluribus.data import FittedColumns, ItemTable, Prepared, Ragged, Table, leakage, prepare, split
from pluribus.data.inputs import INPUTS, FittedInput, InputColumn, InputType, Unfit, register
from pluribus.data.stores import Store
from pluribus.errors import BadInput
from pluribus.files.arrays import read_array, write_array
from pluribus.serving.bodies import BodyReader, Limits
from pluribus.serving.encoding import RowEncoder
from pluribus.tasks import Task

N, HIGH, WIDE = 90, 4, 6


@dataclass(frozen=True)
class Shades:
    """uint8 [n, H, W], and whether there is a picture [n]."""

    values: NDArray[np.uint8]
    there: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.there)

    def take(self, rows: NDArray[np.int64]) -> Shades:
        return Shades(self.values[rows], self.there[rows])

    def followed_by(self, other: Shades) -> Shades:
        return Shades(np.concatenate((self.values, other.values)), np.concatenate((self.there, other.there)))

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        at = rows.numpy()
        return {"values": torch.from_numpy(self.values[at]), "mask": torch.from_numpy(self.there[at])}

    def save(self, folder: Path, name: str) -> None:
        write_array(folder / f"{name}_values.npy", self.values)
        write_array(folder / f"{name}_there.npy", self.there)

    @classmethod
    def load(cls, folder: Path, name: str, *, mmap: bool = True) -> Shades:
        return cls(*(read_array(folder / f"{name}_{part}.npy", mmap=mmap) for part in ("values", "there")))


class ShadeType(InputType):
    """Pictures in shades of grey."""

    name = "shade"
    depth = 2
    store = Shades

    def infer(self, column: InputColumn) -> str | None:
        cells = [cell for cell in column.series if cell is not None]
        found = bool(cells) and all(isinstance(cell, np.ndarray) and cell.ndim == 2 for cell in cells)
        return f"{column.name!r} holds pictures" if found else None

    def read(self, column: InputColumn) -> list[Any]:
        return column.series.tolist()

    def fit(self, column: InputColumn, read: Any, fitting: Any) -> FittedShades:
        train = [cell for cell in np.array([*read, None], object)[:-1][fitting.rows] if cell is not None]
        return FittedShades(column.name, shape=train[0].shape, mean=float(np.mean(train)))

    def restore(self, saved: Any) -> FittedShades:
        return FittedShades(saved.name, shape=tuple(saved.state["shape"]), mean=saved.state["mean"])


@dataclass(frozen=True)
class FittedShades(FittedInput):
    """What was learnt of pictures: their shape and mean."""

    shape: tuple[int, ...] = ()
    mean: float = 0.0

    record = ShadeType()

    def stored(self, read: Any) -> Shades:
        values = np.full((len(read), *self.shape), round(self.mean), np.uint8)
        for row, cell in enumerate(read):
            if cell is not None:
                values[row] = cell
        return Shades(values, np.array([cell is not None for cell in read], bool))

    def state(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "mean": self.mean}

    def schema(self, statistics: Any) -> dict[str, Any]:
        return {"type": ["array", "null"], "items": {"type": "array", "items": {"type": "integer"}}}

    def read_cell(self, value: Any, limits: Any) -> Any:
        if value is None:
            return None
        rows = value if isinstance(value, list) else [value]
        whole = all(isinstance(row, list) and all(type(n) is int and 0 <= n < 256 for n in row) for row in rows)
        if not whole or {len(rows), *map(len, rows)} != set(self.shape) or len(rows) != self.shape[0]:
            raise Unfit(f"takes {self.shape[0]} lists of {self.shape[1]} shades from 0 to 255")
        return np.array(value, np.uint8)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(FittedShades.record)
    yield
    INPUTS._held.pop("shade", None)


def pictures(n: int = N, seed: int = 0) -> list[Any]:
    """Every tenth is missing."""
    values = np.random.default_rng(seed).integers(0, 256, (n, HIGH, WIDE)).astype(np.uint8)
    return [None if i % 10 == 3 else values[i] for i in range(n)]


def frame(**columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    plain = {"x": rng.normal(size=N), "y": rng.normal(size=N), "z": rng.integers(0, 2, N)}
    return pd.DataFrame({"photo": pictures(), **plain, **columns})


def made(data: pd.DataFrame | None = None, **roles: Any) -> tuple[Table, Prepared]:
    tasks = roles.pop("tasks", ["y:regression", "z:binary"])
    table = Table(frame() if data is None else data, tasks, split="random", **roles)
    return table, prepare(table, split(table, 0))


def assert_holds(data: Prepared, cells: list[Any], rows: list[int]) -> None:
    """A batch has the pictures of its rows."""
    found = data.batch(torch.tensor(rows)).inputs["photo"]
    assert found["values"].dtype == torch.uint8
    assert found["mask"].tolist() == [cells[row] is not None for row in rows]
    for place, row in enumerate(rows):
        if cells[row] is not None:
            assert np.array_equal(found["values"][place], cells[row])


def test_a_table_finds_it_and_a_batch_holds_it() -> None:
    table, data = made()
    assert table.types["photo"] is FittedShades.record
    assert "'photo' holds pictures" in table.notes
    assert isinstance(data.stores["photo"], Store)
    assert_holds(data, pictures(), [5, 3, 5, 80])
    fitted = data.columns.inputs[0]
    assert isinstance(fitted, FittedShades)
    train = [cell for row, cell in enumerate(pictures()) if cell is not None and row in set(data.parts["train"].tolist())]
    assert fitted.mean == pytest.approx(np.mean(train)), "it may learn from training rows alone"
    assert data.columns.names == ("x",), "a store is no feature"


def test_candidates_that_do_not_read_it_go_by_the_other_columns() -> None:
    _, data = made()
    alone = made(frame()[["photo", "y", "z"]])[1]
    for entry in catalog.entries(family="candidate"):
        if entry.name == "constant":  # it reads no column, and says nothing of any
            continue
        candidate = entry.resolve()()
        assert "photo" in candidate.ignored(data), entry.name
        assert candidate.unreadable(alone) is not None, entry.name


@pytest.mark.parametrize("mmap", [True, False])
def test_workers_map_it_from_disk(mmap: bool, tmp_path: Path) -> None:
    _, data = made()
    data.with_ragged("later", Ragged.of([[i] for i in range(N)])).save(tmp_path / "data")
    back = Prepared.load(tmp_path / "data", mmap=mmap)
    shades = back.stores["photo"]
    assert isinstance(shades, Shades)
    assert isinstance(shades.values.base, np.memmap) == mmap
    assert_holds(back, pictures(), [0, 3, 44])
    assert back.ragged.keys() == {"later"}
    assert_holds(back.only(["y"]).with_parts(train=np.arange(4)), pictures(), [1, 2])


def test_it_travels_with_the_columns(tmp_path: Path) -> None:
    """The manifest is plain JSON; further tables are encoded alike, and missing cells as the mean that was learnt."""
    _, data = made()
    (tmp_path / "model").mkdir()
    manifest = json.loads(json.dumps(data.columns.write(tmp_path / "model")))
    columns = FittedColumns.read(tmp_path / "model", manifest)
    assert columns.inputs == data.columns.inputs
    again = columns.prepare(frame()[["x", "photo"]], ())
    assert_holds(again, pictures(), list(range(N)))
    assert (again.batch(torch.tensor([3])).inputs["photo"]["values"] == round(columns.inputs[0].state()["mean"])).all()


def test_a_folder_of_an_unknown_type_is_refused_in_one_line(tmp_path: Path) -> None:
    _, data = made()
    data.save(tmp_path / "data")
    INPUTS._held.pop("shade")
    with pytest.raises(BadInput, match="column 'photo': has a column of type 'shade', which is not known here; import") as caught:
        Prepared.load(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(BadInput, match="input 'shade' is registered already"):
        register(FittedShades.record)


def test_the_cells_of_a_request() -> None:
    """The type reads them; a bad one is an error of its own row; rows are encoded as a frame is."""
    _, data = made()
    reader = BodyReader(data.columns, Limits())
    good = pictures()[:3]
    rows: list[Any] = [{"photo": cell.tolist(), "x": 0.5} for cell in good]
    bad = ["a", 7, [[1, 2], [3]], [[256] * WIDE] * HIGH, [[0] * WIDE] * (HIGH + 1), [[None] * WIDE] * HIGH, {"a": 1}, [[[]]]]
    body = [*rows, *({"photo": cell, "x": 0.5} for cell in bad), {"photo": None, "x": None}, {"x": 1.0}]
    found = reader.json(json.dumps({"rows": body}).encode())
    assert found.good == [0, 1, 2, 3 + len(bad)]
    for place in range(3, 3 + len(bad)):
        assert found.errors[place] == f"column 'photo': takes {HIGH} lists of {WIDE} shades from 0 to 255"
    assert "lacks the column 'photo'" in found.errors[4 + len(bad)]
    encoded = RowEncoder(data.columns, data.tasks, reader.names)(found.values)
    assert_holds(encoded, [*good, None], [0, 1, 2, 3])
    assert encoded.numeric[0, 0] == data.columns.prepare(pd.DataFrame({"photo": good, "x": 0.5}), ()).numeric[0, 0]


def test_the_cells_of_an_arrow_body() -> None:
    """Lists within lists are refused of other columns, and read here as deep as the type says."""
    _, data = made()
    reader = BodyReader(data.columns, Limits())
    table = pa.table({"photo": [pictures()[0].tolist(), None], "x": [0.5, 1.0]})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    found = reader.arrow(out.getvalue())
    assert found.good == [0, 1]
    assert_holds(RowEncoder(data.columns, data.tasks, reader.names)(found.values), [pictures()[0], None], [0, 1])


def test_lineage_and_copies_look_into_it() -> None:
    """One shade of one picture is another table; a row that stands twice is found."""
    table, data = made()
    same, _ = made()
    changed = pictures()
    changed[0] = changed[0].copy()
    changed[0][0, 0] += 1
    other, _ = made(frame(photo=changed))
    assert leakage.lineage(table) == leakage.lineage(same)
    assert leakage.lineage(table) != leakage.lineage(other)
    doubled = pd.concat([frame()] * 2, ignore_index=True)
    twice = Table(doubled, ["y:regression", "z:binary"], split="random")
    assert leakage.duplicates(twice, split(twice, 0))
    assert {finding.kind for finding in leakage.check(table, split(table, 0), data)} <= {"determines", "not_at_random"}


def test_items_may_have_it() -> None:
    """As an attribute of an item table, which may grow."""
    table = ItemTable(pd.DataFrame({"key": range(9), "photo": pictures(9), "price": np.arange(9.0)}), "key", ["thing"])
    data = made(frame(thing=np.arange(N) % 9).drop(columns="photo"), items={"thing": table})[1]
    shades = data.items["thing"].stores["photo"]
    assert isinstance(shades, Shades)
    assert np.array_equal(shades.values[4], pictures(9)[4])
    new = pd.DataFrame({"key": [9], "photo": pictures(1, seed=5), "price": [1.0]})
    grown = data.columns.grown({"thing": new}).items["thing"].data.stores["photo"]
    assert isinstance(grown, Shades)
    assert len(grown) == 10
    assert np.array_equal(grown.values[9], pictures(1, seed=5)[0])


def test_who_does_not_read_it_needs_none() -> None:
    """A task that reads other columns is predicted from rows without pictures."""
    _, data = made(tasks=[Task("y", "regression", inputs=("x",)), Task("z", "binary")])
    columns, (y, z) = data.columns, data.tasks
    rows = frame()[["x"]]
    assert not columns.prepare(rows, [y]).batch(torch.tensor([0])).inputs["photo"]["mask"].any()
    with pytest.raises(BadInput, match="lacks 1 input column: 'photo'"):
        columns.prepare(rows, [y, z])
    reader = BodyReader(columns, Limits(), data.tasks)
    body = json.dumps([{"x": 0.5}]).encode()
    assert reader.json(body, ["y"]).good == [0]
    assert "lacks the column 'photo'" in reader.json(body, ["z"]).errors[0]
    assert "lacks the column 'photo'" in reader.json(body).errors[0]
