"""What a type of input column is: one record that says everything about its cells.

A domain registers its own with `register` and lists it in the catalog (family "input"). Nobody else knows what a cell of a type
looks like: tables, prepared data, reports and servers ask the record.

A column goes through four steps. `InputType.infer` says whether a column of a table is of the type; `read` turns its cells into
the form that the other two take, and costs what it costs once; `fit` learns from the training rows what is needed later; the
`FittedInput` that it returns travels with the model and turns what was read into features, into a store, or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pluribus.catalog.records import Records
from pluribus.data.ragged import Lists, looks_like_lists, read_lists
from pluribus.data.statistics import MIN_COUNT, Category, Elements, Number
from pluribus.data.stores import Store
from pluribus.errors import BadInput
from pluribus.tasks.columns import is_text

if TYPE_CHECKING:
    import pandas as pd

    from pluribus.data.written.writing import Writing

Schema: TypeAlias = dict[str, Any]
Positions: TypeAlias = Any
"""Rows: indices, a mask or a slice."""


class Unfit(Exception):
    """A cell of a request that its column does not take; the text says why."""


class CellLimits(Protocol):
    """How much one cell of a request may hold."""

    @property
    def text(self) -> int: ...  # characters
    @property
    def elements(self) -> int: ...  # of a list


@dataclass(frozen=True)
class InputColumn:
    """An input column, as its type reads it.

    Parameters
    ----------
    name : str
        The column's name.
    series : pandas.Series
        The cells [n].
    where : str
        The file and the column, for messages.
    joined : bool
        Whether its cells are keys of an item table.
    ordering : bool
        Whether it orders the rows in time.
    limit : int
        Of a list the latest so many elements are kept.
    """

    name: str
    series: pd.Series
    where: str
    joined: bool = False
    ordering: bool = False
    limit: int = 100

    @cached_property
    def inferred(self) -> str:
        """What the cells of a column of objects are, in pandas' words; "" for columns of a type of their own."""
        import pandas as pd

        return pd.api.types.infer_dtype(self.series, skipna=True) if self.series.dtype == np.dtype(object) else ""

    @cached_property
    def is_text(self) -> bool:
        """Whether the cells are strings (categories are none)."""
        return self.inferred == "string" or is_text(self.series)

    @cached_property
    def is_listed(self) -> bool:
        """Whether the cells are lists."""
        return looks_like_lists(self.series)

    @cached_property
    def lists(self) -> Lists:
        """The cells as lists; of a joined column the elements are keys."""
        return read_lists(self.series, self.where, numeric=False if self.joined else None)

    @cached_property
    def distinct(self) -> int:
        """How many different values there are."""
        return int(self.series.nunique())


@dataclass(frozen=True)
class Words:
    """A categorical feature before it is encoded.

    Parameters
    ----------
    codes : ndarray of int64
        [n], each cell's position among `words`; −1 where it is missing.
    words : sequence of str
        What the codes stand for.
    known : tuple of str or None
        The categories, where they do not depend on the training rows (weekdays, booleans); None: the frequent ones are kept.
    """

    codes: NDArray[np.int64]
    words: Sequence[str]
    known: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ColumnFeatures:
    """The features of one column by name, before they are encoded: numbers [n] float64 with NaN where missing, and words."""

    numeric: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    categorical: dict[str, Words] = field(default_factory=dict)


class JoinedItems(Protocol):
    """The items that a column is joined to (`pluribus.data.items.FittedItems`)."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...  # number of codes: the items, and two

    def codes(self, words: Sequence[str]) -> NDArray[np.int32]:
        """Each key's code; 1 where the catalogue lacks it."""
        ...

    def attributes(self, codes: NDArray[np.int32], prefix: str) -> ColumnFeatures:
        """The features of the items with these codes [n], each called by `prefix` and the attribute's name."""
        ...


class Statistics(Protocol):
    """What was learnt of all features, and where each stands in the encoded arrays (`FittedColumns`)."""

    @property
    def numbers(self) -> Mapping[str, Number]: ...
    @property
    def categories(self) -> Mapping[str, Category]: ...

    def place(self, feature: str) -> int:
        """A feature's column in its array."""
        ...

    def codes(self, feature: str, codes: NDArray[np.int64], words: Sequence[str]) -> NDArray[np.int32]:
        """The encoded codes of a categorical feature from positions among `words` (−1 where missing)."""
        ...


Filler: TypeAlias = Callable[[Sequence[Sequence[Any]], NDArray[np.float32], NDArray[np.int32]], None]
"""Encodes cells as `read_cell` gives them, a sequence for each column, into (numeric [n, F], categorical [n, C])."""


@dataclass(frozen=True)
class Fitting:
    """What a type may learn from.

    Parameters
    ----------
    rows : indices or slice
        The training rows.
    splits : bool
        Whether the table is split by this column's time: only what recurs within the training range can be learnt of it.
    least : int
        A category in fewer training rows counts as unseen.
    items : JoinedItems or None
        The items that the column is joined to.
    """

    rows: Positions
    splits: bool = False
    least: int = MIN_COUNT
    items: JoinedItems | None = None


@dataclass(frozen=True)
class Saved:
    """What a model folder says of one input column; `InputType.restore` makes it a `FittedInput` again.

    Parameters
    ----------
    name : str
        The column's name.
    numeric, categorical : tuple of str
        The names of its features.
    state : mapping
        What `FittedInput.state` gave.
    elements : Elements or None
        How the elements of its store are encoded, where that is a `Ragged`.
    items : JoinedItems or None
        The items that it is joined to.
    splits : bool
        See `Fitting`.
    """

    name: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    elements: Elements | None = None
    items: JoinedItems | None = None
    splits: bool = False


