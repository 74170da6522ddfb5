"""The names of the metrics, which direction is better, and which kinds of task they judge.

Only names live here, so that a `Task` can be declared and checked without loading any computation; the computations are in
`pluribus.evaluation.metrics`, and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pluribus.errors import unknown

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Metric:
    """A metric by name. `direction` says what is better; `kinds` which kinds of task it judges (empty: any)."""

    name: str
    direction: Direction
    kinds: tuple[str, ...] = ()


_CLASSES = ("binary", "multiclass", "ordinal")
_NUMBERS = ("regression", "count")

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("auc", "max", ("binary",)),
        Metric("gini", "max", ("binary",)),
        Metric("ks", "max", ("binary",)),
        Metric("pr_auc", "max", ("binary",)),
        Metric("gauc", "max", ("binary",)),
        Metric("uauc", "max", ("binary",)),
        Metric("macro_auc", "max", ("multiclass", "ordinal")),
        Metric("logloss", "min", _CLASSES),
        Metric("brier", "min", _CLASSES),
        Metric("ne", "min", ("binary",)),
        Metric("ece", "min", ("binary",)),
        Metric("pcoc", "min", ("binary",)),  # judged by its distance from 1
        Metric("accuracy", "max", _CLASSES),
        Metric("balanced_accuracy", "max", _CLASSES),
        Metric("f1", "max", _CLASSES),
        Metric("qwk", "max", ("ordinal",)),
        Metric("rmse", "min", _NUMBERS),
        Metric("mae", "min", _NUMBERS),
        Metric("mape", "min", _NUMBERS),
        Metric("r2", "max", _NUMBERS),
        Metric("explained_variance", "max", _NUMBERS),
        Metric("spearman", "max", _NUMBERS),
        Metric("poisson_deviance", "min", ("count",)),
        Metric("recall@10", "max", ("next_item",)),
        Metric("recall@20", "max", ("next_item",)),
        Metric("recall@50", "max", ("next_item",)),
        Metric("mrr", "max", ("next_item",)),
        Metric("token_accuracy", "max", ("tagging",)),
        Metric("span_f1", "max", ("tagging",)),
    )
}


def metric(name: str, *, where: str | None = None) -> Metric:
    """The metric called `name`; an unknown name is an error that suggests the nearest."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS, where=where)
    return METRICS[name]
