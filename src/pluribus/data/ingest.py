"""Reading tables that strangers made: CSV (also gzipped) and Parquet, by content and suffix.

What cannot be a table is refused with one line that names the file, the place in it and what to do: a missing or empty
file, a header without rows, a ragged line, a `.parquet` file that is none. Types are inferred from the whole file: a column that
starts with whole numbers and goes on with decimals is read as decimals, one that goes on with words as text.

`read_table` is for files that programs write, and refuses what a program would not write. `read_written` is for tables as people
write them: it finds out what cells mean (`pluribus.data.written`), says so, and remembers it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluribus.data.csv_file import CsvFile
from pluribus.data.written import total_row
from pluribus.data.written.deciding import decide
from pluribus.data.written.header import header_of
from pluribus.data.written.numbers import styles_of
from pluribus.data.written.reading import Reading
from pluribus.data.written.writing import Writing, WrittenInput, writings_of
from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PARQUET_MAGIC = b"PAR1"
_OTHER_MAGIC = {b"PK\x03\x04": "an Excel workbook or another archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}
_CHECK = "check the path"


@dataclass(frozen=True)
class WrittenTable:
    """A table as it was read from a file.

    Parameters
    ----------
    frame : DataFrame
        The rows, index 0 … n−1.
    writings : dict
        Column → how its cells are written, where that is not as programs write.
    notes : list of str
        What was found out, one line for each thing.
    """

    frame: pd.DataFrame
    writings: dict[str, Writing] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_table(path: str | Path, *, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV or Parquet file that a program wrote.

    Parameters
    ----------
    path : path
        The file.
    text : sequence of str
        Columns of a CSV file that are kept as written where a number would lose something (identifiers 007).

    Returns
    -------
    DataFrame
        With a fresh index 0 … n−1. Empty CSV fields and the usual words (NA, NaN, null, …) are missing. ISO dates and times
        become datetimes.

    Raises
    ------
    BadInput
        The file is no table, is not UTF-8 or UTF-16 text, has a name twice, or numbers with commas.
    """
    path = Path(path)
    if _is_parquet(path):
        table = _read_parquet(path)
    else:
        file = CsvFile(path, Reading())
        _check_names(file.written, str(path))
        table = _as_kept(file.read(text=text), text)
        for field_ in table.schema:
            if field_.name not in text:
                _check_decimals(table.column(field_.name), f"{path}, column {field_.name!r}")
    return _frame(table, str(path))


def read_written(
    path: str | Path,
    *,
    text: Sequence[str] = (),
    reading: Reading | None = None,
    wanted: Collection[str] = (),
    ignore: Collection[str] = (),
) -> WrittenTable:
    """Read a table as people write them.

    Parameters
    ----------
    path : path
        A CSV or Parquet file.
    text : sequence of str
        Columns that are kept as written, but for whole numbers that lose nothing.
    reading : Reading, optional
        What the user says of it.
    wanted : collection of str
        The columns that have a role: a name among them is taken as it is written.
    ignore : collection of str
        Columns that nobody reads.

    Raises
    ------
    BadInput
        The file is no table; a column is ambiguous and refused (numbers with a comma); an option names no column.
    """
    path, reading = Path(path), reading or Reading()
    where = str(path)
    notes: list[str] = []
    if _is_parquet(path):
        table = _read_parquet(path)
        found = decide(table, reading, lambda names: _as_words(table, names), where, exact=text, skip=ignore, zeros=False)
    else:
        file = CsvFile(path, reading, guess=True)
        header = header_of(file.written, wanted, where)
        file.names = list(header.names)
        table = file.read(text=text)
        notes += [*file.notes, *header.notes]
        table, more = _without_leftovers(table, header.unnamed, header.doubles)
        notes += more
        rows, more = _rows(table, file, ignore)
        notes += more
        file.rows = rows
        if rows is not None:
            table = file.narrowed(table.take(rows), text)
        found = decide(table, reading, file.raw, where, exact=text, skip=ignore, zeros=file.has_zeros)
        found.table = _as_kept(found.table, [name for name in text if name not in reading.types])
    return WrittenTable(_frame(found.table, where), found.writings, notes + found.notes)


