"""The model folder: what is saved is what is loaded, and a damaged folder is one clear error."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus import catalog
from pluribus.boosting.baselines import LightGBMPerTask
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Costs, Fitted, load
from pluribus.tasks import Task


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


class Length:
    """Columns that are no table's: one, whose cells are words."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, frame: Any, tasks: Any) -> Any:
        return SimpleNamespace(n_rows=len(frame), lengths=frame[self.name].str.len().to_numpy(float))

    def write(self, folder: Path) -> dict[str, Any]:
        return {"name": self.name}


class Measured(Fitted):
    """Predicts how long a word is."""

    artefact = "measured"

    @classmethod
    def read_columns(cls, folder: Path, manifest: dict[str, Any]) -> Any:
        return Length(manifest["name"])

    def answer(self, data: Any, wanted: Any) -> dict[str, Any]:
        return {name: data.lengths[rows] for name, rows in wanted.items()}

    def costs(self) -> Costs:
        return Costs(0, 0.0, 0, 0.0)

    def write(self, folder: Path) -> dict[str, Any]:
        return {}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: Any) -> Measured:
        return cls(tasks, columns)


def test_an_artefact_brings_columns_of_its_own(tmp_path: Path) -> None:
    """If this fails, what is no table (a merge, a model of pictures in a folder) must pretend to be one to be saved."""
    entry = catalog.register(catalog.Entry("measured", "train", "artefact", f"{__name__}:Measured"))
    try:
        columns: Any = Length("word")
        Measured([Task("length")], columns).save(tmp_path / "model")
        assert json.loads((tmp_path / "model" / "pluribus.json").read_text())["columns"] == {"name": "word"}
        again = load(tmp_path / "model")
        assert again.predict(pd.DataFrame({"word": ["a", "abc"]}))["length"].tolist() == [1.0, 3.0]
    finally:
        del catalog._all()[entry.family, entry.name]
