"""The input columns of a table: of what type each is, and its cells as the type reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.inputs.record import INPUTS, InputColumn, InputType, by_inference
from pluribus.data.ragged import looks_like_lists, read_lists
from pluribus.errors import BadInput, unknown

if TYPE_CHECKING:
    import pandas as pd

TEXT = "text"
"""The type that a user may declare a column to be."""


class Inputs:
    """The input columns of a table.

    Parameters
    ----------
    frame : DataFrame
        The table; columns become what their types keep (dates that are text become datetimes).
    names : sequence of str
        The input columns.
    source : str
        The file's name, for messages.
    text : collection of str
        Columns that the user says are text.
    joined : collection of str
        Columns of keys of items.
    time : str or None
        The column that orders the rows.
    limit : int
        Of a list the latest so many elements are kept.
    types : mapping, optional
        Column → its type, where the user says it.

    Attributes
    ----------
    types : dict
        Column → its type.
    notes : list of str
        What people should know of a type that was found out.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        names: Sequence[str],
        source: str,
        *,
        text: Collection[str] = (),
        joined: Collection[str] = (),
        time: str | None = None,
        limit: int = 100,
        types: Mapping[str, str] | None = None,
    ) -> None:
        if not (isinstance(limit, int) and limit >= 1):
            raise BadInput(f"max_length must be a whole number of at least 1, not {limit!r}", where=source)
        self.types: dict[str, InputType] = {}
        self.notes: list[str] = []
        self._columns: dict[str, InputColumn] = {}
        self._read: dict[str, Any] = {}
        known = by_inference()
        for name in names:
            where = f"{source}, column {name!r}"
            column = InputColumn(name, frame[name], where, joined=name in joined, ordering=name == time, limit=limit)
            chosen = TEXT if name in text else (types or {}).get(name)
            if chosen is not None and chosen not in INPUTS:
                raise unknown("type", chosen, [n for n, one in INPUTS.items() if one.plain], where=where)
            record, note = _type_of(column, known) if chosen is None else (INPUTS[chosen], "")
            cleaned = record.clean(column)
            if cleaned is not column.series:
                frame[name] = cleaned
                column = replace(column, series=frame[name])
            self.types[name], self._columns[name] = record, column
            self.notes += [note] if note else []

    def column(self, name: str) -> InputColumn:
        """One column, as its type reads it."""
        return self._columns[name]

    def read(self, name: str) -> Any:
        """One column's cells, read once where that costs something."""
        record = self.types[name]
        if not record.keeps:
            return record.read(self._columns[name])
        if name not in self._read:
            self._read[name] = record.read(self._columns[name])
        return self._read[name]

    def mentioned(self, name: str) -> list[str]:
        """The different keys of items in one column."""
        return self.types[name].mentioned(self.read(name), slice(None))


def _type_of(column: InputColumn, known: Sequence[InputType]) -> tuple[InputType, str]:
    for record in known:
        note = record.infer(column)
        if note is not None:
            return record, note
    raise BadInput("is of no known type", where=column.where, remedy="--ignore it")


def check_text(text: Collection[str], columns: Sequence[str], inputs: Collection[str], source: str) -> tuple[str, ...]:
    """The columns that the user says are text."""
    if isinstance(text, str):
        raise BadInput("text must be a list of columns", where=source, remedy=f"write [{text!r}]")
    found = tuple(dict.fromkeys(text))
    for column in found:
        if column not in columns:
            raise unknown("text column", column, columns, where=source)
        if column not in inputs:
            raise BadInput("is named as text but is no input", where=f"{source}, column {column!r}", remedy="give it one role")
    return found


def lengths_of(frame: pd.DataFrame, column: str, source: str) -> NDArray[np.int64]:
    """How many elements each row's list has."""
    return np.diff(read_lists(frame[column], f"{source}, column {column!r}").starts)


def words_beside(frame: pd.DataFrame, labels: str, inputs: Sequence[str], source: str) -> str | None:
    """The one input column of lists that has a word for each label of a column, if there is one."""
    lengths = lengths_of(frame, labels, source)
    if not lengths.any():
        return None
    fits = [
        name
        for name in inputs
        if looks_like_lists(frame[name]) and ((lengths_of(frame, name, source) == lengths) | (lengths == 0)).all()
    ]
    return fits[0] if len(fits) == 1 else None


def check_keys(found: Sequence[str], known: Collection[str], column: str, where: str, items: str, key: str) -> str | None:
    """A line on keys that an item table lacks; None where it has all.

    Raises
    ------
    BadInput
        It has none of them.
    """
    lacking = [word for word in found if word not in known]
    if not lacking:
        return None
    if len(lacking) == len(found):
        what = f"holds no key of the items {items!r} ({lacking[0]!r} is none)"
        raise BadInput(what, where=where, remedy=f"check the key {key!r}")
    return f"{len(lacking)} of {len(found)} items in {column!r} are not in {items!r} (such as {lacking[0]!r})"


def check_joined(joined: Mapping[str, Sequence[str]], text: Collection[str], source: str) -> None:
    """Whether each column is joined to one item table, and is no text."""
    taken: dict[str, str] = {}
    for name, columns in joined.items():
        for column in columns:
            where = f"{source}, column {column!r}"
            if column in taken:
                what = f"is joined to the items {taken[column]!r} and {name!r}"
                raise BadInput(what, where=where, remedy="join it to one table")
            if column in text:
                raise BadInput(f"is text and joined to {name!r}", where=where, remedy="give it one role")
            taken[column] = name
