"""Atomic writing: if it fails, a crash or a full disk destroys the user's previous model."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pluribus.errors import BadInput
from pluribus.files import atomic_file, atomic_folder


def test_file_replaces_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_file(target) as aside:
        aside.write_text("one")
    with pytest.raises(RuntimeError), atomic_file(target) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folder_replaces_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("one", "two"):
        with atomic_folder(target) as aside:
            (aside / "w").write_text(text)
    with pytest.raises(BadInput, match=r"model: cannot be written \(No space left on device\)"):  # noqa: SIM117
        with atomic_folder(target) as aside:
            (aside / "w").write_text("half")
            raise OSError(28, "No space left on device")
    assert (target / "w").read_text() == "two"
    assert os.listdir(tmp_path) == ["model"]


def test_a_real_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the write itself fails half-way, in a child process."""
    import subprocess
    import sys

    target = tmp_path / "weights"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from pluribus.files import atomic_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with atomic_file(sys.argv[1]) as aside:\n"
        "    aside.write_bytes(b'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    assert "cannot be written" in done.stderr
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """An abandoned temporary folder goes with the next writing; one that is young or being written stays, as do strangers."""
    old = time.time() - 3600
    left = tmp_path / ".out.abc.tmp"
    stranger = tmp_path / ".other.abc.tmp"
    for folder in (left, stranger):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        os.utime(folder, (old, old))
    young = tmp_path / ".out.young.tmp"
    young.mkdir()
    with atomic_folder(tmp_path / "out") as aside:
        os.utime(aside, (old, old))
        with atomic_folder(tmp_path / "out") as second:
            assert aside.is_dir()
            (second / "a").write_text("1", "utf-8")
        assert aside.is_dir()
    assert not left.exists()
    assert stranger.is_dir()
    assert young.is_dir()
