"""Texts: no feature; the strings are kept for candidates that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pluribus.data.inputs.reading import called, sound
from pluribus.data.inputs.record import (
    CellLimits,
    FittedInput,
    Fitting,
    InputColumn,
    InputType,
    Saved,
    Schema,
    Statistics,
    Unfit,
    register,
)
from pluribus.data.ragged import Texts
from pluribus.data.tags import as_text, joined
from pluribus.errors import BadInput
from pluribus.tasks.columns import word_of
from pluribus.tasks.kinds.labels import MAX_CLASSES

if TYPE_CHECKING:
    import pandas as pd

_LETTERS = 30
_WORDS = 4


class TextType(InputType):
    """Free text; a list of words is the text of these words."""

    name = "text"
    order = 4
    is_words = True
    depth = 1
    store = Texts

    def infer(self, column: InputColumn) -> str | None:
        """More than 50 different strings, more than half of them distinct, of more than 30 letters or 4 words on average."""
        if not column.is_text or column.joined:
            return None
        values = column.series.dropna()
        if column.distinct <= MAX_CLASSES or column.distinct <= 0.5 * len(values):
            return None
        sample = values.iloc[:: max(1, len(values) // 2000)].astype(str)
        letters, words = sample.str.len().mean(), sample.str.count(r"\s+").mean() + 1
        if letters <= _LETTERS and words < _WORDS:
            return None
        line = f"{column.name!r} is text ({column.distinct} different values of {letters:.0f} letters on average)"
        return f"{line}: candidates that read no text leave it out"

    def clean(self, column: InputColumn) -> pd.Series:
        """Lists of words become texts."""
        return joined(column.series)

    def read(self, column: InputColumn) -> Texts:
        """The strings, None where missing."""
        series = joined(column.series)
        missing = series.isna().to_numpy()
        cells = series.to_numpy(object)
        for row, cell in enumerate(cells):
            if isinstance(cell, dict | list | tuple | np.ndarray):
                what = f"was fitted on text but holds {type(cell).__name__} in row {row + 1}"
                raise BadInput(what, where=column.where, remedy="give it text, or lists of words alone")
        return Texts.of([None if absent else word_of(cell) for cell, absent in zip(cells, missing.tolist())])

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """Nothing: a candidate's tokenizer learns."""
        return FittedText(column.name)

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        return FittedText(saved.name)


@dataclass(frozen=True)
class FittedText(FittedInput):
    """A column of text."""

    record = register(TextType())

    @property
    def as_written(self) -> bool:
        """007 is not 7."""
        return True

    def stored(self, read: Any) -> Texts:
        """The strings."""
        assert isinstance(read, Texts)
        return read

    def schema(self, statistics: Statistics) -> Schema:
        """Text, a list of words, or null."""
        return {"type": ["string", "array", "null"], "maxLength": 10_000, "items": {"type": "string"}}

    def read_cell(self, value: Any, limits: CellLimits) -> str | None:
        """Text, or a list of words."""
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            value = as_text(value)
        if isinstance(value, list):
            raise Unfit("takes text, not a list of anything but words")
        if not isinstance(value, str):
            raise Unfit(f"takes text, not {called(value)}")
        if not sound(value, limits.text):
            raise Unfit(f"is longer than {limits.text} characters or not Unicode")
        return value


TEXT = FittedText.record
