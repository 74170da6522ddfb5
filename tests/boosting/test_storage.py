"""A saved booster predicts the same bits; a strange folder is refused and never unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.boosting.tables import make_long

from pluribus import boosting
from pluribus.boosting.storage import CLASSES
from pluribus.errors import BadInput


def fitted(name: str) -> tuple[Any, pd.DataFrame, Any]:
    X, y, task = make_long(missing=0.1)
    table = pd.DataFrame(X, columns=list("wxyz")).assign(c=pd.Categorical(np.where(y > 0.5, "high", "low")))
    y = np.where(y > 0, "yes", "no") if name.endswith("Classifier") else y
    return getattr(boosting, name)(random_state=0).fit(table, y, task=task), table, task


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_round_trip_is_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, table, task = fitted(name)
    model.save(tmp_path / "model")
    again = boosting.load(tmp_path / "model")
    assert type(again) is type(model)
    assert not [f.name for f in (tmp_path / "model").iterdir() if f.suffix in (".pkl", ".pickle", ".joblib")]
    np.testing.assert_array_equal(again.predict(table, task), model.predict(table, task))
    assert list(again.tasks_) == list(model.tasks_)
    again.save(tmp_path / "second")
    np.testing.assert_array_equal(boosting.load(tmp_path / "second").predict(table, task), model.predict(table, task))


def test_task_ids_keep_their_type(tmp_path: Path) -> None:
    X, y, task = make_long()
    for ids in (np.searchsorted(list("abcd"), task), task, np.array([0.5, 1.5, 2.5, 3.5])[np.searchsorted(list("abcd"), task)]):
        model = boosting.RMTGBRegressor(2, 2, 2, random_state=0).fit(X, y, task=ids)
        model.save(tmp_path / "model")
        again = boosting.load(tmp_path / "model")
        assert again.tasks_ == model.tasks_
        np.testing.assert_array_equal(again.predict(X, ids), model.predict(X, ids))


def change(folder: Path, **fields: Any) -> None:
    record = json.loads((folder / "pluribus.json").read_text())
    (folder / "pluribus.json").write_text(json.dumps(record | fields))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"kind": "network"}, "does not hold a booster"),
        ({"class": "os.system"}, "damaged"),
    ],
)
def test_foreign_or_newer_manifests(fields: dict[str, Any], match: str, tmp_path: Path) -> None:
    fitted("MTGBRegressor")[0].save(tmp_path / "model")
    change(tmp_path / "model", **fields)
    with pytest.raises(BadInput, match=match):
        boosting.load(tmp_path / "model")


def test_broken_arrays(tmp_path: Path) -> None:
    """Cut files, pickled objects, and trees that point outside of themselves (which would crash or loop)."""
    folder = tmp_path / "model"
    fitted("MTGBRegressor")[0].save(folder)
    arrays = dict(np.load(folder / "arrays.npz"))
    record = json.loads((folder / "pluribus.json").read_text())
    left = dict(record["state"]["trees_"]["dict"])["shared"]["trees"]["left"]["array"]
    np.savez(folder / "arrays.npz", **{**arrays, left: arrays[left] * 0})
    with pytest.raises(BadInput, match="not sound"):
        boosting.load(folder)
    np.savez(folder / "arrays.npz", **{**arrays, left: np.array([print], dtype=object)})
    with pytest.raises(BadInput, match="cannot be read"):
        boosting.load(folder)
    (folder / "arrays.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(BadInput, match="cannot be read"):
        boosting.load(folder)
    with pytest.raises(BadInput, match="no such model file"):
        boosting.load(tmp_path / "nowhere")


def test_what_cannot_be_saved_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    X, y, task = make_long()
    model = boosting.RMTGBRegressor(2, 0, 0).fit(X, y, task=task)
    model.monotone_constraints = object()
    with pytest.raises(BadInput, match="without pickling"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
