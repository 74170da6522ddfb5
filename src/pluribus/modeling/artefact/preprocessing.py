"""What an artefact must know of the columns that it reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pluribus.data.inputs.record import FittedInput, Statistics
from pluribus.data.prepared import Prepared
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


class Preprocessing(Statistics, Protocol):
    """The columns that an artefact reads: what predicts tables, serves requests and saves folders asks for no more.

    `FittedColumns` are those of a table; an artefact that reads something else brings its own, and says in `Fitted.read_columns`
    how they are read back.
    """

    @property
    def inputs(self) -> tuple[FittedInput, ...]:
        """The input columns, each with the schema of a cell and the reader of a request's cell."""
        ...

    def only(self, names: Collection[str]) -> Self:
        """Some of the input columns, with what was learnt of their features."""
        ...

    @property
    def id(self) -> str | None:
        """The column whose cells are echoed beside predictions, if any."""
        ...

    @property
    def task_column(self) -> str | None:
        """Long layout: the column that names each row's task."""
        ...

    @property
    def task_names(self) -> tuple[str, ...]:
        """The values of that column."""
        ...

    @property
    def as_written(self) -> tuple[str, ...]:
        """Columns whose cells a CSV file gives as they are written (007 is not 7)."""
        ...

    def needed(self, tasks: Iterable[Task] = ()) -> frozenset[str]:
        """The columns that some tasks read (without one: all)."""
        ...

    def prepare(self, frame: pd.DataFrame, tasks: Iterable[Task]) -> Prepared:
        """A table to predict: encoded, without labels.

        Raises
        ------
        BadInput
            A column is absent, or is of another type than it was; it is named.
        """
        ...

    def grown(self, items: Mapping[str, pd.DataFrame]) -> Self:
        """The same with new items in its catalogues.

        Raises
        ------
        BadInput
            There is no such catalogue.
        """
        ...

    def write(self, folder: str | Path) -> dict[str, Any]:
        """Write files into a model folder and return the rest as plain JSON."""
        ...
