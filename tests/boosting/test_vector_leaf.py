"""Vector-leaf boosting against scikit-learn and XGBoost-like formulas, and what masking must mean."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier
from sklearn.tree import DecisionTreeRegressor
from tests.boosting.tables import make_long, make_wide

from pluribus.boosting import MultiTaskBoosting, VectorLeafBoostingClassifier, VectorLeafBoostingRegressor

TREE = {"max_depth": 3, "max_leaf_nodes": None, "min_samples_leaf": 10, "min_child_weight": 0.0}
ONE = {"n_estimators": 1, "learning_rate": 1.0, "output_weight": None, **TREE}
EXACT = 1e-9


def test_one_tree_is_scikit_learns_multi_output_tree() -> None:
    """Squared error, lambda = 0, no hole: same splits, same leaf vectors, also at unseen points."""
    X, Y = make_wide()
    ours = VectorLeafBoostingRegressor(**ONE).fit(X, Y)
    theirs = DecisionTreeRegressor(max_depth=3, min_samples_leaf=10, random_state=0).fit(X, Y)
    X_new, _ = make_wide(1)
    np.testing.assert_allclose(ours.predict(X_new), theirs.predict(X_new), atol=EXACT)


def test_one_output_is_ordinary_boosting() -> None:
    """K = 1: scikit-learn's gradient boosting from the mean."""
    X, Y = make_wide()
    ours = VectorLeafBoostingRegressor(25, **TREE).fit(X, Y[:, 0])
    theirs = GradientBoostingRegressor(n_estimators=25, max_depth=3, min_samples_leaf=10, random_state=0).fit(X, Y[:, 0])
    X_new, _ = make_wide(1)
    np.testing.assert_allclose(ours.predict(X_new), theirs.predict(X_new), atol=EXACT)


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_one_binary_output_is_newton_boosting(missing: float) -> None:
    """K = 1 with log loss, lambda > 0 and missing inputs: scikit-learn's histogram booster, up to its single precision."""
    X, y, _ = make_long(0, n=500, missing=missing)
    c = (y > 0).astype(int)
    ours = VectorLeafBoostingClassifier(20, l2_regularization=0.5, **{**TREE, "max_depth": 2, "min_child_weight": 1e-3}).fit(X, c)
    theirs = HistGradientBoostingClassifier(
        max_iter=20, max_depth=2, max_leaf_nodes=None, min_samples_leaf=10, l2_regularization=0.5, early_stopping=False
    ).fit(X, c)
    X_new = make_long(1, missing=missing).X
    np.testing.assert_allclose(ours.predict_proba(X_new), theirs.predict_proba(X_new), atol=1e-4)


@pytest.mark.parametrize("sketch", [None, "top"])
def test_hand_written_leaf_values(sketch: str | None) -> None:
    """One stump on four rows with a hole: values -G / (H + lambda) on labelled rows, the parent's where a leaf has none."""
    X = np.array([[0.0], [0.0], [1.0], [1.0]])
    Y = np.array([[1.0, np.nan], [3.0, np.nan], [8.0, 2.0], [np.nan, 4.0]])
    settings: dict[str, Any] = {"n_estimators": 1, "learning_rate": 1.0, "l2_regularization": 1.0, "max_depth": 1}
    model = VectorLeafBoostingRegressor(**settings, sketch=sketch, sketch_size=2).fit(X, Y)
    # column 0: mean 4, left sum(y - 4) = -4 over 2 + 1, right 4 over 1 + 1; column 1: mean 3, right 0, left unlabelled: 0
    np.testing.assert_allclose(model.predict([[0.0], [1.0]]), [[4 - 4 / 3, 3.0], [4 + 4 / 2, 3.0]], atol=EXACT)


def test_leaf_without_a_label_keeps_its_parents_value() -> None:
    X = np.array([[0.0, 0.0]] * 4 + [[1.0, 0.0]] * 4 + [[1.0, 1.0]] * 4)
    first = np.repeat([0.0, 5.0, 9.0], 4)
    second = np.where(X[:, 0] == 0, 0.0, 6.0)
    second[X[:, 1] == 1] = np.nan  # no label of task 1 where x1 = 1
    model = VectorLeafBoostingRegressor(1, learning_rate=1.0, max_depth=2).fit(X, np.column_stack([first, second]))
    np.testing.assert_allclose(model.predict([[0, 0], [1, 0], [1, 1]]), [[0, 0], [5, 6], [9, 6]], atol=EXACT)


