"""What training, judging and candidates read of their data, whatever it is made of.

A prepared table (`pluribus.data.prepared.Prepared`) is a data set; so may be pictures in a folder, a stream, or pairs of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pluribus.data.batch import Batch
from pluribus.data.cells import Cells
from pluribus.tasks import Task


class Dataset(Protocol):
    """Rows with inputs, and tasks whose labels some of them have.

    Attributes
    ----------
    tasks : tuple of Task
        What is predicted.
    parts : mapping of str to ndarray of int64
        "train", "valid", "test" → ascending rows. A candidate is handed no test part.
    units : ndarray of int64
        [n], the resampling unit of each row (group, day, or the row itself).
    n_rows : int
        n.
    """

    @property
    def tasks(self) -> tuple[Task, ...]: ...
    @property
    def parts(self) -> Mapping[str, NDArray[np.int64]]: ...
    @property
    def units(self) -> NDArray[np.int64]: ...
    @property
    def n_rows(self) -> int: ...

    def batch(self, rows: Tensor, tasks: Sequence[str] | None = None) -> Batch:
        """The batch of some rows.

        Parameters
        ----------
        rows : Tensor
            [B] int64.
        tasks : sequence of str or None
            The tasks whose labels come along; default: all.
        """
        ...

    def labelled(self, task: str, part: str) -> Cells:
        """The labelled cells of one task in one part."""
        ...

    def only(self, tasks: Sequence[str]) -> Self:
        """The same rows with fewer tasks."""
        ...

    def with_parts(self, **parts: NDArray[np.int64]) -> Self:
        """The same rows with these parts instead (a subsample for screening, say)."""
        ...

    def whole(self) -> Batch:
        """Every row in one batch, without labels."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the data set into a folder, which appears only once it is whole."""
        ...
