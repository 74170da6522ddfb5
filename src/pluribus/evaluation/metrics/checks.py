"""What metrics take: predictions and labels checked, in one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pluribus.errors import BadInput
from pluribus.tasks.forms import Ragged
from pluribus.tasks.weightings import Array, Ints


def numbers(name: str, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    """One finite number a row, on both sides: [n] and [n]."""
    p, y = np.asarray(prediction, float), np.asarray(target, float)
    _fit(name, p, y)
    if p.ndim == 2:
        raise BadInput("needs one prediction per row, not one per class", where=name)
    _finite(name, p, y)
    return p, y


def scores(name: str, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    """A score a row [n], and 0 or 1 [n]."""
    p, y = numbers(name, prediction, target)
    _zero_or_one(name, y)
    return p, y


def chances(name: str, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    """P(positive) [n], and 0 or 1 [n]."""
    p, y = scores(name, prediction, target)
    _probable(name, p)
    return p, y


def class_scores(name: str, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    """A score a class [n, C], and class indices [n]."""
    p, y = np.asarray(prediction, float), np.asarray(target, float)
    _fit(name, p, y)
    if p.ndim == 1:
        raise BadInput("needs a probability per class, [n, C]", where=name)
    _finite(name, p, y)
    _indices(name, p, y)
    return p, y


def labels(name: str, prediction: npt.ArrayLike, target: Any) -> tuple[Array, Array]:
    """A score a row [n] with 0 or 1 [n], or a score a class [n, C] with class indices [n] or sets of classes.

    Sets of classes (lists of class indices) come out as 0 or 1 a class [n, C].
    """
    if isinstance(target, Ragged):
        return _sets(name, prediction, target)
    return class_scores(name, prediction, target) if np.ndim(prediction) == 2 else scores(name, prediction, target)


def label_chances(name: str, prediction: npt.ArrayLike, target: Any) -> tuple[Array, Array]:
    """P(positive) [n] with 0 or 1 [n], or P(class) [n, C] with class indices [n] or sets of classes (see `labels`)."""
    p, y = labels(name, prediction, target)
    _probable(name, p)
    return p, y


def _sets(name: str, prediction: npt.ArrayLike, target: Ragged) -> tuple[Array, Array]:
    p = np.asarray(prediction, float)
    if p.ndim != 2 or len(p) != len(target) or target.width is not None:
        raise BadInput(f"prediction of shape {p.shape} does not fit the classes of {len(target)} rows", where=name)
    if not np.isfinite(p).all():
        raise BadInput("a prediction is missing or infinite", where=name, remedy="pass labelled rows with finite numbers")
    _indices(name, p, target.values)
    y = np.zeros(p.shape)
    y[target.rows, target.values] = 1.0
    return p, y


def tags(name: str, prediction: Any, target: Any) -> tuple[Ints, Ragged]:
    """The predicted class of each word [total], and the true classes as lists.

    Either side may be lists or [n, words], where −1 stands behind a row's last word; a prediction [n] says the same class of all
    words of a row. What is predicted behind the last word does not count; where nothing is predicted, it is −1.
    """
    y = target if isinstance(target, Ragged) else _as_lists(name, target)
    longest = int(y.lengths.max(initial=0)) if isinstance(target, Ragged) else np.shape(target)[1]
    p = np.asarray(prediction.to_padded() if isinstance(prediction, Ragged) else prediction, float)
    p = np.broadcast_to(p[:, None], (len(p), longest)) if p.ndim == 1 else p
    strict = not isinstance(target, Ragged) and not isinstance(prediction, Ragged)
    if p.ndim != 2 or len(p) != len(y) or (strict and p.shape[1] != longest):
        what = f"prediction of shape {p.shape} does not fit target of shape {(len(y), longest)}; tags are [n, words]"
        raise BadInput(what, where=name)
    if not np.isfinite(p).all():
        raise BadInput("a tag is missing, infinite or below -1", where=name, remedy="pad rows with -1")
    p = np.pad(p, ((0, 0), (0, max(0, longest - p.shape[1]))), constant_values=-1)
    return np.asarray(p[np.arange(p.shape[1]) < y.lengths[:, None]], np.intp), y


def _as_lists(name: str, target: npt.ArrayLike) -> Ragged:
    """Tags [n, words] as lists."""
    y = np.asarray(target, float)
    if y.ndim != 2:
        raise BadInput(f"target of shape {y.shape} holds no tags; they are [n, words]", where=name)
    if not (np.isfinite(y).all() and (y >= -1).all()):
        raise BadInput("a tag is missing, infinite or below -1", where=name, remedy="pad rows with -1")
    return Ragged.of_padded(y)


def ranked_items(name: str, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Array, Array]:
    """Items, the best first [n, K], and one item a row [n]."""
    p, y = np.asarray(prediction, float), np.asarray(target, float)
    if p.ndim != 2 or y.shape != p.shape[:1] or not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise BadInput(f"needs ranked items [n, K] and one item a row, not {p.shape} and {y.shape}, all finite", where=name)
    return p, y


def group_codes(name: str, groups: npt.ArrayLike | None, count: int) -> Ints:
    """Groups [n] as whole numbers from 0. A missing one is refused: all of them would count as one user."""
    import pandas as pd

    if groups is None or len(np.asarray(groups)) != count:
        raise BadInput("needs a group per row", where=name, remedy="pass groups=")
    values = np.asarray(groups)
    missing = np.asarray(pd.isna(values))
    if missing.any():
        row = int(missing.argmax()) + 1
        raise BadInput(f"the group is missing in row {row}", where=name, remedy="leave out the rows without a group")
    return np.unique(values, return_inverse=True)[1].astype(np.intp)


def _fit(name: str, p: Array, y: Array) -> None:
    if p.ndim not in (1, 2) or y.shape != p.shape[:1]:
        raise BadInput(f"prediction of shape {p.shape} does not fit target of shape {y.shape}", where=name)


def _finite(name: str, p: Array, y: Array) -> None:
    for what, values in (("prediction", p), ("target", y)):
        if not np.isfinite(values).all():
            raise BadInput(f"a {what} is missing or infinite", where=name, remedy="pass labelled rows with finite numbers")


def _indices(name: str, p: Array, y: npt.NDArray[Any]) -> None:
    if len(y) and not (y.min() >= 0 and y.max() < p.shape[1]):
        raise BadInput(f"a target is not a class index below {p.shape[1]}", where=name)


def _zero_or_one(name: str, y: Array) -> None:
    if not ((y == 0) | (y == 1)).all():
        raise BadInput("a target is neither 0 nor 1", where=name, remedy="code the positive class as 1, the other as 0")


def _probable(name: str, p: Array) -> None:
    if p.size and not (p.min() >= -1e-9 and p.max() <= 1 + 1e-9):
        raise BadInput("a probability is not in [0, 1]", where=name, remedy="pass probabilities, not scores")