@hypothesis_settings(max_examples=15)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["regression", "binary"]))
def test_one_shared_mask_is_fitting_on_the_kept_rows(seed: int, kind: str) -> None:
    """Rows without any label must not matter: not for splits, leaves, starts or bins."""
    X, Y = make_wide(seed, n=120)
    Y = Y if kind == "regression" else (Y > 0).astype(float)
    gone = np.random.default_rng(seed).random(len(X)) < 0.4
    holes = Y.copy()
    holes[gone] = np.nan
    settings = {"tasks": kind, "n_estimators": 5, "max_depth": 3, "max_leaf_nodes": None}
    with_holes = MultiTaskBoosting(**settings).fit(X, holes)
    kept = MultiTaskBoosting(**settings).fit(X[~gone], Y[~gone])
    for a, b in zip(with_holes._raw(X, None), kept._raw(X, None)):
        np.testing.assert_array_equal(a, b)


def test_disjoint_masks_share_the_structure_but_no_label() -> None:
    """Labels that never meet in a row: a task's leaf values come from its own rows only."""
    X, Y = make_wide(0, n=400, tasks=2)
    half = np.arange(len(X)) < 200
    Y[half, 1] = np.nan
    Y[~half, 0] = np.nan
    model = VectorLeafBoostingRegressor(**ONE).fit(X, Y)
    forest = model.trees_
    leaf = np.zeros(len(X), dtype=int)
    for i, x in enumerate(X):
        node = 0
        while forest.feature[node] >= 0:
            node = (forest.left if x[forest.feature[node]] <= forest.threshold[node] else forest.right)[node]
        leaf[i] = node
    for node in np.unique(leaf):
        for k in range(2):
            own = (leaf == node) & ~np.isnan(Y[:, k])
            if own.any():
                assert model.start_[k] + forest.value[node, k] == pytest.approx(Y[own, k].mean(), abs=EXACT)


def test_permuting_the_outputs_permutes_the_leaves() -> None:
    X, Y = make_wide(2, tasks=4, missing=0.2)
    order = [2, 0, 3, 1]
    one = VectorLeafBoostingRegressor(10, **TREE).fit(X, Y)
    two = VectorLeafBoostingRegressor(10, **TREE).fit(X, Y[:, order])
    np.testing.assert_allclose(one.predict(X)[:, order], two.predict(X), atol=EXACT)


def test_gain_of_sum_cancels_and_sum_of_gains_does_not() -> None:
    """y2 = -y1: the summed gradient is exactly zero, so nothing can be split; the summed gains are those of one task."""
    X, Y = make_wide(0, tasks=1)
    Y = np.column_stack([Y, -Y])
    summed = VectorLeafBoostingRegressor(5, split_by="gain_of_sum").fit(X, Y)
    assert (summed.trees_.feature < 0).all()
    np.testing.assert_allclose(summed.predict(X), np.tile(Y.mean(axis=0), (len(X), 1)), atol=EXACT)
    gains = VectorLeafBoostingRegressor(5, **TREE).fit(X, Y)
    alone = VectorLeafBoostingRegressor(5, **TREE).fit(X, Y[:, 0])
    np.testing.assert_allclose(gains.predict(X)[:, 0], alone.predict(X), atol=EXACT)
    random = VectorLeafBoostingRegressor(5, split_by="gain_of_sum", emphasis="random", random_state=0).fit(X, Y)
    assert (random.trees_.feature >= 0).any()


def test_gain_of_sum_of_agreeing_tasks_is_that_of_one() -> None:
    """y2 = 3 y1: the norms bring both to one scale, so the structure is that of a single task."""
    X, Y = make_wide(0, tasks=1)
    both = VectorLeafBoostingRegressor(8, split_by="gain_of_sum", **TREE).fit(X, np.column_stack([Y, 3 * Y]))
    alone = VectorLeafBoostingRegressor(8, **TREE).fit(X, Y[:, 0])
    np.testing.assert_allclose(both.predict(X)[:, 0], alone.predict(X), atol=EXACT)
    np.testing.assert_allclose(both.predict(X)[:, 1], 3 * alone.predict(X), atol=EXACT)


def test_full_sketch_is_no_sketch_and_small_ones_still_learn() -> None:
    """k = K with P = I gives the same tree; leaf values use all outputs whatever the sketch."""
    X, Y = make_wide(0, tasks=6, missing=0.1)
    plain = VectorLeafBoostingRegressor(8, **TREE).fit(X, Y)
    full = VectorLeafBoostingRegressor(8, sketch="top", sketch_size=6, **TREE).fit(X, Y)
    np.testing.assert_array_equal(plain.predict(X), full.predict(X))
    constant = np.nanmean((Y - np.nanmean(Y, axis=0)) ** 2)
    for sketch in ("top", "sampling", "projection"):
        model = VectorLeafBoostingRegressor(40, sketch=sketch, sketch_size=2, random_state=0, **TREE).fit(X, Y)
        assert np.nanmean((Y - model.predict(X)) ** 2) < 0.5 * constant, sketch


