"""What prepared data hold of an input column beside its features.

Ragged sequences (`pluribus.tasks.forms.Ragged`) and texts (`pluribus.data.ragged.Texts`) are stores; a domain brings others:
pictures, waves, graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@runtime_checkable
class Store(Protocol):
    """The cells of one column, one a row, in a narrow form that may be mapped from disk."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> Self:
        """These rows, in this order."""
        ...

    def followed_by(self, other: Self) -> Self:
        """The rows of both, these first."""
        ...

    def gather(self, rows: Tensor) -> Any:
        """What a batch of some rows holds: a pytree of tensors whose first dimension is the row.

        Parameters
        ----------
        rows : Tensor
            [B] int64.

        Returns
        -------
        pytree or None
            None: batches hold nothing of it; whoever reads it asks the store.
        """
        ...

    def save(self, folder: Path, name: str) -> None:
        """Write files into a folder; their names begin with `name`."""
        ...

    @classmethod
    def load(cls, folder: Path, name: str, *, mmap: bool = True) -> Self:
        """Undo `save`, with arrays mapped from disk where `mmap` says so."""
        ...
