"""SHAP values: they sum to the score, equal the package shap's, and equal brute-force Shapley values."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from tests.boosting.tables import make_long, make_wide

from pluribus import boosting
from pluribus.boosting import shap_values, to_shap
from pluribus.errors import BadInput

EXACT = 1e-9


@pytest.mark.parametrize(
    "name", ["RMTGB", "MTGB", "PerTask", "Pooled", "PooledOffset", "RMBCLE", "VectorLeafBoosting", "PerTaskChoice"]
)
@pytest.mark.parametrize("kind", ["Regressor", "Classifier"])
def test_values_sum_to_the_score_of_each_task(name: str, kind: str) -> None:
    X, y, task = make_long(missing=0.1)
    y = y if kind == "Regressor" else (y > 0).astype(int)
    model = getattr(boosting, name + kind)(random_state=0).fit(X, y, task=task)
    for t in "ad":
        ids = [t] * 50
        values, base = shap_values(model, X[:50], t)
        total = base + values.sum(axis=1)
        if kind == "Regressor":
            np.testing.assert_allclose(total[:, 0], model.predict(X[:50], ids), atol=EXACT)
        else:
            margin = total[:, 1] - total[:, 0] if total.shape[1] == 2 else total[:, 0]
            np.testing.assert_allclose(margin, model.decision_function(X[:50], ids), atol=EXACT)


def test_equals_brute_force_over_coalitions() -> None:
    """Path-dependent expectation: outside the coalition a split sends a row both ways, weighted by cover."""
    X, Y = make_wide(n=150, tasks=2, missing=0.2)
    model = boosting.VectorLeafBoostingRegressor(3, learning_rate=1.0, max_depth=3).fit(X, Y)
    forest = model.trees_

    def expected(node: int, x: Any, known: tuple[int, ...]) -> Any:
        if forest.feature[node] < 0:
            return forest.value[node]
        l, r = forest.left[node], forest.right[node]
        if forest.feature[node] in known:
            return expected(l if x[forest.feature[node]] <= forest.threshold[node] else r, x, known)
        share = forest.cover[l] / forest.cover[node]
        return share * expected(l, x, known) + (1 - share) * expected(r, x, known)

    d = X.shape[1]
    for x in X[:3]:
        brute = np.zeros((d, 2))
        for j in range(d):
            others = [i for i in range(d) if i != j]
            for size in range(d):
                factor = math.factorial(size) * math.factorial(d - size - 1) / math.factorial(d)
                for known in itertools.combinations(others, size):
                    for root in forest.first[:-1]:
                        brute[j] += factor * (expected(root, x, (*known, j)) - expected(root, x, known))
        for t in range(2):
            np.testing.assert_allclose(shap_values(model, x[None], t)[0][0, :, 0], brute[:, t], atol=EXACT)


def test_export_equals_the_package_shap() -> None:
    shap = pytest.importorskip("shap")
    X, y, task = make_long(missing=0.1)
    model = boosting.RMTGBRegressor(8, 8, 8, random_state=0).fit(X, y, task=task)
    explainer = shap.TreeExplainer(to_shap(model, "d"))
    values, base = shap_values(model, X[:30], "d")
    np.testing.assert_allclose(explainer.shap_values(X[:30]), values[:, :, 0], atol=1e-6)
    assert explainer.expected_value == pytest.approx(base[0], abs=1e-6)
    found = boosting.explanation(model, X[:30], "d")
    np.testing.assert_array_equal(found.values, values[:, :, 0])


def test_categories_and_deep_trees() -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(0, 6, 300), *rng.standard_normal((3, 300))])
    y = np.isin(X[:, 0], [1, 4]) * X[:, 1] + X[:, 2]
    model = boosting.MTGBRegressor(10, 0, max_leaf_nodes=None, categorical_features=[0]).fit(X, y)
    values, base = shap_values(model, X, None)
    np.testing.assert_allclose(base[0] + values.sum(axis=(1, 2)), model.predict(X), atol=EXACT)
    with pytest.raises(BadInput, match="no categorical splits"):
        to_shap(model)


def test_the_task_must_be_a_fitted_one() -> None:
    X, y, task = make_long()
    model = boosting.RMTGBRegressor(2, 2, 2).fit(X, y, task=task)
    with pytest.raises(BadInput, match="say which one"):
        shap_values(model, X, None)
    with pytest.raises(BadInput, match="'zz' was not there at fit"):
        shap_values(model, X, "zz")
