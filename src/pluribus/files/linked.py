"""Equal files stored once: the frozen backbone of several models of a run, say."""

from __future__ import annotations

import contextlib
import filecmp
import os
from collections.abc import Iterable
from pathlib import Path


def link_equal(path: Path, others: Iterable[Path]) -> bool:
    """Make `path` another name of the first of the `others` that holds the same bytes, and say whether there was one.

    A hard link: whichever of the folders is deleted or moved, the others stay whole. Where the file system has none, or nothing
    is equal, the file stays as it is.
    """
    size = path.stat().st_size
    for other in others:
        aside = path.with_name(path.name + ".link")
        try:
            if other.stat().st_size != size or other.samefile(path) or not filecmp.cmp(path, other, shallow=False):
                continue
            os.link(other, aside)
            os.replace(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            continue
        return True
    return False
