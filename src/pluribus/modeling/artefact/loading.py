"""From a model folder to the artefact in it."""

from __future__ import annotations

from pathlib import Path

from pluribus import catalog
from pluribus.errors import BadInput
from pluribus.files import read_json
from pluribus.modeling.artefact.fitted import Fitted
from pluribus.modeling.artefact.folder import MANIFEST, read_manifest
from pluribus.tasks import Task


def load(folder: str | Path) -> Fitted:
    """Load a model folder: one `Fitted`, whatever is inside."""
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
        made: type[Fitted] = kinds[manifest["kind"]].resolve()
        fitted = made.read(folder, manifest["own"], tasks, made.read_columns(folder, manifest["columns"]))
    except BadInput as error:
        place = f"{folder}, {error.where}" if error.where else str(folder)
        raise BadInput(error.what, where=place, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise BadInput(f"cannot be loaded ({reason})", where=where, remedy="restore the folder") from error
    fitted.thresholds = dict(manifest.get("thresholds", {}))
    fitted.calibration = dict(manifest.get("calibration", {}))
    fitted.record = manifest.get("record", {})
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
            made: type[Fitted] = entry.resolve()
            return made.open(folder)
    return None
