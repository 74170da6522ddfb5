"""Cutting a table into train, valid and test, and saying what the resampling unit is.

`random`: 60 / 20 / 20 of the rows, balanced over labels and classes, the rarest first; with a group column whole groups are
dealt, so that none stands in two parts. `time:COL`: the latest 20 % of days are test, the 20 % before them valid; groups seen in
training stay in test, are counted, and the rows of new groups are listed. `column:COL`: the column says train, valid or test.

The resampling unit of the verdict is the group where there is one, else the day of a time split, else the row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import held_classes
from pluribus.data.table import MIN_TRAIN_LABELS, Table
from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

IntArray = NDArray[np.int64]

PARTS = ("train", "valid", "test")
SHARES = (0.6, 0.2, 0.2)
_MAX_KEYS = 24


@dataclass(frozen=True)
class Split:
    """Parts and units of a table.

    Parameters
    ----------
    parts : dict
        "train", "valid", "test" → ascending rows; together every row once.
    units : ndarray of int64
        [n], the resampling unit of each row.
    unit : {"group", "day", "row"}
        What a unit is.
    new_groups : ndarray of int64
        Test rows whose group is not in training (all test rows without a group column).
    notes : tuple of str
        What a report should say about it.
    """

    parts: dict[str, IntArray]
    units: IntArray
    unit: Literal["group", "day", "row"]
    new_groups: IntArray
    notes: tuple[str, ...] = field(default=())

    def part_of(self) -> NDArray[np.int8]:
        """For every row its position in `PARTS` [n]."""
        code = np.empty(len(self.units), np.int8)
        for position, name in enumerate(PARTS):
            code[self.parts[name]] = position
        return code

    def to_frame(self, table: Table) -> pd.DataFrame:
        """What `split.parquet` holds: the id (or the row number) and the part."""
        import pandas as pd

        key = table.id or "row"
        ids = table.frame[table.id] if table.id is not None else np.arange(table.n_rows)
        return pd.DataFrame({key: ids, "part": np.asarray(PARTS)[self.part_of()]})


def split(table: Table, seed: int = 0) -> Split:
    """Split the table as `table.split` says, and check that every task can be learnt and judged.

    Parameters
    ----------
    table : Table
        The table.
    seed : int
        Of a random split; the same seed gives the same parts.

    Raises
    ------
    BadInput
        A part would be empty, or a task has fewer than 20 labels or one class only in train, or no label in valid or test.
    """
    kind = table.split.partition(":")[0]
    rows = {"random": _random, "time": _by_time, "column": _by_column}[kind](table, seed)
    parts = {name: np.flatnonzero(rows == position) for position, name in enumerate(PARTS)}
    notes: list[str] = []
    new_groups = parts["test"]
    unit: Literal["group", "day", "row"]
    if table.group is not None:
        units, unit = _codes(table, table.group), "group"
        known = np.isin(units[parts["test"]], units[parts["train"]])
        new_groups = parts["test"][~known]
        if known.any():
            both = len(np.unique(units[parts["test"]][known]))
            notes.append(
                f"{both} groups of {table.group!r} stand in train and test ({int(known.sum())} of {len(known)} test rows); "
                f"{len(new_groups)} test rows are of new groups"
            )
    elif kind == "time":
        units, unit = _days(table), "day"
    else:
        units, unit = np.arange(table.n_rows), "row"
    check_labels(table, parts)
    return Split(parts, units, unit, new_groups, (*notes, *unlearnt(table, parts)))


def unlearnt(table: Table, parts: dict[str, IntArray]) -> list[str]:
    """A line on each task with classes that no row of train has: nothing can learn them, and its scores count their rows."""
    part_of = np.empty(table.n_rows, np.int8)
    for position, name in enumerate(PARTS):
        part_of[parts[name]] = position
    notes = []
    for task in table.tasks:
        if not task.record.classes:
            continue
        cells = table.cells[task.name]
        held = held_classes(cells.values, len(task.classes))
        rows = np.stack([held[part_of[cells.rows] == position].sum(0) for position in range(len(PARTS))])
        lacking = [
            f"{task.classes[c]!r} (" + " and ".join(f"{rows[p, c]} rows of {PARTS[p]}" for p in (1, 2) if rows[p, c]) + ")"
            for c in np.flatnonzero((rows[0] == 0) & rows.any(0))
        ]
        if lacking:
            shown = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            notes.append(
                f"{task.name!r}: no row of train has class {shown}: it cannot be learnt (--split decides who is in train)"
            )
    return notes


def check_labels(table: Table, parts: dict[str, IntArray]) -> None:
    """Every task needs 20 labels and two classes in train, and a label in valid and test."""
    part_of = np.empty(table.n_rows, np.int8)
    for position, name in enumerate(PARTS):
        part_of[parts[name]] = position
    remedy = "leave the task out, bring more labels, or split otherwise"
    for task in table.tasks:
        where = f"{table.source}, task {task.name!r}"
        cells = table.cells[task.name]
        counts = np.bincount(part_of[cells.rows], minlength=len(PARTS))
        if counts[0] < MIN_TRAIN_LABELS:
            what = f"has {counts[0]} labels in train, and {MIN_TRAIN_LABELS} are the least"
            raise BadInput(what, where=where, remedy=remedy)
        for position in (1, 2):
            if not counts[position]:
                raise BadInput(f"has no label in {PARTS[position]}", where=where, remedy=remedy)
        if task.record.classes and (why := task.record.varied(task, cells.values[part_of[cells.rows] == 0])):
            raise BadInput(why.replace(" only", " only in train", 1), where=where, remedy=remedy)


def _codes(table: Table, column: str) -> IntArray:
    import pandas as pd

    return np.asarray(pd.factorize(table.frame[column], sort=True)[0], np.int64)


def _days(table: Table) -> IntArray:
    """The day of each row as an ascending number [n]; for a time column of numbers, its distinct values."""
    import pandas as pd

    assert table.time is not None
    series = table.frame[table.time]
    where = f"{table.source}, column {table.time!r}"
    if series.isna().any():
        row = int(series.isna().to_numpy().argmax()) + 1
        raise BadInput(f"the time is empty in row {row}", where=where, remedy="fill it, or --split random")
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        if getattr(series.dtype, "tz", None) is not None:
            series = series.dt.tz_localize(None)  # its own clock
        values = series.to_numpy().astype("datetime64[D]").astype(np.int64)
    elif pd.api.types.is_numeric_dtype(series.dtype):
        values = series.to_numpy()
    else:
        raise BadInput("holds neither dates nor numbers", where=where, remedy="name a date column, or --split random")
    return np.asarray(np.unique(values, return_inverse=True)[1], np.int64)


def _by_time(table: Table, seed: int) -> NDArray[np.int8]:
    days = _days(table)
    total = int(days.max()) + 1
    if total < 3:
        where = f"{table.source}, column {table.time!r}"
        raise BadInput(f"has {total} days, and a split by time needs 3", where=where, remedy="--split random")
    held = max(1, round(SHARES[2] * total))
    return np.where(days >= total - held, 2, np.where(days >= total - 2 * held, 1, 0)).astype(np.int8)


def _by_column(table: Table, seed: int) -> NDArray[np.int8]:
    assert table.split_column is not None
    series = table.frame[table.split_column]
    where = f"{table.source}, column {table.split_column!r}"
    words = series.astype(object).where(series.notna(), None)
    code = np.full(len(words), -1, np.int8)
    for position, name in enumerate(PARTS):
        code[(words == name).to_numpy()] = position
    if (code < 0).any():
        row = int((code < 0).argmax())
        what = f"holds {words.iloc[row]!r} in row {row + 1}" if words.iloc[row] is not None else f"is empty in row {row + 1}"
        raise BadInput(what, where=where, remedy="write train, valid or test in every row")
    for position, name in enumerate(PARTS):
        if not (code == position).any():
            raise BadInput(f"gives no row to {name}", where=where, remedy="write train, valid and test")
    return code


def _random(table: Table, seed: int) -> NDArray[np.int8]:
    rng = np.random.default_rng(seed)
    keys = _strata(table)
    if table.group is None:
        return _deal_rows(keys, table.n_rows, rng)
    groups = _codes(table, table.group)
    total = int(groups.max()) + 1
    if total < 3:
        where = f"{table.source}, column {table.group!r}"
        raise BadInput(f"has {total} groups, and three parts need 3", where=where, remedy="split otherwise")
    return _deal_groups(keys, groups, total, rng)[groups]


def _strata(table: Table) -> list[NDArray[np.bool_]]:
    """What should occur in every part, the rarest first: a task's label, or one class of it [n] each."""
    keys = []
    for task in table.tasks:
        cells = table.cells[task.name]
        if task.record.classes:
            keys += [cells.rows[has] for has in held_classes(cells.values, len(task.classes)).T]
        else:
            keys.append(cells.rows)
    found = []
    for rows in sorted((rows for rows in keys if 0 < len(rows) < table.n_rows), key=len)[:_MAX_KEYS]:
        flag = np.zeros(table.n_rows, bool)
        flag[rows] = True
        found.append(flag)
    return found


