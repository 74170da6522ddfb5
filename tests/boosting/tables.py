"""Small tables whose features have few distinct values, so that the split search is exact."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Long(NamedTuple):
    X: Any
    y: Any
    task: Any


def make_long(seed: int = 0, n: int = 400, tasks: str = "abcd", missing: float = 0.0) -> Long:
    """Tasks share a function but for the last, whose sign is turned; features on a grid of eighths.

    Eighths are exact in single precision, in which scikit-learn's trees read their table.
    """
    rng = np.random.default_rng(seed)
    X = np.round(8 * rng.standard_normal((n, 4))) / 8
    task = rng.choice(list(tasks), n)
    y = np.where(task == tasks[-1], -1, 1) * np.sin(2 * X[:, 0]) + 0.3 * X[:, 1] + 0.1 * rng.standard_normal(n)
    X[rng.random(X.shape) < missing] = np.nan
    return Long(X, y, task)


def make_wide(seed: int = 0, n: int = 300, tasks: int = 3, missing: float = 0.0) -> tuple[Any, Any]:
    """Outputs of one table, on a grid of eighths."""
    rng = np.random.default_rng(seed)
    X = np.round(8 * rng.standard_normal((n, 4))) / 8
    Y = np.column_stack([np.sin(2 * X[:, k % 4]) + 0.5 * X[:, 3] for k in range(tasks)]) + 0.2 * rng.standard_normal((n, tasks))
    Y[rng.random(Y.shape) < missing] = np.nan
    return X, Y
