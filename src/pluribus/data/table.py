"""A table with roles: what is predicted, what is known, who is who, and why cells are empty.

Two layouts. *Wide*: one column per task. *Long*: `task_column` says to which task a row belongs and one target column holds
its value; every distinct word of that column is a task, and a row is a cell of its own task only.

Kinds are inferred where none is given (`pluribus.data.targets` has the rules); `Table.notes` says what was taken and why.

Input columns of lists (Python lists, Arrow lists, JSON lists in text) are sequences. A column of words is text where it is
declared so, or where it has more than 50 different values, more than half of them distinct, of more than 30 letters or at
least four words on average. Sequences and texts are inputs of the candidates that read them; others go by the other columns.

Tags stand for the words of the one text column, which is cut at white space or given as lists of words; a list of words that
fits the tags is text without being declared. An empty list is a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.data.dates import is_text, looks_like_dates, parse_dates
from pluribus.data.delayed import weighed
from pluribus.data.ingest import read_table
from pluribus.data.ragged import Lists, looks_like_lists, read_lists
from pluribus.data.tags import joined, word_counts
from pluribus.data.targets import infer_kind, no_list, parse_target, task_positions
from pluribus.errors import BadInput, unknown
from pluribus.tasks import KINDS, Task
from pluribus.tasks.columns import Column, word_of
from pluribus.tasks.forms import Values
from pluribus.tasks.kinds.labels import MAX_CLASSES
from pluribus.tasks.task import check_graph

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.data.items import Attributes, ItemTable

MIN_TRAIN_LABELS = 20

LABELLED, MISSING, NOT_APPLICABLE, DELAYED = range(4)
HOLES = ("labelled", "missing", "not_applicable", "delayed")
"""The codes of `Table.hole_codes`, by position."""

_FREE_TEXT_LETTERS = 30
_FREE_TEXT_WORDS = 4


class Table:
    """A DataFrame whose columns have roles.

    Parameters
    ----------
    frame: the rows; its index is ignored. Column names must be distinct strings.
    tasks: `NAME[:KIND]` strings or `Task` objects (name = column). Long layout: exactly one, the target column; its task
        serves as the pattern of all.
    id: column kept beside predictions, never an input; distinct and complete.
    ignore: columns that are no inputs.
    weight: column of row weights (finite, not negative), for the losses and metrics of every task.
    group: column of whoever must not stand in two parts of a random split; the unit of resampling; not an input.
    time: column that orders the rows.
    task_column: the long layout's column of tasks.
    split: "random", "time:COL" or "column:COL"; default: by `time`, else by the first datetime input, else at random.
    not_applicable, delayed: task → column; where that column is true (1), the task's cell is not applicable, or its label is
        still to come. Such a column is not an input. (`Task.after` and `Task.absent` say the same for whole tasks.)
    late: what becomes of delayed labels of binary tasks: "left_out", or "weighed": negatives so far that may turn positive, see
        `pluribus.data.delayed` (a 1 that stands there has happened and counts). Other kinds' are left out.
    text: input columns of text, beside those that are found out to be (see the module's text).
    items: name → `ItemTable`, a second table whose key columns of this one hold.
    max_length: of a sequence the latest so many elements are kept.
    source: the file's name, for messages.

    Attributes
    ----------
    tasks: tuple of `Task` with kinds and classes filled in.
    inputs: names of the input columns, in the frame's order.
    notes: one line for each thing that was inferred.
    encoded: words and dates of input columns as codes, kept by `FittedColumns` so that they are looked up once.
    lists: the input columns of lists, read. joined: item table → the columns that are joined to it. attributes: item table →
        its table of attributes.

    Raises
    ------
    BadInput: unknown or doubly used columns, targets without values or with one value, kinds that do not fit, infinite
        numbers, ids that are not distinct, dates that do not parse, lists of several types or of lists, keys of items that are
        missing or doubled.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        tasks: Sequence[str | Task],
        id: str | None = None,
        ignore: Iterable[str] = (),
        weight: str | None = None,
        group: str | None = None,
        time: str | None = None,
        task_column: str | None = None,
        *,
        split: str | None = None,
        not_applicable: Mapping[str, str] | None = None,
        delayed: Mapping[str, str] | None = None,
        late: Literal["left_out", "weighed"] = "left_out",
        text: Iterable[str] = (),
        items: Mapping[str, ItemTable] | None = None,
        max_length: int = 100,
        source: str = "table",
    ) -> None:
        self.source = source
        self.frame = frame.reset_index(drop=True)
        self._check_frame()
        self.id, self.weight, self.group, self.task_column = id, weight, group, task_column
        self.ignore = tuple(ignore)
        self.not_applicable, self.delayed, self.late = dict(not_applicable or {}), dict(delayed or {}), late
        if late not in ("left_out", "weighed"):
            raise unknown("way with delayed labels", late, ("left_out", "weighed"), where="late")
        self.notes: list[str] = []
        self.encoded: dict[str, Any] = {}
        self.time, self.split_column, kind_of_split = self._parse_split(split, time)
        self._targets = self._named(tasks)
        self.inputs = self._check_roles()
        self.text = self._check_declared_text(text)
        self.items, self.max_length = dict(items or {}), max_length
        targets = tuple(column for _, column, kind in self._targets if kind is not None and KINDS[kind].beside == "items")
        self.joined = {name: table.joined(name, (*self.inputs, *targets)) for name, table in self.items.items()}
        for column in targets:
            if not any(column in columns for columns in self.joined.values()):
                remedy = f"name {column!r} among the columns of an item table"
                kind = next(kind for _, name, kind in self._targets if name == column)
                raise BadInput(f"kind {kind} needs an item table joined to it", where=self._at(column), remedy=remedy)
        self._read_words()
        self.lists = self._read_lists()
        self.attributes: dict[str, Attributes] = {name: table.attributes() for name, table in self.items.items()}
        self._check_joins()
        self._parse_dates()
        if kind_of_split is None:
            kind_of_split = self._default_split()
        self.split = f"{kind_of_split}:{self.time if kind_of_split == 'time' else self.split_column}".removesuffix(":None")
        self._check_values()
        self.tasks = self._resolve()
        self._check_columns()
        self._check_parents()
        for field, columns in (("not_applicable", self.not_applicable), ("delayed", self.delayed)):
            for name in columns:
                if name not in self.names:
                    raise unknown("task", name, self.names, where=field)
        self._check_labels()

    @classmethod
    def read(cls, path: str | Path, tasks: Sequence[str | Task], **roles: Any) -> Table:
        """A table from a CSV or Parquet file; `roles` as for `Table`. Ids, groups and keys of items keep their leading zeros."""
        text = [*(roles[role] for role in ("id", "group") if roles.get(role)), *roles.get("text", ())]
        for name, items in (roles.get("items") or {}).items():
            text += items.columns or (name, items.key)
        roles.setdefault("source", str(path))
        return cls(read_table(path, text=text), tasks, **roles)

    # What it is

    @property
    def n_rows(self) -> int:
        return len(self.frame)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(task.name for task in self.tasks)

    @property
    def long(self) -> bool:
        """Whether `task_column` says which task a row belongs to."""
        return self.task_column is not None

    @cached_property
    def task_index(self) -> NDArray[np.int64]:
        """Long layout: the position among `tasks` of each row's task [n]."""
        assert self.task_column is not None
        return task_positions(self.frame[self.task_column], self.names, self._at(self.task_column))

    @cached_property
    def _cells(self) -> tuple[dict[str, Cells], dict[str, NDArray[np.int8]]]:
        weight = None if self.weight is None else self.frame[self.weight].to_numpy(np.float64)
        values: dict[str, Values] = {}
        empty: dict[str, NDArray[np.bool_]] = {}
        for task in self.tasks:
            values[task.name], empty[task.name] = task.record.read(task, self._column_of(task))
        cells: dict[str, Cells] = {}
        codes: dict[str, NDArray[np.int8]] = {}
        by_name = {task.name: (position, task) for position, task in enumerate(self.tasks)}
        for position, task in (by_name[name] for name in check_graph(self.tasks)):  # parents first
            value = values[task.name]
            code = np.where(empty[task.name], np.int8(HOLES.index(task.absent)), np.int8(LABELLED))
            weighs = self.late == "weighed" and task.record.positive
            if task.name in self.delayed:
                pending = self._flags(self.delayed[task.name])
                code[pending & (value != 1) if weighs else pending] = DELAYED
            for parent in task.after:
                before = values[parent]
                assert isinstance(before, np.ndarray)  # a parent says yes or no
                self._check_step(task, by_name[parent][1], value, before)
                code[(before == 0) | (codes[parent] == NOT_APPLICABLE)] = NOT_APPLICABLE
            if task.name in self.not_applicable:
                code[self._flags(self.not_applicable[task.name])] = NOT_APPLICABLE
            if self.long:
                code[self.task_index != position] = NOT_APPLICABLE
            rows = np.flatnonzero(code == LABELLED)
            cells[task.name] = Cells(rows, value[rows], None if weight is None else weight[rows])
            if weighs and (code == DELAYED).any():
                known = np.where(code == LABELLED, value, np.nan)
                cells[task.name] = weighed(known, code == DELAYED, self._times(), weight, f"{self.source}, task {task.name!r}")
            codes[task.name] = code
        return {name: cells[name] for name in self.names}, {name: codes[name] for name in self.names}

    def _times(self) -> NDArray[np.float64]:
        if self.time is None:
            remedy = "name the column: time=COL, or split by time"
            raise BadInput("delayed labels are weighed by the rows' time, which is not known", where="late", remedy=remedy)
        series = self.frame[self.time]
        return np.asarray(series.to_numpy("datetime64[ns]" if series.dtype.kind == "M" else None).astype(np.float64))

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

    # Checks, in the order of `__init__`

    def _at(self, column: str) -> str:
        return f"{self.source}, column {column!r}"

    def _check_frame(self) -> None:
        names = [str(name) for name in self.frame.columns]
        doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if doubled:
            raise BadInput(f"has several columns called {doubled[0]!r}", where=self.source, remedy="rename all but one")
        if not len(self.frame):
            raise BadInput("has no rows", where=self.source, remedy="check how it was made")
        self.frame.columns = names

    def _parse_split(self, split: str | None, time: str | None) -> tuple[str | None, str | None, str | None]:
        kind, _, column = (split or "").partition(":")
        kinds = ("random", "time", "column")
        where = "split"
        if not kind:
            return time, None, "time" if time else None
        if kind not in kinds:
            raise unknown("kind of split", kind, kinds, where=where)
        if kind == "random":
            if column:
                raise BadInput(f"{split!r} names a column", where=where, remedy="write random, time:COL or column:COL")
            return time, None, kind
        if not column and not (kind == "time" and time):
            raise BadInput(f"{split!r} names no column", where=where, remedy=f"write {kind}:COL")
        if kind == "column":
            return time, column, kind
        if time and column and column != time:
            raise BadInput(f"orders the rows by {column!r}, but time is {time!r}", where=where, remedy="name one column")
        return column or time, None, kind

    def _named(self, tasks: Sequence[str | Task]) -> list[tuple[Task | None, str, str | None]]:
        """(declared task or None, column, kind or None) for every target."""
        found: list[tuple[Task | None, str, str | None]] = []
        for task in tasks:
            found.append((task, task.name, task.kind) if isinstance(task, Task) else (None, *parse_target(task)))
            if found[-1][1] not in self.frame.columns and not isinstance(task, Task):
                stem, _, suffix = task.rpartition(":")  # a name whose kind is misspelt deserves the better hint
                if stem in self.frame.columns:
                    raise unknown("kind", suffix, KINDS, where=f"target {task!r}")
        if not found:
            raise BadInput("no target is named", where=self.source, remedy="say what to predict: --target NAME")
        if self.task_column is not None and len(found) > 1:
            raise BadInput(
                f"a table with a task column has one target column, not {len(found)}",
                where=self.source,
                remedy="name one target, or leave the task column out",
            )
        return found

    def _check_roles(self) -> tuple[str, ...]:
        """Every role names a column that exists and has no second role; what is left are the inputs."""
        columns = list(self.frame.columns)
        roles: dict[str, str] = {}

        def take(role: str, column: str | None, *, may_share: bool = False) -> None:
            if column is None:
                return
            if column not in columns:
                raise unknown(f"{role} column" if role != "target" else "target", column, columns, where=self.source)
            if column in roles and not may_share:
                what = f"is named as {role} and as {roles[column]}"
                raise BadInput(what, where=self._at(column), remedy="give it one role")
            roles.setdefault(column, role)

        for _, column, _kind in self._targets:
            take("target", column)
        take("id", self.id)
        take("weight", self.weight)
        take("group", self.group)
        take("task column", self.task_column)
        take("split", self.split_column)
        for column in self.ignore:
            take("ignore", column, may_share=roles.get(column) == "ignore")
        take("time", self.time, may_share=roles.get(self.time or "") == "ignore")
        not_inputs = set(roles) - ({self.time} if self.time not in self.ignore else set())
        for role, named in (("not_applicable", self.not_applicable), ("delayed", self.delayed)):
            for column in named.values():
                take(role, column, may_share=roles.get(column) in ("target", "not_applicable", "delayed", "ignore"))
                not_inputs.add(column)
        inputs = tuple(column for column in columns if column not in not_inputs)
        if not inputs:
            raise BadInput("has no input column left", where=self.source, remedy="ignore fewer columns")
        return inputs

    def _check_declared_text(self, text: Iterable[str]) -> tuple[str, ...]:
        if isinstance(text, str):
            raise BadInput("text must be a list of columns", where=self.source, remedy=f"write [{text!r}]")
        found = tuple(dict.fromkeys(text))
        for column in found:
            if column not in self.frame.columns:
                raise unknown("text column", column, list(self.frame.columns), where=self.source)
            if column not in self.inputs:
                raise BadInput("is named as text but is no input", where=self._at(column), remedy="give it one role")
        return found

    def _read_words(self) -> None:
        """Lists of words in text columns become texts; so does the column of lists that fits tags, where no text is declared."""
        tags = [
            column
            for _, column, kind in self._targets
            if (self._holds_lists(column) if kind is None else KINDS[kind].beside == "text")
        ]
        if tags and not self.text:
            lengths = self._lengths(tags[0])
            fits = [
                c
                for c in self.inputs
                if self._holds_lists(c) and lengths.any() and ((self._lengths(c) == lengths) | (lengths == 0)).all()
            ]
            if len(fits) == 1:
                self.text = (fits[0],)
                self.notes.append(f"{fits[0]!r} is text, a list of words: it has one for each tag of {tags[0]!r}")
        for column in self.text:
            self.frame[column] = joined(self.frame[column])

    def _holds_lists(self, column: str) -> bool:
        return column in self.frame.columns and looks_like_lists(self.frame[column])

    def _lengths(self, column: str) -> NDArray[np.int64]:
        return np.diff(read_lists(self.frame[column], self._at(column)).starts)

    @cached_property
    def words(self) -> list[str | None]:
        """The text whose words have tags, cell by cell."""
        series = self.frame[self.text[0]]
        return [None if absent else word_of(cell) for cell, absent in zip(series.to_numpy(object), series.isna().tolist())]

    def _read_lists(self) -> dict[str, Lists]:
        if not (isinstance(self.max_length, int) and self.max_length >= 1):
            raise BadInput(f"max_length must be a whole number of at least 1, not {self.max_length!r}", where=self.source)
        joined = {column for columns in self.joined.values() for column in columns}
        found = {}
        for column in self.inputs:
            series = self.frame[column]
            if column in self.text or not looks_like_lists(series):
                continue
            found[column] = read_lists(series, self._at(column), "category" if column in joined else None)
            what = "numbers" if found[column].kind == "number" else "categories"
            longest = int(np.diff(found[column].starts).max())
            kept = f", the latest {self.max_length} of which are kept" if longest > self.max_length else ""
            self.notes.append(f"{column!r} is a sequence of {what} (at most {longest} in a row{kept})")
        return found

    def _check_joins(self) -> None:
        taken: dict[str, str] = {}
        for name, columns in self.joined.items():
            known = set(self.attributes[name].keys)
            for column in columns:
                if column in taken:
                    what = f"is joined to the items {taken[column]!r} and {name!r}"
                    raise BadInput(what, where=self._at(column), remedy="join it to one table")
                if column in self.text:
                    raise BadInput(f"is text and joined to {name!r}", where=self._at(column), remedy="give it one role")
                taken[column] = name
                if column in self.lists:
                    found = self.lists[column].words
                else:
                    found = [word_of(value) for value in self.frame[column].dropna().unique()]
                lacking = [word for word in found if word not in known]
                if lacking and len(lacking) == len(found):
                    what = f"holds no key of the items {name!r} ({lacking[0]!r} is none)"
                    raise BadInput(what, where=self._at(column), remedy=f"check the key {self.items[name].key!r}")
                if lacking:
                    line = f"{len(lacking)} of {len(found)} items in {column!r} are not in {name!r} (such as {lacking[0]!r})"
                    target = column in {column for _, column, _ in self._targets}
                    self.notes.append(f"{line}: {'their rows have no label' if target else 'they count as unseen'}")

    def _parse_dates(self) -> None:
        """Text columns that hold ISO dates, and the time column, become datetimes."""
        for column in dict.fromkeys((*self.inputs, *((self.time,) if self.time else ()))):
            series = self.frame[column]
            if column in self.text or column in self.lists or not is_text(series):
                continue
            if column == self.time or looks_like_dates(series):
                self.frame[column] = parse_dates(series, self._at(column))

    def _default_split(self) -> str:
        import pandas as pd

        for column in self.inputs:
            if pd.api.types.is_datetime64_any_dtype(self.frame[column]):
                self.time = column
                self.notes.append(f"split by time: {column!r} is a datetime column (--split random for a random split)")
                return "time"
        return "random"

    def _check_values(self) -> None:
        import pandas as pd

        for column in self.frame.columns:
            if column in self.ignore:
                continue
            series = self.frame[column]
            if pd.api.types.is_float_dtype(series.dtype):
                bad = np.isinf(series.to_numpy(np.float64, na_value=np.nan))
                if bad.any():
                    what = f"holds an infinite number in row {int(bad.argmax()) + 1} ({int(bad.sum())} in all)"
                    raise BadInput(what, where=self._at(column), remedy="leave the cell empty, or --ignore the column")
            elif pd.api.types.is_complex_dtype(series.dtype) or pd.api.types.is_timedelta64_dtype(series.dtype):
                what = f"holds {series.dtype}, which is not supported"
                raise BadInput(what, where=self._at(column), remedy="write it as a number, or --ignore the column")
        if self.id is not None:
            series = self.frame[self.id]
            if series.isna().any():
                row = int(series.isna().to_numpy().argmax()) + 1
                raise BadInput(f"the id is empty in row {row}", where=self._at(self.id), remedy="fill it, or drop --id")
            twice = series.duplicated().to_numpy()
            if twice.any():
                value = series[int(twice.argmax())]
                what = f"ids must be distinct, but {str(value)!r} stands in {int((series == value).sum())} rows"
                raise BadInput(what, where=self._at(self.id), remedy="name another column, or use --group for it")
        if self.weight is not None:
            series = self.frame[self.weight]
            if not pd.api.types.is_numeric_dtype(series) or series.isna().any() or (series < 0).any() or not series.sum() > 0:
                what = "weights must be numbers, present in every row, none negative and not all 0"
                raise BadInput(what, where=self._at(self.weight), remedy="mend the column, or drop --weight")
        for role, name in (("group", self.group), ("time", self.time), ("task column", self.task_column)):
            if name is not None and self.frame[name].isna().any():
                row = int(self.frame[name].isna().to_numpy().argmax()) + 1
                raise BadInput(f"the {role} is empty in row {row}", where=self._at(name), remedy="fill it, or drop the row")
        for column in self.inputs:
            if column not in self.text and column not in self.lists:
                self._check_text(column)

    def _check_text(self, column: str) -> None:
        import pandas as pd

        series = self.frame[column]
        if isinstance(series.dtype, pd.CategoricalDtype):
            return
        if series.dtype == np.dtype(object):
            kind = pd.api.types.infer_dtype(series, skipna=True)
            if kind not in ("string", "boolean", "empty", "integer", "floating", "mixed-integer-float", "decimal"):
                what = f"holds values of several or unknown types ({kind})"
                raise BadInput(what, where=self._at(column), remedy="give it one type, or --ignore it")
        if not is_text(series):
            return
        values = series.dropna()
        distinct = values.nunique()
        if distinct <= MAX_CLASSES or distinct <= 0.5 * len(values):
            return
        sample = values.iloc[:: max(1, len(values) // 2000)].astype(str)
        letters, words = sample.str.len().mean(), sample.str.count(r"\s+").mean() + 1
        if letters > _FREE_TEXT_LETTERS or words >= _FREE_TEXT_WORDS:
            if not any(column in columns for columns in self.joined.values()):
                self.text += (column,)
                line = f"{column!r} is text ({distinct} different values of {letters:.0f} letters on average)"
                self.notes.append(f"{line}: candidates that read no text leave it out")
        elif distinct == len(values):
            self.notes.append(f"{column!r} has another value in every row and cannot help: --id or --ignore it")

    # Tasks

    def _target_of(self, task: Task) -> str:
        return self._targets[0][1] if self.long else task.name

    def _column_of(self, task: Task) -> Column:
        """The task's column with what stands beside it; in the long layout, its own cells."""
        column = self._beside(self._target_of(task))
        if self.task_column is None:
            return column
        return replace(column, series=column.series.where(self.frame[self.task_column].astype(str) == task.name))

    def _beside(self, name: str) -> Column:
        """A column with the one text, or the item table, that stands beside it."""
        series, where = self.frame[name], self._at(name)
        for items, columns in self.joined.items():
            if name in columns:
                keys = {key: row for row, key in enumerate(self.attributes[items].keys)}
                return Column(series, where, keys=keys, beside=items)
        if len(self.text) == 1:
            return Column(series, where, words=word_counts(self.words), beside=self.text[0])
        return Column(series, where)

    def _resolve(self) -> tuple[Task, ...]:
        tasks = []
        for declared, column, kind in self._targets:
            beside = self._beside(column)
            if kind is None:
                if not beside.series.notna().any():
                    raise BadInput("the target has no value at all", where=self._at(column), remedy="name another target")
                kind, why = infer_kind(beside)
                if KINDS[kind].cell == "value":
                    self.notes.append(f"{column!r} is {kind}: {why}")
            task = (declared or Task(column, kind)).with_(kind=kind)
            self._check_target(task, beside)
            notes: list[str] = []
            tasks.append(task.record.settle(task, beside, notes))
            self.notes += notes if declared is None else []
        if self.task_column is None:
            return tuple(tasks)
        words = self.frame[self.task_column]
        names = sorted(words.unique().tolist())
        if len(names) > len(self.frame) / MIN_TRAIN_LABELS:
            what = f"names {len(names)} tasks in {len(self.frame)} rows"
            raise BadInput(what, where=self._at(self.task_column), remedy="check the name of the task column")
        return tuple(tasks[0].with_(name=str(name)) for name in names)

    def _check_columns(self) -> None:
        """No two tasks may answer in one column of a prediction file: a label or value is called TASK, a chance TASK__p."""
        taken: dict[str, str] = {}
        for task in self.tasks:
            for column in {task.name, *task.columns}:
                if column in taken:
                    what = f"tasks {taken[column]!r} and {task.name!r} would both be predicted in a column {column!r}"
                    raise BadInput(what, where=self.source, remedy="rename one of the targets")
                taken[column] = task.name

    def _check_target(self, task: Task, column: Column) -> None:
        """Whether a column can be what its kind says: lists for kinds of lists, and beside them what they label or choose."""
        record = task.record
        if record.beside == "text" and column.words is None:
            what = "labels the words of one text column, and " + (f"there are {len(self.text)}" if self.text else "there is none")
            raise BadInput(what, where=column.where, remedy="name it: --text COLUMN (and --ignore other texts)")
        if record.cell == "value" and looks_like_lists(column.series):
            raise no_list(column.where)
        if not column.series.notna().any() and record.beside != "text":
            raise BadInput("the target has no value at all", where=column.where, remedy="name another target")

    def _check_parents(self) -> None:
        check_graph(self.tasks)
        kinds = {task.name: task.record for task in self.tasks}
        for task in self.tasks:
            for parent in task.after:
                if not kinds[parent].positive:
                    what = f"comes after {parent!r}, which is {kinds[parent].name}"
                    remedy = "only a binary task can say whether another applies"
                    raise BadInput(what, where=f"{self.source}, task {task.name!r}", remedy=remedy)

    def _check_step(self, task: Task, parent: Task, value: Values, before: NDArray[np.float64]) -> None:
        """A child happens only where its parent did."""
        if not task.record.positive:
            return
        wrong = (np.asarray(value) == 1) & (before == 0)
        if wrong.any():
            what = f"is {task.classes[1]!r} in row {int(wrong.argmax()) + 1}, where {parent.name!r} is {parent.classes[0]!r}"
            remedy = f"mend the rows ({int(wrong.sum())} in all), or leave `after` out"
            raise BadInput(what, where=f"{self.source}, task {task.name!r}", remedy=remedy)

    def _flags(self, column: str) -> NDArray[np.bool_]:
        series = self.frame[column]
        try:
            return np.asarray(series.fillna(0).astype(float) != 0)
        except (TypeError, ValueError) as error:
            remedy = "write 1 where it holds, 0 elsewhere"
            raise BadInput("must hold true and false, or 1 and 0", where=self._at(column), remedy=remedy) from error

    def _check_labels(self) -> None:
        for task in self.tasks:
            where = f"{self.source}, task {task.name!r}"
            values = self.cells[task.name].values
            if not len(values):
                raise BadInput("has no label that counts", where=where, remedy="check `after`, not_applicable and delayed")
            if why := task.record.varied(task, values):
                raise BadInput(why, where=where, remedy="leave it out: there is nothing to predict")
