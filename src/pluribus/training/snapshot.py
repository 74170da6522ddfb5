"""A trainer's snapshot on disk: one safetensors file beside one JSON file, replaced atomically, never unpickled."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.files import atomic_folder, read_json

NAME = "snapshot"


def write_snapshot(folder: Path, state: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values below `folder`."""
    tensors: dict[str, Tensor] = {}

    def strip(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"$tensor": path}
        if isinstance(value, dict):
            return {"$items": [[strip(key, ""), strip(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return [strip(item, f"{path}/{i}") for i, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            return {"$float": str(value)}
        return value

    tree = strip(state, "")
    with atomic_folder(folder / NAME) as aside:
        save_file(tensors, str(aside / "tensors.safetensors"))
        (aside / "state.json").write_text(json.dumps(tree, allow_nan=False), "utf-8")


def read_snapshot(folder: Path) -> dict[str, Any] | None:
    """What `write_snapshot` wrote, or None where there is nothing whole."""
    path = folder / NAME
    if not (path / "state.json").is_file():
        return None
    try:
        tensors = load_file(str(path / "tensors.safetensors"))
        tree = read_json(path / "state.json")
    except (BadInput, OSError, ValueError, RuntimeError, Exception) as error:  # safetensors raises its own class
        raise BadInput(f"is damaged ({str(error)[:200]})", where=str(path), remedy="delete the folder to start over") from error

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            if "$tensor" in value:
                return tensors[value["$tensor"]]
            if "$float" in value:
                return float(value["$float"])
            return {fill(key): fill(item) for key, item in value["$items"]}
        if isinstance(value, list):
            return [fill(item) for item in value]
        return value

    found: dict[str, Any] = fill(tree)
    return found