class InputType(ABC):
    """One type of input column.

    Attributes
    ----------
    name : str
        As in the manifests of models and in `Candidate.reads`.
    order : int
        Types of a lower order are asked first whether a column is theirs. Those of the library have 1 and more.
    plain : bool
        Whether it becomes numeric and categorical features, which every candidate reads.
    is_words : bool
        Whether a cell is a text, whose words a task may label.
    keeps : bool
        Whether a table keeps what was read, as reading again would cost something.
    depth : int
        How many lists within one another a cell of a request may be.
    store : type of Store or None
        What reads its store back from disk; None where it has none.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 0
    plain: ClassVar[bool] = False
    is_words: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    depth: ClassVar[int] = 0
    store: ClassVar[type[Store] | None] = None

    # In a table

    @abstractmethod
    def infer(self, column: InputColumn) -> str | None:
        """Whether a column is of this type: a line for people to read, "" for nothing to say, or None where it is not.

        Raises
        ------
        BadInput
            It is of this type, and has cells that cannot be.
        """

    def clean(self, column: InputColumn) -> pd.Series:
        """The column as a table keeps it; everything that looks at the table's frame sees this."""
        return column.series

    @abstractmethod
    def read(self, column: InputColumn) -> Any:
        """The cells in the form that `fit` and `FittedInput` take.

        Raises
        ------
        BadInput
            A cell that is no cell of this type; the row is named (from 1).
        """

    def mentioned(self, read: Any, rows: Positions) -> list[str]:
        """The different words in some rows, for columns that are joined to an item table."""
        return []

    # For a model

    @abstractmethod
    def fit(self, column: InputColumn, read: Any, fitting: Fitting) -> FittedInput:
        """Learn what must be known to encode the column; statistics of its features are taken by the caller."""

    @abstractmethod
    def restore(self, saved: Saved) -> FittedInput:
        """Undo `FittedInput.state`."""

    # For a server

    def read_cells(self, inputs: Sequence[FittedInput], values: Sequence[Any], limits: CellLimits) -> list[Any]:
        """One row's cells of all columns of this type; see `FittedInput.read_cell`."""
        return [one.read_cell(value, limits) for one, value in zip(inputs, values)]

    def filler(self, inputs: Sequence[FittedInput], statistics: Statistics) -> Filler | None:
        """A function that encodes a few rows of all columns of this type without a frame, bit for bit as `features` does; None
        where there is none."""
        return None


@dataclass(frozen=True)
class FittedInput(ABC):
    """One input column of a model.

    Parameters
    ----------
    name : str
        The column's name.
    numeric, categorical : tuple of str
        The names of its features.
    writing : Writing or None
        How its cells were written in the file that it was fitted on, where that is not as programs write.
    """

    name: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    writing: Writing | None = field(default=None, kw_only=True)

    record: ClassVar[InputType]

    @property
    def type(self) -> str:
        """The name of its type."""
        return self.record.name

    @property
    def elements(self) -> Elements | None:
        """How the elements of its store are encoded, where that is a `Ragged` of numbers or codes."""
        return None

    @property
    def as_written(self) -> bool:
        """Whether a CSV file must give its cells as they are written (007 is not 7)."""
        return False

    def read(self, column: InputColumn) -> Any:
        """The cells of a further table, in the form that `features` and `stored` take."""
        return self.record.read(column)

    def as_meant(self, series: pd.Series, where: str) -> pd.Series:
        """The cells of a further table as what they mean: words as those that it was fitted on were written."""
        return series if self.writing is None else self.writing.series(series, where)

    def features(self, read: Any) -> ColumnFeatures:
        """The column's features; none where it has a store only."""
        return ColumnFeatures()

    def stored(self, read: Any) -> Store | None:
        """What batches hold of the column beside features; None for nothing."""
        return None

    def state(self) -> dict[str, Any]:
        """What the model's manifest keeps beside names, statistics and elements: plain JSON."""
        return {}

    def named(self, features: ColumnFeatures) -> Self:
        """The column with the names of its features."""
        return replace(self, numeric=tuple(features.numeric), categorical=tuple(features.categorical))

    def grown(self, items: Mapping[str, JoinedItems]) -> FittedInput:
        """The column with a larger catalogue (by name), where it is joined to one."""
        return self

    # One cell of a request

    @abstractmethod
    def schema(self, statistics: Statistics) -> Schema:
        """The JSON schema of a cell."""

    @abstractmethod
    def read_cell(self, value: Any, limits: CellLimits) -> Any:
        """One JSON value as a cell of a table.

        Raises
        ------
        Unfit
            It is none, or larger than the limits say.
        """

    def missing(self) -> Any:
        """What `read_cell` gives where there is no value."""
        return None


INPUTS: Records[InputType] = Records("input")
"""All types by name: those registered, and those that the catalog lists for a domain that is not imported yet."""


def register(record: InputType) -> InputType:
    """Add a type; a name can be registered once.

    Raises
    ------
    BadInput
        Another type has the name.
    """
    return INPUTS.register(record)


def by_inference() -> tuple[InputType, ...]:
    """The types in the order in which a column is asked whether it is of one."""
    return tuple(sorted(INPUTS.values(), key=lambda record: record.order))


def saved_type(name: str, *, where: str) -> InputType:
    """The type that a model folder names.

    Raises
    ------
    BadInput
        Nobody has registered it.
    """
    if name not in INPUTS:
        remedy = "import the package that registers it, or install the extra that brings it"
        raise BadInput(f"has a column of type {name!r}, which is not known here", where=where, remedy=remedy)
    return INPUTS[name]
