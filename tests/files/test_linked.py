"""Equal files stored once. If these fail: a file is lost with another's folder, or two different ones become one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pluribus.files.linked import link_equal


def test_equal_bytes_are_stored_once(tmp_path: Path) -> None:
    for name, content in (("a", b"x" * 5000), ("b", b"x" * 4999 + b"y"), ("c", b"x" * 5000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_bytes(content)
    everybody = sorted(tmp_path.glob("*/w"))
    assert not link_equal(tmp_path / "b" / "w", everybody)  # as long, but different; itself does not count
    assert link_equal(tmp_path / "c" / "w", everybody)
    assert (tmp_path / "c" / "w").samefile(tmp_path / "a" / "w")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["w"]
    shutil.rmtree(tmp_path / "a")
    assert (tmp_path / "c" / "w").read_bytes() == b"x" * 5000
    assert not link_equal(tmp_path / "c" / "w", everybody)  # one of them is gone


def test_a_file_system_without_links_keeps_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    assert not link_equal(tmp_path / "b", [tmp_path / "a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"same"
