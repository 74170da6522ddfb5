"""How one column is written: found out when a table is read, kept with the model, and followed when further cells are read."""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from pluribus.data.written import missing
from pluribus.data.written.dates import dates_of
from pluribus.data.written.numbers import PLAIN, NumberStyle
from pluribus.data.written.reading import Reading
from pluribus.data.written.words import side_of, spelled
from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class Writing(ABC):
    """How the cells of one column are written.

    Parameters
    ----------
    na : tuple of str
        Words that are missing values here, beside `missing.WORDS`; numbers and dates among them are so however they are written.
    kept : tuple of str
        Those of `missing.WORDS` that are values here.
    """

    na: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    form: ClassVar[str]
    type: ClassVar[str]
    """The type of input (`pluribus.data.inputs`) that such a column is."""

    def absent(self, words: pa.Array) -> pa.Array:
        """Which words mean that there is no value [n], null for null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        usual = [word for word in missing.WORDS if word not in self.kept]
        return pc.is_in(pc.utf8_trim_whitespace(words), pa.array([*usual, *self.na], pa.string()))

    @abstractmethod
    def values(self, words: pa.Array) -> pa.Array:
        """What the words are [n]; null where a word is none of this form. The words that are missing are null already."""

    def read(self, words: pa.Array, where: str) -> pa.Array:
        """Words as what they are.

        Parameters
        ----------
        words : Array of strings
            [n]; each different word once is enough.
        where : str
            The file and the column, for messages.

        Raises
        ------
        BadInput
            A word is none of this form.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        there = pc.if_else(pc.fill_null(self.absent(words), True), pa.scalar(None, pa.string()), words)
        found = self.values(there)
        wrong = pc.and_(pc.is_null(found), pc.is_valid(there))
        if pc.any(wrong).as_py():
            word = words[pc.index(wrong, True).as_py()].as_py()
            raise BadInput(f"holds {word[:60]!r}, which is {self.lacks}", where=where, remedy=f"mend it, or --na {word[:60]!r}")
        return found

    lacks: ClassVar[str]
    """What is said of a word that is none of this form."""

    def series(self, series: pd.Series, where: str) -> pd.Series:
        """A column of a frame as what it is; cells that are no words any more are only looked through for sentinels.

        Raises
        ------
        BadInput
            A word is none of this form; the row is named (from 1).
        """
        import pandas as pd
        import pyarrow as pa

        from pluribus.tasks.columns import is_text

        if not is_text(series):
            return self._without_sentinels(series)
        codes, distinct = pd.factorize(series)
        words = pa.array([str(word) for word in distinct], pa.string())
        try:
            found = self.read(words, where)
        except BadInput as error:
            bad = next(i for i in range(len(words)) if self._bad(words[i : i + 1]))
            row = int((codes == bad).argmax()) + 1
            raise BadInput(f"{error.what} (row {row})", where=where, remedy=error.remedy) from None
        found = (
            found.take(pa.array(np.where(codes < 0, 0, codes), mask=codes < 0))
            if len(words)
            else pa.nulls(len(codes), found.type)
        )
        made: pd.Series = found.to_pandas()
        made.index, made.name = series.index, series.name
        return self._without_sentinels(made)

    def cell(self, value: Any) -> Any:
        """One cell of a request as what it is; what is no text, or no word of this form, stays as it is."""
        import pyarrow as pa

        if not isinstance(value, str):
            return None if self._is_sentinel(value) else value
        try:
            found = self.read(pa.array([value], pa.string()), "cell")[0].as_py()
        except BadInput:
            return value
        return None if self._is_sentinel(found) else found

    def told(self, reading: Reading, column: str, columns: Collection[str]) -> Writing:
        """The same, but for what the user says of a further file."""
        more = tuple(word for word in reading.missing(column, columns) if word not in self.na)
        return replace(self, na=self.na + more) if more else self

    def _bad(self, words: pa.Array) -> bool:
        try:
            self.read(words, "")
        except BadInput:
            return True
        return False

    def _is_sentinel(self, value: Any) -> bool:
        return False

    def _without_sentinels(self, series: pd.Series) -> pd.Series:
        return series

    # As plain JSON

    def to_dict(self) -> dict[str, Any]:
        """What a model's manifest holds."""
        row: dict[str, Any] = {"form": self.form}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default and value not in ((), {}):
                row[each.name] = _plain(value)
        return row

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Writing:
        """Undo `to_dict`.

        Raises
        ------
        KeyError, TypeError
            The row is none.
        """
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items() if name != "form"}
        if isinstance(style := options.get("style"), Mapping):
            options["style"] = NumberStyle(**style)
        return _FORMS[row["form"]](**options)


def _plain(value: Any) -> Any:
    if isinstance(value, NumberStyle):
        return {"decimal": value.decimal, "mark": value.mark, "unit": value.unit}
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class WrittenNumbers(Writing):
    """Numbers.

    Parameters
    ----------
    style : NumberStyle
        How they are written.
    """

    style: NumberStyle = PLAIN

    form, type = "number", "number"
    lacks = "not a number"

    def values(self, words: pa.Array) -> pa.Array:
        """float64"""
        import pyarrow as pa

        return pa.array(self.style.numbers(words), from_pandas=True)

    def told(self, reading: Reading, column: str, columns: Collection[str]) -> Writing:
        """Signs that the user names hold."""
        found = super().told(reading, column, columns)
        assert isinstance(found, WrittenNumbers)
        decimal, mark = reading.sign(column), reading.mark(column)
        if decimal is None and mark is None:
            return found
        style = found.style
        decimal = decimal if decimal is not None else "," if mark == "." else "." if mark == style.decimal else style.decimal
        mark = mark if mark is not None else "" if style.mark == decimal else style.mark
        return replace(found, style=replace(style, decimal=decimal, mark=mark))

    def _is_sentinel(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and value in missing.equal_number(self.na)

    def _without_sentinels(self, series: pd.Series) -> pd.Series:
        import pandas as pd

        sentinels = missing.equal_number(self.na)
        if not sentinels or not pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype):
            return series
        return series.astype(np.float64).mask(series.isin(sentinels))


