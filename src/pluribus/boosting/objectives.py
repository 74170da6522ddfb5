"""The losses of the vector-leaf booster: a kind a task, all tasks' scores in the columns of one matrix F [N, K].

kind         columns  loss                                g                 h
regression   1        (F - y)^2 / 2                       F - y             1
binary       1        log(1 + e^F) - y F                  p - y             p (1 - p)
count        1        e^F - y F      (Poisson, log link)  e^F - y           e^(F + 0.7)
multiclass   classes  -F_y + log sum e^F                  p - onehot(y)     2 p (1 - p)

Two Hessians are upper bounds rather than the second derivative, so that a Newton step does not overshoot: 2 p (1 - p)
dominates the softmax's full matrix (XGBoost's choice), e^(F + 0.7) tempers the exponential (LightGBM's).
Every task starts at its best constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit, logsumexp, softmax
from sklearn.utils.multiclass import check_classification_targets

from pluribus.boosting.cells import tidy
from pluribus.boosting.histogram import Floats
from pluribus.errors import BadInput, unknown

KINDS = ("regression", "binary", "multiclass", "count")
POISSON_STEP = 0.7


@dataclass(frozen=True, eq=False)
class Objective:
    """One task's kind and, for classes, their labels in order."""

    kind: str
    classes: Any = None

    def like(self, other: Objective) -> bool:
        """Whether both are of one kind with the same classes."""
        return self.kind == other.kind and np.array_equal(self.classes, other.classes)  # None equals None

    @property
    def outputs(self) -> int:
        """How many columns of F it takes."""
        return len(self.classes) if self.kind == "multiclass" else 1

    def encode(self, y: Any, where: str) -> Floats:
        """Labels as floats: values, or positions among the classes."""
        if self.classes is None:
            return _numbers(y, where, self.kind)
        y = tidy(y)
        codes = np.searchsorted(self.classes, y)
        known = self.classes[np.minimum(codes, len(self.classes) - 1)] == y
        if not np.all(known):
            raise BadInput("holds a class that was not there at fit", where=where, remedy="drop these rows")
        found: Floats = codes.astype(np.float64)
        return found

    def start(self, y: Floats, w: Floats) -> Floats:
        """The best constant score, [K]."""
        if self.kind == "regression":
            return np.array([np.average(y, weights=w)])
        least = 0.5 / len(y)  # keeps the score finite where a class, or every count, is absent
        if self.kind == "binary":
            return np.array([logit(np.clip(np.average(y, weights=w), least, 1 - least))])
        if self.kind == "count":
            return np.array([np.log(max(np.average(y, weights=w), least))])
        share = np.bincount(y.astype(np.int64), weights=w, minlength=self.outputs) / w.sum()
        prior: Floats = np.log(np.maximum(share, least))
        return prior

    def loss(self, y: Floats, F: Floats) -> Floats:
        """Loss a row, [n], for scores F [n, K]."""
        found: Floats
        if self.kind == "regression":
            found = 0.5 * (F[:, 0] - y) ** 2
        elif self.kind == "binary":
            found = np.logaddexp(0.0, F[:, 0]) - y * F[:, 0]
        elif self.kind == "count":
            found = np.exp(F[:, 0]) - y * F[:, 0]
        else:
            found = logsumexp(F, axis=1) - F[np.arange(len(y)), y.astype(np.int64)]
        return found

    def decode(self, F: Floats) -> Any:
        """Predictions: values, expected counts, or class labels."""
        if self.kind == "regression":
            return F[:, 0]
        if self.kind == "count":
            return np.exp(F[:, 0])
        if len(self.classes) == 1:
            return np.repeat(self.classes, len(F))
        return self.classes[(F[:, 0] > 0).astype(np.int64) if self.kind == "binary" else np.argmax(F, axis=1)]

    def proba(self, F: Floats) -> Floats:
        """Class probabilities [n, classes]."""
        found: Floats
        if self.classes is None:
            raise BadInput(f"a {self.kind} task has no class probabilities", remedy="use predict")
        if len(self.classes) == 1:
            return np.ones((len(F), 1))
        if self.kind == "binary":
            p = expit(F[:, 0])
            found = np.column_stack([1 - p, p])
        else:
            found = softmax(F, axis=1)
        return found


def classes_of(y: Any, kind: str | None, where: str) -> Objective:
    """The objective of class labels: binary for up to two classes, else multiclass."""
    check_classification_targets(tidy(y))
    classes = np.unique(tidy(y))
    if kind == "binary" and len(classes) > 2:
        raise BadInput(f"has {len(classes)} classes", where=where, remedy="call it multiclass")
    return Objective("binary" if kind == "binary" or len(classes) <= 2 else "multiclass", classes)


def objective(kind: str, y: Any, where: str) -> Objective:
    """The objective of a task of this kind with these labels."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, where=where)
    if kind in ("binary", "multiclass"):
        return classes_of(y, kind, where)
    if kind == "count" and (_numbers(y, where, kind) < 0).any():
        raise BadInput("holds negative counts", where=where, remedy="call it regression")
    return Objective(kind)


def gradients(objectives: list[Objective], first: Any, Y: Floats, F: Floats, g: Floats, h: Floats) -> None:
    """Write g and h [N, K]; Y [N, T] holds NaN where a label is missing, which leaves 0 in g and h.

    first [T + 1]: where each task's columns start.
    """
    for kind in ("regression", "binary", "count"):
        tasks: Any = np.array([t for t, o in enumerate(objectives) if o.kind == kind], dtype=np.int64)
        if not len(tasks):
            continue
        columns: Any = first[tasks]
        if len(tasks) == len(objectives):  # all tasks alike: views, no copies
            tasks = columns = slice(None)
        score, y = F[:, columns], Y[:, tasks]
        if kind == "regression":
            g[:, columns], h[:, columns] = score - y, 1.0
        elif kind == "binary":
            p = expit(score)
            g[:, columns], h[:, columns] = p - y, p * (1 - p)
        else:
            mean = np.exp(score)
            g[:, columns], h[:, columns] = mean - y, mean * np.exp(POISSON_STEP)
    for t, o in enumerate(objectives):
        if o.kind == "multiclass":
            span = slice(first[t], first[t + 1])
            p = softmax(F[:, span], axis=1)
            known = np.flatnonzero(~np.isnan(Y[:, t]))
            g[:, span], h[:, span] = p, 2 * p * (1 - p)
            g[known, first[t] + Y[known, t].astype(np.int64)] -= 1.0
    gone = np.isnan(Y)
    if gone.any():
        gone = np.repeat(gone, np.diff(first), axis=1)
        g[gone] = 0.0
        h[gone] = 0.0


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
