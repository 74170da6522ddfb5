"""A domain of pictures that this project has never heard of goes through all of it: study, report, folder, files and server.

Everything that the domain brings stands in this file: a type of input (pictures as arrays in cells), a kind (a class a place), an
additive metric, an encoder and a candidate. If this fails, who brings a domain must change the library, and not only add to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from torch import Tensor, nn

import pluribus
from pluribus import catalog
from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data.inputs.record import INPUTS, FittedInput, InputColumn, InputType, Unfit
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.files.arrays import read_array, write_array
from pluribus.modeling import Budget, Candidate, Encoder, Features, FitRecord, Fitted
from pluribus.serving import application
from pluribus.study import Study, StudyResult
from pluribus.study.trial import read_predictions
from pluribus.tabular.network import Network, build
from pluribus.tasks import Task
from pluribus.tasks.columns import Column
from pluribus.tasks.forms import VOID, Maps, Values
from pluribus.tasks.kinds import KINDS, Kind
from pluribus.tasks.kinds.record import Declared, Empty
from pluribus.tasks.metrics import METRICS, Additive
from pluribus.training import Stage, Trainer

SIDE = 8

# -- the type of input: a picture is an array [H, W, 3] in a cell ----------------------------------------------------------------


@dataclass(frozen=True)
class PictureStore:
    """uint8 [n, H, W, 3]; black where there is no picture."""

    values: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> PictureStore:
        return PictureStore(self.values[rows])

    def followed_by(self, other: PictureStore) -> PictureStore:
        return PictureStore(np.concatenate((self.values, other.values)))

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        return {"values": torch.from_numpy(np.asarray(self.values[rows.numpy()])).movedim(-1, 1)}

    def save(self, folder: Path, name: str) -> None:
        write_array(folder / f"{name}_values.npy", self.values)

    @classmethod
    def load(cls, folder: Path, name: str, *, mmap: bool = True) -> PictureStore:
        return cls(read_array(folder / f"{name}_values.npy", mmap=mmap))


class PictureType(InputType):
    name = "picture"
    depth = 3
    store = PictureStore

    def infer(self, column: InputColumn) -> str | None:
        cells = column.series.dropna()
        pictures = len(cells) and all(isinstance(cell, np.ndarray) and cell.ndim == 3 for cell in cells)
        return f"{column.name!r} holds pictures" if pictures else None

    def read(self, column: InputColumn) -> Any:
        return list(column.series)

    def fit(self, column: InputColumn, read: Any, fitting: Any) -> FittedInput:
        return FittedPictures(column.name, shape=next(cell.shape for cell in read if cell is not None))

    def restore(self, saved: Any) -> FittedInput:
        return FittedPictures(saved.name, shape=tuple(saved.state["shape"]))


@dataclass(frozen=True)
class FittedPictures(FittedInput):
    shape: tuple[int, ...] = (SIDE, SIDE, 3)
    record: ClassVar[InputType]

    def stored(self, read: Any) -> PictureStore:
        black = np.zeros(self.shape, np.uint8)
        return PictureStore(np.stack([black if cell is None else np.asarray(cell, np.uint8) for cell in read]))

    def state(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    def schema(self, statistics: Any) -> dict[str, Any]:
        return {"type": ["array", "null"], "description": f"numbers from 0 to 255, {' by '.join(map(str, self.shape))}"}

    def read_cell(self, value: Any, limits: Any) -> Any:
        if value is None:
            return None
        try:
            found = np.array(value, np.float64)
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.shape != self.shape or not ((found >= 0) & (found <= 255)).all():
            raise Unfit(f"takes numbers from 0 to 255, {' by '.join(map(str, self.shape))}")
        return found.astype(np.uint8)


PICTURE = PictureType()
FittedPictures.record = PICTURE

# -- the kind: one of the task's classes at each place, 255 where nobody said ----------------------------------------------------


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    assert mask is not None
    each = F.cross_entropy(outputs, values.long().masked_fill(~mask, 0), reduction="none")
    return (each * mask).sum((1, 2)) / mask.sum((1, 2))


class Regions(Kind):
    """A map of class indices in TASK."""

    phrase = "is a map of classes"
    verb = "paint regions"

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        cells = [np.asarray(cell, np.uint8) if cell is not None else None for cell in column.series]
        shape = next(cell.shape for cell in cells if cell is not None)
        for row, cell in enumerate(cells):
            if cell is not None and (cell.shape != shape or ((cell >= len(task.classes)) & (cell != VOID)).any()):
                raise BadInput(f"row {row + 1} holds no map of {len(task.classes)} classes", where=column.where)
        whole = np.stack([np.full(shape, VOID, np.uint8) if cell is None else cell for cell in cells])
        return Maps(whole), (whole == VOID).all((1, 2))

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        return {task.name: [each.tolist() for each in np.asarray(predictions, np.uint8)]}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        return self.read(task, columns[task.name])

    def schema(self, task: Declared) -> dict[str, dict[str, Any]]:
        return {task.name: {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}}


REGIONS = Regions(
    "regions",
    lambda size: size,
    _loss,
    lambda outputs: outputs.argmax(1).to(torch.uint8),
    lambda values, size: (torch.bincount(values.long(), minlength=size).float() + 1).log(),
    ("painted", "mean_iou"),
    classes=True,
    quantity=False,
    cell="map",
    form="regions",
)

# -- two metrics: the share of places that are right, and the mean over classes of intersection by union -------------------------


def _painted(said: Any, true: Any, mask: Any) -> Any:
    return np.stack([mask.sum((1, 2)), ((said == true) & mask).sum((1, 2))], 1)


def _overlaps(said: Any, true: Any, mask: Any) -> Any:
    both = [((said == c) & (true == c) & mask).sum((1, 2)) for c in range(3)]
    any_ = [(((said == c) | (true == c)) & mask).sum((1, 2)) for c in range(3)]
    return np.stack([*both, *any_], 1)


def _mean_iou(sums: Any) -> Any:
    return np.nanmean(np.where(sums[:, 3:] > 0, sums[:, :3] / sums[:, 3:], np.nan), 1)


PAINTED = Additive("painted", "max", ("regions",), terms=_painted, finish=lambda sums: sums[:, 1] / sums[:, 0], best=1.0)
MEAN_IOU = Additive("mean_iou", "max", ("regions",), terms=_overlaps, finish=_mean_iou, best=1.0)

# -- the encoder and the candidates ----------------------------------------------------------------------------------------------


class PictureEncoder(Encoder):
    """Pictures → features at half their size, and their mean."""

    def __init__(self, name: str, width: int = 12) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 2, stride=2), nn.ReLU())

    @classmethod
    def of(cls, columns: Any, *, name: str, width: int = 12) -> PictureEncoder:
        return cls(name, width)

    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features:
        places = self.layers(inputs[self.name]["values"].float() / 255)
        return Features(places.mean((2, 3)), (places,), context=context)


class Painter(Candidate):
    """A small network over one column of pictures."""

    name = "painter"
    road = "train"
    label = "painter"
    reads = frozenset({"picture"})
    cells = frozenset({"value", "map"})
    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 25, "width": 12}

    def estimate(self, data: Prepared) -> float:
        return 5.0

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Fitted:
        pictures = next(column.name for column in data.columns.inputs if column.type == "picture")
        config = {
            "encoder": {"name": "pictures", "settings": {"name": pictures, "width": self.settings["width"]}},
            "sharing": {"name": "shared_bottom", "settings": {}},
        }
        torch.manual_seed(seed)
        model = build(data.tasks, data.columns, config)
        stage = Stage(tuple(task.name for task in data.tasks), epochs=self.settings["epochs"], batch_size=32, lr=1e-2)
        history = Trainer(model, [stage], seed=seed).fit(data)
        fitted = Network(data.tasks, data.columns, config, model)
        record = FitRecord(settings=dict(self.settings), seed=seed, seconds=1.0, curves=history.scores)
        record.undertrained = history.undertrained()
        fitted.record = record
        return fitted


class PainterAlone(Painter):
    """The same, as a reference of the verdict."""

    name = "painter_alone"
    label = "painter, alone"
    per_task = True


HERE = __name__


@pytest.fixture(scope="module", autouse=True)
def domain() -> Iterator[None]:
    """The domain moves in, and out again."""
    records: list[tuple[Any, Any]] = [(INPUTS, PICTURE), (KINDS, REGIONS), (METRICS, PAINTED), (METRICS, MEAN_IOU)]
    for family, record in records:
        family.register(record)
    entries = [
        catalog.Entry("pictures", "train", "encoder", f"{HERE}:PictureEncoder"),
        catalog.Entry("painter", "train", "candidate", f"{HERE}:Painter"),
        catalog.Entry("painter_alone", "train", "candidate", f"{HERE}:PainterAlone"),
    ]
    for entry in entries:
        catalog.register(entry)
    yield
    for entry in entries:
        del catalog._all()[entry.family, entry.name]
    for family, record in records:
        del family._held[record.name]


def _frame(rows: int = 150) -> pd.DataFrame:
    """Blocks of three colours with noise; the colours are the regions. Some places, and some pictures, have no label."""
    rng = np.random.default_rng(0)
    pictures: list[Any] = []
    regions: list[Any] = []
    bright: list[float] = []
    for _ in range(rows):
        true = np.kron(rng.integers(0, 3, (SIDE // 2, SIDE // 2)), np.ones((2, 2), int)).astype(np.uint8)
        picture = 60 * np.eye(3)[true] + rng.normal(60, 15, (SIDE, SIDE, 3))
        pictures.append(picture.clip(0, 255).astype(np.uint8))
        bright.append(float((true == 0).mean()))
        true[rng.random(true.shape) < 0.1] = VOID
        regions.append(true if rng.random() > 0.1 else None)
    return pd.DataFrame({"picture": pictures, "regions": regions, "bright": bright})


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    table = Table(_frame(), [Task("regions", "regions", ("red", "green", "blue")), Task("bright", "regression")], split="random")
    return Study(
        table,
        candidates=["painter", "painter_alone"],
        folder=tmp_path_factory.mktemp("runs"),
        name="regions",
        jobs=1,
        budget=60,
        seeds=2,
    ).run()


def test_a_study_judges_it(result: StudyResult) -> None:
    """Maps and values of one picture are learnt together, the verdict compares joint and single, and the report stands."""
    assert result.verdict is not None
    by_name = {task.task: task for task in result.verdict.comparisons[0].tasks}
    assert by_name["regions"].metric == "painted"
    assert min(by_name["regions"].challenger_seeds) > 0.8
    assert 0.2 < by_name["regions"].constant < 0.5
    for path in (result.folder / "work" / "trials").glob("final-*/valid.npz"):  # terms, never maps
        kept = read_predictions(path)
        assert set(kept["regions"].each) == {"painted", "mean_iou"}
        assert isinstance(kept["bright"], np.ndarray)
    page = result.report.read_text("utf-8")
    assert "painted" in page
    assert "painter, alone" in page


def test_its_model_predicts_and_serves(result: StudyResult, tmp_path: Path) -> None:
    """From the folder: maps as large as the labels, the same from files and from the server."""
    fitted = pluribus.load(result.folder / "model")
    frame = _frame(20)
    found = fitted.predict(frame)
    maps = np.array(found["regions"].tolist())
    assert maps.shape == (20, SIDE, SIDE)
    true = [cell for cell in frame["regions"] if cell is not None]
    said = maps[frame["regions"].notna().to_numpy()]
    assert np.mean([(a == b)[b != VOID].mean() for a, b in zip(said, true)]) > 0.8
    fitted.save(tmp_path / "again")
    again = pluribus.load(tmp_path / "again").predict(frame)
    assert again["regions"].tolist() == found["regions"].tolist()
    with TestClient(application(fitted)) as client:
        rows: list[dict[str, Any]] = [{"picture": picture.tolist()} for picture in frame["picture"]]
        slots = client.post("/predict", json={"rows": [*rows, {"picture": [[1, 2], [3]]}, {"picture": None}]}).json()["rows"]
        assert [slot["values"]["regions"] for slot in slots[:20]] == found["regions"].tolist()
        assert "takes numbers from 0 to 255" in slots[20]["error"]
        assert len(slots[21]["values"]["regions"]) == SIDE
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        assert schemas["Row"]["properties"]["picture"]["description"].startswith("numbers from 0 to 255")


def test_terms_take_the_place_of_maps(result: StudyResult) -> None:
    """The metric of the terms is that of the maps."""
    fitted = pluribus.load(result.folder / "model")
    data = _prepared()
    cells = data.labelled("regions", "valid")
    terms = fitted.terms(data, {"regions": cells})["regions"]
    said = fitted.scores(data, cells.rows, ["regions"])["regions"]
    for metric in (PAINTED, MEAN_IOU):
        value = metrics.compute(metric, said, cells.values)
        assert metric.finished(terms[metric.name].sum(0)[None])[0] == pytest.approx(value)


def test_who_cannot_answer_maps_says_so() -> None:
    data = _prepared()
    assert LightGBMPerTask().unreadable(data) == "it does not paint regions"
    assert Painter().unreadable(data) is None
    assert LightGBMPerTask().unreadable(data.only(["bright"])) == "the inputs are picture only, which it does not read"


def _prepared() -> Prepared:
    table = Table(_frame(), [Task("regions", "regions", ("red", "green", "blue")), Task("bright", "regression")], split="random")
    return prepare(table, split(table, 0))
