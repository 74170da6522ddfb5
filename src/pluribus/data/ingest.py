"""Reading tables that strangers made: CSV (also gzipped) and Parquet, by content and suffix.

What cannot be a table is refused with one line that names the file, the place in it and what to do: a missing or empty
file, a header without rows, text that is not UTF-8, a ragged line, a column name that occurs twice or not at all, a `.parquet`
file that is none. Types are inferred from the whole file: a column that starts with whole numbers and goes on with decimals
is read as decimals, one that goes on with words as text.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DELIMITERS = (",", ";", "\t", "|")
"""Which of these separates the fields is read off the header line; the comma wins where it occurs."""

BLOCK_BYTES = 4 << 20
_PARQUET_MAGIC = b"PAR1"
_CHECK = "check the path"


def read_table(path: str | Path, *, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV or Parquet file into a DataFrame with a fresh index 0 … n−1.

    Empty CSV fields and the usual words (NA, NaN, null, …) are missing. ISO dates and times become datetimes.
    Columns of a CSV file named in `text` are kept as written where a number would lose something (identifiers 007).
    """
    path = Path(path)
    where = str(path)
    if not path.exists():
        raise BadInput("no such file", where=where, remedy=_CHECK)
    if not path.is_file():
        raise BadInput("is a folder or a device, not a table", where=where, remedy="name a CSV or Parquet file")
    try:
        with open(path, "rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=where, remedy="check its permissions") from error
    if not magic:
        raise BadInput("is empty", where=where, remedy="export the table again")
    if magic == _PARQUET_MAGIC:
        table = _read_parquet(path)
    elif path.suffix.lower() in (".parquet", ".pq"):
        raise BadInput("is not a Parquet file", where=where, remedy="export it again, or name it .csv if it is CSV")
    else:
        table = _read_csv(path, text)
    _check_names(table.column_names, where)
    if not table.num_rows:
        raise BadInput("has a header but no rows", where=where, remedy="export the table again")
    for field in table.schema:
        _check_type(field, where)
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return frame


def _check_names(names: Sequence[str], where: str) -> None:
    for position, name in enumerate(names, 1):
        if not name.strip():
            remedy = "name it in the header, or export the table without its index"
            raise BadInput("has no name", where=f"{where}, column {position}", remedy=remedy)
    for name, count in Counter(names).items():
        if count > 1:
            raise BadInput(f"has {count} columns called {name!r}", where=where, remedy="rename all but one")


def _check_type(field: pa.Field, where: str) -> None:
    import pyarrow as pa

    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type  # a sequence: its elements must be plain
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        remedy = "write one plain value, or a list of plain values, a cell, or leave the column out"
        what = f"holds {field.type}, which is neither a plain value nor a list of them"
        raise BadInput(what, where=f"{where}, column {field.name!r}", remedy=remedy)


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as handle:
            table = pq.ParquetFile(handle).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BadInput(f"is a damaged Parquet file ({reason})", where=str(path), remedy="export it again") from error
    if not table.num_columns:
        raise BadInput("has no columns", where=str(path), remedy="export the table again")
    for position, field in enumerate(table.schema):  # what models cannot take exactly becomes what they can
        if pa.types.is_decimal(field.type):
            table = table.set_column(position, field.name, table.column(position).cast(pa.float64()))
        elif pa.types.is_date(field.type):
            table = table.set_column(position, field.name, table.column(position).cast(pa.timestamp("ms")))
    extra = [name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)]
    return table.drop_columns(extra) if extra else table


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _header(path: Path) -> str:
    """The first line; also the first test of whether this is text."""
    try:
        with _open(path) as handle:
            line = handle.readline(1 << 20)
    except (OSError, EOFError) as error:
        raise BadInput(f"cannot be unpacked ({error})", where=str(path), remedy="export it again") from error
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    if not text.strip():
        raise BadInput("has an empty first line where the column names should be", where=str(path), remedy="add a header")
    if text.count('"') % 2:
        raise BadInput("has a quote that is not closed", where=f"{path}, line 1", remedy="mend the header")
    if "\x00" in text:
        raise BadInput("is neither CSV text nor Parquet", where=str(path), remedy="export it as CSV or Parquet")
    return text


