"""A small table with holes and a small model, for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.data.prepared import Cells, Prepared
from pluribus.modeling import Encoder, Features, MultiTaskModel, Shared, Sharing
from pluribus.tasks import Task

TASKS = (
    Task("default", "binary", classes=("0", "1")),
    Task("loss", "regression"),
    Task("grade", "multiclass", classes=("a", "b", "c")),
    Task("calls", "count"),
    Task("rating", "ordinal", classes=("low", "mid", "high")),
)


class TinyEncoder(Encoder):
    def __init__(self, inputs: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Dropout(dropout))

    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features:
        return Features(self.body(inputs["numeric"]))


class Bottom(Sharing):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Features, rows: Rows) -> Shared:
        return Shared(dict.fromkeys(rows, features))


def make_data(n: int = 600, tasks: tuple[Task, ...] = TASKS, holes: float = 0.4, seed: int = 0) -> Prepared:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    signal = x @ rng.normal(size=(6, 5))
    values = {
        "default": (signal[:, 0] + rng.normal(size=n) > 0.5).astype(float),
        "loss": 1000 + 50 * signal[:, 1] + 10 * rng.normal(size=n),
        "grade": np.argmax(signal[:, :3] + rng.normal(size=(n, 3)), 1).astype(float),
        "calls": rng.poisson(np.exp(np.clip(0.3 * signal[:, 3], -2, 2))).astype(float),
        "rating": np.digitize(signal[:, 4] + rng.normal(size=n), [-1, 1]).astype(float),
    }
    cells = {}
    for task in tasks:
        rows = np.flatnonzero(rng.random(n) > holes) if holes else np.arange(n)
        cells[task.name] = Cells(rows, values[task.name][rows])
    order = rng.permutation(n)
    parts = {"train": np.sort(order[: n * 2 // 3]), "valid": np.sort(order[n * 2 // 3 :])}
    columns: Any = None
    return Prepared(tasks, columns, x, np.zeros((n, 0), np.int32), cells, parts, np.arange(n))


def make_model(tasks: tuple[Task, ...] = TASKS, dropout: float = 0.0, seed: int = 0) -> MultiTaskModel:
    torch.manual_seed(seed)
    return MultiTaskModel(tasks, TinyEncoder(6, 16, dropout), Bottom(16))


@pytest.fixture
def data() -> Prepared:
    return make_data()


@pytest.fixture
def model() -> MultiTaskModel:
    return make_model()


@pytest.fixture
def make() -> tuple[Callable[..., Prepared], Callable[..., MultiTaskModel]]:
    return make_data, make_model