def _deal_rows(keys: list[NDArray[np.bool_]], total: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Rows in the order of their strata, random within; each five in a row get train ×3, valid, test in random order."""
    order = np.lexsort((rng.random(total), *reversed([~key for key in keys])))
    fives = np.tile(np.array([0, 0, 0, 1, 2], np.int8), (-(-total // 5), 1))
    code = np.empty(total, np.int8)
    code[order] = rng.permuted(fives, axis=1).ravel()[:total]
    return code


def _deal_groups(keys: list[NDArray[np.bool_]], groups: IntArray, total: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Groups in the order of their strata, the largest first; each goes to the part that is furthest below its share."""
    sizes = np.bincount(groups, minlength=total)
    held = [np.bincount(groups[key], minlength=total) > 0 for key in keys]
    order = np.lexsort((rng.random(total), -sizes, *reversed([~key for key in held])))
    code = np.empty(total, np.int8)
    have = [0.0, 0.0, 0.0]
    so_far = 0.0
    for group, size in zip(order.tolist(), sizes[order].tolist()):
        so_far += size
        part = max(range(3), key=lambda p: SHARES[p] * so_far - have[p])
        code[group] = part
        have[part] += size
    for part in range(3):  # one giant group can starve a part: give it the smallest group of the fullest
        if not (code == part).any():
            rich = np.flatnonzero(code == np.argmax(np.bincount(code, minlength=3)))
            code[rich[np.argmin(sizes[rich])]] = part
    return code
