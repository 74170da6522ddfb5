"""Metrics of ranked items: lists of items, the best first [n, K], and the one item that was meant [n].

`recall@k` is the share of rows whose item is among the first k; `mrr` the mean of 1 / place of the item, 0 where it is not in
the list.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pluribus.evaluation.metrics import checks
from pluribus.evaluation.metrics.parts import mean, with_ones
from pluribus.tasks.metrics import Additive
from pluribus.tasks.weightings import Array

_RANKED = 50
_ITEMS = ("next_item",)


def _among(k: int) -> Callable[[Array, Array], Array]:
    return lambda p, y: (p[:, :k] == y[:, None]).any(1).astype(float)


def _reciprocal_rank(p: Array, y: Array) -> Array:
    found: Array = ((p == y[:, None]) / np.arange(1, p.shape[1] + 1)).sum(1)
    return found


def _popular(target: npt.ArrayLike, weight: Array) -> Array:
    """The most frequent items, the best first."""
    return np.argsort(-np.bincount(np.asarray(target, np.intp), weight), kind="stable")[:_RANKED].astype(float)


def _metric(name: str, loss: Callable[[Array, Array], Array]) -> Additive:
    return Additive(
        name, "max", _ITEMS, terms=with_ones(loss), finish=mean, check=checks.ranked_items, best=1.0, constant=_popular
    )


RECALL_10 = _metric("recall@10", _among(10))
RECALL_20 = _metric("recall@20", _among(20))
RECALL_50 = _metric("recall@50", _among(50))
MRR = _metric("mrr", _reciprocal_rank)
