"""What a request may hold: JSON rows, an Arrow stream or a Parquet file, read from the bytes at hand, every size bounded.

A body that is no table is refused whole (`Refusal` with its HTTP status). A row that does not fit the model's columns is an error
of that row alone. Numbers are numbers, dates are ISO 8601 text (or Arrow timestamps; a zone becomes UTC), words are text, null is
a missing value, an absent column is an error, columns that the model does not read are ignored.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pluribus.data.inputs.reading import called, sound
from pluribus.data.inputs.record import FittedInput, InputType, Unfit
from pluribus.errors import unknown

if TYPE_CHECKING:
    import pyarrow as pa

    from pluribus.modeling.artefact.preprocessing import Preprocessing
    from pluribus.tasks import Task

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.S)
"""A string (also one that never ends, so that a scan stays linear) or a bracket."""


@dataclass(frozen=True)
class Limits:
    """What a server accepts; more is refused with 413, 422, 408 or 503.

    body: bytes of a body. rows: rows of a request. depth: nesting of a JSON body. fields: fields of a row or table.
    text: characters of a cell. elements: of a list in a cell. concurrency: requests in hand at once. read_seconds: for a body
    to arrive.
    """

    body: int = 8 << 20
    rows: int = 10_000
    depth: int = 16
    fields: int = 50_000
    text: int = 10_000
    elements: int = 1 << 20
    concurrency: int = 256
    read_seconds: float = 10.0


class Refusal(Exception):
    """A request that is answered with an error as a whole. `reason` is its label in the metrics."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status, self.reason, self.text = status, reason, " ".join(text.split())


@dataclass
class Rows:
    """The rows of a request. good: the places of rows that fit, and `values` [good] their cells in the order of
    `BodyReader.names`; errors: place → what is wrong with the others; tasks: what the body itself asked for."""

    size: int
    good: list[int]
    values: list[list[Any]]
    errors: dict[int, str]
    ids: list[Any] | None = None
    tasks: list[str] | None = None