def _not_utf8(path: Path) -> BadInput:
    """Say where the first bad byte stands."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    remedy = "save it as UTF-8"
    with _open(path) as handle:
        for number, line in enumerate(handle, 1):
            try:
                decoder.decode(line)
            except UnicodeDecodeError:
                return BadInput("is not UTF-8 text", where=f"{path}, line {number}", remedy=remedy)
    return BadInput("is not UTF-8 text", where=str(path), remedy=remedy)


def _has_quotes(path: Path) -> bool:
    try:
        with _open(path) as handle:
            return any(b'"' in block for block in iter(lambda: handle.read(BLOCK_BYTES), b""))
    except (OSError, EOFError) as error:
        raise BadInput(f"cannot be unpacked ({error})", where=str(path), remedy="export it again") from error


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return "," if "," in bare else max(DELIMITERS, key=bare.count)


def _read_csv(path: Path, text: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow

    where = str(path)
    header = _header(path)
    delimiter = _delimiter(header)
    names = [name for row in csv.reader([header], delimiter=delimiter) for name in row]
    _check_names(names, where)
    quoted = _has_quotes(path)  # without quotes no value holds a newline, and blocks are cut faster
    chosen: dict[str, Any] = {name: pa.string() for name in text if name in names}
    for _ in range(3 * len(names) + 1):  # every column can be widened at most three times
        try:
            table = arrow.read_csv(
                where,
                read_options=arrow.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=quoted),
                convert_options=arrow.ConvertOptions(column_types=chosen, strings_can_be_null=True),
            )
        except pa.ArrowInvalid as error:
            message = str(error)
            found = re.match(r"In CSV column #(\d+): CSV conversion error to ([a-z0-9_]+)", message)
            if found and "UTF8" not in message:
                chosen[names[int(found[1])]] = _wider(found[2])
                continue
            raise _why_invalid(path, delimiter, len(names), message) from error
        except (OSError, pa.ArrowException) as error:
            raise BadInput(f"cannot be read ({str(error)[:200]})", where=where, remedy="export it again") from error
        if any(pa.types.is_binary(field.type) for field in table.schema):
            raise _not_utf8(path)
        for position, field in enumerate(table.schema):
            if pa.types.is_null(field.type):  # nothing but missing values: a number by convention
                table = table.set_column(position, field.name, table.column(position).cast(pa.float64()))
            elif pa.types.is_date(field.type):
                table = table.set_column(position, field.name, table.column(position).cast(pa.timestamp("s")))
            elif pa.types.is_time(field.type):
                table = table.set_column(position, field.name, table.column(position).cast(pa.string()))
            elif pa.types.is_string(field.type) and field.name not in text:
                _check_decimals(table.column(position), f"{where}, column {field.name!r}")
            elif field.name in text:
                table = table.set_column(position, field.name, _number_if_same(table.column(position)))
        return table
    raise AssertionError("unreachable: columns widen to text in the end")  # pragma: no cover


def _check_decimals(column: pa.ChunkedArray, where: str) -> None:
    """Numbers with a decimal comma would become words, one category each, without anybody noticing."""
    import pyarrow.compute as pc

    numbers = pc.match_substring_regex(column, r"^\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*$")
    if pc.all(numbers).as_py() and pc.any(pc.match_substring(column, ",")).as_py():
        one = column.filter(pc.match_substring(column, ","))[0].as_py()
        remedy = "write decimal points (pandas: read_csv(..., decimal=','), then to_csv)"
        raise BadInput(f"holds numbers with a comma ({one!r}), which would be read as words", where=where, remedy=remedy)


def _number_if_same(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers where writing them out again gives the same text, else the text."""
    import pyarrow as pa

    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    return numbers if numbers.cast(pa.string()).equals(column) else column


def _wider(kind: str) -> Any:
    import pyarrow as pa

    if kind == "null":
        return pa.int64()
    return pa.float64() if kind == "int64" else pa.string()


def _why_invalid(path: Path, delimiter: str, width: int, message: str) -> BadInput:
    """Go through the file once more, slowly, to name the line."""
    where = str(path)
    if "Empty CSV" in message:
        return BadInput("has a header but no rows", where=where, remedy="export the table again")
    try:
        with _open(path) as handle:
            lines = csv.reader(codecs.getreader("utf-8-sig")(handle), delimiter=delimiter, strict=True)
            start = 1
            for row in lines:
                if row and len(row) != width:
                    what = f"has {len(row)} fields where the header has {width}"
                    remedy = f"mend the line (fields are separated by {delimiter!r}; quote a field that holds one)"
                    return BadInput(what, where=f"{where}, line {start}", remedy=remedy)
                start = lines.line_num + 1
    except UnicodeDecodeError:
        return _not_utf8(path)
    except csv.Error as error:
        return BadInput(f"is not CSV ({error})", where=f"{where}, line {start}", remedy="mend the line")
    except (OSError, EOFError) as error:
        return BadInput(f"cannot be unpacked ({error})", where=where, remedy="export it again")
    return BadInput(f"is not CSV ({message[:200]})", where=where, remedy="export it again")
