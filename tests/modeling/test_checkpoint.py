"""The model folder: what is saved is what is loaded, and a damaged folder is one clear error."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Fitted, load


@pytest.fixture(scope="module")
def fitted(mixed: Prepared) -> Fitted:
    made = LightGBMPerTask(rounds=5).fit(mixed.only(["loss", "default"]), Budget(60.0), 0)
    made.thresholds["default"] = 0.3
    made.record["note"] = {"kept": [1, 2.5, None, "ü"]}
    return made


@pytest.fixture
def folder(fitted: Fitted, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "model")
    return tmp_path / "model"


def _edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "pluribus.json").read_text())
    manifest.update(changes)
    (folder / "pluribus.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not ...}))


def test_everything_travels(fitted: Fitted, folder: Path, mixed_frame: Any) -> None:
    again = load(folder)
    assert again.tasks == fitted.tasks
    assert again.thresholds == fitted.thresholds
    assert again.record == fitted.record
    assert again.predict(mixed_frame).equals(fitted.predict(mixed_frame))


def test_saving_over_an_old_model(fitted: Fitted, folder: Path, mixed: Prepared) -> None:
    """The new model replaces the old one whole: no file of the old one stays."""
    (folder / "left_over.txt").write_text("old")
    fitted.save(folder)
    assert not (folder / "left_over.txt").exists()
    rows = np.arange(10)
    assert np.array_equal(load(folder).scores(mixed, rows, ["loss"])["loss"], fitted.scores(mixed, rows, ["loss"])["loss"])


def test_a_failed_save_leaves_the_old_model(fitted: Fitted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(type(fitted), "write", full)
    with pytest.raises(BadInput, match=r"cannot be written \(No space left on device\)"):
        fitted.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema_version 99 is newer"),
        ({"schema_version": ...}, "has no schema_version"),
        ({"kind": "hologram"}, "unknown kind of model 'hologram'"),
        ({"tasks": "loss"}, "lacks the field 'tasks'"),
        ({"columns": {}}, "lacks a field|cannot be loaded"),
        ({"own": {}}, "cannot be loaded"),
        ({"own": {"models": {"other": "trees_0.txt"}}}, "not those of the tasks"),
        ({"tasks": [{"name": "loss", "kind": "regression", "colour": 1}]}, "unknown field 'colour'"),
        ({"files": {"../../etc/passwd": "0"}}, "outside the folder"),
        ({"files": {"missing.bin": "0"}}, "is missing from the model folder"),
    ],
)
def test_damaged_manifests(folder: Path, changes: dict[str, Any], message: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(BadInput, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files(folder: Path) -> None:
    path = folder / "trees_0.txt"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadInput, match=r"trees_0\.txt: is not what was saved"):
        load(folder)
    path.unlink()
    with pytest.raises(BadInput, match=r"trees_0\.txt: is missing"):
        load(folder)


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such model folder"):
        load(tmp_path / "nothing")
    with pytest.raises(BadInput, match="is not a model folder"):
        load(tmp_path)
    (tmp_path / "pluribus.json").write_text("{")
    with pytest.raises(BadInput, match=r"pluribus\.json"):
        load(tmp_path)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    """A manifest or weights that are a pickle are refused as what they are not; nothing inside runs."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    (folder / "pluribus.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadInput):
        load(folder)
    assert not (tmp_path / "sprung").exists()