def test_projection_onto_the_identity_is_the_tree_of_all_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = make_wide(0, tasks=4)

    class Identity(np.random.RandomState):
        def standard_normal(self, size: Any = None) -> Any:
            return np.eye(*size) * np.sqrt(size[1])

    settings = {"n_estimators": 5, "output_weight": None, **TREE}
    sketched = VectorLeafBoostingRegressor(sketch="projection", sketch_size=4, random_state=Identity(0), **settings).fit(X, Y)
    np.testing.assert_allclose(sketched.predict(X), VectorLeafBoostingRegressor(**settings).fit(X, Y).predict(X), atol=EXACT)


def test_output_weight_decides_between_outputs_of_different_scale() -> None:
    """Without weights the output of the largest variance decides the first split; "auto" takes scale out of it."""
    X, _ = make_wide(0)
    Y = np.column_stack([100 * (X[:, 0] > 0) + 60 * np.random.default_rng(0).standard_normal(len(X)), X[:, 1] > 0]).astype(float)
    settings = {"n_estimators": 1, "max_depth": 1}
    assert VectorLeafBoostingRegressor(output_weight=None, **settings).fit(X, Y).trees_.feature[0] == 0
    assert VectorLeafBoostingRegressor(output_weight="auto", **settings).fit(X, Y).trees_.feature[0] == 1
    assert VectorLeafBoostingRegressor(output_weight={0: 0.0, 1: 1.0}, **settings).fit(X, Y).trees_.feature[0] == 1


def test_mixed_kinds_each_learn_their_own_loss() -> None:
    """A mixed ensemble beats the constant in every task, in that task's own loss, with holes in all of them."""
    rng = np.random.default_rng(0)
    X, y, _ = make_long(0, n=600)
    labels: dict[str, Any] = {
        "value": y,
        "sign": np.where(y > 0, "up", "down").astype(object),
        "size": np.digitize(y, [-0.6, 0.6]).astype(object),
        "number": rng.poisson(np.exp(y)).astype(float),
    }
    for name in labels:
        labels[name] = labels[name].copy()
        labels[name][rng.random(len(y)) < 0.3] = None if labels[name].dtype == object else np.nan
    kinds = {"value": "regression", "sign": "binary", "size": "multiclass", "number": "count"}
    model = MultiTaskBoosting(kinds, 40).fit(X, labels)
    found, p = model.predict(X), model.predict_proba(X)
    assert set(found) == set(labels)
    assert set(p) == {"sign", "size"}
    assert set(np.unique(found["sign"])) == {"down", "up"}
    assert set(np.unique(found["size"])) == {0, 1, 2}
    assert np.mean(found["sign"] == np.where(y > 0, "up", "down")) > 0.9
    assert np.mean(found["size"] == np.digitize(y, [-0.6, 0.6])) > 0.85
    assert np.mean((found["value"] - y) ** 2) < 0.35 * np.var(y)
    assert (found["number"] > 0).all()
    assert np.corrcoef(found["number"], np.exp(y))[0, 1] > 0.7
    np.testing.assert_allclose(p["size"].sum(axis=1), 1)


def test_mixed_kinds_of_long_labels() -> None:
    X, y, task = make_long(0, tasks="ab")
    labels = np.where(task == "a", y, (y > 0).astype(float))
    model = MultiTaskBoosting({"a": "regression", "b": "binary"}, 30).fit(X, labels, task=task)
    found = model.predict(X, task)
    assert set(np.unique(found[task == "b"])) == {0.0, 1.0}
    assert np.mean((found - labels)[task == "a"] ** 2) < 0.3 * np.var(y)


def test_poisson_and_newton_steps_by_hand() -> None:
    """One constant leaf: count start log(mean), then no gradient is left; a stump moves by -G / H with h = e^(F + 0.7)."""
    X, y = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0.0, 2.0, 3.0, 3.0])
    model = MultiTaskBoosting("count", 1, learning_rate=1.0, max_depth=1).fit(X, y)
    mu = 2.0
    step = (np.array([2.0, 6.0]) - 2 * mu) / (2 * mu * np.exp(0.7))
    np.testing.assert_allclose(model.predict([[0.0], [1.0]]), mu * np.exp(step), rtol=EXACT)


def test_weights_equal_repetition() -> None:
    X, Y = make_wide(0, n=100, missing=0.2)
    w = np.random.default_rng(0).integers(0, 3, Y.shape)
    w[:, 1] = w[:, 0]
    w[:, 2] = w[:, 0]
    ours = VectorLeafBoostingRegressor(6, max_depth=3, min_child_weight=0.0).fit(X, Y, sample_weight=w)
    rows = np.repeat(np.arange(len(X)), w[:, 0])
    repeated = VectorLeafBoostingRegressor(6, max_depth=3, min_child_weight=0.0).fit(X[rows], Y[rows])
    np.testing.assert_allclose(ours.predict(X), repeated.predict(X), atol=EXACT)


