"""Slices of a table's study (`--slice COL`): metrics and words within each value of a column, on the test part, exploratory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pluribus.data.splitting import Split
from pluribus.data.table import Table
from pluribus.errors import unknown
from pluribus.evaluation.slices import judge_slices, segments, worst
from pluribus.evaluation.verdict import TaskTruth
from pluribus.tasks import Task


def check(table: Table, columns: Sequence[str]) -> None:
    """The columns are there.

    Raises
    ------
    BadInput
        One is not.
    """
    for name in columns:
        if name not in table.frame.columns:
            raise unknown("column", name, [str(column) for column in table.frame.columns], where="slices")


def of_study(
    table: Table,
    split: Split,
    columns: Sequence[str],
    tasks: Sequence[Task],
    truth: Mapping[str, TaskTruth],
    units: Any,
    challenger: Mapping[str, Sequence[Any]],
    reference: Mapping[str, Sequence[Any]],
    **settings: Any,
) -> list[dict[str, Any]]:
    """A row a column: `column`, `slices` (see `JudgedSlice`), and `worst`: task → the slice where the one model is worst.

    Parameters
    ----------
    table, split
        The study's.
    columns : sequence of str
        What is sliced by: inputs, or any other column of the table.
    tasks, truth, units, challenger, reference, settings
        As for `pluribus.evaluation.slices.judge_slices`.
    """
    found = []
    for column in dict.fromkeys(columns):
        segment = segments(table.frame[column].iloc[split.parts["test"]])
        slices = judge_slices(tasks, truth, units, segment, challenger, reference, **settings)
        named = {task.name: worst(task, slices) for task in tasks}
        found.append({"column": column, "slices": [asdict(each) for each in slices], "worst": named})
    return found
