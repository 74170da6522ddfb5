"""Pluribus: out of many tasks, one model.

The public face is lazy: importing the package loads nothing heavy; each name below is fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_FACE: dict[str, str] = {
    "Ledger": "pluribus.evaluation.ledger:Ledger",
    "MultiTaskClassifier": "pluribus.study.estimator:MultiTaskClassifier",
    "MultiTaskEstimator": "pluribus.study.estimator:MultiTaskEstimator",
    "MultiTaskModel": "pluribus.modeling:MultiTaskModel",
    "MultiTaskRegressor": "pluribus.study.estimator:MultiTaskRegressor",
    "Study": "pluribus.study:Study",
    "Table": "pluribus.data.table:Table",
    "Task": "pluribus.tasks:Task",
    "Trainer": "pluribus.training:Trainer",
    "combine": "pluribus.balancing:combine",
    "compare": "pluribus.evaluation.compare:compare",
    "load": "pluribus.modeling:load",
    "merge": "pluribus.merging:merge",
}

__all__ = ["__version__", *sorted(_FACE)]


def __getattr__(name: str) -> Any:
    target = _FACE.get(name)
    if target is None:
        raise AttributeError(f"module 'pluribus' has no attribute {name!r}")
    module, _, attribute = target.partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