def read_further(
    path: str | Path, inputs: Sequence[WrittenInput], *, text: Sequence[str] = (), reading: Reading | None = None
) -> WrittenTable:
    """Read a further table for a model: its cells are written as those that the model was fitted on.

    Parameters
    ----------
    path : path
        A CSV or Parquet file. All of its rows are kept.
    inputs : sequence of FittedInput
        The model's input columns.
    text : sequence of str
        Columns that are kept as written, but for whole numbers that lose nothing.
    reading : Reading, optional
        What the user says of this file.

    Raises
    ------
    BadInput
        The file is no table; a cell is not written as its column; an option names no column.
    """
    path, reading, where = Path(path), reading or Reading(), str(path)
    notes: list[str] = []
    if _is_parquet(path):
        table = _read_parquet(path)
        writings = writings_of(inputs, reading, table.column_names)
    else:
        file = CsvFile(path, reading, guess=True)
        header = header_of(file.written, {*(one.name for one in inputs), *text}, where)
        file.names = list(header.names)
        writings = writings_of(inputs, reading, file.names)
        there = [name for name in writings if name in file.names]
        table = _as_kept(file.read(text=[*text, *there]), [name for name in text if name not in writings])
        table, _ = _without_leftovers(table, header.unnamed, header.doubles)
        for name, column in file.raw(there).items() if there else ():
            table = table.set_column(table.schema.get_field_index(name), name, column)
        notes += [*file.notes, *header.notes]
    frame = _frame(table, where)
    for name, writing in writings.items():
        if name in frame.columns:
            frame[name] = writing.series(frame[name], f"{where}, column {name!r}")
    return WrittenTable(frame, writings, notes)


def _frame(table: pa.Table, where: str) -> pd.DataFrame:
    _check_names(table.column_names, where)
    if not table.num_rows:
        raise BadInput("has a header but no rows", where=where, remedy="export the table again")
    for field_ in table.schema:
        _check_type(field_, where)
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return frame


def _is_parquet(path: Path) -> bool:
    """Whether a file is Parquet; what cannot be a table is refused."""
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
    if magic in _OTHER_MAGIC:
        what = f"is neither CSV text nor Parquet, but {_OTHER_MAGIC[magic]}"
        raise BadInput(what, where=where, remedy="export it as CSV or Parquet")
    if magic != _PARQUET_MAGIC and path.suffix.lower() in (".parquet", ".pq"):
        raise BadInput("is not a Parquet file", where=where, remedy="export it again, or name it .csv if it is CSV")
    return magic == _PARQUET_MAGIC


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
    _check_names(table.column_names, str(path))
    for position, field_ in enumerate(table.schema):  # what models cannot take exactly becomes what they can
        if pa.types.is_decimal(field_.type):
            table = table.set_column(position, field_.name, table.column(position).cast(pa.float64()))
        elif pa.types.is_date(field_.type):
            table = table.set_column(position, field_.name, table.column(position).cast(pa.timestamp("ms")))
    extra = [name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)]
    return table.drop_columns(extra) if extra else table


