"""Every artefact of the catalog keeps the protocol of `Fitted`; each is loaded from a folder that the first edition wrote.

A younger one (fixture "fit") is loaded from a folder that its candidate has just written.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.conformance.entries import entries_for

import pluribus
from pluribus import catalog
from pluribus.catalog import Entry
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, MissingExtra
from pluribus.modeling import Budget, Fitted
from pluribus.modeling.artefact.average import Average

FIRST = Path(__file__).parents[1] / "fixtures" / "first_edition"
LISTED = entries_for(__name__, "artefact", "folder", "fit")
MADE_BY = {  # younger artefacts → candidates that make them
    "average": ("lightgbm_per_task", "constant"),
    "chains": ("erc",),
    "constants": ("constant",),
    "forests": ("extra_trees",),
}
INPUTS = ["x0", "x1", "x2", "x3", "word"]


@cache
def _folders() -> dict[str, Path]:
    """Artefact → a folder of it."""
    found: dict[str, Path] = {}
    for answers in sorted((FIRST / "models").glob("*/answers.json")):
        found.setdefault(json.loads(answers.read_text("utf-8"))["artefact"], answers.parent)
    return found


@pytest.fixture(params=LISTED, ids=lambda entry: entry.name)
def fitted(request: pytest.FixtureRequest, mixed: Prepared, tmp_path: Path) -> Fitted:
    entry: Entry = request.param
    if entry.fixture == "fit":
        kinds = [catalog.get("candidate", name).resolve() for name in MADE_BY[entry.name]]
        quick = {"rounds": 5, "trees": 5}
        made = [kind(**{key: value for key, value in quick.items() if key in kind.defaults}) for kind in kinds]
        fits = {candidate.name: candidate.fit(mixed, Budget(60), 0) for candidate in made}
        weights = {task.name: dict(zip(fits, (3.0, 1.0))) for task in mixed.tasks}
        whole = Average(mixed.tasks, mixed.columns, fits, weights) if len(fits) > 1 else fits[made[0].name]
        whole.save(tmp_path / "model")
        return pluribus.load(tmp_path / "model")
    try:
        return pluribus.load(_folders()[entry.name] / "model")
    except MissingExtra as missing:
        pytest.skip(str(missing))


@pytest.fixture
def frame(fitted: Fitted, mixed_frame: pd.DataFrame) -> pd.DataFrame:
    if fitted.artefact in MADE_BY:
        return mixed_frame[INPUTS].head(8)
    answers = json.loads((_folders()[fitted.artefact] / "answers.json").read_text("utf-8"))
    return pd.read_parquet(FIRST / "inputs" / f"{answers['inputs']}.parquet")


def _part(value: Any, rows: Any) -> Any:
    return value[rows]


def _equal(one: Any, other: Any) -> None:
    """Predictions in any of the three forms."""
    for a, b in zip(_arrays(one), _arrays(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def _arrays(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return [value]
    return [value.values, value.starts] if hasattr(value, "starts") else [value.values]


def test_each_task_at_its_own_rows(fitted: Fitted, frame: pd.DataFrame) -> None:
    """Broken: a server that puts requests of several tasks into one pass answers some of them with another's rows."""
    names = [task.name for task in fitted.tasks]
    data = fitted.columns.prepare(frame, fitted.tasks)
    everything = fitted.scores(data, np.arange(data.n_rows), names)
    wanted = {name: np.array([4, 0, 3, 4][i % 2 :], np.int64) for i, name in enumerate(reversed(names))}
    found = fitted.answer(data, wanted)
    assert list(found) == list(wanted)
    for name, rows in wanted.items():
        _equal(found[name], _part(everything[name], rows))
    assert fitted.answer(data, {}) == {}


def test_nothing_to_turn_unless_it_says_so(fitted: Fitted) -> None:
    with pytest.raises(BadInput, match="no dial 'flops'"):
        fitted.at(flops=1e9)
    assert fitted.at() is fitted


def test_features_are_rows(fitted: Fitted, frame: pd.DataFrame) -> None:
    data = fitted.columns.prepare(frame, fitted.tasks)
    for name, value in fitted.features(data, np.array([2, 0], np.int64)).items():
        assert len(value) == 2, name


def test_columns_are_those_of_prediction_files(fitted: Fitted, frame: pd.DataFrame) -> None:
    """What `predict` writes, a kind describes: servers and readers of files go by the kind."""
    found = fitted.predict(frame.head(3))
    assert set(found.columns) == {column for task in fitted.tasks for column in task.record.schema(task)}
