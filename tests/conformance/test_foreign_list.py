"""A domain of lists that this project has never heard of goes through all of it: study, report, folder, files and server.

Everything that the domain brings stands in this file: a kind (spans in a signal), an additive metric, an encoder and a candidate.
If this fails, who brings a domain must change the library, and not only add to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastapi.testclient import TestClient
from torch import Tensor, nn

import pluribus
from pluribus import catalog
from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Candidate, Encoder, Features, FitRecord, Fitted
from pluribus.modeling.pieces import LIMIT
from pluribus.serving import application
from pluribus.study import Study, StudyResult
from pluribus.tabular.network import Network, build
from pluribus.tabular.single_networks import SingleNetworks
from pluribus.tasks.columns import Column
from pluribus.tasks.forms import NOTHING, Ragged, Values
from pluribus.tasks.kinds import KINDS, Kind
from pluribus.tasks.kinds.record import Declared, Empty
from pluribus.tasks.metrics import METRICS, Additive
from pluribus.training import Stage, Trainer, predict
from pluribus.training.judging import Judge

# -- the kind: spans of a signal, each its first place and the place behind its last ---------------------------------------------

OUTSIDE, BEGINS, GOES_ON = range(3)


def _marks(spans: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """Spans [m, K, 2] as one of three classes a place [m, length]."""
    there = spans[..., 0] >= 0 if mask is None else mask
    place = torch.arange(length)
    first, end = spans[..., :1], spans[..., 1:]
    inside = ((place >= first) & (place < end) & there[..., None]).any(1)
    begins = ((place == first) & there[..., None]).any(1)
    return torch.where(begins, BEGINS, torch.where(inside, GOES_ON, OUTSIDE))


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    target = _marks(values, mask, outputs.shape[1])
    return F.cross_entropy(outputs.movedim(-1, 1), target, reduction="none").mean(1)


def _link(outputs: Tensor, mask: Tensor | None = None) -> Tensor:
    marks = outputs.argmax(-1)
    if mask is not None:
        marks = marks.masked_fill(~mask, OUTSIDE)
    rows = []
    for row in marks.tolist():
        spans: list[list[int]] = []
        for place, mark in enumerate(row):
            if mark == BEGINS or (mark == GOES_ON and not (spans and spans[-1][1] == place)):
                spans.append([place, place + 1])
            elif mark == GOES_ON:
                spans[-1][1] = place + 1
        rows.append(spans)
    width = max([1, *map(len, rows)])
    return torch.tensor([spans + [[NOTHING, NOTHING]] * (width - len(spans)) for spans in rows]).reshape(len(rows), width, 2)


def _start(values: Tensor, size: int) -> Tensor:
    return torch.tensor([2.0, 0.0, 0.0])


class Spans(Kind):
    """Pairs of places in TASK."""

    phrase = "is a list of spans"
    verb = "find spans"

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        empty = np.asarray(column.series.isna())
        cells = [[] if hole else cell for cell, hole in zip(column.series, empty)]
        cells = [json.loads(cell) if isinstance(cell, str) else cell for cell in cells]
        for row, cell in enumerate(cells):
            if any(len(span) != 2 or not 0 <= span[0] < span[1] for span in cell):
                raise BadInput(f"row {row + 1} holds {cell!r}, which are no spans", where=column.where, remedy="write [[2, 5]]")
        return Ragged.of(cells, width=2), empty

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        lists = predictions if isinstance(predictions, Ragged) else Ragged.of_padded(predictions)
        return {task.name: [lists.row(place).tolist() for place in range(len(lists))]}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        return self.read(task, columns[task.name])

    def schema(self, task: Declared) -> dict[str, dict[str, Any]]:
        span = {"type": "array", "items": {"type": "integer"}}
        return {task.name: {"type": "array", "items": span}}


SPANS = Spans("spans", lambda _: 3, _loss, _link, _start, ("found_f1",), cell="list", quantity=False, form="spans")

# -- the metric: the F1 of whole spans, over all rows ----------------------------------------------------------------------------


def _lists(name: str, prediction: Any, target: Any) -> tuple[Ragged, Ragged]:
    said, true = (each if isinstance(each, Ragged) else Ragged.of_padded(each) for each in (prediction, target))
    return said, true


def _counts(said: Ragged, true: Ragged, mask: None) -> Any:
    sets = [[set(map(tuple, each.row(row).tolist())) for row in range(len(each))] for each in (said, true)]
    return np.array([[len(a), len(b), len(a & b)] for a, b in zip(*sets)], float).reshape(-1, 3)


def _f1(sums: Any) -> Any:
    return np.where(sums[:, 0] + sums[:, 1] > 0, 2 * sums[:, 2] / (sums[:, 0] + sums[:, 1]), np.nan)


FOUND_F1 = Additive("found_f1", "max", ("spans",), terms=_counts, finish=_f1, check=_lists, best=1.0)

# -- the encoder and the candidate -----------------------------------------------------------------------------------------------


class SignalEncoder(Encoder):
    """Signals → a vector a place, and their mean."""

    def __init__(self, name: str, width: int = 16) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.layers = nn.Sequential(
            nn.Conv1d(1, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 5, padding=2), nn.ReLU()
        )

    @classmethod
    def of(cls, columns: Any, *, name: str, width: int = 16) -> SignalEncoder:
        return cls(name, width)

    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features:
        values, mask = inputs[self.name]["values"], inputs[self.name]["mask"]
        places = self.layers((values * mask)[:, None]).movedim(1, -1) * mask[..., None]
        return Features(places.sum(1) / mask.sum(1, keepdim=True).clamp_min(1), (places,), mask, context)


class SpanFinder(Candidate):
    """A small network over one signal."""

    name = "span_finder"
    road = "train"
    label = "span finder"
    reads = frozenset({"sequence"})
    cells = frozenset({"value", "list"})
    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 30, "width": 16}

    def estimate(self, data: Prepared) -> float:
        return 5.0

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Fitted:
        signal = next(iter(data.ragged))
        config = {
            "encoder": {"name": "signal", "settings": {"name": signal, "width": self.settings["width"]}},
            "sharing": {"name": "shared_bottom", "settings": {}},
        }
        torch.manual_seed(seed)
        model = build(data.tasks, data.columns, config)
        stage = Stage(tuple(task.name for task in data.tasks), epochs=self.settings["epochs"], batch_size=32, lr=1e-2)
        history = Trainer(model, [stage], seed=seed).fit(data)
        fitted = Network(data.tasks, data.columns, config, model)
        fitted.record = FitRecord(
            settings=dict(self.settings), seed=seed, seconds=1.0, curves=history.scores, undertrained=history.undertrained()
        )
        return fitted


class SpanFinderAlone(SpanFinder):
    """The same, and a reference of the verdict: the table has one task of spans."""

    name = "span_finder_alone"
    label = "span finder, alone"
    per_task = True


HERE = __name__


@pytest.fixture(scope="module", autouse=True)
def domain() -> Iterator[None]:
    """The domain moves in, and out again."""
    KINDS.register(SPANS)
    METRICS.register(FOUND_F1)
    entries = [
        catalog.Entry("signal", "train", "encoder", f"{HERE}:SignalEncoder"),
        catalog.Entry("span_finder", "train", "candidate", f"{HERE}:SpanFinder", default=True),
        catalog.Entry("span_finder_alone", "train", "candidate", f"{HERE}:SpanFinderAlone", default=True),
    ]
    for entry in entries:
        catalog.register(entry)
    yield
    for entry in entries:
        del catalog._all()[entry.family, entry.name]
    del KINDS._held["spans"], METRICS._held["found_f1"]


def _frame(rows: int = 240) -> pd.DataFrame:
    """Noise with raised stretches, which are the spans; some labels are missing."""
    rng = np.random.default_rng(0)
    signals: list[Any] = []
    spans: list[Any] = []
    for _ in range(rows):
        values = rng.normal(0, 0.2, int(rng.integers(8, 20)))
        own, place = [], int(rng.integers(0, 4))
        while place + 2 <= len(values):
            end = min(len(values), place + int(rng.integers(2, 5)))
            values[place:end] += 2
            own.append([place, end])
            place = end + int(rng.integers(1, 6))
        signals.append(values.tolist())
        spans.append(own if rng.random() > 0.1 else None)
    return pd.DataFrame({"signal": signals, "events": spans, "level": [float(np.mean(s)) for s in signals]})


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return Study(
        _frame(),
        ["events:spans"],
        ignore=["level"],
        candidates=["span_finder", "span_finder_alone"],
        folder=tmp_path_factory.mktemp("runs"),
        name="spans",
        split="random",
        jobs=1,
        budget=60,
        seeds=2,
    ).run()


def test_a_study_judges_it(result: StudyResult) -> None:
    """Spans are found, the verdict compares joint and single, and the report stands."""
    assert result.verdict is not None
    (task,) = result.verdict.comparisons[0].tasks
    assert task.metric == "found_f1"
    assert min(task.challenger_seeds) > 0.6
    assert task.constant == 0, "the best constant says that there is no span"
    page = result.report.read_text("utf-8")
    assert "found_f1" in page
    assert "span finder" in page


def test_its_model_predicts_and_serves(result: StudyResult, tmp_path: Path) -> None:
    """From the folder: predictions are spans, the same from files and from the server, and near the truth."""
    fitted = pluribus.load(result.folder / "model")
    frame = _frame(30)
    found = fitted.predict(frame)["events"].tolist()
    right = [cell == true for cell, true in zip(found, frame["events"]) if true is not None]
    assert np.mean(right) > 0.6
    fitted.save(tmp_path / "again")
    assert pluribus.load(tmp_path / "again").predict(frame)["events"].tolist() == found
    with TestClient(application(fitted)) as client:
        rows = [{"signal": signal} for signal in frame["signal"]]
        slots = client.post("/predict", json={"rows": rows}).json()["rows"]
        assert [slot["values"]["events"] for slot in slots] == found
        schema = client.get("/openapi.json").json()["components"]["schemas"]["Values"]["properties"]["events"]
        assert schema["items"]["type"] == "array"


def test_training_judges_it_by_terms(result: StudyResult) -> None:
    """The rows of the valid part in pieces, each with its own longest list: the terms that are kept give the metric of the whole.
    If this fails, lists are cut to the longest of one piece, or judging holds all of them."""
    model, data = result.model, _prepared()
    assert isinstance(model, Network)
    judge = Judge(data.tasks[0], data)
    assert judge.by_terms
    rows = {"events": torch.from_numpy(judge.cells.rows)}
    whole = predict(model.model, data, rows)["events"]
    cut = predict(model.model, data, rows, bytes_each=LIMIT // 7)["events"]
    assert isinstance(cut, Ragged)
    assert [cut.row(i).tolist() for i in range(len(cut))] == [whole.row(i).tolist() for i in range(len(whole))]
    kept = predict(model.model, data, rows, bytes_each=LIMIT // 7, keep={"events": judge.terms})["events"]
    assert judge.score_of(kept) == pytest.approx(judge.score(whole))


def test_who_cannot_answer_lists_says_so() -> None:
    data = _prepared()
    assert SingleNetworks().unreadable(data) == "it does not find spans"
    assert LightGBMPerTask().unreadable(data) == "it does not find spans"
    assert SpanFinder().unreadable(data) is None


def _prepared() -> Prepared:
    table = Table(_frame(), ["events:spans"], split="random", ignore=("level",))
    return prepare(table, split(table, 0))
