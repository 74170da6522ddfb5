"""Tasks that read some of the columns. If these fail, who asks for one task must bring the columns of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

import pluribus
from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data import Table, prepare, split
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Fitted
from pluribus.serving import application
from pluribus.tasks import Task

N = 200


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=N), rng.choice(["a", "b"], N)
    return pd.DataFrame({"x": x, "w": w, "y": x + 0.1 * rng.normal(size=N), "z": (w == "a").astype(int)})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """From its folder: what a task reads travels along."""
    table = Table(frame(), [Task("y", "regression", inputs=("x",)), Task("z", "binary", inputs=("w",))], split="random")
    folder: Path = tmp_path_factory.mktemp("model") / "model"
    LightGBMPerTask().fit(prepare(table, split(table, 0)), Budget(30.0), 0).save(folder)
    return pluribus.load(folder)


def test_a_table_needs_the_columns_of_the_tasks_asked_for(fitted: Fitted) -> None:
    rows = frame().head(20)
    found = fitted.predict(rows[["x"]], ["y"])
    assert found["y"].notna().all()
    assert np.corrcoef(found["y"], rows["y"])[0, 1] > 0.8
    assert (fitted.predict(rows[["w"]], ["z"])["z__p"].round() == rows["z"]).all()
    with pytest.raises(BadInput, match="lacks 1 input column: 'w'"):
        fitted.predict(rows[["x"]])
    with pytest.raises(BadInput, match="lacks 1 input column: 'x'"):
        fitted.predict(rows[["w"]], ["y"])


def test_a_request_needs_the_columns_of_the_tasks_asked_for(fitted: Fitted) -> None:
    """Named in the body or in the address; the schema goes on asking for whole rows."""
    rows = frame().head(3)
    expected = fitted.predict(rows[["x"]], ["y"])["y"].tolist()
    body = {"rows": [{"x": x} for x in rows["x"]]}
    with TestClient(application(fitted)) as client:
        for found in (client.post("/predict", json={**body, "tasks": ["y"]}), client.post("/predict?tasks=y", json=body)):
            assert [slot["values"]["y"] for slot in found.json()["rows"]] == expected
        for found in (client.post("/predict", json=body), client.post("/predict?tasks=z", json=body)):
            assert all("lacks the column 'w'" in slot["error"] for slot in found.json()["rows"])
        assert client.get("/openapi.json").json()["components"]["schemas"]["Row"]["required"] == ["x", "w"]
