"""A CSV file: its letters, its header, and its columns as often as they are asked for."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pluribus.data.written import codes, encoding
from pluribus.data.written.encoding import DELIMITERS, delimiter_of
from pluribus.data.written.header import lines_above, one_more
from pluribus.data.written.reading import Reading
from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 4 << 20
_HEAD_BYTES = 1 << 16


class CsvFile:
    """A CSV file.

    Parameters
    ----------
    path : Path
        The file.
    reading : Reading
        What the user says; here the separator and the encoding.
    guess : bool
        Whether bytes that are not UTF-8 may be taken for Windows-1252.

    Attributes
    ----------
    written : list of str
        The names in the header.
    names : list of str
        What the columns are called; `written` unless somebody changes it.
    rows : Array or None
        The rows that count; None for all.
    notes : list of str
        What was found out.
    """

    def __init__(self, path: Path, reading: Reading, *, guess: bool = False) -> None:
        self.path, self.where, self.reading, self.guess = path, str(path), reading, guess
        self.notes: list[str] = []
        self.rows: pa.Array | None = None
        self._content = self._decoded(self._head())
        first, lines, self.skip = self._first_lines()
        if self.reading.separator is None:
            self.delimiter = first or delimiter_of(lines)
        else:
            self.delimiter = self.reading.separator
        self.written = [name for row in csv.reader([lines[0]], delimiter=self.delimiter) for name in row]
        if guess and len(lines) > 1 and one_more(lines, self.delimiter):
            self.written.insert(0, "")  # R leaves the names of rows without a name
        self.names = list(self.written)

    # Letters

    def open(self) -> IO[bytes]:
        """The file as UTF-8."""
        if self._content is not None:
            return io.BytesIO(self._content)
        return self._open()

    def _open(self) -> IO[bytes]:
        return gzip.open(self.path) if self.path.suffix.lower() == ".gz" else open(self.path, "rb")  # type: ignore[return-value]

    def _head(self) -> bytes:
        try:
            with self._open() as handle:
                return handle.read(_HEAD_BYTES)
        except (OSError, EOFError) as error:
            raise self._packed(error) from error

    def _packed(self, error: Exception) -> BadInput:
        return BadInput(f"cannot be unpacked ({error})", where=self.where, remedy="export it again")

    def _decoded(self, head: bytes) -> bytes | None:
        """The file as UTF-8, where it is something else."""
        named = self.reading.encoding
        if named is not None and codecs.lookup(named).name in ("utf-8", "utf-8-sig", "ascii"):
            return None
        found = named or encoding.wide_encoding(head)
        if found is None:
            return None
        if named is None:
            self.notes.append(f"the file is {found} text")
        return encoding.as_utf8(self._all(), found, self.where)

    def _all(self) -> bytes:
        try:
            with self._open() as handle:
                return handle.read()
        except (OSError, EOFError) as error:
            raise self._packed(error) from error

    def not_utf8(self) -> None:
        """Take the file for Windows-1252, or refuse it."""
        if self.guess and self._content is None and self.reading.encoding is None:
            content = self._all()
            if (found := encoding.western(content)) is not None:
                self._content = encoding.as_utf8(content, found, self.where)
                number, letters = _first_wide(self._content)
                self.notes.append(
                    f"the file is not UTF-8 and is read as Windows-1252 ({letters!r} in line {number}; --encoding decides)"
                )
                return
        raise self._bad_letters()

    def _bad_letters(self) -> BadInput:
        """Say where the first bad byte stands."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        remedy = "save it as UTF-8, or name its --encoding (cp1252, utf-16, …)"
        with self.open() as handle:
            for number, line in enumerate(handle, 1):
                try:
                    decoder.decode(line)
                except UnicodeDecodeError:
                    return BadInput("is not UTF-8 text", where=f"{self.where}, line {number}", remedy=remedy)
        return BadInput("is not UTF-8 text", where=self.where, remedy=remedy)

    # The first lines

    def _first_lines(self) -> tuple[str | None, list[str], int]:
        """The separator that a line "sep=;" names, the header and some lines after it, and how many lines are above the data."""
        lines: list[bytes] = []
        try:
            with self.open() as handle:
                size = 0
                while len(lines) < 24 and size < _HEAD_BYTES and (line := handle.readline(1 << 20)):
                    lines.append(line)
                    size += len(line)
        except (OSError, EOFError) as error:
            raise self._packed(error) from error
        if len(lines) == 1 and b"\r" in lines[0].rstrip(b"\r\n"):  # lines end as on old Macintoshes
            self._content = (self._all() if self._content is None else self._content).replace(b"\r", b"\n")
            return self._first_lines()
        try:
            header = lines[0].decode("utf-8-sig")
            rest = [line.decode("utf-8", "replace") for line in lines[1:]]
        except UnicodeDecodeError:
            self.not_utf8()
            return self._first_lines()
        above = 1
        first = None
        if self.guess and (count := lines_above([header, *rest])):
            self.notes.append(f"lines above the names are left out ({count})")
            header, rest, above = rest[count - 1], rest[count:], 1 + count
        if (hint := re.fullmatch(r"sep=(.)\s*", header)) is not None and hint[1] in DELIMITERS and rest:
            first, header, rest, above = hint[1], rest[0], rest[1:], 1 + above
        if not header.strip():
            what = "has an empty first line where the column names should be"
            raise BadInput(what, where=self.where, remedy="add a header")
        if header.count('"') % 2:
            raise BadInput("has a quote that is not closed", where=f"{self.where}, line 1", remedy="mend the header")
        if "\x00" in header:
            raise BadInput("is neither CSV text nor Parquet", where=self.where, remedy="export it as CSV or Parquet")
        return first, [header, *rest], above

    @cached_property
    def _scan(self) -> tuple[bool, bool]:
        """Whether the file holds quotes, and whether a number may begin with a zero or a plus."""
        quotes = zeros = False
        try:
            with self.open() as handle:
                for block in iter(lambda: handle.read(BLOCK_BYTES), b""):
                    quotes = quotes or b'"' in block
                    zeros = zeros or codes.MARKS.search(block) is not None
                    if quotes and zeros:
                        break
        except (OSError, EOFError) as error:
            raise self._packed(error) from error
        return quotes, zeros

    @property
    def has_zeros(self) -> bool:
        """Whether a number may begin with a zero or a plus."""
        return self._scan[1]

    # Columns

    def read(self, text: Sequence[str] = ()) -> pa.Table:
        """All columns as a program reads them; those named in `text` as words."""
        import pyarrow as pa

        table = self._table({name: pa.string() for name in text if name in self.names})
        for position, field_ in enumerate(table.schema):
            if pa.types.is_null(field_.type):  # nothing but missing values: a number by convention
                table = table.set_column(position, field_.name, table.column(position).cast(pa.float64()))
            elif pa.types.is_date(field_.type):
                table = table.set_column(position, field_.name, table.column(position).cast(pa.timestamp("s")))
            elif pa.types.is_time(field_.type):
                table = table.set_column(position, field_.name, table.column(position).cast(pa.string()))
        return table

    def raw(self, names: Sequence[str]) -> dict[str, Any]:
        """Some columns as the file has them: strings, null where a cell is empty."""
        import pyarrow as pa

        table = self._table(dict.fromkeys(self.names, pa.string()), include=names, nulls=[""])
        if self.rows is not None:
            table = table.take(self.rows)
        return {name: table.column(name) for name in names}

    def narrowed(self, table: pa.Table, text: Collection[str]) -> pa.Table:
        """Columns of words as what a program takes them for."""
        import pyarrow as pa

        for position, field_ in enumerate(table.schema):
            if pa.types.is_string(field_.type) and field_.name not in text:
                table = table.set_column(position, field_.name, _narrow(table.column(position)))
        return table

    def _table(self, types: Mapping[str, Any], include: Sequence[str] = (), nulls: Sequence[str] | None = None) -> pa.Table:
        """Columns of the given types, the others as they are inferred from the whole file."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        missing = {} if nulls is None else {"null_values": list(nulls)}
        source: Any = self.where if self._content is None else pa.BufferReader(self._content)
        try:
            table = arrow.read_csv(
                source,
                read_options=arrow.ReadOptions(block_size=BLOCK_BYTES, column_names=self.names, skip_rows=self.skip),
                # without quotes no value holds a newline, and blocks are cut faster
                parse_options=arrow.ParseOptions(delimiter=self.delimiter, newlines_in_values=self._scan[0]),
                convert_options=arrow.ConvertOptions(
                    column_types=dict(types), strings_can_be_null=True, include_columns=list(include), **missing
                ),
            )
        except pa.ArrowInvalid as error:
            message = str(error)
            if "UTF8" in message:
                self.not_utf8()
                return self._table(types, include, nulls)
            raise self._why_invalid(message) from error
        except (OSError, pa.ArrowException) as error:
            raise BadInput(f"cannot be read ({str(error)[:200]})", where=self.where, remedy="export it again") from error
        if any(pa.types.is_binary(field_.type) for field_ in table.schema):
            self.not_utf8()
            return self._table(types, include, nulls)
        return table

    def _why_invalid(self, message: str) -> BadInput:
        """Go through the file once more, slowly, to name the line."""
        width = len(self.names)
        start = 1
        empty = "Empty CSV" in message or "skip initial" in message
        try:
            with self.open() as handle:
                lines = csv.reader(codecs.getreader("utf-8-sig")(handle), delimiter=self.delimiter, strict=True)
                for row in lines:
                    if row and len(row) != width and start >= self.skip:
                        what = f"has {len(row)} fields where the header has {width}"
                        remedy = f"mend the line (fields are separated by {self.delimiter!r}; quote a field that holds one)"
                        return BadInput(what, where=f"{self.where}, line {start}", remedy=remedy)
                    start = lines.line_num + 1
        except UnicodeDecodeError:
            return self._bad_letters()
        except csv.Error as error:
            return BadInput(f"is not CSV ({error})", where=f"{self.where}, line {start}", remedy="mend the line")
        except (OSError, EOFError) as error:
            return self._packed(error)
        if empty:
            return BadInput("has a header but no rows", where=self.where, remedy="export the table again")
        return BadInput(f"is not CSV ({message[:200]})", where=self.where, remedy="export it again")


def _first_wide(content: bytes) -> tuple[int, str]:
    """The first line with letters beyond ASCII, and the first word that has one."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.isascii():
            words = [word for word in re.split(r"[\s,;|\"]+", line.decode("utf-8")) if not word.isascii()]
            return number, words[0][:40]
    return 1, ""


def _narrow(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Words as whole numbers, decimals, booleans or ISO dates, where all of them are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    bare = pc.utf8_trim_whitespace(column)
    for kind in (pa.int64(), pa.float64()):
        try:
            return bare.cast(kind)
        except pa.ArrowInvalid:
            continue
    known = pa.array(["true", "True", "TRUE", "false", "False", "FALSE"])
    if pc.all(pc.is_in(bare.drop_null(), known)).as_py():
        return pc.equal(pc.utf8_lower(bare), "true")
    if pc.all(pc.match_substring_regex(bare, r"^\d{4}-\d{2}-\d{2}")).as_py():
        for kind in (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.timestamp("ns", "UTC")):
            try:
                return bare.cast(kind)
            except pa.ArrowInvalid:
                continue
    return column
