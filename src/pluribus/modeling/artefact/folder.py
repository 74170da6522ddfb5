"""The model folder: `pluribus.json` beside `*.safetensors` and text models. Nothing is ever unpickled.

`pluribus.json` holds: schema_version, kind (the artefact's name), tasks, columns, thresholds, calibration, record, own (the
artefact's own part) and files (name → SHA-256). Saving is atomic; loading checks every hash before a byte is believed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pluribus
from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json, sha256

SCHEMA_VERSION = 1
MANIFEST = "pluribus.json"


def save(folder: str | Path, about: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> None:
    """Write a model folder; an existing one is replaced only once the new one is whole.

    Parameters
    ----------
    folder : str or Path
        Where it will stand.
    about : mapping
        What the manifest says of the artefact (plain JSON): kind, tasks, thresholds, calibration, record.
    write : callable
        Writes all other files into the folder that it is given, and returns the parts of the manifest that belong to them:
        columns, own.

    Raises
    ------
    BadInput
        The folder cannot be written.
    """
    with atomic_folder(folder) as aside:
        manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "pluribus": pluribus.__version__, **about, **write(aside)}
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
