"""All columns of a file: what each holds, and what people should know of it.

First every column is decided by its own cells. What is ambiguous by itself (`28,666`, `03/04/2024`) is then decided by what the
other columns of the file show, since one program wrote them all; what stays ambiguous is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pluribus.data.written import missing
from pluribus.data.written.codes import a_code, looks_like_id
from pluribus.data.written.dates import are_iso, dates_of
from pluribus.data.written.numbers import COMMA, PERCENT, POINT, NumberStyle, Styles, share_of_numbers, styles_of, tidy
from pluribus.data.written.reading import Reading
from pluribus.data.written.words import MAX_WORDS, are_categories, side_of, spelled, spelling_of
from pluribus.data.written.writing import TYPED, Writing, WrittenDates, WrittenNumbers, WrittenWords
from pluribus.errors import BadInput
from pluribus.tasks.kinds.labels import MAX_CLASSES

if TYPE_CHECKING:
    import pyarrow as pa

Raw = Callable[[Sequence[str]], dict[str, Any]]
"""Columns as the file has them: strings, null where a cell is empty."""

_HEAD = 200
_MOST = 0.5
_LONG = 80
_NAMED = 3
_BRIEF = 30
_GROUPED = r"^\s*[-+]?\d{1,3}(\.\d{3})+\s*$"


@dataclass
class Notes:
    """Lines for people; what is about several columns is said once, in the words of the first."""

    found: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def add(self, column: str, text: str, about: str = "") -> None:
        """Something about one column; COLUMN in the text stands for its name, `about` for what it has in common with others."""
        self.found.setdefault(about or text, (text, []))[1].append(column)

    def lines(self) -> list[str]:
        """One line for each thing."""
        lines = []
        for text, columns in self.found.values():
            shown = ", ".join(repr(name) for name in columns[:_NAMED])
            more = f" and {len(columns) - _NAMED} more columns" if len(columns) > _NAMED else ""
            lines.append(f"{shown}{more}: {text.replace('COLUMN', columns[0]) if len(columns) == 1 else text}")
        return lines


@dataclass
class Decided:
    """A file's columns as what they hold.

    Parameters
    ----------
    table : pyarrow.Table
        The columns.
    writings : dict
        Column → how it is written, where that is not as programs write.
    notes : list of str
        What people should know.
    """

    table: pa.Table
    writings: dict[str, Writing]
    notes: list[str]


@dataclass
class _Open:
    """A column that its own cells do not decide."""

    words: pa.Array
    na: tuple[str, ...]
    styles: Styles | None = None


def decide(
    table: pa.Table, reading: Reading, raw: Raw, where: str, *, exact: Collection[str], skip: Collection[str], zeros: bool
) -> Decided:
    """Find out how the columns are written, and convert them.

    Parameters
    ----------
    table : pyarrow.Table
        The columns as a program reads them.
    reading : Reading
        What the user says.
    raw : callable
        Gives columns as the file has them.
    where : str
        The file, for messages.
    exact : collection of str
        Columns whose words stay as they are written.
    skip : collection of str
        Columns that nobody reads.
    zeros : bool
        Whether numbers of the file may begin with a zero or a plus.
    """
    return _Deciding(table, reading, raw, where, set(exact), set(skip), zeros).run()


class _Deciding:
    def __init__(
        self, table: pa.Table, reading: Reading, raw: Raw, where: str, exact: set[str], skip: set[str], zeros: bool
    ) -> None:
        self.table, self.reading, self.raw, self.where = table, reading, raw, where
        self.names = tuple(table.column_names)
        reading.check(self.names, where)
        self.exact, self.skip, self.zeros = exact, skip, zeros
        self.columns: dict[str, Any] = {}
        self.writings: dict[str, Writing] = {}
        self.notes = Notes()
        self.open: dict[str, _Open] = {}
        self.decimals: set[str] = set()  # what columns of the file prove
        self.marks: set[str] = set()
        self.dayfirst: set[bool] = set()

    def run(self) -> Decided:
        """All columns."""
        import pyarrow as pa

        whole: list[str] = []
        for name in self.names:
            if name in self.skip or (name in self.exact and name not in self.reading.types):
                continue
            column, kind = self.table.column(name), self.table.schema.field(name).type
            if name in self.reading.types:
                self._declared(name, self.reading.types[name])
            elif self.reading.only_empty(name):
                if pa.types.is_string(kind):
                    self.columns[name] = self.raw([name])[name]
                    self.writings[name] = WrittenWords(kept=tuple(word for word in missing.WORDS if word))
            elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
                self._words(name, column)
            elif (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and self.zeros:
                whole.append(name)
            elif not pa.types.is_null(kind) and column.null_count == len(column):
                self.notes.add(name, "no value at all (--ignore it)")
        if whole:
            self._codes(whole)
        if self.open or COMMA in self.decimals:
            self._by_the_others()
        for name in self.names:
            if name not in self.skip and name not in self.exact:
                self._sentinels(name)
        for name, column in self.columns.items():
            place = self.table.schema.get_field_index(name)
            self.table = self.table.set_column(place, name, column)
        return Decided(self.table, self.writings, self.notes.lines())

    # Words

    def _words(self, name: str, column: Any) -> None:
        """A column of words by itself."""
        import pyarrow as pa
        import pyarrow.compute as pc

        counts = pc.value_counts(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)).flatten()
        there = pc.is_valid(counts[0])
        words, rows = pc.cast(counts[0].filter(there), pa.string()), counts[1].filter(there)
        told = self.reading.missing(name, self.names)
        said = pc.is_in(pc.utf8_trim_whitespace(words), pa.array(told, pa.string()))
        head = words[:_HEAD]
        if not _has_digits(head) or pc.max(pc.utf8_length(head)).as_py() > _LONG:  # numbers and dates have some, and are short
            self._spell(name, words.filter(pc.invert(said)), rows.filter(pc.invert(said)), told, column.null_count)
            return
        small = pc.utf8_lower(pc.utf8_trim_whitespace(words))
        soft = pc.is_in(small, pa.array(sorted(missing.BESIDE_NUMBERS), pa.string()))
        rest = words.filter(pc.invert(pc.or_(soft, said)))
        na = tuple(dict.fromkeys([*told, *words.filter(pc.and_(soft, pc.invert(said))).to_pylist()]))
        if not len(rest):
            if told and len(words):
                self._become(name, WrittenWords(na=told), "")
            elif len(words):
                self.notes.add(name, f"nothing but {words[0].as_py()!r} (--na {words[0].as_py()!r} for missing)")
            return
        if self._number(name, rest, na) or self._date(name, rest, na):
            return
        self._nearly(name, rest)
        self._spell(name, words.filter(pc.invert(said)), rows.filter(pc.invert(said)), told, column.null_count)

    def _number(self, name: str, words: pa.Array, na: tuple[str, ...]) -> bool:
        sign, mark = self.reading.sign(name), self.reading.mark(name)
        found = styles_of(words, sign, mark)
        if not found.possible:
            found = styles_of(words, sign, mark, measured=True)
            if found.possible and len(words) <= MAX_CLASSES:  # "36 months", "60 months" may be classes
                one = words[0].as_py()
                self.notes.add(name, f"words ({one!r}; --type COLUMN=number reads the number)", "measures")
                return False
        if not found.possible:
            return False
        if found.style is None:
            self.open[name] = _Open(words, na, found)
            return True
        if found.style.plain and not na:
            return False  # plain digits that a program wrote as words
        self._take_numbers(name, words, na, found.style)
        self.decimals |= {found.style.decimal} if found.style.decimal == COMMA or _has(words, POINT) else set()
        self.marks |= {found.style.mark} if found.style.mark else set()
        return True

    def _take_numbers(
        self, name: str, words: pa.Array, na: tuple[str, ...], style: NumberStyle, why: str = "", raw: bool = False
    ) -> None:
        example = next((w for w in words[:_HEAD].to_pylist() if not w.strip().isdigit()), words[0].as_py())
        number = style.numbers(_array([example]))[0]
        says = f"numbers ({example.strip()!r} is {number:.15g})" if not style.plain else "numbers"
        says += {PERCENT: ", in percent"}.get(style.unit, "")
        self._become(name, WrittenNumbers(na=na, style=style), says + why, "numbers" + why, raw)

    def _date(self, name: str, words: pa.Array, na: tuple[str, ...]) -> bool:
        head = dates_of(words[:_HEAD], self.reading.dayfirst)
        if np.isnat(head.stamps).any() and not head.conflict:
            return False
        found = dates_of(words, self.reading.dayfirst)
        if found.conflict and not np.isnat(dates_of(words, True).stamps[:_HEAD]).all():
            first, second = found.conflict
            what = f"words: some dates have the day first ({first!r}), some the month ({second!r})"
            self.notes.add(name, f"{what}; write them in one order")
            return False
        if np.isnat(found.stamps).any() or (not na and are_iso(words)):
            return False  # ISO dates are read as such anyway
        if found.matters and found.dayfirst is None:
            self.open[name] = _Open(words, na)
            return True
        self.dayfirst |= {found.dayfirst} if found.matters and found.dayfirst is not None else set()
        self._take_dates(name, words, na, found.dayfirst if found.matters else None, mixed=found.zoned and found.unzoned)
        return True

    def _take_dates(
        self, name: str, words: pa.Array, na: tuple[str, ...], dayfirst: bool | None, why: str = "", mixed: bool = False
    ) -> None:
        example = words[0].as_py()
        stamp = dates_of(words[:1], dayfirst, settled=dayfirst is not None).stamps[0]
        says = f"dates ({example.strip()!r} is {_short(stamp)})"
        if mixed:
            says += "; times without a zone are taken for UTC"
        self._become(name, WrittenDates(na=na, dayfirst=dayfirst), says + why, "dates" + why)

    def _nearly(self, name: str, words: pa.Array) -> None:
        """Name what keeps a column from being numbers or dates."""
        import pyarrow.compute as pc

        if share_of_numbers(words[:_HEAD])[0] < _MOST and np.isnat(dates_of(words[:_HEAD]).stamps).mean() > _MOST:
            return
        share, style = share_of_numbers(words)
        if _MOST <= share < 1:
            wrong = words.filter(pc.invert(style.fits(tidy(words))))
        else:
            stamps = dates_of(words, self.reading.dayfirst).stamps
            no_date = np.isnat(stamps)
            if not 0 < no_date.mean() <= _MOST:
                return
            wrong = words.filter(_mask(no_date))
        one = wrong[0].as_py()
        sort = "numbers" if _MOST <= share < 1 else "dates"
        more = f" and {len(wrong) - 1} more words are none" if len(wrong) > 1 else " is none"
        self.notes.add(name, f"words: most are {sort}, but {one[:40]!r}{more} (--na {one[:40]!r} for missing)", f"most {sort}")

    def _spell(self, name: str, words: pa.Array, rows: pa.Array, told: tuple[str, ...], empty: int) -> None:
        """Words that are the same but for spaces and capitals, and "NA" among codes."""
        known = dict(zip(words.to_pylist(), rows.to_pylist())) if len(words) <= MAX_WORDS else {}
        kept: tuple[str, ...] = ()
        if empty and missing.NA not in told and missing.na_is_a_code(known, True):
            kept, hidden = self._na_kept(name, known)
            known |= hidden
        spelling = spelling_of(known) if are_categories(known) else {}
        changed = {word: new for word in known if spelling and (new := spelled(word, spelling)) != word}
        sides = side_of(list(spelling))
        if not changed and not told and not kept and sides is None:
            return
        says = ""
        if changed:
            word, new = next(iter(changed.items()))
            merged = len(set(known)) - len({spelled(word, spelling) for word in known})
            about = (
                f"{merged} of {len(known)} words differ from others in spaces or capitals alone"
                if merged
                else "spaces around words go"
            )
            if sides is not None and merged:
                about = f"{len(known)} ways to say yes and no are two"
            says = f"{about} ({_brief(word)} is read as {_brief(new)}; --type COLUMN=category keeps them)"
        plain = not changed and sides is None
        self._become(name, WrittenWords(na=told, kept=kept, spelling={} if plain else spelling), says, "spelling", raw=bool(kept))

    def _na_kept(self, name: str, known: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, int]]:
        """Whether "NA" is a code of this column: it stands there, and nowhere among numbers."""
        import pyarrow.compute as pc

        column = self.raw([name])[name]
        rows = int(pc.sum(pc.equal(column, missing.NA)).as_py() or 0)
        if not rows:
            return (), {}
        if not missing.na_is_a_code(known, column.null_count > 0):
            return (), {}
        numeric = [n for n in self.names if not _is_words(self.table.schema.field(n).type) and self.table.column(n).null_count]
        for other, found in self.raw(numeric).items() if numeric else ():
            if pc.any(pc.equal(found, missing.NA)).as_py():
                self.notes.add(name, f"'NA' is missing, as in {other!r} (--na COLUMN= reads it as a word)")
                return (), {}
        self.notes.add(name, "'NA' is a word, as the others have two letters too (--na COLUMN=NA if it means missing)")
        return (missing.NA,), {missing.NA: rows}

    # What the user says

    def _declared(self, name: str, kind: str) -> None:
        """A column of a type that the user names."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.raw([name])[name]
        writing = TYPED[kind]
        told = self.reading.missing(name, self.names)
        words = pc.unique(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)).drop_null()
        words = words.filter(pc.invert(pc.is_in(pc.utf8_trim_whitespace(words), pa.array([*missing.WORDS, *told], pa.string()))))
        if writing is WrittenNumbers:
            soft = tuple(missing.beside_numbers(words.to_pylist()))
            rest = words.filter(pc.invert(pc.is_in(words, pa.array(soft, pa.string()))))
            found = styles_of(rest, self.reading.sign(name), self.reading.mark(name), measured=True)
            if found.style is None and found.possible:
                raise self._ambiguous(name, found)
            style = found.style or share_of_numbers(rest)[1]
            made: Writing = WrittenNumbers(na=(*told, *soft), style=style)
        elif writing is WrittenDates:
            soft = tuple(missing.beside_numbers(words.to_pylist()))
            rest = words.filter(pc.invert(pc.is_in(words, pa.array(soft, pa.string()))))
            dates = dates_of(rest, self.reading.dayfirst, compact=True)
            if dates.matters and dates.dayfirst is None and not dates.conflict:
                remedy = "add --dayfirst or --monthfirst"
                raise BadInput(f"may have the day or the month first ({rest[0].as_py()!r})", where=self._at(name), remedy=remedy)
            made = WrittenDates(na=(*told, *soft), dayfirst=dates.dayfirst if dates.matters else None, compact=True)
        else:
            kept = tuple(word for word in missing.WORDS if word) if self.reading.only_empty(name) else ()
            made = writing(na=told, kept=kept)
        self.columns[name] = self._converted(made, column, name)
        self.writings[name] = made

    def _at(self, name: str) -> str:
        return f"{self.where}, column {name!r}"

    # What the other columns show

    def _by_the_others(self) -> None:
        """Columns that their own cells do not decide."""
        points = self._points()
        for name, found in self.open.items():
            if found.styles is None:
                self._open_date(name, found)
                continue
            fits = [
                s
                for s in found.styles.possible
                if (not self.decimals or {s.decimal} == self.decimals) and s.decimal not in self.marks
            ]
            fits = [s for s in fits if s.mark not in self.decimals] if self.decimals or self.marks else []
            if len(fits) == 1:
                self._take_numbers(
                    name, found.words, found.na, fits[0], ", as in the other columns; --thousands and --decimal decide"
                )
            elif found.styles.possible[0].unit or not _bare_comma(found.words):
                first, second, *_ = found.styles.possible
                values = _both(found.styles.example, first, second)
                self.notes.add(name, f"words: {found.styles.example!r} is {values} (--thousands or --decimal decides)")
            else:
                raise self._ambiguous(name, found.styles)
        if self.decimals == {COMMA}:
            for name in points:
                column = self.raw([name])[name]
                words = _distinct(column)
                told = self.reading.missing(name, self.names)
                why = ", as in the other columns; --thousands and --decimal decide"
                self._take_numbers(name, words, told, NumberStyle(COMMA, POINT), why, raw=True)

    def _open_date(self, name: str, found: _Open) -> None:
        if len(self.dayfirst) == 1:
            (first,) = self.dayfirst
            self._take_dates(name, found.words, found.na, first, ", as in the other columns; --dayfirst and --monthfirst decide")
            return
        one = found.words[0].as_py()
        self.notes.add(name, f"words: {one!r} may have the day or the month first (--dayfirst or --monthfirst decides)")

    def _points(self) -> list[str]:
        """Columns of numbers whose points may stand between thousands; other points show that the decimal sign is one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        floats = [n for n in self.names if pa.types.is_floating(self.table.schema.field(n).type) and n not in self.columns]
        floats = [n for n in floats if n not in self.skip and self.table.column(n).null_count < len(self.table)]
        if not floats or self.reading.sign(floats[0]) is not None:
            return []
        found = []
        for name, column in self.raw(floats).items():
            pointed = column.filter(pc.fill_null(pc.match_substring(column, POINT), False))
            if not len(pointed):
                continue
            if pc.all(pc.match_substring_regex(pointed, _GROUPED)).as_py():
                found.append(name)
            else:
                self.decimals.add(POINT)
        return found

    def _ambiguous(self, name: str, styles: Styles) -> BadInput:
        first, second, *_ = styles.possible
        options = [self._option(style, styles.example) for style in (first, second)]
        what = f"holds numbers with a comma ({styles.example!r}), which may be {_both(styles.example, first, second)}"
        return BadInput(what, where=self._at(name), remedy=f"say {options[0]}, or {options[1]}")

    def _option(self, style: NumberStyle, example: str) -> str:
        value = style.numbers(_array([example]))[0]
        name, sign = ("thousands", style.mark) if style.mark else ("decimal", style.decimal)
        return f"{name}='{sign}' (--{name} '{sign}') for {value:.15g}"

    # Numbers and dates

    def _codes(self, names: list[str]) -> None:
        """Whole numbers that begin with a zero or a plus are codes."""
        import pyarrow.compute as pc

        for name, column in self.raw(names).items():
            words = _distinct(column)
            one = a_code(words) if pc.all(pc.match_substring_regex(words, r"^\s*\+?\d+\s*$")).as_py() else None
            if one is not None:
                self.columns[name] = self._converted(WrittenWords(), column, name)
                self.writings[name] = WrittenWords()
                self.notes.add(
                    name, f"words, as {one!r} begins with {one.strip()[0]!r} (--type COLUMN=number reads a number)", "zeros"
                )

    def _sentinels(self, name: str) -> None:
        """Numbers and dates that stand for "not known", and numbers that may be ids or dates."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.columns.get(name, self.table.column(name))
        if isinstance(column, pa.Array):
            column = pa.chunked_array([column])
        kind = column.type
        told = self.reading.missing(name, self.names)
        if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and column.null_count < len(column):
            values = np.asarray(column.to_numpy(), np.float64)
            said = missing.equal_number(told)
            hit = np.isin(values, said) if said else np.zeros(0, bool)
            if hit.any():
                values = np.where(hit, np.nan, values)
                self._null(name, column, pa.array(hit), told)
            found = None if self.reading.only_empty(name) else missing.sentinel_of(values)
            if found is not None:
                number, rows, sure = found
                word = f"{number:.15g}"
                if sure:
                    self._null(name, self.columns.get(name, column), pa.array(values == number), (word,))
                    self.notes.add(
                        name, f"{word} means missing ({rows} rows; --na COLUMN= reads it as a number)", f"sentinel {word}"
                    )
                else:
                    what = f"{word} in {rows} rows, far from all other values, is read as a number"
                    self.notes.add(name, f"{what} (--na COLUMN={word} if it means missing)", f"far {word}")
            elif pa.types.is_integer(kind) and name not in self.columns:
                self._whole(name, values)
        elif pa.types.is_timestamp(kind):
            days = np.asarray(pc.cast(column, pa.timestamp("us")).to_numpy(), "datetime64[us]")
            said_days = np.array([d for d in dates_of(_array(told), compact=True).stamps if not np.isnat(d)], "datetime64[D]")
            hit = np.isin(days.astype("datetime64[D]"), said_days)
            if hit.any():
                self._null(name, column, pa.array(hit), told)
                days = np.where(hit, np.datetime64("NaT"), days)
            date = None if self.reading.only_empty(name) else missing.date_sentinel_of(days)
            if date is not None:
                word, rows = date
                what = f"{word} in {rows} rows, far from all other dates, is read as a date"
                self.notes.add(name, f"{what} (--na COLUMN={word} if it means missing)", f"far {word}")

    def _whole(self, name: str, values: Any) -> None:
        low, high = np.nanmin(values), np.nanmax(values)
        if looks_like_id(name, values):
            self.notes.add(name, "another whole number in every row, like an id, and an input (--id or --ignore it)")
        elif low >= 1900_01_01 and high <= 2100_12_31 and high > low:
            distinct = np.unique(values[~np.isnan(values)]).astype(np.int64).astype(str)
            if not np.isnat(dates_of(_array(distinct.tolist()), compact=True).stamps).any():
                what = f"a number, though all values are dates like {int(low)}"
                self.notes.add(name, f"{what} (--type COLUMN=datetime)", "compact")

    def _null(self, name: str, column: Any, hit: pa.Array, words: tuple[str, ...]) -> None:
        """Cells without a value from now on; the column's writing says so to further tables."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.if_else(hit, pa.scalar(None, column.type), column)
        self.columns[name] = pc.cast(found, pa.float64()) if pa.types.is_integer(found.type) else found
        old = self.writings.get(name)
        if old is None:
            old = WrittenDates() if pa.types.is_timestamp(column.type) else WrittenNumbers()
        self.writings[name] = _with(old, words)

    # Converting

    def _become(self, name: str, writing: Writing, says: str, about: str = "", raw: bool = False) -> None:
        """Convert a column, and say so."""
        self.columns[name] = self._converted(writing, self.raw([name])[name] if raw else self.table.column(name), name)
        self.writings[name] = writing
        if not says:
            return
        if isinstance(writing, WrittenNumbers | WrittenDates):
            soft = [word for word in writing.na if word.strip().casefold() in missing.BESIDE_NUMBERS]
            if soft:
                says += f"; {', '.join(repr(word) for word in soft[:_NAMED])} means missing"
            says += " (--type COLUMN=category reads words)"
        self.notes.add(name, says, about)

    def _converted(self, writing: Writing, column: Any, name: str) -> Any:
        """A column of strings as what it holds; each different word is read once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        coded = pc.dictionary_encode(pc.cast(column, pa.string()))
        chunks = []
        for chunk in coded.chunks:
            found = writing.read(chunk.dictionary, self._at(name))
            chunks.append(found.take(chunk.indices))
        return pa.chunked_array(chunks) if chunks else pa.chunked_array([writing.read(_array([]), self._at(name))])