class BodyReader:
    """Reads bodies for one artefact's columns.

    Parameters
    ----------
    columns : Preprocessing
        Its input columns.
    limits : Limits
        What is refused.
    tasks : sequence of Task
        Its tasks: a request for some of them may leave out columns that they do not read.

    Attributes
    ----------
    names : list of str
        The columns that a row has, in the order of `Rows.values`.
    """

    def __init__(self, columns: Preprocessing, limits: Limits, tasks: Sequence[Task] = ()) -> None:
        self.limits, self.id, self.tasks, self.needed = limits, columns.id, {task.name: task for task in tasks}, columns.needed
        groups: dict[InputType, list[FittedInput]] = {}
        for one in columns.inputs:
            groups.setdefault(one.record, []).append(one)
        self._groups = [(record, own, _picker([one.name for one in own])) for record, own in groups.items()]
        self.inputs = [one for own in groups.values() for one in own]
        self.names = [one.name for one in self.inputs]
        self._depth = {one.name: one.record.depth for one in self.inputs}
        self._written = {one.name: one.writing for one in self.inputs if one.writing is not None}
        self._task_column, self._task_names = columns.task_column, columns.task_names
        if self._task_column is not None:
            self.names.append(self._task_column)
        self._all_read_all = all(task.inputs is None for task in tasks)

    @property
    def empty(self) -> list[Any]:
        """A row of missing values."""
        return [*(one.missing() for one in self.inputs), *self._task_names[:1]]

    def optional(self, tasks: Sequence[str] | None) -> frozenset[str]:
        """The columns that none of the tasks asked for reads: a row may lack them."""
        if self._all_read_all:
            return frozenset()
        if tasks is None:
            tasks = list(self.tasks)
        if not all(name in self.tasks for name in tasks):  # what is unknown is refused elsewhere
            return frozenset()
        return frozenset(one.name for one in self.inputs) - self.needed([self.tasks[name] for name in tasks])

    # Bodies

    def json(self, body: bytes, asked: Sequence[str] | None = None) -> Rows:
        """`{"rows": [{column: value, …}, …], "tasks": [name, …]}`; a bare list of rows is read too.

        asked: the tasks that the request names elsewhere.
        """
        found = self._parse(body)
        tasks = None
        if isinstance(found, dict):
            for key in found:
                if key not in ("rows", "tasks"):
                    raise Refusal(422, "malformed", str(unknown("field", key[:100], ("rows", "tasks"), where="body")))
            tasks, found = found.get("tasks"), found.get("rows")
            if tasks is not None and not (isinstance(tasks, list) and all(isinstance(name, str) for name in tasks)):
                raise Refusal(422, "malformed", 'body, "tasks": is not a list of names; write ["a", "b"] or leave it out')
        if not isinstance(found, list):
            raise Refusal(422, "malformed", 'body: holds no list of rows; send {"rows": [{column: value, …}, …]}')
        self._check_rows(len(found))
        rows = Rows(len(found), [], [], {}, [] if self.id is not None else None, tasks)
        absent = dict.fromkeys(self.optional(asked if tasks is None else tasks))
        for place, row in enumerate(found):
            key = None
            try:
                if not isinstance(row, dict):
                    raise Unfit(f"a row is an object of columns, not {called(row)}")
                if self.id is not None:
                    key = row.get(self.id)
                    key = key if isinstance(key, str | int) and sound(key, self.limits.text) else None
                rows.values.append(self._row({**absent, **row} if absent else row))
                rows.good.append(place)
            except Unfit as error:
                rows.errors[place] = str(error)
            if rows.ids is not None:
                rows.ids.append(key)
        return rows

    def _parse(self, body: bytes) -> Any:
        remedy = 'send {"rows": [{column: value, …}, …]} in UTF-8'
        depth = 0
        few = body.count(b"[") + body.count(b"{") <= self.limits.depth  # too few brackets to nest too deep
        for mark in () if few else _MARK.finditer(body):
            sign = body[mark.start()]
            depth += 1 if sign in b"[{" else -1 if sign in b"]}" else 0
            if depth > self.limits.depth:
                raise Refusal(422, "nested", f"body: is nested deeper than {self.limits.depth} levels; {remedy}")
        try:
            return json.loads(body.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Refusal(422, "malformed", f"body: is not UTF-8 at byte {error.start}; {remedy}") from error
        except json.JSONDecodeError as error:
            raise Refusal(422, "malformed", f"body: is not JSON ({error.msg} at character {error.pos}); {remedy}") from error
        except (RecursionError, ValueError) as error:  # ValueError: a whole number of thousands of digits
            raise Refusal(422, "malformed", f"body: cannot be read ({type(error).__name__}); {remedy}") from error

    def _row(self, row: dict[str, Any]) -> list[Any]:
        if len(row) > self.limits.fields:
            raise Unfit(f"has {len(row)} fields, the limit is {self.limits.fields}; send the model's columns only")
        found: list[Any] = []
        if self._written:
            row = self._meant(row)
        try:
            for record, own, pick in self._groups:
                found += record.read_cells(own, pick(row), self.limits)
            if self._task_column is not None:
                found.append(self._task(row[self._task_column]))
        except (KeyError, Unfit) as error:
            raise self._wrong(row) from error
        return found

    def _meant(self, row: dict[str, Any]) -> dict[str, Any]:
        """Cells as what they mean, where the model was fitted on a file that people wrote; what is too long is refused later."""
        return row | {
            name: writing.cell(row[name])
            for name, writing in self._written.items()
            if name in row and sound(row[name], self.limits.text)
        }

    def _task(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self._task_names:
            raise Unfit(str(unknown("task", str(value)[:100], self._task_names)))
        return value

    def _wrong(self, row: dict[str, Any]) -> Unfit:
        """What is wrong with a row."""
        lacking = [repr(name) for name in self.names if name not in row]
        if lacking:
            shown = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
            return Unfit(f"lacks the column{'s' * (len(lacking) > 1)} {shown}; give null where a value is missing")
        name = ""
        try:
            for one in self.inputs:
                name = one.name
                one.read_cell(self._meant({name: row[name]})[name], self.limits)
            if self._task_column is not None:
                name = self._task_column
                self._task(row[name])
        except Unfit as error:
            return Unfit(f"column {name!r}: {error}")
        return Unfit("does not fit")

    def arrow(self, body: bytes, asked: Sequence[str] | None = None) -> Rows:
        """An Arrow IPC stream (or IPC file)."""
        import pyarrow as pa

        try:
            source = pa.BufferReader(body)
            if body[:6] == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
                schema = file.schema
            else:
                stream = pa.ipc.open_stream(source)
                batches, schema = iter(stream), stream.schema
            kept: list[pa.RecordBatch] = []
            absent = self.optional(asked)
            self._check_columns(schema.names, absent)
            for batch in batches:
                kept.append(batch.select(self._wanted(schema.names)))
                self._check_rows(sum(part.num_rows for part in kept))
                batch.validate(full=True)
            picked = pa.schema([schema.field(name) for name in self._wanted(schema.names)])
            table = pa.Table.from_batches(kept, schema=picked)
        except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
            raise Refusal(422, "malformed", f"body: is not an Arrow stream ({_first(error)}); write it with pyarrow") from error
        return self._table(table, absent)

    def parquet(self, body: bytes, asked: Sequence[str] | None = None) -> Rows:
        """A Parquet file. The sizes it states are checked first; words stay in dictionaries, so that a small file stays small."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(io.BytesIO(body))
            names = file.schema_arrow.names
            absent = self.optional(asked)
            self._check_columns(names, absent)
            self._check_rows(file.metadata.num_rows)
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > 16 * self.limits.body:
                raise Refusal(413, "oversized", f"body: unpacks to more than {16 * self.limits.body >> 20} MiB; send fewer rows")
            words = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
            table = pq.ParquetFile(io.BytesIO(body), read_dictionary=words).read(columns=self._wanted(names))
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
            what = f"body: is not a Parquet file ({_first(error)}); write it again"
            if "DictAccumulator" in str(error):  # asking a chunk's metadata for its encodings may end the process: Arrow aborts
                what = "body: holds words in a DELTA encoding, which is not read; write them PLAIN or with a dictionary"
            raise Refusal(422, "malformed", what) from error
        return self._table(table, absent)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys([*self.names, *([self.id] if self.id else [])]) if name in names]

    def _check_rows(self, count: int) -> None:
        if count > self.limits.rows:
            raise Refusal(413, "oversized", f"body: holds {count} rows, the limit is {self.limits.rows}; send several requests")

    def _check_columns(self, names: Sequence[str], optional: frozenset[str]) -> None:
        if len(names) > self.limits.fields:
            what = f"body: holds {len(names)} columns, the limit is {self.limits.fields}; send the model's columns only"
            raise Refusal(413, "oversized", what)
        lacking = [repr(name) for name in self.names if name not in names and name not in optional]
        if lacking:
            shown = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
            what = f"table: lacks {len(lacking)} input columns: {shown}; add what the model was fitted on"
            raise Refusal(422, "malformed", what)
        if len(set(names)) < len(names):
            doubled = next(name for name in names if list(names).count(name) > 1)
            raise Refusal(422, "malformed", f"table: has several columns called {doubled!r}; rename all but one")

    def _table(self, table: pa.Table, optional: frozenset[str]) -> Rows:
        import pyarrow as pa
        import pyarrow.compute as pc

        lists: dict[str, list[Any]] = {}
        for name in table.column_names:
            column = table.column(name)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            inner = kind
            for _ in range(self._depth.get(name, 0)):
                inner = inner.value_type if pa.types.is_nested(inner) and hasattr(inner, "value_type") else inner
            if pa.types.is_nested(inner) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise Refusal(422, "malformed", f"table, column {name!r}: holds {kind}, which is not a plain value")
            for chunk in column.chunks:
                words = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
                if pa.types.is_string(words.type) or pa.types.is_large_string(words.type):
                    longest = pc.max(pc.binary_length(words)).as_py() or 0
                    if longest > 4 * self.limits.text:
                        what = f"table, column {name!r}: a cell is longer than {self.limits.text} characters"
                        raise Refusal(413, "oversized", what)
            try:
                lists[name] = column.to_pylist()
            except (pa.ArrowException, ValueError, OverflowError) as error:
                raise Refusal(422, "malformed", f"table, column {name!r}: cannot be read ({_first(error)})") from error
        lists |= {name: [None] * table.num_rows for name in optional if name not in lists}
        rows = Rows(table.num_rows, [], [], {}, lists.get(self.id) if self.id else None)
        for place in range(table.num_rows):
            try:
                rows.values.append(self._row({name: _missing(values[place]) for name, values in lists.items()}))
                rows.good.append(place)
            except Unfit as error:
                rows.errors[place] = str(error)
        return rows


def _picker(names: Sequence[str]) -> Callable[[dict[str, Any]], Sequence[Any]]:
    """Reads these keys at one go."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: [row[name] for name in names]


def _missing(value: Any) -> Any:
    """NaN is how many tables write a missing number."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
