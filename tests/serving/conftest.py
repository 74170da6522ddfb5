"""Artefacts to serve: a small network with a tower a task, and a table of dates, words, booleans and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

CONFIG = {
    "encoder": {"name": "tabular_mlp", "settings": {"width": 16, "depth": 1}},
    "sharing": {"name": "shared_bottom", "settings": {"tower": 8}},
}


def network_of(data: Any) -> Any:
    """An untrained network whose heads are not constant."""
    from pluribus.tabular.network import Network, build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(data.tasks, data.columns, CONFIG)
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    return Network(data.tasks, data.columns, CONFIG, model)


@pytest.fixture(name="network_of", scope="session")
def _network_of() -> Any:
    return network_of


@pytest.fixture
def network(mixed: Any) -> Any:
    fitted = network_of(mixed)
    fitted.thresholds = {"default": 0.4}
    return fitted


@pytest.fixture
def rows(mixed_frame: Any) -> list[dict[str, Any]]:
    """Twelve rows of the mixed table as JSON objects, some cells missing."""
    picked = mixed_frame[["x0", "x1", "x2", "x3", "word"]].head(12).astype(object)
    found: list[dict[str, Any]] = picked.where(picked.notna(), None).to_dict("records")
    return found


@pytest.fixture(scope="session")
def dated() -> Any:
    """Columns of every type, an id, and two tasks, prepared."""
    import pandas as pd

    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table

    rng = np.random.default_rng(1)
    n = 300
    frame = pd.DataFrame({"key": [f"k{i:03d}" for i in range(n)], "x": rng.normal(size=n), "flag": rng.random(n) > 0.5})
    frame["when"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 500, n), unit="h")
    frame["word"] = rng.choice(["é", "b"], n)
    frame["y"] = frame["x"] + frame["flag"]
    frame["z"] = rng.random(n) > 0.5
    table = Table(frame, ["y:regression", "z:binary"], id="key", split="random")
    return frame, prepare(table, split(table, 0))


@pytest.fixture
def client_of() -> Any:
    """`client_of(fitted, **settings)`: a test client of its application, running."""
    from contextlib import ExitStack

    from fastapi.testclient import TestClient

    from pluribus.serving import application

    with ExitStack() as stack:

        def make(fitted: Any, *arguments: Any, **settings: Any) -> Any:
            return stack.enter_context(TestClient(application(fitted, *arguments, **settings), raise_server_exceptions=False))

        yield make
