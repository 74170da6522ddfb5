"""What a metric is: one record that says everything about it.

Two families compute:

- an `Additive` metric is a function of sums over rows. Its *terms* [n, k] are all that has to be kept of a model's answers;
  1,000 resamples of them are one matrix product;
- a `Ranked` metric needs all rows at once, because it sorts them or takes their mean.

A bare `Metric` has a name and a direction: it can be written down and compared, and is computed elsewhere.

The records themselves stand in `pluribus.evaluation.metrics` and in the packages of domains; the catalog (family "metric")
lists them, and a record is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from pluribus.catalog.records import Records
from pluribus.errors import BadInput
from pluribus.tasks.forms import Maps
from pluribus.tasks.weightings import Array, Ints, Weightings

Direction: TypeAlias = Literal["max", "min"]

_BYTES = 1 << 26  # of predicted and true maps that terms are computed from at a time


@dataclass(frozen=True, eq=False)
class Terms:
    """What is kept of a task's predictions in place of them: maps and lists are large, and an additive metric needs no more.

    Wherever a metric takes predictions, it takes these too.

    Parameters
    ----------
    each : mapping
        Name of an additive metric → terms [m, k], in the order of the labels.

    Raises
    ------
    BadInput
        Two metrics have terms of different numbers of rows.
    """

    each: Mapping[str, Array]

    def __post_init__(self) -> None:
        if len({len(terms) for terms in self.each.values()}) > 1:
            raise BadInput("terms of one task have different numbers of rows", where=", ".join(self.each))

    def __len__(self) -> int:
        return next((len(terms) for terms in self.each.values()), 0)

    def __getitem__(self, rows: Any) -> Terms:
        """The terms of some rows: positions, a mask or a slice."""
        return Terms({name: terms[rows] for name, terms in self.each.items()})

    @classmethod
    def of(cls, metrics: tuple[Metric, ...], prediction: Any, target: Any) -> Terms:
        """The terms of predictions, for those of the metrics that are additive.

        Raises
        ------
        BadInput
            Predictions and labels do not fit.
        """
        return cls({m.name: m.each(*m.checked(prediction, target)) for m in metrics if isinstance(m, Additive)})


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric. Two are equal if name, direction and kinds are.

    Parameters
    ----------
    name : str
        As in `Task(metrics=…)` and on the command line.
    direction : {"max", "min"}
        Which values are better.
    kinds : tuple of str
        Names of the kinds of task that it judges; empty: any.
    label : str or None
        What reports call it; None: its name.
    best : float or None
        The value of a perfect prediction where more is better; None: not known.
    chance : float or None
        What a constant prediction earns by chance where it earns no number; None: nothing.
    ideal : float or None
        The ideal value where the distance from it is what is judged; None: the value itself is judged.
    area : bool
        Whether it is an area under the ROC curve, of which chance earns ½ (RelaImpr).
    grouped : bool
        Whether it needs the group of every row.
    decides : bool
        Whether it judges the label that is chosen, not the chances of the labels.
    check : callable or None
        (name, predictions, labels) → both in the form that the computation takes, or `BadInput` where they do not fit. None:
        they are taken as they are.
    constant : callable or None
        (labels, weights [n]) → the constant prediction that this metric likes best, where it is not the kind's own.
    """

    name: str
    direction: Direction
    kinds: tuple[str, ...] = ()
    _: KW_ONLY
    label: str | None = None
    best: float | None = None
    chance: float | None = None
    ideal: float | None = None
    area: bool = False
    grouped: bool = False
    decides: bool = False
    check: Callable[[str, Any, Any], tuple[Any, Any]] | None = field(default=None, repr=False)
    constant: Callable[[Any, Array], Any] | None = field(default=None, repr=False)

    @property
    def _key(self) -> tuple[str, str, tuple[str, ...]]:
        return self.name, self.direction, self.kinds

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Metric) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A record is found by its name where it is copied or sent to another process: its functions are not.
        return (metric, (self.name,)) if METRICS.get(self.name) is self else super().__reduce_ex__(protocol)

    @property
    def sign(self) -> float:
        """+1 where more is better, else −1."""
        return 1.0 if self.direction == "max" else -1.0

    @property
    def bounded(self) -> bool:
        """Whether more is better and nothing is better than 1 (AUC, accuracy, F1, R²)."""
        return self.direction == "max" and self.best == 1

    def of(self, task: Any) -> Metric:
        """The record for one task: itself, or one that knows what else the task declares (levels of quantiles)."""
        return self

    def check_task(self, task: Any) -> None:
        """Raise `BadInput` where the metric cannot judge a task of a kind that it judges (its classes do not fit)."""

    def checked(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Predictions and labels in the form that the computation takes.

        Raises
        ------
        BadInput
            They do not fit this metric, or only their terms are kept and this metric needs the predictions.
        """
        if isinstance(prediction, Terms):
            raise BadInput(
                f"metric {self.name!r} needs predictions, and only their terms are kept", remedy="judge an additive metric"
            )
        return (prediction, target) if self.check is None else self.check(self.name, prediction, target)

    def measured(self, prediction: Any, target: Any, weightings: Weightings, groups: Ints | None = None) -> Array:
        """The metric under each weighting [R], of what `checked` gave; NaN where it is not defined."""
        raise BadInput(f"metric {self.name!r} is a name alone: nothing computes it", remedy="register how it is computed")

    def judged(self, value: Array) -> Array:
        """What is compared: the value, or its distance from the ideal one."""
        return value if self.ideal is None else np.abs(value - self.ideal)


@dataclass(frozen=True, eq=False)
class Ranked(Metric):
    """A metric that needs all rows at once.

    Parameters
    ----------
    value : callable
        (predictions, labels, weightings) → [R], NaN where it is not defined; of a grouped metric (predictions, labels,
        weightings, group codes [n]).
    """

    _: KW_ONLY
    value: Callable[..., Array] = field(repr=False)

    def measured(self, prediction: Any, target: Any, weightings: Weightings, groups: Ints | None = None) -> Array:
        """The metric under each weighting [R], of what `checked` gave; NaN where it is not defined."""
        more = (groups,) if self.grouped else ()
        with np.errstate(all="ignore"):
            return self.value(prediction, target, weightings, *more)


@dataclass(frozen=True, eq=False)
class Additive(Metric):
    """A metric that is a function of sums over rows.

    Parameters
    ----------
    terms : callable
        (predictions, labels, mask) → [n, k], each row's from that row alone. The mask says which places of maps have a label
        ([n, H, W]; maps come as arrays); None for values and lists.
    finish : callable
        Weighted sums of the terms [R, k] → [R], NaN where the metric is not defined.
    """

    _: KW_ONLY
    terms: Callable[[Any, Any, Any], Array] = field(repr=False)
    finish: Callable[[Array], Array] = field(repr=False)

    def checked(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """Predictions, or their terms, and labels in the form that the computation takes.

        Raises
        ------
        BadInput
            They do not fit this metric.
        """
        if not isinstance(prediction, Terms):
            return super().checked(prediction, target)
        if self.name not in prediction.each:
            kept = ", ".join(prediction.each) or "none"
            raise BadInput(f"terms of metric {self.name!r} are not kept (kept: {kept})", remedy="predict again")
        if len(prediction) != len(target):
            raise BadInput(f"{len(prediction)} rows of terms for {len(target)} labels", where=self.name)
        return prediction, target

    def each(self, prediction: Any, target: Any) -> Array:
        """The terms [n, k] of what `checked` gave; of maps a few rows at a time."""
        if isinstance(prediction, Terms):
            return prediction.each[self.name]
        with np.errstate(all="ignore"):
            if not isinstance(target, Maps):
                return np.asarray(self.terms(prediction, target, None), np.float64)
            said = prediction.values if isinstance(prediction, Maps) else np.asarray(prediction)
            step = max(1, int(_BYTES * max(1, len(target)) / max(1, target.nbytes + said.nbytes)))
            pieces = [slice(start, start + step) for start in range(0, max(1, len(target)), step)]
            found = [self.terms(said[piece], target.values[piece], target[piece].there()) for piece in pieces]
            return np.concatenate(found).astype(np.float64, copy=False)

    def finished(self, sums: Array) -> Array:
        """The metric [R] from weighted sums of terms [R, k]."""
        with np.errstate(all="ignore"):
            return self.finish(sums)

    def measured(self, prediction: Any, target: Any, weightings: Weightings, groups: Ints | None = None) -> Array:
        """The metric under each weighting [R], of what `checked` gave; NaN where it is not defined."""
        return self.finished(weightings.sums(self.each(prediction, target)))


METRICS: Records[Metric] = Records("metric")
"""All metrics by name: those registered, and those that the catalog lists."""


def metric(name: str, *, where: str | None = None) -> Metric:
    """The metric called `name`.

    Raises
    ------
    BadInput
        There is none of that name; the nearest one is suggested.
    """
    return METRICS.named(name, where=where)


def known(given: Metric) -> Metric:
    """The record of a bare metric, if there is one of its name and direction; any other metric as it is."""
    found = METRICS.get(given.name) if type(given) is Metric else None
    return found if found is not None and found.direction == given.direction else given
