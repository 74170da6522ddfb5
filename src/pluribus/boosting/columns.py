"""The input table of a booster: numpy arrays and pandas frames become one float matrix with categories as codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluribus.boosting.histogram import MAX_BINS, Bools, Floats
from pluribus.errors import BadInput, unknown


@dataclass(frozen=True)
class Columns:
    """Fitted columns: `names` (None for arrays) and, for a categorical column, its categories (None for a numeric one).

    A category that was not there at fit, and the rarest ones beyond 255, are read as missing.
    """

    names: tuple[str, ...] | None
    categories: tuple[tuple[Any, ...] | None, ...]

    @property
    def categorical(self) -> Bools:
        return np.array([c is not None for c in self.categories], dtype=bool)

    @classmethod
    def fit(cls, X: Any, categorical_features: str | Sequence[Any] | None) -> Columns:
        """Read the columns of X: a frame's category, string and object columns are categorical ("from_dtype"), or those
        named or numbered in `categorical_features` (a boolean mask will do)."""
        frame = is_frame(X)
        names = tuple(str(c) for c in X.columns) if frame else None
        d = X.shape[1]
        if frame and len(set(names or ())) < d:
            raise BadInput("two columns have the same name", where="X", remedy="rename one of them")
        chosen = np.zeros(d, dtype=bool)
        if isinstance(categorical_features, str):
            if categorical_features != "from_dtype":
                raise unknown("value", categorical_features, ["from_dtype"], where="categorical_features")
            if frame:
                chosen[:] = [_is_category(X.iloc[:, f].dtype) for f in range(d)]
        elif categorical_features is not None:
            wanted = list(categorical_features)
            if len(wanted) == d and all(isinstance(w, bool | np.bool_) for w in wanted):
                chosen[:] = wanted
            else:
                for item in wanted:
                    chosen[position(item, names, d, "categorical_features")] = True
        if frame:
            for f in np.flatnonzero(~chosen).tolist():
                if _is_category(X.iloc[:, f].dtype):
                    raise BadInput(
                        "is not numeric",
                        where=f"column {names[f] if names else f}",
                        remedy="name it in categorical_features or use 'from_dtype'",
                    )
        categories = tuple(_categories(X.iloc[:, f] if frame else X[:, f]) if chosen[f] else None for f in range(d))
        return cls(names, categories)

    def matrix(self, X: Any) -> Floats:
        """X as float64 [n, d], categories as codes, missing and unknown as NaN; a float64 array is not copied."""
        if not is_frame(X):
            if not self.categorical.any():
                values: Floats = np.asarray(X, dtype=np.float64)
                return values
            table = np.array(X, dtype=np.float64)
            for f in np.flatnonzero(self.categorical).tolist():
                table[:, f] = self._codes(int(f), table[:, f])
            return table
        table = np.empty(X.shape, dtype=np.float64)
        for f in range(X.shape[1]):
            column = X.iloc[:, f]
            if self.categories[f] is not None:
                table[:, f] = self._codes(int(f), column)
                continue
            try:
                table[:, f] = column.to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise BadInput("is not numeric", where=f"column {column.name}", remedy="as it was at fit") from error
        if np.isinf(table).any():
            f = int(np.flatnonzero(np.isinf(table).any(axis=0))[0])
            raise BadInput("holds infinite values", where=f"column {X.columns[f]}", remedy="clip them or make them missing")
        return table

    def _codes(self, f: int, column: Any) -> Floats:
        import pandas as pd

        index = pd.Index(list(self.categories[f] or ()))
        codes = index.get_indexer(pd.Index(_plain(column))).astype(np.float64)
        codes[codes < 0] = np.nan
        found: Floats = codes
        return found


def is_frame(X: Any) -> bool:
    """Whether X is a pandas frame (without importing pandas)."""
    return hasattr(X, "iloc") and hasattr(X, "columns")


def position(item: Any, names: Sequence[str] | None, d: int, where: str) -> int:
    """The column that a name or number means."""
    if isinstance(item, str):
        if names is None or item not in names:
            raise unknown("column", item, names or (), where=where)
        return list(names).index(item)
    if not isinstance(item, int | np.integer) or not 0 <= item < d:
        raise BadInput(f"there is no column {item!r}", where=where, remedy=f"use 0 to {d - 1} or a column's name")
    return int(item)


def signs(constraints: Any, columns: Columns) -> Any:
    """Monotone constraints as int8 [d]: a mapping column -> -1 | 0 | 1, or a sequence of d of them; None for none."""
    d = len(columns.categories)
    sign = np.zeros(d, dtype=np.int8)
    if constraints is None:
        return sign
    where = "monotone_constraints"
    if isinstance(constraints, Mapping):
        given: dict[int, Any] = {}
        for item, value in constraints.items():
            f = position(item, columns.names, d, where)
            if f in given and given[f] != value:
                raise BadInput(f"column {item!r} is constrained twice, to {given[f]} and {value}", where=where, remedy="keep one")
            given[f] = value
    else:
        listed = list(constraints)
        if len(listed) != d:
            raise BadInput(f"{len(listed)} constraints for {d} columns", where=where, remedy="give one a column, or a mapping")
        given = dict(enumerate(listed))
    for f, value in given.items():
        name = columns.names[f] if columns.names else f
        if value not in (-1, 0, 1):
            raise BadInput(f"column {name!r}: {value!r} is not a direction", where=where, remedy="use -1, 0 or 1")
        if value != 0 and columns.categories[f] is not None:
            raise BadInput(f"column {name!r} is categorical and has no order", where=where, remedy="drop the constraint")
        sign[f] = value
    return sign


def _is_category(dtype: Any) -> bool:
    import pandas as pd

    return isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype)


def _plain(column: Any) -> Any:
    """A column's values as objects, with None for what is missing."""
    import pandas as pd

    values = np.array(column, dtype=object)
    values[pd.isna(values)] = None
    return values


def _categories(column: Any) -> tuple[Any, ...]:
    import pandas as pd

    values = pd.Series(_plain(column), dtype=object).dropna()
    counts = values.value_counts(sort=True)
    kept = [v.item() if hasattr(v, "item") else v for v in counts.index[:MAX_BINS]]
    try:
        return tuple(sorted(kept))
    except TypeError:
        return tuple(sorted(kept, key=str))
