"""Small files from strangers: each kind of damage is one clear line, none hangs or explodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pluribus.errors import BadInput
from pluribus.files import read_json, read_yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: &x [1]\nb: [*x, *x]\n", "alias"),
        (b"a: 1\na: 2\n", "twice"),
        (b"a: [1, 2\n", "not valid YAML"),
        (b"\xff\xfe\x00a", "not UTF-8"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
    ],
)
def test_yaml_damage(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": ', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_json_damage(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_json(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such YAML file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="folder"):
        read_yaml(tmp_path)
