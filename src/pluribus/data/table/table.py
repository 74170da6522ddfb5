"""A table with roles: what is predicted, what is known, who is who, and why cells are empty.

Two layouts. *Wide*: one column per task. *Long*: `task_column` says to which task a row belongs and one target column holds
its value; every distinct word of that column is a task, and a row is a cell of its own task only.

Kinds of targets and types of inputs are inferred where none is given (`pluribus.data.table.targets`, `pluribus.data.inputs`);
`Table.notes` says what was taken and why.

Tags stand for the words of the one text column (of several the first that the task reads, where `Task.inputs` says what that is),
which is cut at white space or given as lists of words; a list of words that fits the tags is text without being declared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.data.dates import is_text, parse_dates
from pluribus.data.ingest import WrittenTable, read_written
from pluribus.data.inputs.record import InputColumn, InputType
from pluribus.data.ragged import looks_like_lists
from pluribus.data.table.holes import HOLES, Reasons, check_labels, flags, labelled_cells
from pluribus.data.table.reading import Inputs, check_joined, check_keys, check_text, words_beside
from pluribus.data.table.roles import SplitRule, check_values, inputs_of, targets_of
from pluribus.data.table.targets import check_columns, check_inputs, check_parents, parse_target, resolve, task_positions
from pluribus.data.table.weights import CellWeights, row_weights
from pluribus.data.tags import word_counts
from pluribus.data.written.reading import Reading
from pluribus.errors import BadInput, unknown
from pluribus.tasks import KINDS, Task
from pluribus.tasks.columns import Column, word_of

if TYPE_CHECKING:
    import pandas as pd

MIN_TRAIN_LABELS = 20


class ItemSource(Protocol):
    """A second table with one row an item (`pluribus.data.items.ItemTable`)."""

    @property
    def key(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]: ...  # as the user named them, perhaps none

    def joined(self, name: str, inputs: Sequence[str]) -> tuple[str, ...]:
        """The columns of the first table that this one, called `name`, is joined to."""
        ...

    def attributes(self) -> Table:
        """The checked table of attributes; its `keys` are the items."""
        ...


class Table:
    """A DataFrame whose columns have roles.

    Parameters
    ----------
    frame : DataFrame
        The rows; its index is ignored. Column names must be distinct strings.
    tasks : sequence of str or Task
        `NAME[:KIND]` strings or tasks (name = column). Long layout: exactly one, the target column; its task serves as the
        pattern of all.
    id : str, optional
        Column kept beside predictions, never an input; distinct and complete.
    ignore : iterable of str
        Columns that are no inputs.
    weight : str or sequence of str, optional
        Column of row weights (finite, not negative), for the losses and metrics of every task; `TASK=COL` for those of one task.
    class_weights : str or sequence of str
        "balanced", `TASK=balanced`, `CLASS=x` or `TASK:CLASS=x`: how much the cells of a class count; see
        `pluribus.data.table.weights`.
    group : str, optional
        Column of whoever must not stand in two parts of a random split; the unit of resampling; not an input.
    time : str, optional
        Column that orders the rows.
    task_column : str, optional
        The long layout's column of tasks.
    split : str, optional
        "random", "time:COL" or "column:COL"; default: by `time`, else by the first input of dates, else at random.
    not_applicable, delayed : mapping, optional
        Task → column; where that column is true (1), the task's cell is not applicable, or its label is still to come. Such a
        column is not an input. (`Task.after` and `Task.absent` say the same for whole tasks.)
    late : {"left_out", "weighed"}
        What becomes of delayed labels of binary tasks: "weighed": negatives so far that may turn positive, see
        `pluribus.data.table.delayed` (a 1 that stands there has happened and counts). Other kinds' are left out.
    text : iterable of str
        Input columns of text, beside those that are found out to be.
    items : mapping, optional
        Name → `ItemTable`, a second table whose key columns of this one hold.
    max_length : int
        Of a sequence the latest so many elements are kept.
    types : mapping, optional
        Input column → its type, where it is not to be found out: "category", "number", "datetime" or "boolean".
    kinds : mapping, optional
        Target → the kinds that come into question where none is said, such as those that a metric serves.
    written : WrittenTable, optional
        How the cells of the frame's file are written, and what was said of it.
    source : str
        The file's name, for messages.

    Attributes
    ----------
    tasks : tuple of Task
        With kinds and classes filled in.
    inputs : tuple of str
        The input columns, in the frame's order.
    types : dict
        Input column → its type.
    text : tuple of str
        The input columns of text: declared ones, then those found out.
    notes : list of str
        One line for each thing that was inferred.
    writings : dict
        Column → how its cells are written in the file, where that is not as programs write.
    joined : dict
        Item table → the columns that are joined to it.
    attributes : dict
        Item table → its table of attributes.
    keys : sequence of str
        Of a table of attributes: one word an item.

    Raises
    ------
    BadInput
        Unknown or doubly used columns, targets without values or with one value, kinds that do not fit, infinite numbers, ids
        that are not distinct, dates that do not parse, lists of several types or of lists, keys of items that are missing or
        doubled.
    """

    predicts: ClassVar[bool] = True
    """Whether it has targets; tables of attributes have none."""
    keys: Sequence[str] = ()

    def __init__(
        self,
        frame: pd.DataFrame,
        tasks: Sequence[str | Task],
        id: str | None = None,
        ignore: Iterable[str] = (),
        weight: str | Sequence[str] | None = None,
        group: str | None = None,
        time: str | None = None,
        task_column: str | None = None,
        *,
        split: str | None = None,
        not_applicable: Mapping[str, str] | None = None,
        delayed: Mapping[str, str] | None = None,
        late: Literal["left_out", "weighed"] = "left_out",
        class_weights: str | Sequence[str] = (),
        text: Iterable[str] = (),
        items: Mapping[str, ItemSource] | None = None,
        max_length: int = 100,
        types: Mapping[str, str] | None = None,
        kinds: Mapping[str, Collection[str]] | None = None,
        written: WrittenTable | None = None,
        source: str = "table",
    ) -> None:
        self.source, self.notes = source, list(written.notes if written is not None else ())
        self.writings = dict(written.writings) if written is not None else {}
        self._chosen_types, self._chosen_kinds = dict(types or {}), dict(kinds or {})
        self.frame = _checked(frame, source)
        self.weights = CellWeights.of(weight, class_weights, list(self.frame.columns), source)
        self.id, self.weight, self.group, self.task_column = id, self.weights.common, group, task_column
        self.ignore = tuple(ignore)
        self.not_applicable, self.delayed, self.late = dict(not_applicable or {}), dict(delayed or {}), late
        if late not in ("left_out", "weighed"):
            raise unknown("way with delayed labels", late, ("left_out", "weighed"), where="late")
        rule = SplitRule.of(split, time)
        self.time, self.split_column = rule.time, rule.column
        self._targets = targets_of(self.frame, tasks, self.long, source) if self.predicts else ()
        named = {"id": id, "weight": self.weight, "group": group, "task column": task_column, "split": rule.column}
        empty = {"not_applicable": self.not_applicable.values(), "delayed": self.delayed.values()}
        empty["weight of a task"] = self.weights.own.values()
        self.inputs = inputs_of(self.frame, self._targets, named, self.ignore, self.time, empty, source)
        self.items, self.max_length = dict(items or {}), max_length
        self._read_inputs(
            check_text(text if isinstance(text, str) else list(text), list(self.frame.columns), self.inputs, source)
        )
        self.split = self._split_of(rule)
        complete = {"group": group, "time": self.time, "task column": task_column}
        check_values(self.frame, self.ignore, id, complete, source)
        self.tasks = self._resolved()
        check_inputs(self.tasks, self.inputs, source)
        check_columns(self.tasks, source)
        check_parents(self.tasks, source)
        for field, columns in (("not_applicable", self.not_applicable), ("delayed", self.delayed)):
            for name in columns:
                if name not in self.names:
                    raise unknown("task", name, self.names, where=field)
        self.weights.check(self.tasks, self.frame, source)
        check_labels(self.tasks, self.cells, source)

    @classmethod
    def read(
        cls,
        path: str | Path,
        tasks: Sequence[str | Task],
        *,
        thousands: str | Sequence[str] = (),
        decimal: str | Sequence[str] = (),
        na: str | Sequence[str] = (),
        dayfirst: bool | None = None,
        types: Mapping[str, str] | None = None,
        separator: str | None = None,
        encoding: str | None = None,
        **roles: Any,
    ) -> Table:
        """A table from a CSV or Parquet file, as people write them (`pluribus.data.written`).

        Ids, groups and keys of items keep their leading zeros.

        Parameters
        ----------
        path : path
            The file.
        tasks : sequence of str or Task
            As for `Table`.
        thousands, decimal, na, dayfirst, types, separator, encoding
            What the file's columns look like, where it is not to be found out; see `pluribus.data.written.reading.Reading`.
        **roles
            As for `Table`.

        Raises
        ------
        BadInput
            The file is no table, a column is ambiguous, or what `Table` refuses.
        """
        reading = Reading(thousands, decimal, na, dayfirst, types or {}, separator, encoding)
        text = [*(roles[role] for role in ("id", "group", "task_column") if roles.get(role)), *roles.get("text", ())]
        text += [task.name for task in tasks if isinstance(task, Task) and task.classes]  # in the words that the user gives
        split = SplitRule.of(roles.get("split"), roles.get("time"))
        text += [split.column] if split.column is not None else []
        for name, items in (roles.get("items") or {}).items():
            text += items.columns or (name, items.key)
        wanted = {parse_target(task)[0] if isinstance(task, str) else task.name for task in tasks}
        wanted |= {*text, *roles.get("ignore", ()), *(types or {}), *([split.time] if split.time else [])}
        weight = roles.get("weight") or ()
        wanted |= {
            part for word in ((weight,) if isinstance(weight, str) else weight) for part in (word, word.rpartition("=")[2])
        }
        wanted |= {column for role in ("not_applicable", "delayed") for column in (roles.get(role) or {}).values()}
        roles.setdefault("source", str(path))
        ignored = set(roles.get("ignore", ())) - {split.time}
        written = read_written(path, text=text, reading=reading, wanted=wanted, ignore=ignored)
        return cls(written.frame, tasks, types=types, written=written, **roles)

    # What it is

    @property
    def n_rows(self) -> int:
        """n"""
        return len(self.frame)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(task.name for task in self.tasks)

    @property
    def long(self) -> bool:
        """Whether `task_column` says which task a row belongs to."""
        return self.task_column is not None

    @property
    def types(self) -> dict[str, InputType]:
        """Input column → its type."""
        return self._inputs.types

    def input_column(self, name: str) -> InputColumn:
        """An input column, as its type reads it."""
        return self._inputs.column(name)

    def read_input(self, name: str) -> Any:
        """An input column's cells as its type reads them, read once where that costs something."""
        return self._inputs.read(name)

    def target_of(self, task: Task) -> str:
        """The column that holds a task's labels."""
        return self._targets[0].column if self.long else task.name

    @cached_property
    def task_index(self) -> NDArray[np.int64]:
        """Long layout: the position among `tasks` of each row's task [n]."""
        assert self.task_column is not None
        return task_positions(self.frame[self.task_column], self.names, self._at(self.task_column))

    @property
    def cells(self) -> dict[str, Cells]:
        """Task → its labelled cells. A value that stands where the task is not applicable or delayed is no label."""
        return self._cells[0]

    @property
    def hole_codes(self) -> dict[str, NDArray[np.int8]]:
        """Task → for every row its position in `HOLES` [n]."""
        return self._cells[1]

    @cached_property
    def holes(self) -> dict[str, dict[str, int]]:
        """Task → number of cells by kind: labelled, missing, not_applicable, delayed (a long table's rows of other tasks
        are not applicable)."""
        return {
            name: dict(zip(HOLES, np.bincount(code, minlength=len(HOLES)).tolist())) for name, code in self.hole_codes.items()
        }

    @cached_property
    def _cells(self) -> tuple[dict[str, Cells], dict[str, NDArray[np.int8]]]:
        reasons = Reasons(
            {task: flags(self.frame[column], self._at(column)) for task, column in self.not_applicable.items()},
            {task: flags(self.frame[column], self._at(column)) for task, column in self.delayed.items()},
            self.task_index if self.long else None,
            row_weights(self.weights, self.tasks, self.frame),
            self._times if self.late == "weighed" else None,
        )
        cells, codes = labelled_cells(self.tasks, self.column_of, reasons, self.source)
        for task in self.tasks:
            cells[task.name] = self.weights.of_cells(task, cells[task.name], f"{self.source}, task {task.name!r}")
        return cells, codes

    def _times(self) -> NDArray[np.float64]:
        if self.time is None:
            remedy = "name the column: time=COL, or split by time"
            raise BadInput("delayed labels are weighed by the rows' time, which is not known", where="late", remedy=remedy)
        series = self.frame[self.time]
        return np.asarray(series.to_numpy("datetime64[ns]" if series.dtype.kind == "M" else None).astype(np.float64))

    def _at(self, column: str) -> str:
        return f"{self.source}, column {column!r}"

    # Inputs

    def _read_inputs(self, text: tuple[str, ...]) -> None:
        """Find the types of the input columns, and join items to them."""
        targets = {target.column: target.kind for target in self._targets}
        chosen = [column for column, kind in targets.items() if kind is not None and KINDS[kind].beside == "items"]
        self.joined = {name: table.joined(name, (*self.inputs, *chosen)) for name, table in self.items.items()}
        keys = {column for columns in self.joined.values() for column in columns}
        for column in chosen:
            if column not in keys:
                remedy = f"name {column!r} among the columns of an item table"
                raise BadInput(f"kind {targets[column]} needs an item table joined to it", where=self._at(column), remedy=remedy)
        text = text or self._text_of_labels(targets)
        self._inputs = Inputs(
            self.frame,
            self.inputs,
            self.source,
            text=text,
            joined=keys,
            time=self.time,
            limit=self.max_length,
            types=self._chosen_types,
        )
        self.notes += self._inputs.notes
        self.text = (*text, *(name for name, record in self.types.items() if record.is_words and name not in text))
        self.attributes = {name: table.attributes() for name, table in self.items.items()}
        check_joined(self.joined, text, self.source)
        for name, columns in self.joined.items():
            known = frozenset(self.attributes[name].keys)
            for column in columns:
                given = column in targets
                found = [word_of(v) for v in self.frame[column].dropna().unique()] if given else self._inputs.mentioned(column)
                line = check_keys(found, known, column, self._at(column), name, self.items[name].key)
                if line is not None:
                    self.notes.append(f"{line}: {'their rows have no label' if given else 'they count as unseen'}")
        if self.time is not None and self.time not in self.inputs and is_text(self.frame[self.time]):
            self.frame[self.time] = parse_dates(self.frame[self.time], self._at(self.time))

    def _text_of_labels(self, targets: Mapping[str, str | None]) -> tuple[str, ...]:
        """The column of lists that has a word for each label, where a target labels words and no text is declared."""
        for column, kind in targets.items():
            there = column in self.frame.columns
            if there and (looks_like_lists(self.frame[column]) if kind is None else KINDS[kind].beside == "text"):
                found = words_beside(self.frame, column, self.inputs, self.source)
                if found is not None:
                    self.notes.append(f"{found!r} is text, a list of words: it has one for each tag of {column!r}")
                return () if found is None else (found,)
        return ()

    def _split_of(self, rule: SplitRule) -> str:
        """The rule in words; without one, the first column of dates is taken."""
        import pandas as pd

        if rule.kind is not None:
            return f"{rule.kind}:{self.time if rule.kind == 'time' else rule.column}".removesuffix(":None")
        for column in self.inputs:
            if pd.api.types.is_datetime64_any_dtype(self.frame[column]):
                self.time = column
                self.notes.append(f"split by time: {column!r} is a datetime column (--split random for a random split)")
                return f"time:{column}"
        return "random"

    # Tasks

    def _resolved(self) -> tuple[Task, ...]:
        tasks = []
        for target in self._targets:
            beside = self._beside(target.column, target.kind, target.declared)
            among = self._chosen_kinds.get(target.column)
            tasks.append(resolve(target.declared, beside, target.kind, len(self.text), self.notes, among))
        if self.task_column is None:
            return tuple(tasks)
        names = sorted(self.frame[self.task_column].unique().tolist())
        if len(names) > len(self.frame) / MIN_TRAIN_LABELS:
            what = f"names {len(names)} tasks in {len(self.frame)} rows"
            raise BadInput(what, where=self._at(self.task_column), remedy="check the name of the task column")
        return tuple(tasks[0].with_(name=str(name)) for name in names)

    def column_of(self, task: Task) -> Column:
        """A task's column with what stands beside it; in the long layout, its own cells."""
        column = self._beside(self.target_of(task), task.kind, task)
        if self.task_column is None:
            return column
        return replace(column, series=column.series.where(self.frame[self.task_column].astype(str) == task.name))

    def _beside(self, name: str, kind: str | None, task: Task | None) -> Column:
        """A target column with the text whose words it labels, or the item table whose keys it holds, as far as its kind (None:
        not known yet) asks for one."""
        series, where = self.frame[name], self._at(name)
        for items, columns in self.joined.items():
            if name in columns:
                keys = {key: row for row, key in enumerate(self.attributes[items].keys)}
                return Column(series, where, keys=keys, beside=items)
        if not (looks_like_lists(series) if kind is None else KINDS[kind].beside == "text"):
            return Column(series, where)
        read = None if task is None else task.inputs
        text = [each for each in self.text if read is None or each in read]
        if len(text) == 1 or (text and read is not None):
            return Column(series, where, words=self._counts(text[0]), beside=text[0])
        return Column(series, where)

    def _counts(self, text: str) -> NDArray[np.int64]:
        """How many words each row of a text has."""
        if text not in self._word_counts:
            self._word_counts[text] = word_counts(self._words_of(text))
        return self._word_counts[text]

    @cached_property
    def _word_counts(self) -> dict[str, NDArray[np.int64]]:
        return {}

    def _words_of(self, text: str) -> list[str | None]:
        series = self.frame[text]
        return [None if absent else word_of(cell) for cell, absent in zip(series.to_numpy(object), series.isna().tolist())]

    @property
    def words(self) -> list[str | None]:
        """The text whose words have tags, cell by cell."""
        return self._words_of(self.text[0])


def _checked(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The frame with a fresh index and names that are distinct strings."""
    names = [str(name) for name in frame.columns]
    doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if doubled:
        raise BadInput(f"has several columns called {doubled[0]!r}", where=source, remedy="rename all but one")
    if not len(frame):
        raise BadInput("has no rows", where=source, remedy="check how it was made")
    found = frame.reset_index(drop=True)
    found.columns = names
    return found