@dataclass(frozen=True)
class WrittenDates(Writing):
    """Dates.

    Parameters
    ----------
    dayfirst : bool or None
        Whether the day comes first in 03/04/2024, where that matters.
    compact : bool
        Whether 20241231 is a date.
    """

    dayfirst: bool | None = None
    compact: bool = False

    form, type = "date", "datetime"
    lacks = "not a date"

    def values(self, words: pa.Array) -> pa.Array:
        """timestamp[us] without a zone"""
        import pyarrow as pa
        import pyarrow.compute as pc

        settled = self.dayfirst is not None
        return pa.array(dates_of(pc.fill_null(words, ""), self.dayfirst, settled=settled, compact=self.compact).stamps)

    def series(self, series: pd.Series, where: str) -> pd.Series:
        """Numbers such as 20241231 are words here."""
        import pandas as pd

        if self.compact and pd.api.types.is_numeric_dtype(series.dtype):
            series = series.astype("Int64").astype("string").astype(object).where(series.notna(), None)
        return super().series(series, where)

    def told(self, reading: Reading, column: str, columns: Collection[str]) -> Writing:
        """The order of day and month that the user names holds."""
        found = super().told(reading, column, columns)
        assert isinstance(found, WrittenDates)
        return found if reading.dayfirst is None else replace(found, dayfirst=reading.dayfirst)

    def cell(self, value: Any) -> Any:
        """20241231 may be a number."""
        if self.compact and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        return super().cell(value)

    def _is_sentinel(self, value: Any) -> bool:
        return isinstance(value, datetime.date) and value.isoformat()[:10] in self.na

    def _without_sentinels(self, series: pd.Series) -> pd.Series:
        import pandas as pd

        if not self.na or not pd.api.types.is_datetime64_any_dtype(series.dtype):
            return series
        days = [day for day in (pd.to_datetime(word, errors="coerce") for word in self.na) if not pd.isna(day)]
        return series.mask(series.dt.tz_localize(None).dt.normalize().isin(days)) if days else series


@dataclass(frozen=True)
class WrittenWords(Writing):
    """Words.

    Parameters
    ----------
    spelling : dict
        Folded word → how it is spelled; empty where words are taken as they are written.
    """

    spelling: dict[str, str] = field(default_factory=dict)

    form, type = "words", "category"
    lacks = "no word"

    def values(self, words: pa.Array) -> pa.Array:
        """strings"""
        import pyarrow as pa

        if not self.spelling:
            return words
        return pa.array([None if word is None else spelled(word, self.spelling) for word in words.to_pylist()], pa.string())

    def cell(self, value: Any) -> Any:
        """True and false are words of a column that says yes and no."""
        if isinstance(value, bool) and str(value).casefold() in self.spelling:
            value = str(value)
        if not isinstance(value, str):
            return value
        bare = value.strip()
        if bare in self.na or (bare in missing.WORDS and bare not in self.kept):
            return None
        return spelled(value, self.spelling) if self.spelling else value


@dataclass(frozen=True)
class WrittenBooleans(Writing):
    """Yes and no, as true and false."""

    form, type = "boolean", "boolean"
    lacks = "neither yes nor no"

    def values(self, words: pa.Array) -> pa.Array:
        """booleans"""
        import pyarrow as pa

        found = []
        for word in words.to_pylist():
            sides = side_of([word, "yes"]) or side_of([word, "t"]) or side_of([word, "on"]) if word is not None else None
            found.append(None if sides is None or word is None else sides[" ".join(word.split()).casefold()])
        return pa.array(found, pa.bool_())


def writings_of(inputs: Iterable[WrittenInput], reading: Reading, columns: Collection[str]) -> dict[str, Writing]:
    """How a further file writes the input columns of a model: as the first did, but for what the user says.

    Parameters
    ----------
    inputs : iterable
        The model's input columns.
    reading : Reading
        What the user says of the further file.
    columns : collection of str
        Its columns.

    Raises
    ------
    BadInput
        The user speaks of a column that is none, or of types, which the model knows.
    """
    if reading.types:
        raise BadInput("the model knows the types of its columns", where="types", remedy="leave them out")
    reading.check(columns, "table")
    found: dict[str, Writing] = {}
    for one in inputs:
        writing = one.writing
        if not reading.says_nothing and one.name in columns and (writing is not None or one.type in TYPED):
            plain = writing if writing is not None else TYPED[one.type]()
            told = plain.told(reading, one.name, columns)
            writing = told if writing is not None or told != plain else None
        if writing is not None:
            found[one.name] = writing
    return found


class WrittenInput(Protocol):
    """An input column of a model (`pluribus.data.inputs.record.FittedInput`)."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def writing(self) -> Writing | None: ...


_FORMS: dict[str, type[Writing]] = {form.form: form for form in (WrittenNumbers, WrittenDates, WrittenWords, WrittenBooleans)}
TYPED: dict[str, type[Writing]] = {form.type: form for form in _FORMS.values()}
"""How columns of a type are written."""
