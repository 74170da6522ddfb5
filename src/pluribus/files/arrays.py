"""Arrays as `.npy` files: workers that map one share its pages in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.errors import BadInput

_HEADER = 128  # bytes of an empty array's file: it cannot be mapped


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write one array."""
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def read_array(path: Path, *, mmap: bool = True) -> NDArray[Any]:
    """Read one array.

    Parameters
    ----------
    path : Path
        The `.npy` file.
    mmap : bool
        Whether it is mapped copy-on-write, so that processes share one copy in memory.

    Raises
    ------
    BadInput
        The file is missing or damaged.
    """
    try:
        mappable = mmap and path.stat().st_size > _HEADER
        return np.asarray(np.load(path, mmap_mode="c" if mappable else None, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(path), remedy="prepare the table again") from error
