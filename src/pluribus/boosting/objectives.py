"""The losses of the boosters: one class a loss, all tasks' scores in the columns of one matrix F [N, K].

class      kind         columns  loss                                g                 h
Squared    regression   1        (F - y)^2 / 2                       F - y             1
Logistic   binary       1        log(1 + e^F) - y F                  p - y             p (1 - p)
Poisson    count        1        e^F - y F               (log link)  e^F - y           e^(F + 0.7)
Softmax    multiclass   classes  -F_y + log sum e^F                  p - onehot(y)     2 p (1 - p)

Two Hessians are upper bounds rather than the second derivative, so that a Newton step does not overshoot: 2 p (1 - p)
dominates the softmax's full matrix (XGBoost's choice), e^(F + 0.7) tempers the exponential (LightGBM's).
Every task starts at its best constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit, logsumexp, softmax
from sklearn.utils.multiclass import check_classification_targets

from pluribus.boosting.cells import tidy
from pluribus.boosting.histogram import Floats
from pluribus.errors import BadInput, unknown

POISSON_STEP = 0.7


@dataclass(frozen=True, eq=False)
class BoosterObjective:
    """One task's loss and, for classes, their labels in order.

    Parameters
    ----------
    classes : ndarray or None
        The labels [C] in ascending order; None where values are numbers.

    Attributes
    ----------
    kind : str
        What a user calls it.
    lightgbm : str
        What LightGBM calls it.
    likelihood : str
        The likelihood of the kinds of task that it serves (`pluribus.tasks.Kind.likelihood`).
    labelled : bool
        Whether values are classes.
    flat : bool
        Whether the Hessian is 1 for every row.
    """

    classes: Any = None
    kind: ClassVar[str]
    lightgbm: ClassVar[str]
    likelihood: ClassVar[str]
    labelled: ClassVar[bool] = False
    flat: ClassVar[bool] = False

    @classmethod
    def of(cls, y: Any, where: str) -> BoosterObjective:
        """The objective of a task with these labels.

        Raises
        ------
        BadInput
            The labels do not fit; `where` names the task.
        """
        return cls()

    @classmethod
    def derivatives(cls, y: Floats, F: Floats) -> tuple[Any, Any]:
        """g and h in the shape of F; of one column a task, y and F [N, tasks] may hold several tasks side by side."""
        raise NotImplementedError

    def start(self, y: Floats, w: Floats) -> Floats:
        """The best constant score, [K]."""
        raise NotImplementedError

    def loss(self, y: Floats, F: Floats) -> Floats:
        """Loss a row, [n], for scores F [n, K]."""
        raise NotImplementedError

    def decode(self, F: Floats) -> Any:
        """Predictions: values, expected counts, or class labels."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """How many columns of F it takes."""
        return 1

    def like(self, other: BoosterObjective) -> bool:
        """Whether both are the same loss of the same classes."""
        return self.kind == other.kind and np.array_equal(self.classes, other.classes)  # None equals None

    def encode(self, y: Any, where: str) -> Floats:
        """Labels as floats: values, or positions among the classes."""
        return _numbers(y, where, self.kind)

    def excess(self, y: Floats, F: Floats) -> Floats:
        """The loss above that of a perfect prediction, so that it is a positive scale, [n]."""
        return self.loss(y, F)

    def proba(self, F: Floats) -> Floats:
        """Class probabilities [n, classes]."""
        raise BadInput(f"a {self.kind} task has no class probabilities", remedy="use predict")


class Squared(BoosterObjective):
    """Numbers by half the squared error."""

    kind = "regression"
    lightgbm = "regression"
    likelihood = "normal"
    flat = True

    @classmethod
    def derivatives(cls, y: Floats, F: Floats) -> tuple[Any, Any]:
        return F - y, 1.0

    def start(self, y: Floats, w: Floats) -> Floats:
        return np.array([np.average(y, weights=w)])

    def loss(self, y: Floats, F: Floats) -> Floats:
        found: Floats = 0.5 * (F[:, 0] - y) ** 2
        return found

    def decode(self, F: Floats) -> Any:
        return F[:, 0]


class Poisson(BoosterObjective):
    """Counts by the Poisson likelihood, on the logarithm of their mean."""

    kind = "count"
    lightgbm = "poisson"
    likelihood = "poisson"

    @classmethod
    def of(cls, y: Any, where: str) -> BoosterObjective:
        if (_numbers(y, where, cls.kind) < 0).any():
            raise BadInput("holds negative counts", where=where, remedy="call it regression")
        return cls()

    @classmethod
    def derivatives(cls, y: Floats, F: Floats) -> tuple[Any, Any]:
        mean = np.exp(F)
        return mean - y, mean * np.exp(POISSON_STEP)

    def start(self, y: Floats, w: Floats) -> Floats:
        return np.array([np.log(max(np.average(y, weights=w), _least(y)))])

    def loss(self, y: Floats, F: Floats) -> Floats:
        found: Floats = np.exp(F[:, 0]) - y * F[:, 0]
        return found

    def excess(self, y: Floats, F: Floats) -> Floats:
        found: Floats = self.loss(y, F) - (y - y * np.log(np.maximum(y, 1e-300)))
        return found

    def decode(self, F: Floats) -> Any:
        return np.exp(F[:, 0])


class Classes(BoosterObjective):
    """What the losses of classes share."""

    labelled = True

    def encode(self, y: Any, where: str) -> Floats:
        y = tidy(y)
        codes = np.searchsorted(self.classes, y)
        known = self.classes[np.minimum(codes, len(self.classes) - 1)] == y
        if not np.all(known):
            raise BadInput("holds a class that was not there at fit", where=where, remedy="drop these rows")
        found: Floats = codes.astype(np.float64)
        return found

    def scores(self, log_probabilities: Floats) -> Floats:
        """Scores F [n, K] that give these probabilities, whose logarithms are [n, classes]."""
        return log_probabilities


class Logistic(Classes):
    """Two classes, or one that is alone, on the log-odds of the second."""

    kind = "binary"
    lightgbm = "binary"
    likelihood = "bernoulli"

    @classmethod
    def of(cls, y: Any, where: str) -> BoosterObjective:
        classes = _classes(y)
        if len(classes) > 2:
            raise BadInput(f"has {len(classes)} classes", where=where, remedy="call it multiclass")
        return cls(classes)

    @classmethod
    def derivatives(cls, y: Floats, F: Floats) -> tuple[Any, Any]:
        p = expit(F)
        return p - y, p * (1 - p)

    def start(self, y: Floats, w: Floats) -> Floats:
        return np.array([logit(np.clip(np.average(y, weights=w), _least(y), 1 - _least(y)))])

    def loss(self, y: Floats, F: Floats) -> Floats:
        found: Floats = np.logaddexp(0.0, F[:, 0]) - y * F[:, 0]
        return found

    def decode(self, F: Floats) -> Any:
        return np.repeat(self.classes, len(F)) if len(self.classes) == 1 else self.classes[(F[:, 0] > 0).astype(np.int64)]

    def proba(self, F: Floats) -> Floats:
        if len(self.classes) == 1:
            return np.ones((len(F), 1))
        p = expit(F[:, 0])
        return np.column_stack([1 - p, p])

    def scores(self, log_probabilities: Floats) -> Floats:
        if len(self.classes) == 1:
            return log_probabilities
        found: Floats = log_probabilities[:, 1:] - log_probabilities[:, :1]
        return found


class Softmax(Classes):
    """Three classes or more, a score each."""

    kind = "multiclass"
    lightgbm = "multiclass"
    likelihood = "categorical"

    @classmethod
    def of(cls, y: Any, where: str) -> BoosterObjective:
        """Of up to two classes the logistic loss."""
        classes = _classes(y)
        return Logistic(classes) if len(classes) <= 2 else cls(classes)

    @classmethod
    def derivatives(cls, y: Floats, F: Floats) -> tuple[Any, Any]:
        p = softmax(F, axis=1)
        h = 2 * p * (1 - p)
        known = np.flatnonzero(~np.isnan(y))
        p[known, y[known].astype(np.int64)] -= 1.0
        return p, h

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def start(self, y: Floats, w: Floats) -> Floats:
        share = np.bincount(y.astype(np.int64), weights=w, minlength=self.outputs) / w.sum()
        prior: Floats = np.log(np.maximum(share, _least(y)))
        return prior

    def loss(self, y: Floats, F: Floats) -> Floats:
        found: Floats = logsumexp(F, axis=1) - F[np.arange(len(y)), y.astype(np.int64)]
        return found

    def decode(self, F: Floats) -> Any:
        return self.classes[np.argmax(F, axis=1)]

    def proba(self, F: Floats) -> Floats:
        found: Floats = softmax(F, axis=1)
        return found


OBJECTIVES: dict[str, type[BoosterObjective]] = {each.kind: each for each in (Squared, Logistic, Softmax, Poisson)}
BY_LIKELIHOOD: dict[str | None, type[BoosterObjective]] = {each.likelihood: each for each in OBJECTIVES.values()}


def objective(kind: str, y: Any, where: str) -> BoosterObjective:
    """The objective of a task of this kind with these labels."""
    if kind not in OBJECTIVES:
        raise unknown("kind", kind, OBJECTIVES, where=where)
    return OBJECTIVES[kind].of(y, where)


def gradients(objectives: list[BoosterObjective], first: Any, Y: Floats, F: Floats, g: Floats, h: Floats) -> None:
    """Write g and h [N, K]; Y [N, T] holds NaN where a label is missing, which leaves 0 in g and h.

    first [T + 1]: where each task's columns start.
    """
    for loss in dict.fromkeys(type(o) for o in objectives):
        tasks: Any = np.array([t for t, o in enumerate(objectives) if type(o) is loss and o.outputs == 1], dtype=np.int64)
        if len(tasks):  # one column a task: all tasks of this loss at once
            columns: Any = first[tasks]
            if len(tasks) == len(objectives):  # all tasks alike: views, no copies
                tasks = columns = slice(None)
            g[:, columns], h[:, columns] = loss.derivatives(Y[:, tasks], F[:, columns])
    for t, o in enumerate(objectives):
        if o.outputs > 1:
            span = slice(first[t], first[t + 1])
            g[:, span], h[:, span] = o.derivatives(Y[:, t], F[:, span])
    gone = np.isnan(Y)
    if gone.any():
        gone = np.repeat(gone, np.diff(first), axis=1)
        g[gone] = 0.0
        h[gone] = 0.0


def _least(y: Floats) -> float:
    """Keeps a constant score finite where a class, or every count, is absent."""
    return 0.5 / len(y)


def _classes(y: Any) -> Any:
    check_classification_targets(tidy(y))
    return np.unique(tidy(y))


def _numbers(y: Any, where: str, kind: str) -> Floats:
    if np.iscomplexobj(y):
        raise BadInput("Complex data not supported", where=where)
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"holds labels that are not numbers, but is a {kind} task", where=where) from error
    if not np.isfinite(values).all():
        raise BadInput("Input y contains infinity or NaN among the labels", where=where, remedy="drop these rows")
    return values
