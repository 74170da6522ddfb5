"""What a request may hold: JSON rows, an Arrow stream or a Parquet file, read from the bytes at hand, every size bounded.

A body that is no table is refused whole (`Refusal` with its HTTP status). A row that does not fit the model's columns is an error
of that row alone. Numbers are numbers, dates are ISO 8601 text (or Arrow timestamps; a zone becomes UTC), words are text, null is
a missing value, an absent column is an error, columns that the model does not read are ignored.
"""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from pluribus.data.tags import as_text
from pluribus.errors import unknown

if TYPE_CHECKING:
    import pyarrow as pa

    from pluribus.data.columns import FittedColumns

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.S)
"""A string (also one that never ends, so that a scan stays linear) or a bracket."""

_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """The rows of a request. good: the places of rows that fit, and `values` [good] their cells in the order of `Reader.names`;
    errors: place → what is wrong with the others; tasks: what the body itself asked for."""

    size: int
    good: list[int]
    values: list[list[Any]]
    errors: dict[int, str]
    ids: list[Any] | None = None
    tasks: list[str] | None = None


class _Bad(Exception):
    """A cell that does not fit."""


class Reader:
    """Reads bodies for one artefact's columns. names: the columns that a row must have, in order."""

    def __init__(self, columns: FittedColumns, limits: Limits) -> None:
        self.limits, self.id = limits, columns.id
        checks: dict[str, Callable[[Any], Any]] = {
            "number": _number,
            "category": self._word,
            "boolean": _boolean,
            "datetime": _datetime,
            "item": self._word,
            "text": self._text,
        }
        self.listed = {*columns.sequences, *columns.texts}  # a text may be a list of words
        lists = {name: self._numbers if each.kind == "number" else self._words for name, each in columns.sequences.items()}
        found = [(i.name, lists[i.name] if i.type == "sequence" else checks[i.type]) for i in columns.inputs]
        usual = (_number, self._word)  # what most columns hold comes first: `_row` reads each of the two at one go
        numbers, words = ([column for column in found if column[1] == check] for check in usual)
        self.columns = [*numbers, *words, *(column for column in found if column[1] not in usual)]
        self._numbers_of, self._words_of = (_picker([name for name, _ in group]) for group in (numbers, words))
        self._others = len(numbers) + len(words)
        if columns.task_column is not None:
            known = dict(zip(columns.task_names, columns.task_names))

            def task(value: Any) -> Any:
                if not isinstance(value, str) or value not in known:
                    raise _Bad(str(unknown("task", str(value)[:100], known)))
                return value

            self.columns.append((columns.task_column, task))
        self.names = [name for name, _ in self.columns]

    # Bodies

    def json(self, body: bytes) -> Rows:
        """`{"rows": [{column: value, …}, …], "tasks": [name, …]}`; a bare list of rows is read too."""
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
        for place, row in enumerate(found):
            key = None
            try:
                if not isinstance(row, dict):
                    raise _Bad(f"a row is an object of columns, not {_called(row)}")
                if self.id is not None:
                    key = row.get(self.id)
                    key = key if isinstance(key, str | int) and _sound(key, self.limits.text) else None
                rows.values.append(self._row(row))
                rows.good.append(place)
            except _Bad as error:
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
            raise _Bad(f"has {len(row)} fields, the limit is {self.limits.fields}; send the model's columns only")
        limit = self.limits.text
        try:
            numbers = [v if type(v) is float and v - v == 0 else _number(v) for v in self._numbers_of(row)]
            words = [v if type(v) is str and len(v) <= limit and v.isascii() else self._word(v) for v in self._words_of(row)]
            return [*numbers, *words, *[check(row[name]) for name, check in self.columns[self._others :]]]
        except (KeyError, _Bad) as error:
            raise self._wrong(row) from error

    def _wrong(self, row: dict[str, Any]) -> _Bad:
        """What is wrong with a row."""
        lacking = [repr(name) for name in self.names if name not in row]
        if lacking:
            shown = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
            return _Bad(f"lacks the column{'s' * (len(lacking) > 1)} {shown}; give null where a value is missing")
        for name, check in self.columns:
            try:
                check(row[name])
            except _Bad as error:
                return _Bad(f"column {name!r}: {error}")
        return _Bad("does not fit")

    def arrow(self, body: bytes) -> Rows:
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
            self._check_columns(schema.names)
            for batch in batches:
                kept.append(batch.select(self._wanted(schema.names)))
                self._check_rows(sum(part.num_rows for part in kept))
                batch.validate(full=True)
            picked = pa.schema([schema.field(name) for name in self._wanted(schema.names)])
            table = pa.Table.from_batches(kept, schema=picked)
        except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
            raise Refusal(422, "malformed", f"body: is not an Arrow stream ({_first(error)}); write it with pyarrow") from error
        return self._table(table)

    def parquet(self, body: bytes) -> Rows:
        """A Parquet file. The sizes it states are checked first; words stay in dictionaries, so that a small file stays small."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(io.BytesIO(body))
            names = file.schema_arrow.names
            self._check_columns(names)
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
        return self._table(table)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys([*self.names, *([self.id] if self.id else [])]) if name in names]

    def _check_rows(self, count: int) -> None:
        if count > self.limits.rows:
            raise Refusal(413, "oversized", f"body: holds {count} rows, the limit is {self.limits.rows}; send several requests")

    def _check_columns(self, names: Sequence[str]) -> None:
        if len(names) > self.limits.fields:
            what = f"body: holds {len(names)} columns, the limit is {self.limits.fields}; send the model's columns only"
            raise Refusal(413, "oversized", what)
        lacking = [repr(name) for name in self.names if name not in names]
        if lacking:
            shown = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
            what = f"table: lacks {len(lacking)} input columns: {shown}; add what the model was fitted on"
            raise Refusal(422, "malformed", what)
        if len(set(names)) < len(names):
            doubled = next(name for name in names if list(names).count(name) > 1)
            raise Refusal(422, "malformed", f"table: has several columns called {doubled!r}; rename all but one")

    def _table(self, table: pa.Table) -> Rows:
        import pyarrow as pa
        import pyarrow.compute as pc

        lists: dict[str, list[Any]] = {}
        for name in table.column_names:
            column = table.column(name)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            listed = name in self.listed and pa.types.is_nested(kind) and hasattr(kind, "value_type")
            nested = pa.types.is_nested(kind.value_type if listed else kind)
            if nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
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
        rows = Rows(table.num_rows, [], [], {}, lists.get(self.id) if self.id else None)
        for place in range(table.num_rows):
            try:
                rows.values.append(self._row({name: _missing(values[place]) for name, values in lists.items()}))
                rows.good.append(place)
            except _Bad as error:
                rows.errors[place] = str(error)
        return rows

    # Cells

    def _word(self, value: Any) -> str | None:
        if value is None or (type(value) is str and _sound(value, self.limits.text)):
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1.0 and 1 are one category
        if isinstance(value, str | bool | int | float) and not (isinstance(value, float) and not math.isfinite(value)):
            if not _sound(value, self.limits.text):
                raise _Bad(f"is longer than {self.limits.text} characters or not Unicode")
            return str(value)
        raise _Bad(f"takes text, not {_called(value)}")

    def _text(self, value: Any) -> str | None:
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            value = as_text(value)
        if isinstance(value, list):
            raise _Bad("takes text, not a list of anything but words")
        if not isinstance(value, str):
            raise _Bad(f"takes text, not {_called(value)}")
        if not _sound(value, self.limits.text):
            raise _Bad(f"is longer than {self.limits.text} characters or not Unicode")
        return value

    def _list(self, value: Any) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise _Bad(f"takes a list, not {_called(value)}")
        if len(value) > self.limits.elements:
            raise _Bad(f"is a list of {len(value)}, the limit is {self.limits.elements}")
        return value

    def _numbers(self, value: Any) -> list[float]:
        found = self._list(value)
        if found and set(map(type, found)) == {float} and math.isfinite(sum(found)):
            return found
        try:
            return [_number(each) for each in found]
        except _Bad as error:
            raise _Bad(f"{error}, in its list" if isinstance(value, list) else str(error)) from None

    def _words(self, value: Any) -> list[str | None]:
        found = self._list(value)
        for each in found:
            if isinstance(each, bool) or (isinstance(each, float) and not each.is_integer()):
                raise _Bad(f"takes a list of words, not {_called(each)} in it")
        return [self._word(each) for each in found]


def _picker(names: Sequence[str]) -> Callable[[dict[str, Any]], Sequence[Any]]:
    """Reads these keys at one go."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: [row[name] for name in names]


