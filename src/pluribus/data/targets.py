"""What a column is as a target: its kind, its classes, its values as numbers.

Kinds, where none is given, looking at the values that are there:

| values                                                              | kind       |
|---------------------------------------------------------------------|------------|
| lists of words, one for each word of the text column                | tagging    |
| booleans, or two distinct values of any type                        | binary     |
| ordered categories                                                  | ordinal    |
| at most 50 distinct words or categories                             | multiclass |
| whole numbers from 0 or 1 up to at most 1000, more than two of them | count      |
| other numbers                                                       | regression |

Classes are sorted (numbers by value, words by letter); of two classes the second is the positive one. A `Task` object that
names its classes overrides both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.dates import is_text
from pluribus.errors import BadInput, unknown
from pluribus.tasks import KINDS, Task

if TYPE_CHECKING:
    import pandas as pd

TABLE_KINDS = ("binary", "multiclass", "ordinal", "regression", "count", "next_item", "tagging")
MAX_CLASSES = 50
"""More distinct words than this are not taken for classes unless the kind says so."""
MAX_COUNT = 1000


def parse_target(text: str) -> tuple[str, str | None]:
    """`NAME[:KIND]` → (name, kind or None); only a known kind after the last colon is one, so names may hold colons."""
    name, colon, kind = text.rpartition(":")
    return (name, kind) if colon and name and (kind in KINDS or kind in TABLE_KINDS) else (text, None)


def word_of(value: Any) -> str:
    """A class, category or key as text: 1.0 and 1 are the same word."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def infer_kind(series: pd.Series, where: str) -> tuple[str, str]:
    """(kind, reason) by the rules at the top of this file."""
    import pandas as pd

    values = series.dropna()
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        remedy = "predict a duration, or --ignore it"
        raise BadInput("a date cannot be a target", where=where, remedy=remedy)
    distinct = values.nunique()
    if pd.api.types.is_bool_dtype(values.dtype) or distinct <= 2:
        return "binary", "booleans" if pd.api.types.is_bool_dtype(values.dtype) else "two distinct values"
    if isinstance(values.dtype, pd.CategoricalDtype) and values.dtype.ordered:
        return "ordinal", "ordered categories"
    if not pd.api.types.is_numeric_dtype(values.dtype):
        if distinct > MAX_CLASSES:
            what = f"holds {distinct} different words; no kind fits"
            raise BadInput(what, where=where, remedy="name another target, or say :multiclass")
        return "multiclass", f"{distinct} distinct words"
    numbers = values.to_numpy(np.float64)
    low, high = numbers.min(), numbers.max()
    if 0 <= low <= 1 and high <= MAX_COUNT and (numbers == np.floor(numbers)).all():
        return "count", f"whole numbers from {low:g} to {high:g}"
    return "regression", f"numbers from {low:g} to {high:g}"


def find_classes(series: pd.Series, kind: str, where: str) -> tuple[str, ...]:
    """The distinct values as class labels, in order."""
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        used = set(series.dropna().unique())
        if series.dtype.ordered:
            return _check_classes(tuple(word_of(c) for c in series.cat.categories if c in used), kind, where)
        distinct = sorted(used, key=str)
    else:
        distinct = series.dropna().unique().tolist()
    words = any(isinstance(value, str) for value in distinct)
    if kind == "ordinal" and words:
        remedy = "give the classes in order in the task, or use multiclass"
        raise BadInput("the order of the classes is not known", where=where, remedy=remedy)
    ordered = sorted(distinct, key=str) if words else sorted(distinct)
    return _check_classes(tuple(word_of(value) for value in ordered), kind, where)


def _check_classes(classes: tuple[str, ...], kind: str, where: str) -> tuple[str, ...]:
    if len(classes) == 1:
        what = f"has one class only ({classes[0]!r})"
        raise BadInput(what, where=where, remedy="leave it out: there is nothing to predict")
    if kind == "binary" and len(classes) > 2:
        shown = ", ".join(classes[:4]) + (", …" if len(classes) > 4 else "")
        what = f"kind binary does not fit: {len(classes)} distinct values ({shown})"
        raise BadInput(what, where=where, remedy="use multiclass, ordinal, count or regression")
    if len(classes) > 1000:
        what = f"kind {kind} does not fit: {len(classes)} distinct values"
        raise BadInput(what, where=where, remedy="use regression, or group the classes")
    return classes


def encode_target(series: pd.Series, task: Task, where: str) -> NDArray[np.float64]:
    """A task's values [n]: numbers, or class indices; NaN where empty."""
    import pandas as pd

    if task.record.classes:
        codes, distinct = pd.factorize(series)
        position = {label: i for i, label in enumerate(task.classes)}
        table = np.full(len(distinct) + 1, np.nan)
        for i, value in enumerate(distinct):
            if word_of(value) not in position:
                what = f"holds {word_of(value)!r}, which is none of the task's classes ({', '.join(task.classes[:12])})"
                raise BadInput(what, where=where, remedy="add the class or mend the value")
            table[i] = position[word_of(value)]
        return np.asarray(table[codes])
    if is_text(series) or isinstance(series.dtype, pd.CategoricalDtype) or pd.api.types.is_datetime64_any_dtype(series):
        example = series.dropna().iloc[0] if series.notna().any() else None
        what = f"kind {task.kind} does not fit: it holds {example!r}, which is not a number"
        raise BadInput(what, where=where, remedy="use multiclass, or mend the column")
    values = series.to_numpy(np.float64, na_value=np.nan)
    if task.kind == "count":
        present = values[~np.isnan(values)]
        wrong = present[(present < 0) | (present != np.floor(present))]
        if len(wrong):
            what = f"kind count does not fit: it holds {wrong[0]:g}"
            raise BadInput(what, where=where, remedy="use regression")
    return np.asarray(values)


def task_positions(words: pd.Series, names: Sequence[str], where: str) -> NDArray[np.int64]:
    """The position of each word among `names` [n]."""
    import pandas as pd

    codes, distinct = pd.factorize(words)
    if (codes < 0).any():
        raise BadInput(f"the task is empty in row {int((codes < 0).argmax()) + 1}", where=where, remedy="fill it")
    position = {name: i for i, name in enumerate(names)}
    for word in distinct:
        if str(word) not in position:
            raise unknown("task", str(word), names, where=where)
    return np.array([position[str(word)] for word in distinct], np.int64)[codes]
