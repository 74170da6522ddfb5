"""A column of a table or a file as kinds of task read it, and what a cell is as a word or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column of a table or a file, as a kind reads it.

    Parameters
    ----------
    series : pandas.Series
        The cells [n].
    where : str
        The file and the column, for messages.
    words : ndarray of int64 or None
        [n], how many words each row has of the text that stands beside the column; for kinds that label words.
    keys : mapping or None
        Key → row of the item table that the column is joined to; for kinds that choose items.
    beside : str or None
        The name of that text, or of that item table.
    """

    series: pd.Series
    where: str
    words: NDArray[np.int64] | None = None
    keys: Mapping[str, int] | None = None
    beside: str | None = None


def is_text(series: pd.Series) -> bool:
    """Whether a column holds strings (categories are none)."""
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        return False
    if series.dtype == np.dtype(object):
        return pd.api.types.infer_dtype(series, skipna=True) == "string"
    return pd.api.types.is_string_dtype(series.dtype)


def word_of(value: Any) -> str:
    """A class, category or key as text: 1.0 and 1 are the same word."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def numbers_of(column: Column, kind: str) -> NDArray[np.float64]:
    """The cells as numbers [n], NaN where empty; `kind` is what messages say they should be.

    Raises
    ------
    BadInput
        The column holds words, categories or dates.
    """
    import pandas as pd

    series = column.series
    if is_text(series) or isinstance(series.dtype, pd.CategoricalDtype) or pd.api.types.is_datetime64_any_dtype(series):
        example = series.dropna().iloc[0] if series.notna().any() else None
        what = f"kind {kind} does not fit: it holds {example!r}, which is not a number"
        raise BadInput(what, where=column.where, remedy="use multiclass, or mend the column")
    return np.asarray(series.to_numpy(np.float64, na_value=np.nan))
