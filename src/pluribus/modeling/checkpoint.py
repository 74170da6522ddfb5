"""The model folder: `pluribus.json` beside `*.safetensors` and text models. Nothing is ever unpickled.

`pluribus.json` holds: schema_version, kind (the artefact's name), tasks, columns, thresholds, calibration, record, own (the
artefact's own part) and files (name → SHA-256). Saving is atomic; loading checks every hash before a byte is believed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pluribus
from pluribus import catalog
from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json, sha256
from pluribus.modeling.candidate import Fitted
from pluribus.tasks import Task

SCHEMA_VERSION = 1
MANIFEST = "pluribus.json"


def save(fitted: Fitted, folder: str | Path) -> None:
    """Write `fitted` as a model folder; an existing one is replaced only once the new one is whole."""
    from pluribus.data.columns import FittedColumns

    with atomic_folder(folder) as aside:
        own = fitted.write(aside)
        assert isinstance(fitted.columns, FittedColumns)
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": fitted.artefact,
            "pluribus": pluribus.__version__,
            "tasks": [task.to_dict() for task in fitted.tasks],
            "columns": fitted.columns.write(aside),
            "thresholds": fitted.thresholds,
            "calibration": fitted.calibration,
            "record": fitted.record,
            "own": own,
        }
        manifest["files"] = {str(path.relative_to(aside)): sha256(path) for path in sorted(aside.rglob("*")) if path.is_file()}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False), "utf-8")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The checked manifest of a model folder."""
    folder = Path(folder)
    remedy = "name a folder that `pluribus study` or `save` wrote"
    if not folder.exists():
        raise BadInput("no such model folder", where=str(folder), remedy=remedy)
    if not (folder / MANIFEST).is_file():
        if (folder / "model" / MANIFEST).is_file():  # a run's folder
            remedy = f"name {folder / 'model'}"
        raise BadInput(f"is not a model folder (it has no {MANIFEST})", where=str(folder), remedy=remedy)
    manifest = read_json(folder / MANIFEST, what="model manifest")
    where = str(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        raise BadInput("has no schema_version", where=where, remedy=remedy)
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise BadInput(
            f"schema_version {manifest['schema_version']} is newer than this program's ({SCHEMA_VERSION})",
            where=where,
            remedy="update pluribus",
        )
    for name, kind in (("kind", str), ("tasks", list), ("columns", dict), ("own", dict), ("files", dict)):
        if not isinstance(manifest.get(name), kind):
            raise BadInput(f"lacks the field {name!r}, or it has the wrong type", where=where, remedy="restore the folder")
    for name, digest in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadInput(f"names the file {name!r} outside the folder", where=where, remedy="do not use this folder")
        if not path.is_file():
            raise BadInput("is missing from the model folder", where=str(path), remedy="restore the folder")
        if sha256(path) != digest:
            raise BadInput("is not what was saved (its hash differs)", where=str(path), remedy="restore the folder")
    return manifest


def load(folder: str | Path) -> Fitted:
    """Load a model folder: one `Fitted`, whatever is inside."""
    from pluribus.data.columns import FittedColumns

    folder = Path(folder)
    opened = _opened(folder)
    if opened is not None:
        return opened
    manifest = read_manifest(folder)
    where = str(folder / MANIFEST)
    kinds = {entry.name: entry for entry in catalog.entries(family="artefact")}
    if manifest["kind"] not in kinds:
        raise BadInput(
            f"holds an unknown kind of model {manifest['kind']!r}", where=where, remedy="update pluribus or check the folder"
        )
    try:
        tasks = tuple(Task.from_dict(row) for row in manifest["tasks"])
        columns = FittedColumns.read(folder, manifest["columns"])
        fitted: Fitted = kinds[manifest["kind"]].resolve().read(folder, manifest["own"], tasks, columns)
    except BadInput as error:
        place = f"{folder}, {error.where}" if error.where else str(folder)
        raise BadInput(error.what, where=place, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise BadInput(f"cannot be loaded ({reason})", where=where, remedy="restore the folder") from error
    fitted.thresholds = dict(manifest.get("thresholds", {}))
    fitted.calibration = dict(manifest.get("calibration", {}))
    fitted.record = dict(manifest.get("record", {}))
    return fitted


def _opened(folder: Path) -> Fitted | None:
    """A folder in a form of its artefact's own (a merge, which knows nothing of tables): the artefact's class opens it."""
    if not (folder / MANIFEST).is_file():
        return None
    about = read_json(folder / MANIFEST, what="model manifest")
    if not isinstance(about, dict) or "own" in about:
        return None
    for entry in catalog.entries(family="artefact"):
        if entry.name == about.get("kind"):
            found = getattr(entry.resolve(), "open", None)
            return None if found is None else found(folder)
    return None
