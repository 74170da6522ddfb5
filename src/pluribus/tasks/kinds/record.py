"""What a kind of task is: one record that says everything about its cells.

A domain registers its own with `register` and lists it in the catalog (family "kind"). Nobody else knows what a cell of a kind
looks like: tables, files, heads, metrics, reports and servers ask the record.

A `Kind` as it stands is one of numbers: a value a row in the column TASK. Other kinds subclass it and write the methods about
columns anew; a test holds all of them to the same rules.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluribus.catalog.records import Records
from pluribus.errors import BadInput
from pluribus.tasks.columns import Column, numbers_of
from pluribus.tasks.forms import NOTHING, Form, Maps, Ragged, Values, one_value
from pluribus.tasks.kinds import constants

if TYPE_CHECKING:
    from typing import Self

Likelihood: TypeAlias = Literal["bernoulli", "categorical", "normal", "poisson"]
Predictions: TypeAlias = NDArray[np.float64] | Ragged | Maps
"""What files and metrics see of a task, in its own units: [m], [m, C], lists or maps."""
Empty: TypeAlias = NDArray[np.bool_]
Schema: TypeAlias = dict[str, Any]
CONSTANT_BYTES = 1 << 26  # of labels that the best constant prediction of lists and maps is found from


class Declared(Protocol):
    """What a kind reads of a task (`pluribus.tasks.Task` is one)."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def metrics(self) -> tuple[Any, ...]: ...
    @property
    def size(self) -> int | None: ...
    @property
    def levels(self) -> tuple[float, ...]: ...
    def with_(self, **changes: Any) -> Self: ...


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Parameters
    ----------
    name : str
        As in `Task(kind=…)` and on the command line.
    width : callable
        Number of classes (0 for numbers) → outputs per cell, or per place of a list or a map.
    loss : callable
        (outputs, values, mask) → loss per cell [m]. Outputs are [m, width]; [m, L, width] of lists; [m, width, H, W] of maps.
        Values are [m]; [m, L] or [m, L, w]; [m, H, W] or [m, H, W, c]. The mask names the places that count ([m, L],
        [m, H, W]; None: all). A loss of two arguments is handed no mask.
    link : callable
        Outputs → predictions, as metrics and files see them: [m] or [m, C]; lists [m, K] or [m, K, w], -1 behind the last element
        of a row; maps [m, H, W] or [m, H, W, c]. Where outputs are one row a place of a list, it is handed (outputs, mask [m, L]
        of the places that there are); a link of one argument answers each place, and -1 is put where there is none.
    start : callable
        (values, number of classes) → outputs [width] of the best constant predictor; heads begin there. Values are [m]; lists
        padded with -1, [m, L] or [m, L, w]; of maps the places that have a label, [p] or [p, c].
    metrics : tuple of str
        Judged by default, the main one first.
    classes : bool
        Whether values are class indices that stand for labels.
    standardise : bool
        Whether the target is centred and scaled for training (the head undoes it).
    cell : {"value", "list", "map"}
        The form of a cell (`pluribus.tasks.forms`).
    positive : bool
        Whether values are 0 and 1, and a prediction is P(1). Such a task has a positive class, a threshold and a calibration,
        and says by 0 that another task does not apply (`Task.after`).
    quantity : bool
        Whether values are numbers with distances between them.
    likelihood : {"bernoulli", "categorical", "normal", "poisson"} or None
        The distribution whose −log density the loss is, up to constants; boosters choose their objective by it. None: another
        loss.
    layout : {"value", "list", "map"} or None
        What the outputs stand for: one row of them a cell, or one a place of a list or of a map. None: as the form of the cell
        says. A set of classes is a list whose outputs are one row.
    head : str or None
        None: a linear map of the features answers. Else what does, by a word that candidates made for it repeat in
        `Candidate.heads`; the others leave such tasks out.
    beside : {"text", "items"} or None
        What must stand beside the column: one text whose words it labels, or an item table whose keys it holds.
    watch : str or None
        A cheap metric that stops training, where the main one is dear to compute. None: the main one.
    form : str
        The form of its columns in prediction files: "p" (TASK__p), "classes" (TASK__p_CLASS), "value" (TASK), "list" (TASK), or
        the kind's own word. Of two kinds of one form, the one that the catalog lists first is taken where nothing is said.
    """

    name: str
    width: Callable[[int], int]
    loss: Callable[..., Tensor]
    link: Callable[..., Tensor]
    start: Callable[[Tensor, int], Tensor]
    metrics: tuple[str, ...]
    classes: bool = False
    standardise: bool = False
    cell: Form = "value"
    positive: bool = False
    quantity: bool = True
    likelihood: Likelihood | None = None
    layout: Form | None = None
    head: str | None = None
    beside: Literal["text", "items"] | None = None
    watch: str | None = None
    form: str = "value"

    phrase: ClassVar[str] = "is a number"
    """What a cell is, for messages: "a task whose cell …"."""
    verb: ClassVar[str] = ""
    """What who predicts it does, for messages: "it does not …"; "" where its name says so."""
    ordered: ClassVar[bool] = False
    """Whether classes stand from low to high."""

    def __post_init__(self) -> None:
        if _takes(self.loss) == 2:
            plain = self.loss

            @functools.wraps(plain)
            def loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
                return plain(outputs, values)

            object.__setattr__(self, "loss", loss)
        if self.per == "list" and _takes(self.link) == 1:
            each = self.link

            @functools.wraps(each)
            def link(outputs: Tensor, mask: Tensor | None = None) -> Tensor:
                found = each(outputs)
                return found if mask is None else found.masked_fill(~mask.reshape(*mask.shape, *[1] * (found.ndim - 2)), NOTHING)

            object.__setattr__(self, "link", link)

    # A task of this kind

    def of(self, task: Declared) -> Kind:
        """The record for one task: itself, or one whose loss knows what else the task declares (levels of quantiles)."""
        return self

    def check(self, task: Declared) -> None:
        """Raise `BadInput` where the task's own fields do not fit the kind."""

    @property
    def per(self) -> Form:
        """What the outputs stand for: `layout`, or else the form of the cell."""
        return self.layout or self.cell

    def outputs(self, task: Declared) -> int:
        """How many outputs a cell (or a place of it) has."""
        return self.width(len(task.classes))

    def shape(self, task: Declared) -> tuple[int, ...]:
        """The shape of one row's prediction: () for one value, (C,) for one a class; () for lists and maps."""
        return ()

    # A column of labels

    def infer(self, column: Column) -> str | None:
        """Why a column for which no kind is given is of this one; None where it is not."""
        return None

    def settle(self, task: Any, column: Column, notes: list[str]) -> Any:
        """The task with what its column says of it (classes, size, metrics). Lines for people are appended to `notes`."""
        return task

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        """The labels of a column: values [n] in the kind's form, and which rows have none [n]."""
        values = numbers_of(column, self.name)
        return values, np.isnan(values)

    def varied(self, task: Declared, values: Values) -> str | None:
        """Why some labels teach nothing, as all of them say the same; None where they differ."""
        found = one_value(values)
        if found is None:
            return None
        value, count = found
        if self.classes:
            return f"has one class only ({task.classes[int(value)]!r} in all {count} labels)"
        return f"is constant ({value:g} in all {count} labels)"

    def constant(self, task: Declared, values: Values, weight: NDArray[np.float64]) -> Any:
        """The best constant prediction of one row by the kind's loss, from labels and their weights [n]."""
        if isinstance(values, np.ndarray):
            return constants.mean(values, weight)
        some = values[: max(1, len(values) * CONSTANT_BYTES // max(1, values.nbytes))]
        found = np.asarray(some)
        places = torch.from_numpy(found[some.there()] if isinstance(some, Maps) else found)
        begin = self.start(places, len(task.classes))
        outputs = begin.expand(1, 1, -1) if self.per == "list" else begin[None]
        if self.per == "map":
            outputs = begin[None, :, None, None].expand(-1, -1, *found.shape[1:3])
        return self.link(outputs)[0].double().numpy()

    # A prediction file

    def found_in(self, name: str, columns: Collection[str]) -> dict[str, Any] | None:
        """What the columns of a prediction file say of a task called `name` (classes, levels); None: they hold another kind."""
        return {} if name in columns else None

    def columns(self, task: Declared) -> tuple[str, ...]:
        """The columns of a prediction file that hold what is judged."""
        return (task.name,)

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """Column → cells [m] of a prediction file, from predictions as `link` gives them."""
        return {task.name: predictions}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """Undo `write` for what is judged: predictions [n], and which rows are missing or incomplete [n].

        Raises
        ------
        BadInput
            A cell cannot be a prediction of this kind.
        """
        (name,) = self.columns(task)
        values = numbers_of(columns[name], self.name)
        return values, ~np.isfinite(values)

    def schema(self, task: Declared) -> dict[str, Schema]:
        """Column → JSON schema of the cells that `write` gives."""
        return {name: {"type": "number"} for name in self.columns(task)}


def side_by_side(kind: Kind, task: Declared, columns: Mapping[str, Column]) -> tuple[NDArray[np.float64], Empty]:
    """The numbers of several columns of a prediction file [n, k], and which rows lack any of them [n]."""
    values = np.stack([numbers_of(columns[name], kind.name) for name in kind.columns(task)], 1)
    return values, np.asarray(~np.isfinite(values).all(1))


def _takes(function: Callable[..., Any]) -> int:
    """How many arguments a function takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 3
    return 3 if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in found) else sum(p.kind in kinds for p in found)


KINDS: Records[Kind] = Records("kind")
"""All kinds by name: those registered, and those that the catalog lists for a domain that is not imported yet."""


def register(kind: Kind) -> Kind:
    """Add a kind; a name can be registered once.

    Raises
    ------
    BadInput
        Another kind has the name.
    """
    return KINDS.register(kind)


def names() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(KINDS)


def kind(name: str, *, where: str | None = None) -> Kind:
    """The kind called `name`, a domain's from its own package.

    Raises
    ------
    BadInput
        There is none of that name; the nearest one is suggested.
    """
    return KINDS.named(name, where=where)


def by_inference() -> tuple[Kind, ...]:
    """The kinds in the order in which a column is asked whether it is of one: what stands beside something first, then lists and
    maps, then what has an order (ratings are whole numbers too)."""
    return tuple(sorted(KINDS.values(), key=lambda kind: (kind.cell == "value", kind.beside is None, not kind.ordered)))


__all__ = [
    "KINDS",
    "BadInput",
    "Column",
    "Declared",
    "Empty",
    "Kind",
    "Likelihood",
    "Predictions",
    "Schema",
    "by_inference",
    "kind",
    "names",
    "register",
    "side_by_side",
]