def _as_words(table: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa

    return {name: table.column(name).cast(pa.string()) for name in names}


def _without_leftovers(table: pa.Table, unnamed: Iterable[str], doubles: Mapping[str, str]) -> tuple[pa.Table, list[str]]:
    """The table without columns that somebody left behind: an index, what follows a last separator, the same column twice."""
    import pyarrow as pa
    import pyarrow.compute as pc

    notes = []
    for name in unnamed:
        column = table.column(name)
        place = table.column_names.index(name) + 1
        if column.null_count == len(column):
            table = table.drop_columns([name])
            notes.append(f"column {place} has neither name nor value and is left out")
        elif pa.types.is_integer(column.type) and not column.null_count and _counts(column):
            table = table.drop_columns([name])
            notes.append(f"column {place} has no name and counts the rows: it is left out")
        else:
            notes.append(f"column {place} has no name and is called {name!r} (--ignore it, or name it in the header)")
    for again, name in doubles.items():
        if again not in table.column_names:
            continue
        first, second = table.column(name), table.column(again)
        if (
            first.type == second.type
            and first.null_count == second.null_count
            and pc.all(pc.equal(first, second)).as_py() in (True, None)
        ):
            table = table.drop_columns([again])
            notes.append(f"{name!r} stands there twice with the same values: one is left out")
        else:
            notes.append(f"two columns are called {name!r}: the second is read as {again!r} (--ignore it, or rename it)")
    return table, notes


def _counts(column: pa.ChunkedArray) -> bool:
    values = column.to_numpy()
    return bool(len(values) > 1 and values[0] in (0, 1) and (values[1:] - values[:-1] == 1).all())


def _rows(table: pa.Table, file: CsvFile, ignore: Collection[str]) -> tuple[pa.Array | None, list[str]]:
    """The rows that count, None for all: neither empty rows nor a last one of sums."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    notes: list[str] = []
    total = table.num_rows
    keep = np.ones(total, bool)
    nulls = [table.column(name) for name in table.column_names]
    if total and all(column.null_count for column in nulls):
        empty = np.ones(total, bool)
        for column in nulls:
            empty &= np.asarray(pc.is_null(column).to_numpy(), bool)
            if not empty.any():
                break
        if empty.any() and not empty.all():
            for column in file.raw(table.column_names).values():  # a word that means missing is no empty cell
                empty &= np.asarray(pc.is_null(column).to_numpy(), bool)
        if empty.any() and not empty.all():
            keep &= ~empty
            notes.append(f"{int(empty.sum())} empty rows are left out")
    rows = np.flatnonzero(keep)
    if len(rows) > 3:
        last = int(rows[-1])
        called = [n for n in table.column_names if n not in ignore and total_row.says_total(_word(table.column(n)[last].as_py()))]
        if called:
            numbers = {
                name: found[rows] for name in table.column_names if (found := _numbers(table.column(name), file)) is not None
            }
            summed = total_row.sums(numbers)
            word = table.column(called[0])[last].as_py()
            if summed:
                keep[last] = False
                why = f"{called[0]!r} is {word!r}, {summed[0]!r} is the sum of the rows above"
                notes.append(f"the last row is a total and is left out ({why})")
            elif pc.sum(pc.equal(table.column(called[0]), word)).as_py() == 1:
                notes.append(
                    f"the last row may be a total ({called[0]!r} is {word!r}) and is read as a row (delete it if it is one)"
                )
    return (None if keep.all() else pa.array(np.flatnonzero(keep))), notes


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _numbers(column: pa.ChunkedArray, file: CsvFile) -> Any:
    """A column as numbers [n], also where they are written as words; None where it is none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(), np.float64)
    if not pa.types.is_string(column.type) or not len(column.drop_null()):
        return None
    words = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    found = styles_of(pc.unique(words).drop_null())
    return found.possible[0].numbers(words) if found.possible else None


def _as_kept(table: pa.Table, text: Iterable[str]) -> pa.Table:
    for name in text:
        if name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), name, _number_if_same(table.column(name)))
    return table


def _check_decimals(column: pa.ChunkedArray, where: str) -> None:
    """Numbers with a decimal comma would become words, one category each, without anybody noticing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        return
    numbers = pc.match_substring_regex(column, r"^\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*$")
    if pc.all(numbers).as_py() and pc.any(pc.match_substring(column, ",")).as_py():
        one = column.filter(pc.match_substring(column, ","))[0].as_py()
        remedy = "write decimal points (pandas: read_csv(..., decimal=','), then to_csv)"
        raise BadInput(f"holds numbers with a comma ({one!r}), which would be read as words", where=where, remedy=remedy)


def _number_if_same(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers where writing them out again gives the same text, else the text."""
    import pyarrow as pa

    if not pa.types.is_string(column.type):
        return column
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    return numbers if numbers.cast(pa.string()).equals(column) else column
