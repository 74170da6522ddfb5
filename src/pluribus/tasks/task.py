"""A task: one thing to predict, declared once, serialisable, without code inside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pluribus.tasks.kinds as kinds
from pluribus.errors import BadInput, unknown
from pluribus.tasks.metrics import Metric, known, metric

Absent = Literal["missing", "not_applicable", "delayed"]
ABSENT: tuple[Absent, ...] = ("missing", "not_applicable", "delayed")


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    Parameters
    ----------
    name : str
        The column's name in tables and prediction files.
    kind : str
        "binary", "multiclass", "regression", "count", "ordinal", "quantile", "multilabel", or a kind that a domain registered.
    classes : tuple of str
        The labels, in the order of their indices (binary: negative, positive; ordinal: from low to high).
    metrics : tuple of Metric or str
        The main one first; default: the kind's.
    weight : float
        Relative importance in the sum of losses, > 0.
    role : {"main", "auxiliary"}
        "main" tasks are judged, "auxiliary" ones only help.
    absent : {"missing", "not_applicable", "delayed"}
        What an empty cell means.
    after : tuple of str
        Names of parent tasks; where a parent is 0 this task is not applicable.
    tolerance : str, float or None
        Loss against the specialist that still counts as "as good": text is in the unit of the main metric ("0.01") or in per cent
        of the specialist's value ("2%"); a number is a share of that value. Default: .005 for a metric that is bounded by 1, else
        1 % of the specialist's value.
    size : int or None
        Output places per row of lists and maps; None for one value a row.
    inputs : tuple of str or None
        The input columns that the task reads; None: all of them. A request for some tasks needs the columns of these only.
    levels : tuple of float
        Levels of a quantile task, ascending, each between 0 and 1; default: the kind's.

    Raises
    ------
    BadInput
        A field that no task can have; the task is named.
    """

    name: str
    kind: str = "regression"
    classes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    weight: float = 1.0
    role: Literal["main", "auxiliary"] = "main"
    absent: Absent = "missing"
    after: tuple[str, ...] = ()
    tolerance: str | float | None = None
    size: int | None = None
    inputs: tuple[str, ...] | None = None
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        if not self.name:
            raise BadInput("a task needs a name")
        record = kinds.kind(self.kind, where=where)
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        given = self.metrics or record.metrics
        named = [(metric(m, where=where) if isinstance(m, str) else known(m)).of(self) for m in given]
        for m in named:
            if m.kinds and self.kind not in m.kinds:
                remedy = f"{m.name} judges {' or '.join(m.kinds)} tasks"
                raise BadInput(f"metric {m.name!r} does not fit kind {self.kind!r}", where=where, remedy=remedy)
        object.__setattr__(self, "metrics", tuple(named))
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        object.__setattr__(self, "after", (self.after,) if isinstance(self.after, str) else tuple(self.after))
        if len(set(self.classes)) != len(self.classes):
            raise BadInput("names a class twice", where=where, remedy="make the classes distinct")
        if self.inputs is not None:
            if isinstance(self.inputs, str) or not self.inputs:
                raise BadInput("inputs must name at least one column, in a list", where=where, remedy="leave it out for all")
            object.__setattr__(self, "inputs", tuple(dict.fromkeys(self.inputs)))
        if self.levels and record.of(self) is record:
            raise BadInput(f"has levels, and kind {self.kind!r} predicts none", where=where, remedy="use kind quantile")
        record.check(self)
        if not self.weight > 0:
            raise BadInput(f"weight must be positive, not {self.weight}", where=where)
        if self.role not in ("main", "auxiliary"):
            raise unknown("role", self.role, ("main", "auxiliary"), where=where)
        if self.absent not in ABSENT:
            raise unknown("word for empty cells", self.absent, ABSENT, where=where)
        if self.tolerance is not None:
            check_tolerance(self.tolerance, where)

    @property
    def record(self) -> kinds.Kind:
        """The kind's record, as it is for this task."""
        return kinds.kind(self.kind).of(self)

    @property
    def main_metric(self) -> Metric:
        return self.metrics[0]

    @property
    def width(self) -> int:
        """Outputs per cell of this task's head."""
        return self.record.outputs(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of prediction files that hold what is judged."""
        return self.record.columns(self)

    def with_(self, **changes: Any) -> Task:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Task.from_dict` undoes it. What came later than the first version is there only where it is set."""
        later: dict[str, Any] = {}
        if self.inputs is not None:
            later["inputs"] = list(self.inputs)
        if self.levels:
            later["levels"] = list(self.levels)
        return {
            "name": self.name,
            "kind": self.kind,
            "classes": list(self.classes),
            "metrics": [{"name": m.name, "direction": m.direction, "kinds": list(m.kinds)} for m in self.metrics],
            "weight": self.weight,
            "role": self.role,
            "absent": self.absent,
            "after": list(self.after),
            "tolerance": self.tolerance,
            "size": self.size,
            **later,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Task:
        """Rebuild from `to_dict`; an unknown field is an error that suggests the nearest."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        for field in row:
            if field not in cls.__dataclass_fields__:
                raise unknown("field", field, cls.__dataclass_fields__, where=f"task {row.get('name')!r}")
        fields["metrics"] = tuple(
            m if isinstance(m, str) else Metric(m["name"], m["direction"], tuple(m["kinds"])) for m in row.get("metrics", ())
        )
        return cls(**fields)


def check_graph(tasks: Iterable[Task]) -> tuple[str, ...]:
    """Names in an order in which parents precede children; unknown parents, cycles and double names are errors."""
    by_name: dict[str, Task] = {}
    for task in tasks:
        if task.name in by_name:
            raise BadInput(f"two tasks are called {task.name!r}", remedy="rename one")
        by_name[task.name] = task
    order: list[str] = []
    open_: set[str] = set()

    def visit(name: str) -> None:
        if name in order:
            return
        if name in open_:
            raise BadInput(f"the tasks' `after` form a cycle through {name!r}", remedy="remove one link")
        open_.add(name)
        for parent in by_name[name].after:
            if parent not in by_name:
                raise unknown("parent task", parent, by_name, where=f"task {name!r}, after")
            visit(parent)
        order.append(name)

    for name in by_name:
        visit(name)
    return tuple(order)


def check_tolerance(given: str | float, where: str) -> None:
    """Refuse what is no tolerance of a task.

    Raises
    ------
    BadInput
        It is negative or no number.
    """
    try:
        number = float(given[:-1] if isinstance(given, str) and given.endswith("%") else given)
    except (TypeError, ValueError):
        what, remedy = f"tolerance is {given!r}, not a number", "write it in the metric's unit (0.01), or in per cent (2%)"
        raise BadInput(what, where=where, remedy=remedy) from None
    if not 0 <= number < math.inf:
        raise BadInput(f"tolerance must not be negative, not {given}", where=where)