def _missing(value: Any) -> Any:
    """NaN is how many tables write a missing number."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        raise _Bad(f"takes a number, not {_called(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Bad("takes a finite number; give null where it is missing")
    return number


def _boolean(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return str(bool(value))
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.capitalize()
    raise _Bad(f"takes true or false, not {_called(value)}")


def _datetime(value: Any) -> datetime.datetime | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise _Bad("takes a date as 2013-12-31 or 2013-12-31T23:59:00") from None
    if not isinstance(value, datetime.date):
        raise _Bad(f"takes a date as text, not {_called(value)}")
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if hasattr(value, "to_pydatetime"):  # an Arrow timestamp in nanoseconds
        value = value.floor("us").to_pydatetime()
    if value.tzinfo is not None:
        try:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        except OverflowError:
            raise _Bad("is a date outside the calendar") from None
    assert isinstance(value, datetime.datetime)
    return value


def _sound(value: Any, limit: int) -> bool:
    """Short enough to handle, and encodable: JSON may hold half a surrogate pair."""
    if isinstance(value, str):
        return len(value) <= limit and (value.isascii() or _SURROGATE.search(value) is None)
    return not isinstance(value, int) or value.bit_length() <= 1024


def _called(value: Any) -> str:
    """A value's type in JSON's words, and the value where it is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"{type(value).__name__} {str(value)[:40]}" if _sound(value, 40) else "a number of that size"


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
