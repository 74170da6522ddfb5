"""The parameters that several boosters share, each named once; scikit-learn reads them off the generated constructors.

Equality and printing stay scikit-learn's, hence `eq=False, repr=False` on every class of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(eq=False, repr=False)
class Common:
    """What every booster takes."""

    _: KW_ONLY
    categorical_features: Any = "from_dtype"
    unknown_task: str = "majority"
    validation_fraction: float = 0.1
    progress: bool | Callable[[dict[str, Any]], Any] = False
    n_jobs: int | None = None
    random_state: Any = None


@dataclass(eq=False, repr=False)
class EarlyStopping(Common):
    """When rounds end."""

    _: KW_ONLY
    early_stopping: bool = False
    n_iter_no_change: int = 10


@dataclass(eq=False, repr=False)
class TreeSettings(Common):
    """How trees are grown, and the rate at which they are added."""

    _: KW_ONLY
    learning_rate: float = 0.1
    max_depth: int | None = None
    max_leaf_nodes: int | None = 31
    min_samples_leaf: int = 1
    l2_regularization: float = 0.0
    min_split_gain: float = 0.0
    subsample: float = 1.0
    colsample: float = 1.0
    max_bins: int = 255
    monotone_constraints: Any = None
