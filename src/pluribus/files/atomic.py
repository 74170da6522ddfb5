"""Atomic writing: write aside, fsync, rename. A reader sees the old content or the new one, never a half."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from pluribus.errors import BadInput

YOUNG = 60  # seconds
_FAILURES = (OSError, SafetensorError)  # safetensors reports a full disk by an error of its own


def _fsync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed onto `path`, on failure removed.

    Errors of the file system (no space, no permission) become `BadInput` that names the file; the old file stays intact.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o666 & ~_umask())
        _fsync_path(aside)
        aside.replace(path)
        _fsync_path(path.parent)
    except _FAILURES as error:
        raise _cannot_write(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes `path`'s place, on failure it is removed.

    A folder cannot be replaced in one rename: the old one is moved aside first and removed last, and if the second rename
    fails it is moved back. What a killed process left beside `path` is removed: a living one holds a lock on its folder.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        lock = os.open(aside, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        for item in sorted(aside.rglob("*")):
            if item.is_file():
                _fsync_path(item)
        _rename(aside, path)
    except _FAILURES as error:
        raise _cannot_write(path, error) from error
    finally:
        os.close(lock)
        shutil.rmtree(aside, ignore_errors=True)


def place_folder(whole: Path, path: Path) -> None:
    """Let a folder that is written whole take the place of `path`, on the same file system.

    Parameters
    ----------
    whole : Path
        The folder; it is not there any more afterwards.
    path : Path
        Where it goes. A folder that stood there is removed.

    Raises
    ------
    BadInput
        The file system refuses; what stood at `path` is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _rename(whole, path)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _rename(whole: Path, path: Path) -> None:
    """Rename a folder onto another, which is moved aside first, removed last, and moved back if the rename fails."""
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        old.rmdir()
        path.rename(old)
        try:
            whole.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()
    else:
        whole.rename(path)
    _fsync_path(path.parent)


def _sweep(path: Path) -> None:
    """Remove temporary folders for `path` that nobody writes any more; young ones may not have been locked yet."""
    for entry in os.scandir(path.parent):
        mine = entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp") and entry.is_dir(follow_symlinks=False)
        if not mine or time.time() - entry.stat(follow_symlinks=False).st_mtime < YOUNG:
            continue
        with contextlib.suppress(OSError):
            handle = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(handle)


@contextlib.contextmanager
def file_lock(path: str | Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if absent) while the block runs; other processes wait.

    waiting: called once where another process holds the lock, before waiting for it.
    """
    with open(path, "a+b") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: Exception) -> BadInput:
    reason = getattr(error, "strerror", None) or str(error)
    return BadInput(f"cannot be written ({reason})", where=str(path), remedy="free some space or choose another place")
