"""The baselines are what they say: LightGBM on the right rows, with the scores added back."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
from tests.boosting.tables import make_long, make_wide

from pluribus import boosting
from pluribus.boosting import rmb_cle

SETTINGS = {
    "objective": "regression",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "verbose": -1,
    "num_threads": 1,
    "min_data_in_bin": 1,
}


def test_per_task_is_lightgbm_on_each_tasks_rows() -> None:
    X, y, task = make_long()
    ours = boosting.PerTaskRegressor(20, random_state=0).fit(X, y, task=task).predict(X, task)
    for t in "abcd":
        own = task == t
        theirs = lightgbm.train(SETTINGS, lightgbm.Dataset(X[own], y[own], params=SETTINGS), 20)
        np.testing.assert_allclose(ours[own], theirs.predict(X[own]), atol=1e-4)


def test_wide_labels_with_holes_are_fitted_on_labelled_rows_only() -> None:
    """LightGBM itself reads a missing label as 0 without a word; the multi-output wrapper must not."""
    X, Y = make_wide(missing=0.5)
    Y += 20
    ours = boosting.PerTaskRegressor(20, random_state=0).fit(X, Y).predict(X)
    for k in range(Y.shape[1]):
        own = ~np.isnan(Y[:, k])
        theirs = lightgbm.train(SETTINGS, lightgbm.Dataset(X[own], Y[own, k], params=SETTINGS), 20)
        np.testing.assert_allclose(ours[:, k], theirs.predict(X), atol=1e-4)
        assert abs(ours[:, k].mean() - 20) < 1


def test_pooled_with_and_without_the_task_id() -> None:
    X, y, task = make_long()
    pooled = boosting.PooledRegressor(20, random_state=0).fit(X, y, task=task)
    theirs = lightgbm.train(SETTINGS, lightgbm.Dataset(X, y, params=SETTINGS), 20)
    np.testing.assert_allclose(pooled.predict(X, task), theirs.predict(X), atol=1e-4)
    with_id = boosting.PooledRegressor(60, task_id=True, random_state=0).fit(X, y, task=task)
    without = boosting.PooledRegressor(60, random_state=0).fit(X, y, task=task)
    errors = [np.mean((m.predict(X, task) - y)[task == "d"] ** 2) for m in (with_id, without)]
    assert errors[0] < errors[1]


def test_offset_adds_the_pooled_score_back() -> None:
    X, y, task = make_long()
    model = boosting.PooledOffsetRegressor(20, 15, random_state=0).fit(X, y, task=task)
    pooled = lightgbm.train(SETTINGS, lightgbm.Dataset(X, y, params=SETTINGS), 20).predict(X)
    for t in "abcd":
        own = task == t
        data = lightgbm.Dataset(X[own], y[own], init_score=pooled[own], params=SETTINGS)
        expected = pooled[own] + lightgbm.train(SETTINGS, data, 15).predict(X[own])
        np.testing.assert_allclose(model.predict(X[own], task[own]), expected, atol=1e-4)
    np.testing.assert_allclose(model.predict(X, ["zz"] * len(X)), pooled, atol=1e-4)


def test_early_stopping_stops_each_task_by_itself() -> None:
    X, y, task = make_long(n=800)
    y = np.where(task == "a", np.random.default_rng(0).standard_normal(len(y)), y)
    model = boosting.PerTaskRegressor(200, early_stopping=True, n_iter_no_change=5, random_state=0).fit(X, y, task=task)
    rounds = [0 if b is None else b.best_iteration for b in model.boosters_]
    assert rounds[0] < rounds[3]


def test_per_task_choice_takes_the_better_candidate_of_each_task() -> None:
    """Three tasks agree and have few rows, one disagrees and has many: it should get its own booster, they the joint one."""
    X, y, task = make_long(1, n=900)
    keep = (task == "d") | (np.arange(900) % 8 == 0)
    X, y, task = X[keep], y[keep], task[keep]
    candidates = [("joint", boosting.MTGBRegressor(40, 0)), ("own", boosting.MTGBRegressor(0, 40))]
    model = boosting.PerTaskChoiceRegressor(candidates, random_state=0).fit(X, y, task=task)
    choice = dict(zip(model.tasks_, model.choice_))
    assert choice["d"] == "own"
    np.testing.assert_array_equal(np.argmin(model.losses_, axis=0), [["joint", "own"].index(c) for c in model.choice_])
    own = task == "d"
    np.testing.assert_array_equal(model.predict(X[own], task[own]), model.fitted_["own"].predict(X[own], np.full(own.sum(), 3)))


def test_rmb_cle_recovers_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    X, task = rng.standard_normal((1800, 3)), rng.integers(0, 6, 1800)
    y = np.where(task % 2 == 0, np.sin(2 * X[:, 0]), X[:, 1]) + 0.1 * rng.standard_normal(1800)
    model = boosting.RMBCLERegressor(30, 10, random_state=0).fit(X, y, task=task)
    assert model.cluster_.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.mean((model.predict(X, task) - y) ** 2) < 0.1 * np.var(y)


def test_rmb_cle_with_one_cluster_is_pooling_plus_own_rounds() -> None:
    X, y, task = make_long()
    one = boosting.RMBCLERegressor(15, 10, n_clusters=1, random_state=0).fit(X, y, task=task)
    other = boosting.PooledOffsetRegressor(15, 10, random_state=0).fit(X, y, task=task)
    np.testing.assert_allclose(one.predict(X, task), other.predict(X, task), atol=1e-9)


@pytest.mark.parametrize("T", [1, 2, 5])
def test_tasks_without_structure_form_one_cluster(T: int) -> None:
    assert rmb_cle.clusters(np.ones((T, T)) - np.eye(T)).tolist() == [0] * T
