"""Reading small structured files that a stranger may have made: sizes, depths and aliases are bounded, types are plain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pluribus.errors import BadInput

MAX_BYTES = 64 * 2**20
MAX_NODES = 200_000


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _text(path: Path, what: str) -> str:
    if not path.exists():
        raise BadInput(f"no such {what}", where=str(path), remedy="check the path")
    if not path.is_file():
        raise BadInput(f"is not a {what} but a folder or device", where=str(path), remedy="name a file")
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"is too large for a {what} (limit {MAX_BYTES >> 20} MiB)", where=str(path), remedy="check the path")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("is not UTF-8 text", where=f"{path}, byte {error.start}", remedy="save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=str(path), remedy="check its permissions") from error


def read_json(path: str | Path, *, what: str = "JSON file") -> Any:
    """Parse a JSON file; NaN and Infinity are refused, and so is a mapping that names one key twice."""
    path = Path(path)

    def refuse(name: str) -> Any:
        raise BadInput(f"holds {name}, which is not JSON", where=str(path))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            double = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise BadInput(f"names the key {double!r} twice", where=str(path), remedy="keep one of them")
        return seen

    try:
        return json.loads(_text(path, what), parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise BadInput(f"is not valid JSON ({error.msg})", where=where, remedy="mend the file") from error
    except RecursionError as error:
        raise BadInput("is nested too deeply", where=str(path), remedy="flatten it") from error


def read_yaml(path: str | Path, *, what: str = "YAML file") -> Any:
    """Parse a YAML file with the safe loader; aliases are refused (bombs are built of them), keys are unique."""
    import yaml

    path = Path(path)
    text = _text(path, what)
    try:
        nodes = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            nodes += 1
            if isinstance(event, yaml.events.AliasEvent):
                where = f"{path}, line {event.start_mark.line + 1 if event.start_mark else 0}"
                raise BadInput(f"uses the YAML alias *{event.anchor}", where=where, remedy="write the value out")
            if nodes > MAX_NODES:
                raise BadInput("holds too many values", where=str(path), remedy="check the path")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _unique_keys(root, path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"is not valid YAML ({problem})", where=where, remedy="mend the file") from error
    except RecursionError as error:
        raise BadInput("is nested too deeply", where=str(path), remedy="flatten it") from error


def _unique_keys(node: Any, path: Path) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    where = f"{path}, line {key.start_mark.line + 1}"
                    raise BadInput(f"names the key {key.value!r} twice", where=where, remedy="keep one of them")
                seen.add(key.value)
            _unique_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _unique_keys(item, path)
