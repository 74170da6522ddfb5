"""The user's own model, as a file of predictions: one more specialist, on one seed.

The file has the id column and the columns of prediction files; it must cover all labelled valid and test rows of the tasks it
holds. It should have been fitted on training rows only, which cannot be checked here; the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.data.ingest import read_table
from pluribus.data.table import Table
from pluribus.data.tags import read_tags, word_counts
from pluribus.errors import BadInput
from pluribus.study.trial import Predictions
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Champion:
    """Predictions of every row of the table that the file holds: task → [n] or [n, C], NaN where it has none."""

    path: str
    values: Predictions

    def at(self, task: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.values[task][rows]


def read_champion(path: str | Path, table: Table, needed: dict[str, NDArray[np.int64]]) -> Champion:
    """Read and check a champion file. needed: task → rows it must cover (labelled rows of valid and test)."""
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
    found = place.reindex(table.frame[table.id].astype(str)).to_numpy(dtype=float)
    values: Predictions = {}
    for task in table.tasks:
        there = [column for column in task.columns if column in frame.columns]
        if not there:
            continue
        if len(there) < len(task.columns):
            lacking = next(column for column in task.columns if column not in there)
            raise BadInput(f"lacks the column {lacking!r}", where=str(path), remedy="give a probability for every class")
        known = np.flatnonzero(~np.isnan(found))
        if task.record.cell == "list":
            values[task.name] = _tags(frame[task.name], found, table, task, needed[task.name], path)
            continue
        block = np.full((table.n_rows, len(there)), np.nan)
        try:
            block[known] = frame[there].to_numpy(dtype=float)[found[known].astype(int)]
        except (TypeError, ValueError) as error:
            raise BadInput("holds something other than numbers", where=f"{path}, {', '.join(there)}") from error
        _check_complete(block, needed[task.name], table, task, path)
        inside = block[needed[task.name]]
        if task.classes and ((inside < 0) | (inside > 1)).any():
            raise BadInput("holds probabilities outside [0, 1]", where=f"{path}, {there[0]}", remedy="give probabilities")
        values[task.name] = block if len(there) > 1 or (task.classes and task.kind != "binary") else block[:, 0]
    if not values:
        names = ", ".join(column for task in table.tasks for column in task.columns)
        raise BadInput("holds predictions of none of the tasks", where=str(path), remedy=f"name its columns {names}")
    return Champion(str(path), values)


def _tags(
    cells: pd.Series, found: NDArray[np.float64], table: Table, task: Task, needed: NDArray[np.int64], path: Path
) -> NDArray[np.float64]:
    """A task's tags for every row of the table [n, size]. found: the file's row of each, NaN where it has none."""
    import pandas as pd

    place = np.where(np.isnan(found), -1, found).astype(int)
    lists = pd.Series([cells.iloc[i] if i >= 0 else None for i in place.tolist()], dtype=object)
    block = read_tags(lists, word_counts(table.words), task.classes, task.size or 0, f"{path}, {task.name}")
    _check_complete(block, needed, table, task, path)
    return block


def _check_complete(block: NDArray[np.float64], needed: NDArray[np.int64], table: Table, task: Task, path: Path) -> None:
    lacking = needed[np.isnan(block[needed]).any(1)]
    if len(lacking):
        first = table.frame[table.id].iloc[lacking[0]]
        raise BadInput(
            f"has no prediction of {task.name!r} for {len(lacking)} labelled valid or test rows (first id: {first})",
            where=str(path),
            remedy="predict every row that `pluribus study --plan` lists as valid or test in split.parquet",
        )