def _with(writing: Writing, words: tuple[str, ...]) -> Writing:
    return replace(writing, na=tuple(dict.fromkeys([*writing.na, *words])))


def _array(words: Sequence[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(list(words), pa.string())


def _mask(found: Any) -> pa.Array:
    import pyarrow as pa

    return pa.array(found)


def _distinct(column: Any) -> pa.Array:
    """The different words of a column without the usual missing ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = pc.unique(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)).drop_null()
    return words.filter(pc.invert(pc.is_in(words, pa.array(missing.WORDS, pa.string()))))


def _has(words: pa.Array, sign: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring(words, sign)).as_py())


def _is_words(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _has_digits(words: pa.Array) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(words, r"\d")).as_py())


def _brief(word: str) -> str:
    return repr(word if len(word) <= _BRIEF else f"{word[:_BRIEF]}…")


def _bare_comma(words: pa.Array) -> bool:
    """Whether all words are digits, with a comma in some."""
    import pyarrow.compute as pc

    digits = pc.match_substring_regex(words, r"^\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*$")
    return bool(pc.all(digits).as_py()) and _has(words, COMMA)


def _both(example: str, first: NumberStyle, second: NumberStyle) -> str:
    one, other = (style.numbers(_array([example]))[0] for style in (first, second))
    return f"{one:.15g} or {other:.15g}"


def _short(stamp: np.datetime64) -> str:
    """A date, with its time of day where it has one."""
    day = stamp.astype("datetime64[D]")
    return str(day) if day == stamp else str(stamp.astype("datetime64[s]")).replace("T", " ")
