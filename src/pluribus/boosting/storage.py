"""Saving and loading boosters: a folder with `pluribus.json`, `arrays.npz` and LightGBM's text models; nothing is pickled.

`pluribus.json`: {"schema_version": 1, "kind": "booster", "class", "parameters", "state"}. The state is plain JSON in which
{"array": name} stands for an array of the npz, {"tuple" | "dict" | "objects": [...]} for what JSON lacks, and
{"trees" | "columns" | "objective" | "booster" | "lightgbm": ...} for the records of this package.
"""

from __future__ import annotations

import importlib
import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from pluribus.boosting.columns import Columns
from pluribus.boosting.objectives import OBJECTIVES, BoosterObjective
from pluribus.boosting.tree import TreeArrays
from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json

SCHEMA_VERSION = 1
CLASSES = {
    "RMTGBRegressor": "rmtgb",
    "RMTGBClassifier": "rmtgb",
    "MTGBRegressor": "rmtgb",
    "MTGBClassifier": "rmtgb",
    "VectorLeafBoostingRegressor": "vector_leaf",
    "VectorLeafBoostingClassifier": "vector_leaf",
    "MultiTaskBoosting": "vector_leaf",
    "PerTaskRegressor": "wrappers",
    "PerTaskClassifier": "wrappers",
    "PooledRegressor": "wrappers",
    "PooledClassifier": "wrappers",
    "PooledOffsetRegressor": "wrappers",
    "PooledOffsetClassifier": "wrappers",
    "RMBCLERegressor": "rmb_cle",
    "RMBCLEClassifier": "rmb_cle",
    "PerTaskChoiceRegressor": "choice",
    "PerTaskChoiceClassifier": "choice",
}


class _BoosterWriter:
    def __init__(self, folder: Path) -> None:
        self.folder, self.arrays, self.texts = folder, dict[str, Any](), 0

    def encode(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if np.isfinite(value) else {"float": repr(value)}
        if isinstance(value, list):
            return [self.encode(v) for v in value]
        if isinstance(value, tuple):
            return {"tuple": [self.encode(v) for v in value]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, np.ndarray):
            if value.dtype == object:
                return {"objects": [self.encode(v) for v in value.tolist()]}
            name = f"a{len(self.arrays)}"
            self.arrays[name] = value
            return {"array": name}
        if isinstance(value, TreeArrays):
            return {"trees": {f.name: self.encode(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, Columns):
            return {"columns": [self.encode(value.names), self.encode(value.categories)]}
        if isinstance(value, BoosterObjective):
            return {"objective": [value.kind, self.encode(value.classes)]}
        if isinstance(value, BaseEstimator):
            return {"booster": self.estimator(value)}
        if type(value).__module__.split(".")[0] == "lightgbm" and hasattr(value, "model_to_string"):
            name = f"trees_{self.texts}.txt"
            self.texts += 1
            (self.folder / name).write_text(value.model_to_string(), encoding="utf-8")
            return {"lightgbm": name}
        raise BadInput(f"a {type(value).__name__} cannot be saved without pickling", remedy="use plain values for parameters")

    def estimator(self, model: BaseEstimator) -> dict[str, Any]:
        if type(model).__name__ not in CLASSES:
            raise BadInput(f"{type(model).__name__} is not a booster of this package and cannot be saved")
        given = model.get_params(deep=False)
        if callable(given.get("progress")):
            given["progress"] = False
        if not isinstance(given.get("random_state"), int | np.integer | None):
            given["random_state"] = None  # a generator's state is of no use after the fit
        parameters = {name: self.encode(value) for name, value in given.items()}
        state = {k: self.encode(v) for k, v in vars(model).items() if k.endswith("_") and not k.startswith("_")}
        return {"class": type(model).__name__, "parameters": parameters, "state": state}


def save(model: BaseEstimator, folder: str | Path) -> None:
    """Write a fitted booster; see the module's text for the format."""
    with atomic_folder(folder) as aside:
        writer = _BoosterWriter(aside)
        record = {"schema_version": SCHEMA_VERSION, "kind": "booster", **writer.estimator(model)}
        np.savez(aside / "arrays.npz", **writer.arrays)
        (aside / "pluribus.json").write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def load(folder: str | Path) -> Any:
    """Read a booster that `save` wrote. Raises BadInput for a folder that is not one, or is newer than this version."""
    folder = Path(folder)
    where = str(folder / "pluribus.json")
    record = read_json(folder / "pluribus.json", what="model file")
    if not isinstance(record, dict) or record.get("kind") != "booster":
        raise BadInput("does not hold a booster", where=where, remedy="name a folder that a booster's save() wrote")
    version = record.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION or version < 1:
        what = f"has schema_version {version!r}, this version reads up to {SCHEMA_VERSION}"
        raise BadInput(what, where=where, remedy="upgrade pluribus")
    try:
        with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"cannot be read ({error})", where=str(folder / "arrays.npz"), remedy="save the model again") from error
    try:
        return _BoosterReader(folder, arrays).estimator(record)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"is damaged ({error!r})", where=where, remedy="save the model again") from error


class _BoosterReader:
    def __init__(self, folder: Path, arrays: dict[str, Any]) -> None:
        self.folder, self.arrays = folder, arrays

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        (mark, content), *more = value.items()
        if more:
            raise KeyError(more[0][0])
        if mark == "float":
            return float(content)
        if mark == "tuple":
            return tuple(self.decode(v) for v in content)
        if mark == "dict":
            return {self.decode(k): self.decode(v) for k, v in content}
        if mark == "array":
            return self.arrays[content]
        if mark == "objects":
            found = np.empty(len(content), dtype=object)
            found[:] = [self.decode(v) for v in content]
            return found
        if mark == "trees":
            return TreeArrays(**{name: self.decode(v) for name, v in content.items()})
        if mark == "columns":
            return Columns(*(self.decode(v) for v in content))
        if mark == "objective":
            return OBJECTIVES[content[0]](self.decode(content[1]))
        if mark == "booster":
            return self.estimator(content)
        if mark == "lightgbm":
            import lightgbm

            if Path(content).name != content:
                raise KeyError(content)
            return lightgbm.Booster(model_str=(self.folder / content).read_text("utf-8"))
        raise KeyError(mark)

    def estimator(self, record: dict[str, Any]) -> Any:
        name = record["class"]
        module = importlib.import_module(f"pluribus.boosting.{CLASSES[name]}")
        model = getattr(module, name)(**{k: self.decode(v) for k, v in record["parameters"].items()})
        for key, value in record["state"].items():
            if not key.endswith("_") or key.startswith("_") or isinstance(getattr(type(model), key, None), property):
                raise KeyError(key)
            setattr(model, key, self.decode(value))
        model._check_loaded()
        return model
