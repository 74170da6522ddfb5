"""Folders written by the first edition (`tests/fixtures/first_edition`) load, predict, serve, resume and report as before.

If one of these fails, a folder that a user keeps from before has stopped working or answers otherwise. The folders are never
written again: mend the code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pluribus
from pluribus.cli import run
from pluribus.data.prepared import Prepared
from pluribus.modeling import Fitted
from pluribus.study import Study, open_run

FIRST = Path(__file__).parents[1] / "fixtures" / "first_edition"
MODELS = sorted(folder.name for folder in (FIRST / "models").iterdir())
PREPARED = sorted(folder.name for folder in (FIRST / "prepared").iterdir())
EXTRAS = {
    "text_network": "transformers",
    "text_hub": "transformers",
    "merge": "transformers",
    "merge-container": "transformers",
    "booster": "numba",
}


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _needs(artefact: str) -> None:
    module = EXTRAS.get(artefact)
    if module is not None:
        pytest.importorskip(module, reason=f"a model of kind {artefact!r} needs {module}, which is not installed")


@cache
def _loaded(name: str) -> Fitted:
    return pluribus.load(FIRST / "models" / name / "model")


@pytest.fixture(name="answers")
def _answers(name: str) -> Any:
    """What the first edition said of a model; skips where what the model needs is not installed."""
    found = _read(FIRST / "models" / name / "answers.json")
    _needs(found["artefact"])
    return found


def _rows(answers: Mapping[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(FIRST / "inputs" / f"{answers['inputs']}.parquet")


def _plain(value: Any) -> Any:
    """A cell, or a nesting of lists of cells, as JSON has it."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(each) for each in value]
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _same(found: Any, expected: Any, where: str = "", tolerance: float = 1e-6) -> None:
    """Equal in names, order, labels and holes, and in numbers to the tolerance."""
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for key in expected:
            _same(found[key], expected[key], f"{where}/{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected)):
            _same(*pair, f"{where}/{i}", tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert found == expected, where


def _same_table(found: pd.DataFrame, expected: Mapping[str, Any]) -> None:
    assert list(found.columns) == list(expected)
    for column, values in expected.items():
        _same(_plain(found[column].tolist()), values, column)


def _without_words(schema: Any) -> Any:
    """A schema without what is only said to people."""
    if isinstance(schema, list):
        return [_without_words(each) for each in schema]
    if isinstance(schema, dict):
        return {key: _without_words(value) for key, value in schema.items() if key != "description"}
    return schema


@pytest.mark.parametrize("name", MODELS)
def test_predicts_as_before(name: str, answers: Any) -> None:
    fitted = _loaded(name)
    assert fitted.artefact == answers["artefact"]
    _same_table(fitted.predict(_rows(answers)), answers["predict"])


@pytest.mark.parametrize("name", MODELS)
def test_predicts_one_task_alone_as_before(name: str, answers: Any) -> None:
    fitted = _loaded(name)
    task = fitted.tasks[-1].name
    own = {c: v for c, v in answers["predict"].items() if c == task or c.startswith(f"{task}__p")}
    _same_table(fitted.predict(_rows(answers), [task]), own)


@pytest.mark.parametrize("name", MODELS)
def test_costs_what_it_did(name: str, answers: Any) -> None:
    found = _loaded(name).costs().to_dict()
    del found["rows_per_second"]  # the clock's
    _same(found, answers["costs"])


@pytest.mark.parametrize("name", MODELS)
def test_saved_again_it_answers_the_same(name: str, answers: Any, tmp_path: Path) -> None:
    _loaded(name).save(tmp_path / "again")
    _same_table(pluribus.load(tmp_path / "again").predict(_rows(answers)), answers["predict"])


@pytest.mark.parametrize("name", MODELS)
def test_serves_as_before(name: str, answers: Any) -> None:
    """Over HTTP: the rows' values, which rows and tasks fail (not the words), and what the schema says a row holds."""
    for module in ("fastapi", "prometheus_client", "httpx"):
        pytest.importorskip(module, reason=f"serving is tested with {module}, which is not installed")
    from fastapi.testclient import TestClient

    from pluribus.serving import application

    rows = _read(FIRST / "inputs" / f"{answers['inputs']}.json")
    with TestClient(application(_loaded(name))) as client:
        reply = client.post("/predict", json={"rows": [*rows, {"nothing": 1}]})
        assert reply.status_code == 200, reply.text
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    found, expected = reply.json()["rows"], answers["served"]
    for each in (*found, *expected):
        if "error" in each:
            each["error"] = "an error"
        if "failed" in each:
            each["failed"] = sorted(each["failed"])
    _same(found, expected)
    for part, schema in answers["schemas"].items():
        assert _without_words(schemas[part]) == _without_words(schema), part


@pytest.mark.parametrize("name", PREPARED)
def test_prepared_tables_hold_the_same(name: str) -> None:
    """Inputs, labels, parts, units and texts of a prepared table are those that were saved."""
    data = Prepared.load(FIRST / "prepared" / name / "data")
    expected = _read(FIRST / "prepared" / name / "arrays.json")
    batch = data.batch(torch.arange(data.n_rows))

    def read(value: Any) -> Any:
        return {key: read(each) for key, each in value.items()} if isinstance(value, Mapping) else _plain(value.tolist())

    labels = {}
    for task, found in batch.labels.items():
        values = found.values.tolist()
        labels[task] = {
            "rows": found.rows.tolist(),
            "values": [[v for v in row if v >= 0] for row in values] if found.values.ndim > 1 else values,
            "weight": None if found.weight is None else found.weight.tolist(),
        }
    _same({key: read(value) for key, value in batch.inputs.items()}, expected["inputs"], "inputs")
    _same(labels, expected["labels"], "labels")
    _same({key: value.tolist() for key, value in batch.context.items()}, expected["context"], "context")
    assert {task: len(cells) for task, cells in data.cells.items()} == expected["cells"]
    assert {part: rows.tolist() for part, rows in data.parts.items()} == expected["parts"]
    assert data.units.tolist() == expected["units"]
    assert {column: [each[i] for i in range(data.n_rows)] for column, each in data.texts.items()} == expected["texts"]


def test_a_run_goes_on_from_a_snapshot(tmp_path: Path) -> None:
    """A training that the first edition was interrupted in ends as the one that it was not interrupted in."""
    from pluribus.balancing import UncertaintyWeighting
    from pluribus.tabular.network import Network, build
    from pluribus.training import Callback, Stage, Trainer

    class Count(Callback):
        epochs = 0

        def epoch(self, record: dict[str, Any]) -> None:
            self.epochs += 1

    expected = _read(FIRST / "snapshot" / "answers.json")
    data = Prepared.load(FIRST / "prepared" / "mixed" / "data")
    shutil.copytree(FIRST / "snapshot" / "snapshot", tmp_path / "snapshot")
    quick: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.01, "patience": None}
    stages = [Stage(**quick), Stage(balancer=UncertaintyWeighting(), **quick)]
    model, count = build(data.tasks, data.columns, expected["config"]), Count()
    history = Trainer(model, stages, seed=3, folder=tmp_path, callbacks=[count]).fit(data)
    assert 0 < count.epochs < 3, "it began anew"
    _same(history.rule, expected["rule"], "rule", 1e-5)  # further steps are taken here: rounding adds up
    _same(history.losses, expected["losses"], "losses", 1e-5)
    fitted = Network(data.tasks, data.columns, expected["config"], model)
    scores = fitted.scores(data, np.arange(data.n_rows), list(expected["scores"]))
    _same({task: value.tolist() for task, value in scores.items()}, expected["scores"], "scores", 1e-5)


@pytest.mark.parametrize("name", ["table", "checkpoints"])
def test_a_finished_study_opens_and_is_drawn(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`open_run` reads choice and verdict, and `pluribus report` draws the page from the run's files."""
    kept = FIRST / "studies" / name
    shutil.copytree(kept, tmp_path / name)
    result = open_run(tmp_path / name)
    assert result.choice == _read(kept / "choice.json")
    assert result.verdict is not None
    assert result.verdict.to_dict() == _read(kept / "verdict.json")
    assert run(["report", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / name / "report.html")
    headline = _read(kept / "report.json")["headline"]
    assert headline.partition(":")[0] in (tmp_path / name / "report.html").read_text("utf-8")
    assert len(pd.read_parquet(tmp_path / name / "results.parquet"))


def test_a_finished_study_is_the_same_call_s(tmp_path: Path) -> None:
    """The call that made a run finds it finished: its settings and data are still told apart from others as they were."""
    shutil.copytree(FIRST / "studies" / "table", tmp_path / "table")
    (tmp_path / "table" / "work").mkdir()  # with its trials there, another configuration is refused
    asked = _read(FIRST / "studies" / "table.settings.json")
    table = pd.read_parquet(FIRST / "inputs" / "study.parquet")
    result = Study(table, asked["targets"], folder=tmp_path, jobs=1, **asked["settings"]).run()
    assert result.choice == _read(FIRST / "studies" / "table" / "choice.json")
    assert not list((tmp_path / "table" / "work").iterdir()), "it was trained again"
    assert len(result.model.predict(table)) == len(table)
