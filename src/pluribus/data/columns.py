"""Fitted preprocessing: how a table's input columns become numbers, learnt on the training rows and kept with the model.

Each input column is of a type (`pluribus.data.inputs`), which makes of it numeric features, categorical features, a store, or
several of these. Here they come together: the features of all columns stand in two arrays, the stores beside them.

Codes of a categorical feature: 0 missing, 1 unseen, 2 … the categories. A category in fewer than `MIN_COUNT` training rows, or
beyond the `MAX_CATEGORIES` most frequent, counts as unseen, so that this code is learnt too. Numbers are computed in float64 and
stored as float32; a missing number stays NaN. Statistics are taken over sorted values: the order of the rows does not matter.
The long layout's task is one categorical feature, last, and `context["task"]`, the index of the row's task.

On disk: plain JSON inside the model's manifest, arrays in `columns.safetensors`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.data.inputs.record import FittedInput, Fitting, InputColumn, Saved, saved_type
from pluribus.data.items import FittedItems
from pluribus.data.prepared import RESERVED, Prepared
from pluribus.data.ragged import Texts
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
    fit_number,
)
from pluribus.data.stores import Store
from pluribus.data.table import Table
from pluribus.data.table.targets import task_positions
from pluribus.data.written.writing import Writing
from pluribus.errors import BadInput, unknown
from pluribus.tasks import Task
from pluribus.tasks.columns import word_of

if TYPE_CHECKING:
    import pandas as pd

FILE = "columns.safetensors"

Encoded: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32], dict[str, Store]]
"""Numeric features [n, F], categorical ones [n, C], and stores by column."""


@dataclass(frozen=True)
class FittedColumns:
    """The fitted preprocessing of one table.

    Parameters
    ----------
    inputs : tuple of FittedInput
        The input columns in the table's order.
    numbers, categories : dict
        The features by name, in the order of the encoded arrays.
    time : str or None
        The column that splits by time, if it is an input.
    task_column : str or None
        Long layout: the column of tasks.
    task_names : tuple of str
        Long layout: the tasks in the order of `context["task"]`.
    roles : dict
        Columns with other roles ("id", "weight", "group"), for readers of the artefact.
    items : dict
        The catalogues of item tables by name.
    """

    inputs: tuple[FittedInput, ...]
    numbers: dict[str, Number]
    categories: dict[str, Category]
    time: str | None = None
    task_column: str | None = None
    task_names: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
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
        return (*((self.id,) if self.id else ()), *(i.name for i in self.inputs if i.as_written))

    @property
    def writings(self) -> dict[str, Writing]:
        """Column → how its cells were written in the file, where that is not as programs write."""
        return {i.name: i.writing for i in self.inputs if i.writing is not None}

    @property
    def id(self) -> str | None:
        return self.roles.get("id")

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text columns."""
        return tuple(i.name for i in self.inputs if i.record.is_words)

    @cached_property
    def sequences(self) -> dict[str, Elements]:
        """The columns whose store is ragged, by name: how their elements are encoded."""
        return {i.name: elements for i in self.inputs if (elements := i.elements) is not None}

    @property
    def lists(self) -> tuple[str, ...]:
        """The columns with a list a row."""
        return tuple(i.name for i in self.inputs if i.elements is not None and not i.record.plain)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns with one key of an item table a row."""
        return tuple(i.name for i in self.inputs if i.elements is not None and i.record.plain)

    def ragged_size(self, name: str) -> int:
        """Number of codes of a ragged input (missing and unseen included); 0 where its elements are numbers."""
        elements = self.sequences[name]
        if elements.items is not None:
            return self.items[elements.items].size
        return 0 if elements.category is None else len(elements.category.categories) + FIRST

    # Fitting

    @classmethod
    def fit(cls, table: Table, rows: NDArray[np.int64] | None = None, *, min_count: int = MIN_COUNT) -> FittedColumns:
        """Fit on some rows of a table.

        Parameters
        ----------
        table : Table
            The table.
        rows : ndarray of int64 or None
            The training part; default: all rows.
        min_count : int
            See `MIN_COUNT`.
        """
        picked: Any = slice(None) if rows is None else rows
        time = table.time if table.time in table.inputs and table.split.startswith("time") else None
        items = {name: cls._catalogue(table, name, picked) for name in table.items}
        joined = {column: items[name] for name, columns in table.joined.items() for column in columns}
        inputs: list[FittedInput] = []
        numbers: dict[str, Number] = {}
        categories: dict[str, Category] = {}
        for name in table.inputs:
            record, column = table.types[name], table.input_column(name)
            if name in RESERVED and record.store is not None and not record.is_words:
                raise BadInput(f"is called {name!r}", where=column.where, remedy="rename it: plain columns have that name")
            read = table.read_input(name)
            fitted = record.fit(column, read, Fitting(picked, name == time, min_count, joined.get(name)))
            found = fitted.features(read)
            for feature in (*found.numeric, *found.categorical):
                if feature in numbers or feature in categories or (feature != name and feature in table.inputs):
                    what = f"two features are called {feature!r}"
                    raise BadInput(what, where=table.source, remedy="rename the column or the attribute")
            numbers |= {feature: fit_number(values[picked]) for feature, values in found.numeric.items()}
            categories |= {
                feature: fit_category(words.codes[picked], words.words, min_count, MAX_CATEGORIES, words.known)
                for feature, words in found.categorical.items()
            }
            inputs.append(replace(fitted.named(found), writing=table.writings.get(name)))
        if table.task_column is not None:
            if table.task_column in numbers or table.task_column in categories:
                what = f"two features are called {table.task_column!r}"
                raise BadInput(what, where=table.source, remedy="rename the column")
            tasks = fit_category(table.task_index[picked], table.names, min_count, MAX_CATEGORIES, table.names)
            categories[table.task_column] = tasks
        roles = {r: c for r, c in (("id", table.id), ("weight", table.weight), ("group", table.group)) if c is not None}
        names = table.names if table.long else ()
        return cls(tuple(inputs), numbers, categories, time, table.task_column, names, roles, items)

    @classmethod
    def _catalogue(cls, table: Table, name: str, picked: Any) -> FittedItems:
        """The catalogue of an item table, with the statistics of those items that the picked rows mention."""
        mentioned = set[str]()
        for column in table.joined[name]:
            if column in table.inputs:
                mentioned |= set(table.types[column].mentioned(table.read_input(column), picked))
            else:  # what is predicted
                mentioned |= {word_of(value) for value in table.frame[column].iloc[picked].dropna().unique()}
        attributes = table.attributes[name]
        seen = np.array([key in mentioned for key in attributes.keys], bool)
        fitted = cls.fit(attributes, np.flatnonzero(seen) if seen.any() else None, min_count=1)
        data = fitted.prepare(attributes.frame, ())
        return FittedItems(name, table.items[name].key, tuple(table.joined[name]), data, Texts.of(attributes.keys), seen)

    def only(self, names: Collection[str]) -> FittedColumns:
        """Some of the input columns, with the statistics of their features; those of the long layout's task column stay too."""
        inputs = tuple(one for one in self.inputs if one.name in names)
        dropped = {f for one in self.inputs if one.name not in names for f in (*one.numeric, *one.categorical)}
        return replace(
            self,
            inputs=inputs,
            numbers={name: number for name, number in self.numbers.items() if name not in dropped},
            categories={name: category for name, category in self.categories.items() if name not in dropped},
        )

    def grown(self, items: Mapping[str, pd.DataFrame]) -> FittedColumns:
        """The same preprocessing with more items in its catalogues (item table → the frame of its new items)."""
        for name in items:
            if name not in self.items:
                raise unknown("item table", name, self.items, where="items")
            if not hasattr(items[name], "columns"):
                what = f"new items are a {type(items[name]).__name__}"
                raise BadInput(what, where=f"items {name!r}", remedy="pass a DataFrame")
        larger = {n: i.grown(items[n]) if n in items else i for n, i in self.items.items()}
        return replace(self, items=larger, inputs=tuple(i.grown(larger) for i in self.inputs))

    # Encoding

    def encode(self, frame: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The frame's rows as (numeric [n, F] float32, categorical [n, C] int32).

        Columns that were not fitted are ignored; missing columns and columns of another type are errors that name them.
        """
        plain = [i for i in self.inputs if i.numeric or i.categorical]
        self._check(frame, ())
        return self._encode(len(frame), self._reads(frame, plain), self._task_index(frame))[:2]

    def encode_table(self, table: Table) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """`encode` of the table that was fitted on, whose columns have been read already."""
        reads = ((i, table.read_input(i.name)) for i in self.inputs if i.numeric or i.categorical)
        return self._encode(table.n_rows, reads, table.task_index if table.long else None)[:2]

    def encoded_table(self, table: Table) -> Encoded:
        """Features and stores of the table that was fitted on."""
        reads = ((i, table.read_input(i.name)) for i in self.inputs)
        return self._encode(table.n_rows, reads, table.task_index if table.long else None)

    def encoded(self, frame: pd.DataFrame, tasks: Iterable[Task] = ()) -> Encoded:
        """Features and stores of a frame; columns that none of the tasks reads may be absent, and are encoded as missing."""
        self._check(frame, tasks)
        return self._encode(len(frame), self._reads(frame, self.inputs), self._task_index(frame))

    def needed(self, tasks: Iterable[Task] = ()) -> frozenset[str]:
        """The input columns that some tasks read; all of them where no task is named."""
        names = frozenset(i.name for i in self.inputs)
        read: set[str] = set()
        for task in tasks:
            read |= names if task.inputs is None else names.intersection(task.inputs)
        return frozenset(read) or names

    def _check(self, frame: pd.DataFrame, tasks: Iterable[Task]) -> None:
        """Whether the frame has what must be there."""
        needed = self.needed(tasks)
        lacking = [i.name for i in self.inputs if i.name in needed and i.name not in frame.columns]
        if self.task_column is not None and self.task_column not in frame.columns:
            lacking.append(self.task_column)
        if lacking:
            shown = ", ".join(repr(name) for name in lacking[:8]) + (", …" if len(lacking) > 8 else "")
            what = f"lacks {len(lacking)} input column{'s' * (len(lacking) > 1)}: {shown}"
            raise BadInput(what, where="table", remedy="add what the model was fitted on")

    def _reads(self, frame: pd.DataFrame, inputs: Iterable[FittedInput]) -> Iterator[tuple[FittedInput, Any]]:
        """Each column as it is read; a column that is not there has missing cells only."""
        import pandas as pd

        for one in inputs:
            there = one.name in frame.columns
            series = frame[one.name] if there else pd.Series(np.full(len(frame), None, object), dtype=object)
            where = f"table, column {one.name!r}"
            yield one, one.read(InputColumn(one.name, one.as_meant(series, where), where))

    def _encode(self, n_rows: int, columns: Iterable[tuple[FittedInput, Any]], task_index: NDArray[np.int64] | None) -> Encoded:
        numeric = np.empty((n_rows, len(self.numbers)), np.float32)
        categorical = np.empty((n_rows, len(self.categories)), np.int32)
        stores: dict[str, Store] = {}
        for one, read in columns:
            found = one.features(read)
            for feature in one.numeric:
                number = self.numbers[feature]
                numeric[:, self.place(feature)] = (found.numeric[feature] - number.centre) / number.scale
            for feature in one.categorical:
                words = found.categorical[feature]
                categorical[:, self.place(feature)] = self.codes(feature, words.codes, words.words)
            if (store := one.stored(read)) is not None:
                stores[one.name] = store
        if self.task_column is not None:
            assert task_index is not None
            categorical[:, self.place(self.task_column)] = self.codes(self.task_column, task_index, self.task_names)
        return numeric, categorical, stores

    def _task_index(self, frame: pd.DataFrame) -> NDArray[np.int64] | None:
        if self.task_column is None:
            return None
        return task_positions(frame[self.task_column], self.task_names, f"column {self.task_column!r}")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for names in (self.numbers, self.categories) for i, name in enumerate(names)}

    def place(self, feature: str) -> int:
        """A feature's column in its array."""
        return self._places[feature]

    @cached_property
    def _code_of(self) -> dict[str, dict[str, int]]:
        return {name: {word: code for code, word in enumerate(c.categories, FIRST)} for name, c in self.categories.items()}

    def codes(self, feature: str, codes: NDArray[np.int64], words: Sequence[str]) -> NDArray[np.int32]:
        """The encoded codes of a categorical feature from positions among `words` (−1 where missing)."""
        known = self._code_of[feature]
        table = np.array([*(known.get(word, UNSEEN) for word in words), MISSING], np.int32)
        return table[codes]  # a missing value's code is −1: the last place

    def prepare(self, frame: pd.DataFrame, tasks: Iterable[Task]) -> Prepared:
        """A table to predict: encoded, without labels, without parts, every row its own unit.

        Parameters
        ----------
        frame : DataFrame
            It has the input columns that the tasks read; others may be absent, and count as missing.
        tasks : iterable of Task
            What will be asked for; without one, all input columns must be there.

        Raises
        ------
        BadInput
            A column is absent, or is of another type than it was; it is named.
        """
        tasks = tuple(tasks)
        numeric, categorical, stores = self.encoded(frame, tasks)
        task_index = self._task_index(frame)
        nothing = Cells(np.empty(0, np.int64), np.empty(0, np.float64))
        return Prepared(
            tasks=tasks,
            columns=self,
            numeric=numeric,
            categorical=categorical,
            cells={task.name: nothing for task in tasks},
            parts={},
            units=np.arange(len(frame)),
            context={} if task_index is None else {"task": task_index},
            stores=stores,
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
                {
                    "name": i.name,
                    "type": i.type,
                    "numeric": list(i.numeric),
                    "categorical": list(i.categorical),
                    **({"state": state} if (state := i.state()) else {}),
                    **({"writing": i.writing.to_dict()} if i.writing is not None else {}),
                }
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
            lists = [list(map(str, row["categories"])) for row in ragged if row["categories"] is not None]
            sizes = [len(found) + FIRST for found in (*words.values(), *lists)]
            count = len(names) + sum(map(_of_numbers, ragged))
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
                    int(row["limit"]),
                    int(row["typical"]),
                    next(own_categories) if row["categories"] is not None else None,
                    next(own_numbers) if _of_numbers(row) else None,
                    row["items"],
                )
                for row in ragged
            }
            items = {
                str(row["name"]): FittedItems.read(Path(folder) / f"items_{i}", row)
                for i, row in enumerate(manifest.get("items", ()))
            }
            joined = {e.items for e in sequences.values() if e.items is not None}
            if not joined <= set(items) or not set(sequences) <= {i["name"] for i in manifest["inputs"]}:
                raise BadInput("the columns' sequences do not match their inputs", where=str(folder), remedy=remedy)
            found = cls(
                inputs=tuple(_restored(row, sequences, items, manifest["time"], str(folder)) for row in manifest["inputs"]),
                numbers=dict(zip(names, numbers)),
                categories={name: Category(found, frequency[i]) for i, (name, found) in enumerate(words.items())},
                time=manifest["time"],
                task_column=manifest["task_column"],
                task_names=tuple(manifest["task_names"]),
                roles=dict(manifest["roles"]),
                items=items,
            )
        except (KeyError, TypeError, AttributeError) as error:
            what = f"lacks a field of the columns or has one of the wrong type ({type(error).__name__}: {error})"
            raise BadInput(what, where=str(folder), remedy=remedy) from error
        numeric = [f for i in found.inputs for f in i.numeric]
        categorical = [f for i in found.inputs for f in i.categorical]
        if numeric != list(found.numbers) or categorical != [c for c in found.categories if c != found.task_column]:
            raise BadInput("the columns' features do not match their inputs", where=str(folder), remedy=remedy)
        if list(found.sequences) != list(sequences):
            raise BadInput("the columns' sequences do not match their inputs", where=str(folder), remedy=remedy)
        return found


def _of_numbers(row: Mapping[str, Any]) -> bool:
    """Whether the elements of a saved sequence are numbers: they have neither categories nor items."""
    return row["categories"] is None and row["items"] is None


def _restored(
    row: Mapping[str, Any], sequences: Mapping[str, Elements], items: Mapping[str, FittedItems], time: str | None, where: str
) -> FittedInput:
    """An input column as the manifest has it."""
    name = str(row["name"])
    elements = sequences.get(name)
    saved = Saved(
        name,
        tuple(row["numeric"]),
        tuple(row["categorical"]),
        row.get("state", {}),
        elements,
        None if elements is None or elements.items is None else items[elements.items],
        name == time,
    )
    restored = saved_type(row["type"], where=f"{where}, column {name!r}").restore(saved)
    return replace(restored, writing=Writing.from_dict(row["writing"])) if "writing" in row else restored
