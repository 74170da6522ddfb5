"""SHAP values a task: path-dependent TreeSHAP (Lundberg et al., Nature Machine Intelligence 2020, algorithm 2).

For task t and row x: raw score = base + sum of the values of the features, exactly. The score of an R-MTGB task is a
weighted sum of its blocks' trees, and Shapley values are linear, so the blocks are added with the weights they enter with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from pluribus.boosting.cells import LONG, read_task, task_index
from pluribus.boosting.columns import is_frame
from pluribus.boosting.histogram import Floats, kernels
from pluribus.boosting.tree import TreeArrays
from pluribus.errors import BadInput, require


def shap_values(model: Any, X: Any, task: Any) -> tuple[Floats, Floats]:
    """SHAP values of the raw scores of one task.

    model: a fitted booster of this package; X: rows as at fit; task: one fitted task's id (None for a single task).
    Returns (values [n, features, outputs], base [outputs]); base + values.sum(axis=1) is the raw score: the value for
    regression, log-odds for binary, log-mean for counts, one score a class otherwise (and for R-MTGB classifiers).
    """
    check_is_fitted(model, "tasks_")
    t = _number(model, task)
    table, _, _ = model._read_table(X, None)
    if hasattr(model, "_contributions"):  # LightGBM's trees explain themselves; a choice asks the chosen booster
        found: tuple[Floats, Floats] = model._contributions(table, t)
        return found
    base = np.array(model._start(t), dtype=np.float64)
    phi = np.zeros((*table.shape, len(base)))
    for trees, factor in model._pieces(t):
        if len(trees) and factor != 0.0:
            base += factor * expectation(trees)
            kernels().shapley(
                table,
                np.arange(len(table)),
                trees.first[:-1],
                trees.feature,
                trees.threshold,
                trees.missing_left,
                trees.mask_of,
                trees.masks,
                trees.left,
                parents(trees),
                trees.cover,
                trees.value,
                trees.first,
                float(factor),
                phi,
            )
    return phi, base


def explanation(model: Any, X: Any, task: Any = None, output: int = 0) -> Any:
    """The SHAP values of one output as a `shap.Explanation`, for the plots of the package shap."""
    shap = require("shap", extra="boost", purpose="a shap.Explanation")
    values, base = shap_values(model, X, task)
    names = list(X.columns) if is_frame(X) else None
    data = X.to_numpy() if is_frame(X) else np.asarray(X)
    return shap.Explanation(values[:, :, output], np.full(len(values), base[output]), data=data, feature_names=names)


def to_shap(model: Any, task: Any = None, output: int = 0) -> dict[str, Any]:
    """One output of one task as the dict of trees that `shap.TreeExplainer` takes as a model (numeric features only)."""
    check_is_fitted(model, "tasks_")
    if not hasattr(model, "_pieces"):
        raise BadInput(f"{type(model).__name__} has no trees of its own", remedy="give its boosters to shap, or use shap_values")
    if model.columns_.categorical.any():
        raise BadInput("shap's trees know no categorical splits", remedy="use shap_values or explanation")
    t = _number(model, task)
    trees = []
    for forest, factor in model._pieces(t):
        for a, b in zip(forest.first[:-1], forest.first[1:]):
            inner = forest.feature[a:b] >= 0
            left = np.where(inner, forest.left[a:b] - a, -1).astype(np.int32)
            right = np.where(inner, forest.right[a:b] - a, -1).astype(np.int32)
            trees.append(
                {
                    "children_left": left,
                    "children_right": right,
                    "children_default": np.where(forest.missing_left[a:b], left, right).astype(np.int32),
                    "features": np.where(inner, forest.feature[a:b], -2).astype(np.int32),
                    "thresholds": forest.threshold[a:b].copy(),
                    "values": factor * forest.value[a:b, output : output + 1],
                    "node_sample_weight": forest.cover[a:b].copy(),
                }
            )
    return {
        "trees": trees,
        "base_offset": float(model._start(t)[output]),
        "tree_output": "raw_value",
        "objective": "squared_error",
        "input_dtype": np.float64,
        "internal_dtype": np.float64,
    }


def expectation(trees: TreeArrays) -> Floats:
    """Sum over the trees of their mean leaf value, weighted by cover, [K]."""
    root = np.repeat(trees.first[:-1], np.diff(trees.first))
    leaf = trees.feature < 0
    weight = trees.cover[leaf] / trees.cover[root[leaf]]
    total: Floats = (weight[:, None] * trees.value[leaf]).sum(axis=0)
    return total


def parents(trees: TreeArrays) -> Any:
    """The parent of every node (of a root: itself)."""
    parent = np.arange(len(trees.feature))
    inner = np.flatnonzero(trees.feature >= 0)
    parent[trees.left[inner]] = inner
    parent[trees.right[inner]] = inner
    return parent


def _number(model: Any, task: Any) -> int:
    if task is None:
        if len(model.tasks_) > 1:
            raise BadInput("the booster has several tasks", where="task", remedy="say which one to explain")
        return 0
    if model.form_ == LONG or task in model.tasks_:
        return int(task_index(model.tasks_, read_task([task], 1), "error")[0])
    raise BadInput(f"task {task!r} was not there at fit", where="task", remedy=f"use one of {list(model.tasks_)[:12]}")
