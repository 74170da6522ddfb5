"""Booleans: one categorical feature with the categories False and True."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluribus.data.inputs.category import filler_of_words, words_of
from pluribus.data.inputs.reading import called
from pluribus.data.inputs.record import (
    CellLimits,
    ColumnFeatures,
    Filler,
    FittedInput,
    Fitting,
    InputColumn,
    InputType,
    Saved,
    Schema,
    Statistics,
    Unfit,
    Words,
    register,
)
from pluribus.errors import BadInput

NO_YES = ("False", "True")


class BooleanType(InputType):
    """True and false; 1 and 0 in further tables."""

    name = "boolean"
    order = 5
    plain = True

    def infer(self, column: InputColumn) -> str | None:
        """Columns of booleans, and objects that all are booleans."""
        import pandas as pd

        if isinstance(column.series.dtype, pd.CategoricalDtype):
            return None
        return "" if pd.api.types.is_bool_dtype(column.series.dtype) or column.inferred == self.name else None

    def read(self, column: InputColumn) -> Words:
        """Positions among False and True."""
        import pandas as pd

        found = words_of(column)
        if isinstance(column.series.dtype, pd.CategoricalDtype):
            return Words(found.codes, found.words, NO_YES)
        same = {"0": "False", "1": "True", "false": "False", "true": "True"}
        words = [same.get(word.lower(), word) for word in found.words]
        wrong = [word for word in words if word not in NO_YES]
        if wrong:
            what = f"was fitted on booleans but holds {wrong[0]!r}"
            raise BadInput(what, where=column.where, remedy="give it true and false")
        back = np.array([*(NO_YES.index(word) for word in words), -1], np.int64)
        return Words(back[found.codes], NO_YES, NO_YES)

    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """Nothing beside the statistics of its feature."""
        return FittedBoolean(column.name)

    def restore(self, saved: Saved) -> FittedInput:
        """The column as it was saved."""
        return FittedBoolean(saved.name, (), saved.categorical)

    def filler(self, inputs: Sequence[FittedInput], statistics: Statistics) -> Filler | None:
        """One look-up a cell."""
        return filler_of_words(inputs, statistics)


@dataclass(frozen=True)
class FittedBoolean(FittedInput):
    """A column of booleans; its feature is called like the column."""

    record = register(BooleanType())

    def features(self, read: Any) -> ColumnFeatures:
        """The words False and True."""
        return ColumnFeatures({}, {self.name: read})

    def schema(self, statistics: Statistics) -> Schema:
        """True, false or null."""
        return {"type": ["boolean", "null"]}

    def read_cell(self, value: Any, limits: CellLimits) -> str | None:
        """True or false, also as 1 and 0 or as text."""
        if value is None:
            return None
        if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
            return str(bool(value))
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.capitalize()
        raise Unfit(f"takes true or false, not {called(value)}")


BOOLEAN = FittedBoolean.record
