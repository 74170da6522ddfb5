"""The user's own model, as a file of predictions: one more specialist, on one seed.

The file has the id column and the columns of prediction files; it must cover all labelled valid and test rows of the tasks it
holds. It should have been fitted on training rows only, which cannot be checked here; the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.ingest import read_table
from pluribus.data.prepared import Prepared
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.study.trial import Predictions, by_terms
from pluribus.tasks import Task
from pluribus.tasks.metrics import Terms

if TYPE_CHECKING:
    import pandas as pd

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Champion:
    """The predictions of a champion file.

    Parameters
    ----------
    path : str
        The file.
    rows : mapping
        Task → the rows of the table that it had to cover [m], ascending.
    values : mapping
        Task → their predictions, in the kind's form.
    """

    path: str
    rows: Mapping[str, IntArray]
    values: Mapping[str, Any]

    def on(self, data: Prepared, part: str) -> Predictions:
        """Its predictions of the labelled cells of a part, or their terms, as a trial keeps them."""
        found: Predictions = {}
        for task in data.tasks:
            if task.name in self.values:
                cells = data.labelled(task.name, part)
                said = self.values[task.name][np.searchsorted(self.rows[task.name], cells.rows)]
                found[task.name] = Terms.of(task.metrics, said, cells.values) if by_terms(task) else said
        return found


def read_champion(path: str | Path, table: Table, needed: dict[str, IntArray]) -> Champion:
    """Read and check a champion file.

    Parameters
    ----------
    path : str or Path
        Parquet or CSV.
    table : Table
        What is predicted.
    needed : dict
        Task → rows that it must cover (labelled rows of valid and test), ascending.

    Raises
    ------
    BadInput
        The file lacks ids, tasks, columns or rows, or holds what is no prediction.
    """
    path = Path(path)
    if table.id is None:
        raise BadInput("a champion's rows are matched by id", where=str(path), remedy="name the id column with --id")
    frame = read_table(path, text=[table.id])
    if table.id not in frame.columns:
        raise BadInput(f"has no id column {table.id!r}", where=str(path), remedy="add it")
    ids = frame[table.id].astype(str)
    if ids.duplicated().any():
        raise BadInput(f"names the id {ids[ids.duplicated()].iloc[0]!r} twice", where=str(path), remedy="keep one row an id")
    place = ids.reset_index(drop=True).reset_index().set_index(table.id)["index"]
    found = place.reindex(table.frame[table.id].astype(str)).fillna(-1).to_numpy(np.int64)
    values: dict[str, Any] = {}
    for task in table.tasks:
        there = [column for column in task.columns if column in frame.columns]
        if not there:
            continue
        if len(there) < len(task.columns):
            lacking = next(column for column in task.columns if column not in there)
            raise BadInput(f"lacks the column {lacking!r}", where=str(path), remedy="give a prediction for every class or level")
        values[task.name] = _predictions(frame, found[needed[task.name]], table, task, needed[task.name], path)
    if not values:
        names = ", ".join(column for task in table.tasks for column in task.columns)
        raise BadInput("holds predictions of none of the tasks", where=str(path), remedy=f"name its columns {names}")
    return Champion(str(path), {name: needed[name] for name in values}, values)


def _predictions(frame: pd.DataFrame, places: IntArray, table: Table, task: Task, needed: IntArray, path: Path) -> Any:
    """A task's predictions of the rows that must be covered; `places`: where the file has them, −1 where it has not."""
    rows = frame.reset_index(drop=True).reindex(places)  # no row is called −1: its cells are empty
    beside = table.column_of(task)
    words = None if beside.words is None else beside.words[needed]
    columns = {
        name: replace(beside, series=rows[name].reset_index(drop=True), where=f"{path}, {name}", words=words)
        for name in task.columns
    }
    values, empty = task.record.parse(task, columns)
    empty = empty | (places < 0)
    if empty.any():
        first = table.frame[table.id].iloc[needed[empty][0]]
        raise BadInput(
            f"has no prediction of {task.name!r} for {int(empty.sum())} labelled valid or test rows (first id: {first})",
            where=str(path),
            remedy="predict every row that `pluribus study --plan` lists as valid or test in split.parquet",
        )
    return values
