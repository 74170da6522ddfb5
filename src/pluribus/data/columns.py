"""Fitted preprocessing: how a table's input columns become numbers, learnt on the training rows and kept with the model.

| column              | encoded as                                                                                       |
|---------------------|--------------------------------------------------------------------------------------------------|
| number              | one numeric feature, centred and scaled by the training mean and standard deviation              |
| word, category      | one categorical feature, the training categories from the most frequent down                      |
| boolean             | one categorical feature with the categories False, True                                          |
| datetime            | numeric `COL.days` (since 1970-01-01), `COL.yearday` (from 0), and `COL.hour` where the            |
|                     | time of day varies; categorical `COL.weekday` and `COL.month`                                     |
| the split's time    | only what recurs within the training range: `COL.weekday` and `COL.hour`                          |
| long layout's task  | one categorical feature, last; also `context["task"]`, the index of the row's task                |
| list of words       | a ragged input of codes, as of a categorical feature (at most `MAX_ELEMENTS` categories)           |
| list of numbers     | a ragged input of numbers, centred and scaled as a numeric feature                                |
| joined to items     | a ragged input of codes of the item table's catalogue; one item a row also is a categorical        |
|                     | feature, and brings the features of its attributes, `COL.ATTRIBUTE` (lists and texts left out)     |
| text                | no feature: the strings stay in `Prepared.texts` for candidates that read them                    |

Codes of a categorical feature: 0 missing, 1 unseen, 2 … the categories. A category in fewer than `MIN_COUNT` training rows, or
beyond the `MAX_CATEGORIES` most frequent, counts as unseen, so that this code is learnt too. Numbers are computed in float64 and
stored as float32; a missing number stays NaN. Statistics are taken over sorted values: the order of the rows does not matter.

On disk: plain JSON inside the model's manifest, arrays in `columns.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.features import ColumnFeatures, as_texts, as_words, features, type_of
from pluribus.data.prepared import RESERVED, Cells, Prepared
from pluribus.data.ragged import Lists, Ragged, Texts, read_lists
from pluribus.data.statistics import (
    FIRST,
    MAX_CATEGORIES,
    MIN_COUNT,
    MISSING,
    QUANTILES,
    UNSEEN,
    Category,
    Elements,
    Number,
    fit_category,
    fit_elements,
    fit_number,
)
from pluribus.data.table import Table
from pluribus.data.targets import task_positions
from pluribus.errors import BadInput, unknown
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.data.items import FittedItems

FILE = "columns.safetensors"


@dataclass(frozen=True)
class Input:
    """One input column: its name, its type ("number", "category", "boolean", "datetime"; "item": one item a row; "sequence";
    "text") and the names of its features. Sequences, items and texts are no features, except that an item is a category too."""

    name: str
    type: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()


@dataclass(frozen=True)
class FittedColumns:
    """The fitted preprocessing of one table.

    inputs: the input columns in the table's order.
    numbers, categories: the features by name, in the order of the encoded arrays.
    time: the column that splits by time, if it is an input.
    task_column, task_names: long layout: the column, and the tasks in the order of `context["task"]`.
    roles: columns with other roles ("id", "weight", "group"), for readers of the artefact.
    sequences: the ragged inputs by name. items: the catalogues of item tables by name.
    """

    inputs: tuple[Input, ...]
    numbers: dict[str, Number]
    categories: dict[str, Category]
    time: str | None = None
    task_column: str | None = None
    task_names: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    sequences: dict[str, Elements] = field(default_factory=dict)
    items: dict[str, FittedItems] = field(default_factory=dict)

    # What it says

    @property
    def numeric_names(self) -> tuple[str, ...]:
        return tuple(self.numbers)

    @property
    def categorical_names(self) -> tuple[str, ...]:
        return tuple(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded features: the numeric ones, then the categorical ones."""
        return (*self.numbers, *self.categories)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical feature (missing and unseen included)."""
        return tuple(len(c.categories) + FIRST for c in self.categories.values())

    @property
    def bin_edges(self) -> tuple[NDArray[np.float32], ...]:
        """For each numeric feature the quantile bin edges in encoded units, for piecewise-linear embeddings."""
        return tuple(n.edges for n in self.numbers.values())

    @property
    def as_written(self) -> tuple[str, ...]:
        """Columns whose cells a CSV file gives as they are written (007 is not 7): the id, texts, and keys of items."""
        keys = (name for name, e in self.sequences.items() if e.items is not None)
        return (*((self.id,) if self.id else ()), *self.texts, *keys)

    @property
    def id(self) -> str | None:
        return self.roles.get("id")

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text columns."""
        return tuple(i.name for i in self.inputs if i.type == "text")

    def ragged_size(self, name: str) -> int:
        """Number of codes of a ragged input (missing and unseen included); 0 where its elements are numbers."""
        elements = self.sequences[name]
        if elements.items is not None:
            return self.items[elements.items].size
        return 0 if elements.category is None else len(elements.category.categories) + FIRST

    # Fitting

    @classmethod
    def fit(cls, table: Table, rows: NDArray[np.int64] | None = None, *, min_count: int = MIN_COUNT) -> FittedColumns:
        """Fit on these rows of the table (the training part; default all). min_count: see `MIN_COUNT`."""
        picked: Any = slice(None) if rows is None else rows
        time = table.time if table.time in table.inputs and table.split.startswith("time") else None
        inputs: list[Input] = []
        numbers: dict[str, Number] = {}
        categories: dict[str, Category] = {}
        sequences: dict[str, Elements] = {}
        items = {name: _fit_items(table, name, picked) for name in table.items}
        catalogue = {column: name for name, columns in table.joined.items() for column in columns}
        for name in table.inputs:
            kind = _kind_of(table, name)
            if kind in ("sequence", "item"):
                if name in RESERVED:
                    raise BadInput(f"is called {name!r}", where=table._at(name), remedy="rename it: plain columns have that name")
                lists = table.lists.get(name)
                sequences[name] = fit_elements(lists, picked, table.max_length, catalogue.get(name), min_count)
            column = _of_table(table, name, kind, name == time)
            for feature, values in column.numeric.items():
                numbers[feature] = fit_number(values[picked])
            for feature, (codes, words) in column.categorical.items():
                fixed = kind not in ("category", "item")
                categories[feature] = fit_category(codes[picked], words, fixed, min_count, MAX_CATEGORIES)
            if kind == "item":
                whose = items[catalogue[name]]
                column = _with_attributes(column, name, whose)
                for feature in column.attributes:
                    if feature in numbers or feature in table.inputs:
                        what = f"two features are called {feature!r}"
                        raise BadInput(what, where=table.source, remedy="rename the column or the attribute")
                for attribute, category in whose.data.columns.categories.items():
                    codes = _attribute_codes(column, f"{name}.{attribute}", category)[picked]
                    shares = np.bincount(codes, minlength=len(category.categories) + FIRST) / max(len(codes), 1)
                    categories[f"{name}.{attribute}"] = Category(category.categories, shares)
                for attribute in whose.data.columns.numbers:
                    numbers[f"{name}.{attribute}"] = fit_number(column.numeric[f"{name}.{attribute}"][picked])
            inputs.append(Input(name, kind, tuple(column.numeric), tuple(column.categorical)))
        if table.task_column is not None:
            named = list(table.names)
            categories[table.task_column] = fit_category(table.task_index[picked], named, True, min_count, MAX_CATEGORIES)
        doubled = [name for name in categories if name in numbers]
        if doubled:
            raise BadInput(f"two features are called {doubled[0]!r}", where=table.source, remedy="rename the column")
        roles = {r: c for r, c in (("id", table.id), ("weight", table.weight), ("group", table.group)) if c is not None}
        names = table.names if table.long else ()
        return cls(tuple(inputs), numbers, categories, time, table.task_column, names, roles, sequences=sequences, items=items)

    # Encoding

    def encode(self, frame: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The frame's rows as (numeric [n, F] float32, categorical [n, C] int32).

        Columns that were not fitted are ignored; missing columns and columns of another type are errors that name them.
        """
        lacking = [i.name for i in self.inputs if i.name not in frame.columns]
        if self.task_column is not None and self.task_column not in frame.columns:
            lacking.append(self.task_column)
        if lacking:
            shown = ", ".join(repr(name) for name in lacking[:8]) + (", …" if len(lacking) > 8 else "")
            what = f"lacks {len(lacking)} input column{'s' * (len(lacking) > 1)}: {shown}"
            raise BadInput(what, where="table", remedy="add what the model was fitted on")
        found = (
            self._attributed(i, features(frame[i.name], i.type, i.name, i.name == self.time, "table", i.numeric))
            for i in self.inputs
        )
        return self._encode(len(frame), found, None if self.task_column is None else self._task_index(frame))

    def encode_table(self, table: Table) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """`encode` of the table that was fitted on, whose words and dates need no second look."""
        found = (self._attributed(i, _of_table(table, i.name, i.type, i.name == self.time)) for i in self.inputs)
        return self._encode(table.n_rows, found, table.task_index if table.long else None)

    def _attributed(self, source: Input, found: ColumnFeatures) -> ColumnFeatures:
        """The features of a column, with those of its items' attributes where it holds one item a row."""
        name = self.sequences[source.name].items if source.type == "item" else None
        return found if name is None else _with_attributes(found, source.name, self.items[name])

    def encode_ragged(
        self, frame: pd.DataFrame, read: Mapping[str, Lists] | None = None
    ) -> tuple[dict[str, Ragged], dict[str, Texts]]:
        """The frame's ragged inputs and texts by name. read: columns of lists that have been read already."""
        return {name: self._ragged(name, elements, frame, (read or {}).get(name)) for name, elements in self.sequences.items()}, {
            name: Texts.of(as_texts(frame[name], f"table, column {name!r}")) for name in self.texts
        }

    def _ragged(self, name: str, elements: Elements, frame: pd.DataFrame, read: Lists | None) -> Ragged:
        where = f"table, column {name!r}"
        if any(i.name == name and i.type == "item" for i in self.inputs):  # one item a row: a list of one, or of none
            codes, words = as_words(frame[name], False, where)
            read = Lists("category", np.concatenate(([0], np.cumsum(codes >= 0))), np.empty(0), codes[codes >= 0], words)
        elif read is None or read.kind != elements.kind:
            read = read_lists(frame[name], where, elements.kind)
        values: Any
        if elements.number is not None:
            values = ((read.numbers - elements.number.centre) / elements.number.scale).astype(np.float32)
        elif elements.items is not None:
            values = np.append(self.items[elements.items].codes(read.words), np.int32(MISSING))[read.codes]
        else:
            known = self._element_codes[name]
            values = np.array([*(known.get(word, UNSEEN) for word in read.words), MISSING], np.int32)[read.codes]
        return Ragged(values, read.starts).latest(elements.limit)

    @cached_property
    def _element_codes(self) -> dict[str, dict[str, int]]:
        return {
            name: {word: code for code, word in enumerate(e.category.categories, FIRST)}
            for name, e in self.sequences.items()
            if e.category is not None
        }

    def grown(self, items: Mapping[str, pd.DataFrame]) -> FittedColumns:
        """The same preprocessing with more items in its catalogues (item table → the frame of its new items)."""
        for name in items:
            if name not in self.items:
                raise unknown("item table", name, self.items, where="items")
            if not hasattr(items[name], "columns"):
                what = f"new items are a {type(items[name]).__name__}"
                raise BadInput(what, where=f"items {name!r}", remedy="pass a DataFrame")
        return replace(self, items={n: i.grown(items[n]) if n in items else i for n, i in self.items.items()})

    def _encode(
        self, n_rows: int, columns: Iterable[ColumnFeatures], task_index: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        numeric = np.empty((n_rows, len(self.numbers)), np.float32)
        categorical = np.empty((n_rows, len(self.categories)), np.int32)
        place = {name: i for names in (self.numbers, self.categories) for i, name in enumerate(names)}
        for spec, found in zip(self.inputs, columns):
            for feature in spec.numeric:
                number = self.numbers[feature]
                numeric[:, place[feature]] = (found.numeric[feature] - number.centre) / number.scale
            for feature in spec.categorical:
                categorical[:, place[feature]] = self.codes(feature, *found.categorical[feature])
        if self.task_column is not None:
            assert task_index is not None
            categorical[:, place[self.task_column]] = self.codes(self.task_column, task_index, self.task_names)
        return numeric, categorical

    def _task_index(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        assert self.task_column is not None
        return task_positions(frame[self.task_column], self.task_names, f"column {self.task_column!r}")

    @cached_property
    def _code_of(self) -> dict[str, dict[str, int]]:
        return {name: {word: code for code, word in enumerate(c.categories, FIRST)} for name, c in self.categories.items()}

    def codes(self, feature: str, codes: NDArray[np.int64], words: Sequence[str]) -> NDArray[np.int32]:
        """The encoded codes of a categorical feature from positions among `words` (−1 where missing)."""
        known = self._code_of[feature]
        table = np.array([*(known.get(word, UNSEEN) for word in words), MISSING], np.int32)
        return table[codes]  # a missing value's code is −1: the last place

    def prepare(self, frame: pd.DataFrame, tasks: Iterable[Task]) -> Prepared:
        """A table to predict: encoded, without labels, without parts, every row its own unit."""
        tasks = tuple(tasks)
        numeric, categorical = self.encode(frame)
        ragged, texts = self.encode_ragged(frame)
        nothing = Cells(np.empty(0, np.int64), np.empty(0, np.float64))
        return Prepared(
            tasks=tasks,
            columns=self,
            numeric=numeric,
            categorical=categorical,
            cells={task.name: nothing for task in tasks},
            parts={},
            units=np.arange(len(frame)),
            context={} if self.task_column is None else {"task": self._task_index(frame)},
            ragged=ragged,
            texts=texts,
        )

    # On disk

    def write(self, folder: str | Path) -> dict[str, Any]:
        """Write the arrays to `columns.safetensors` in the folder and return the rest as plain JSON."""
        from safetensors.numpy import save_file

        each = list(self.sequences.values())  # their numbers and categories stand behind those of the features
        numbers = [*self.numbers.values(), *(e.number for e in each if e.number is not None)]
        categories = [*self.categories.values(), *(e.category for e in each if e.category is not None)]
        arrays = {
            "centre": np.array([n.centre for n in numbers], np.float64),
            "scale": np.array([n.scale for n in numbers], np.float64),
            "missing": np.array([n.missing for n in numbers], np.float64),
            "quantiles": np.array([n.quantiles for n in numbers], np.float64).reshape(len(numbers), len(QUANTILES)),
            "edges": np.concatenate([np.empty(0, np.float32), *(n.edges for n in numbers)]),
            "edges_each": np.array([len(n.edges) for n in numbers], np.int64),
            "frequency": np.concatenate([np.empty(0), *(c.frequency for c in categories)]),
        }
        save_file(arrays, str(Path(folder) / FILE))
        own: dict[str, Any] = {}
        if self.sequences:
            own["sequences"] = [
                {
                    "name": name,
                    "type": e.type,
                    "limit": e.limit,
                    "typical": e.typical,
                    "items": e.items,
                    "categories": None if e.category is None else list(e.category.categories),
                }
                for name, e in self.sequences.items()
            ]
        if self.items:
            own["items"] = [found.write(Path(folder) / f"items_{i}") for i, found in enumerate(self.items.values())]
        return own | {
            "inputs": [
                {"name": i.name, "type": i.type, "numeric": list(i.numeric), "categorical": list(i.categorical)}
                for i in self.inputs
            ],
            "numeric": list(self.numbers),
            "categorical": {name: list(c.categories) for name, c in self.categories.items()},
            "time": self.time,
            "task_column": self.task_column,
            "task_names": list(self.task_names),
            "roles": self.roles,
        }

    @classmethod
    def read(cls, folder: str | Path, manifest: dict[str, Any]) -> FittedColumns:
        """Undo `write`; arrays that do not fit the manifest are an error that names the file and the field."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        from pluribus.data.items import FittedItems

        path = Path(folder) / FILE
        remedy = "restore the folder"
        if not path.is_file():
            raise BadInput("is missing from the folder", where=str(path), remedy=remedy)
        try:
            arrays = load_file(str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInput(f"is not a safetensors file ({error})", where=str(path), remedy=remedy) from error
        try:
            names = list(manifest["numeric"])
            words = {name: tuple(map(str, found)) for name, found in manifest["categorical"].items()}
            ragged = list(manifest.get("sequences", ()))
            lists = [list(map(str, row["categories"])) for row in ragged if row["type"] == "category"]
            sizes = [len(found) + FIRST for found in (*words.values(), *lists)]
            count = len(names) + sum(row["type"] == "number" for row in ragged)
            each = arrays["edges_each"].astype(np.int64)
            shapes = {
                "centre": (count,),
                "scale": (count,),
                "missing": (count,),
                "edges_each": (count,),
                "quantiles": (count, len(QUANTILES)),
                "edges": (int(each.sum()),),
                "frequency": (sum(sizes),),
            }
            for key, shape in shapes.items():
                if arrays[key].shape != shape:
                    what = f"has {key!r} of shape {list(arrays[key].shape)} where the manifest says {list(shape)}"
                    raise BadInput(what, where=str(path), remedy=remedy)
            for key in ("centre", "scale", "edges"):
                if not np.isfinite(arrays[key]).all():
                    raise BadInput(f"has {key!r} that is not finite", where=str(path), remedy=remedy)
            edges = np.split(arrays["edges"].astype(np.float32), np.cumsum(each)[:-1]) if count else []
            frequency = np.split(arrays["frequency"], np.cumsum(sizes)[:-1]) if sizes else []
            numbers = [
                Number(
                    float(arrays["centre"][i]),
                    float(arrays["scale"][i]),
                    edges[i],
                    arrays["quantiles"][i],
                    float(arrays["missing"][i]),
                )
                for i in range(count)
            ]
            own_numbers = iter(numbers[len(names) :])
            own_categories = (Category(tuple(each), share) for each, share in zip(lists, frequency[len(words) :]))
            sequences = {
                str(row["name"]): Elements(
                    row["type"],
                    int(row["limit"]),
                    int(row["typical"]),
                    next(own_categories) if row["type"] == "category" else None,
                    next(own_numbers) if row["type"] == "number" else None,
                    row["items"],
                )
                for row in ragged
            }
            items = {
                str(row["name"]): FittedItems.read(Path(folder) / f"items_{i}", row)
                for i, row in enumerate(manifest.get("items", ()))
            }
            found = cls(
                inputs=tuple(
                    Input(i["name"], i["type"], tuple(i["numeric"]), tuple(i["categorical"])) for i in manifest["inputs"]
                ),
                numbers=dict(zip(names, numbers)),
                categories={name: Category(found, frequency[i]) for i, (name, found) in enumerate(words.items())},
                time=manifest["time"],
                task_column=manifest["task_column"],
                task_names=tuple(manifest["task_names"]),
                roles=dict(manifest["roles"]),
                sequences=sequences,
                items=items,
            )
        except (KeyError, TypeError, AttributeError) as error:
            what = f"lacks a field of the columns or has one of the wrong type ({type(error).__name__}: {error})"
            raise BadInput(what, where=str(folder), remedy=remedy) from error
        numeric = [f for i in found.inputs for f in i.numeric]
        categorical = [f for i in found.inputs for f in i.categorical]
        if numeric != list(found.numbers) or categorical != [c for c in found.categories if c != found.task_column]:
            raise BadInput("the columns' features do not match their inputs", where=str(folder), remedy=remedy)
        joined = {e.items for e in sequences.values() if e.items is not None}
        ragged_inputs = [i.name for i in found.inputs if i.type in ("sequence", "item")]
        if ragged_inputs != list(sequences) or not joined <= set(items):
            raise BadInput("the columns' sequences do not match their inputs", where=str(folder), remedy=remedy)
        return found


_NO_WORD = "\0"  # no attribute's word: an item that the catalogue lacks, or a word that its items in training did not have


def _with_attributes(found: ColumnFeatures, name: str, items: FittedItems) -> ColumnFeatures:
    """Beside a column of one item a row the attributes of its items: `NAME.ATTRIBUTE`. Of a missing item they are missing, of one
    that the catalogue lacks its numbers are, and its words are unseen."""
    codes, words = found.categorical[name]
    code = np.append(items.codes(words), np.int32(MISSING))[codes]
    row = np.maximum(code.astype(np.int64) - FIRST, 0)
    columns, data = items.data.columns, items.data
    numeric, categorical = dict(found.numeric), dict(found.categorical)
    for i, (attribute, number) in enumerate(columns.numbers.items()):
        values = data.numeric[row, i].astype(np.float64) * number.scale + number.centre
        numeric[f"{name}.{attribute}"] = np.where(code >= FIRST, values, np.nan)
    for i, (attribute, category) in enumerate(columns.categories.items()):
        own = np.where(code >= FIRST, data.categorical[row, i], code).astype(np.int64)  # 0 and 1 mean the same on both sides
        last = len(category.categories)
        own = np.where(own == MISSING, -1, np.where(own == UNSEEN, last, own - FIRST))
        categorical[f"{name}.{attribute}"] = (own, [*category.categories, _NO_WORD])
    added = (*(n for n in numeric if n not in found.numeric), *(c for c in categorical if c not in found.categorical))
    return ColumnFeatures(numeric, categorical, added)


def _attribute_codes(found: ColumnFeatures, feature: str, category: Category) -> NDArray[np.int64]:
    """The encoded codes [n] of an attribute."""
    codes = found.categorical[feature][0]
    return np.where(codes < 0, MISSING, np.where(codes == len(category.categories), UNSEEN, codes + FIRST))


def _of_table(table: Table, name: str, kind: str, recurring: bool) -> ColumnFeatures:
    """The features of a table's column; words and dates, which cost something, are kept with the table."""
    if kind == "number":
        return features(table.frame[name], kind, name, recurring, table.source)
    if name not in table.encoded:
        table.encoded[name] = features(table.frame[name], kind, name, recurring, table.source)
    found: ColumnFeatures = table.encoded[name]
    return found


def _kind_of(table: Table, name: str) -> str:
    """The type of an input column, by its role and its values."""
    if name in table.text:
        return "text"
    if name in table.lists:
        return "sequence"
    if any(name in columns for columns in table.joined.values()):
        return "item"
    return type_of(table.frame[name])


def _fit_items(table: Table, name: str, picked: Any) -> FittedItems:
    """The catalogue of an item table, with the statistics of those items that the picked rows mention."""
    from pluribus.data.items import FittedItems

    mentioned: set[str] = set()
    for column in table.joined[name]:
        if column in table.lists:
            lists = table.lists[column]
            codes, words = lists.rows(picked)[1], lists.words
        elif column not in table.inputs:  # what is predicted
            codes, words = as_words(table.frame[column].iloc[picked], False, table._at(column))
        else:
            each, words = _of_table(table, column, "item", False).categorical[column]
            codes = each[picked]
        mentioned |= {words[code] for code in np.unique(codes[codes >= 0])}
    return FittedItems.fit(name, table.items[name].key, table.joined[name], table.attributes[name], mentioned)