def test_cell_weights_reach_their_own_task_only() -> None:
    """Doubling all weights of one task changes nothing with lambda = 0 and one tree structure fixed by the other tasks."""
    X, Y = make_wide(0)
    w = np.ones_like(Y)
    w[:, 2] = np.random.default_rng(0).uniform(0.1, 2, len(X))
    settings = {"output_weight": [1, 1, 0], "n_estimators": 5, **TREE}
    plain = VectorLeafBoostingRegressor(**settings).fit(X, Y).predict(X)
    weighted = VectorLeafBoostingRegressor(**settings).fit(X, Y, sample_weight=w).predict(X)
    np.testing.assert_allclose(plain[:, :2], weighted[:, :2], atol=EXACT)
    assert np.abs(plain[:, 2] - weighted[:, 2]).max() > 1e-3


def test_early_stopping_keeps_each_tasks_best_round() -> None:
    X, Y = make_wide(0, n=300)
    Y[:, 1] = np.random.default_rng(0).standard_normal(len(X))  # nothing to learn
    X_held, Y_held = make_wide(1, n=300)
    settings = {"learning_rate": 0.3, "early_stopping": True, "n_iter_no_change": 5}
    model = VectorLeafBoostingRegressor(100, **settings).fit(X, Y, eval_set=(X_held, Y_held))
    assert model.n_iter_task_[1] < 5 < model.n_iter_task_[0]
    late = np.repeat(np.arange(len(model.trees_)), np.diff(model.trees_.first)) >= model.n_iter_task_[1]
    assert (model.trees_.value[late, 1] == 0).all()


@hypothesis_settings(max_examples=15)
@given(seed=st.integers(0, 10_000), signs=st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1])))
def test_monotone_constraints_hold_task_by_task(seed: int, signs: tuple[int, int]) -> None:
    """Each task has its own direction; missing labels, missing inputs, deep trees."""
    rng = np.random.default_rng(seed)
    X, Y = make_wide(seed, n=150, tasks=2, missing=0.3)
    X[rng.random(X.shape) < 0.05] = np.nan
    Y = {"a": Y[:, 0], "b": np.where(np.isnan(Y[:, 1]), np.nan, Y[:, 1] > 0)}
    model = MultiTaskBoosting(
        {"a": "regression", "b": "binary"}, 8, learning_rate=0.5, monotone_constraints={"a": {0: signs[0]}, "b": {0: signs[1]}}
    ).fit(X, Y)
    grid = np.repeat(X[:20], 30, axis=0)
    grid[:, 0] = np.tile(np.linspace(-4, 4, 30), 20)
    for raw, sign in zip(model._raw(grid, None), signs):
        if sign:
            assert (sign * np.diff(raw.reshape(20, 30), axis=1) >= -1e-12).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_monotone_values_equal_lightgbms(seed: int) -> None:
    """One output: LightGBM's basic method has the same bounds and gains (scikit-learn drops the gain's quadratic term)."""
    X, Y = make_wide(seed)
    cst = [1, 0, -1, 0]
    ours = VectorLeafBoostingRegressor(15, monotone_constraints=cst, **TREE).fit(X, Y[:, 0])
    settings = {
        "objective": "l2",
        "num_leaves": 8,
        "max_depth": 3,
        "min_data_in_leaf": 10,
        "min_sum_hessian_in_leaf": 0,
        "verbose": -1,
        "monotone_constraints": cst,
        "monotone_constraints_method": "basic",
        "min_data_in_bin": 1,
        "num_threads": 1,
    }
    theirs = lightgbm.train(settings, lightgbm.Dataset(X, Y[:, 0], params=settings), 15)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-6)


def test_long_labels_are_a_block_diagonal_table() -> None:
    X, y, task = make_long()
    Y = np.full((len(X), 4), np.nan)
    Y[np.arange(len(X)), np.searchsorted(list("abcd"), task)] = y
    a = VectorLeafBoostingRegressor(5).fit(X, y, task=task).predict(X, task)
    b = VectorLeafBoostingRegressor(5).fit(X, Y).predict(X)
    np.testing.assert_array_equal(a, b[np.arange(len(X)), np.searchsorted(list("abcd"), task)])


def test_random_state_covers_sketch_sampling_and_holding_out() -> None:
    X, Y = make_wide(0, tasks=5)
    settings = {"sketch": "sampling", "sketch_size": 2, "subsample": 0.7, "colsample": 0.7, "early_stopping": True}
    a, b, c = (VectorLeafBoostingRegressor(8, random_state=s, **settings).fit(X, Y).predict(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0
