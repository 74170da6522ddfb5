"""Boosting for several tasks: scikit-learn estimators that take long and wide labels, with holes.

    VectorLeafBoostingRegressor, VectorLeafBoostingClassifier, MultiTaskBoosting   one structure, a leaf value a task
    RMTGBRegressor, RMTGBClassifier                                                robust: finds the outlier tasks
    MTGBRegressor, MTGBClassifier                                                  shared rounds, then rounds a task
    PerTask…, Pooled…, PooledOffset…                                               the baselines, on LightGBM's trees
    RMBCLERegressor, RMBCLEClassifier                                              clusters of tasks, pooled
    PerTaskChoiceRegressor, PerTaskChoiceClassifier                                per task the best of several, by validation
    shap_values, to_shap, explanation                                              TreeSHAP a task
    load                                                                           what `save` wrote
    LightGBMPerTask, LightGBMTuned, LightGBMPooled                                 candidates of a study

Names are imported on first use: a study that only wants LightGBM's models compiles nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "VectorLeafBoostingRegressor": "vector_leaf",
    "VectorLeafBoostingClassifier": "vector_leaf",
    "MultiTaskBoosting": "vector_leaf",
    "RMTGBRegressor": "rmtgb",
    "RMTGBClassifier": "rmtgb",
    "MTGBRegressor": "rmtgb",
    "MTGBClassifier": "rmtgb",
    "PerTaskRegressor": "wrappers",
    "PerTaskClassifier": "wrappers",
    "PooledRegressor": "wrappers",
    "PooledClassifier": "wrappers",
    "PooledOffsetRegressor": "wrappers",
    "PooledOffsetClassifier": "wrappers",
    "RMBCLERegressor": "rmb_cle",
    "RMBCLEClassifier": "rmb_cle",
    "PerTaskChoiceRegressor": "choice",
    "PerTaskChoiceClassifier": "choice",
    "shap_values": "treeshap",
    "to_shap": "treeshap",
    "explanation": "treeshap",
    "load": "storage",
    "LightGBMPerTask": "baselines",
    "LightGBMPooled": "baselines",
    "LightGBMTuned": "baselines",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'pluribus.boosting' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pluribus.boosting.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
