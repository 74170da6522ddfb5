"""R-MTGB and MTGB against scikit-learn, a plain implementation of the algorithm, and what must hold for any data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.boosting_speed import plain_rmtgb
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor
from tests.boosting.tables import Long, make_long

from pluribus.boosting import MTGBClassifier, MTGBRegressor, RMTGBClassifier, RMTGBRegressor
from pluribus.boosting.rmtgb import theta_gradient

STUMPS = {"max_leaf_nodes": 2}
EXACT = 1e-9


def plain_gb(rounds: int, rate: float = 0.1, **tree: Any) -> GradientBoostingRegressor:
    tree = {"max_leaf_nodes": 2, "max_depth": None, **tree}
    return GradientBoostingRegressor(n_estimators=rounds, init="zero", learning_rate=rate, random_state=0, **tree)


@pytest.mark.parametrize("tree", [{"max_leaf_nodes": 2}, {"max_depth": 3, "max_leaf_nodes": None, "min_samples_leaf": 9}])
def test_shared_block_alone_is_pooled_gradient_boosting(long: Long, tree: dict[str, Any]) -> None:
    """Oracle (a): M2 = M3 = 0 equals scikit-learn's booster on the pooled rows, also at unseen points."""
    ours = RMTGBRegressor(30, 0, 0, **tree, random_state=0).fit(long.X, long.y, task=long.task)
    other = make_long(1)
    theirs = plain_gb(30, **tree).fit(long.X, long.y)
    np.testing.assert_allclose(ours.predict(other.X, other.task), theirs.predict(other.X), atol=EXACT)


def test_task_block_alone_is_one_booster_a_task(long: Long) -> None:
    """Oracle (b): M1 = M2 = 0 equals one scikit-learn booster a task."""
    ours = RMTGBRegressor(0, 0, 30, **STUMPS, random_state=0).fit(long.X, long.y, task=long.task)
    other = make_long(1)
    for t in "abcd":
        theirs = plain_gb(30).fit(long.X[long.task == t], long.y[long.task == t])
        X = other.X[other.task == t]
        np.testing.assert_allclose(ours.predict(X, np.full(len(X), t)), theirs.predict(X), atol=EXACT)


def test_theta_frozen_at_zero_halves_the_rate(long: Long) -> None:
    """Oracle (c): with every s_t = 1/2 both trees are alike and block 2 is pooled boosting at half the rate."""
    ours = RMTGBRegressor(0, 30, 0, **STUMPS, theta_init=0.0, theta_lr=0.0).fit(long.X, long.y, task=long.task)
    theirs = plain_gb(30, rate=0.05).fit(long.X, long.y)
    np.testing.assert_allclose(ours.predict(long.X, long.task), theirs.predict(long.X), atol=EXACT)


def test_saturated_theta_gives_two_independent_boosters(long: Long) -> None:
    """Oracle (d): s_t in {0, 1} splits block 2 in two boosters that see only their own tasks' residuals."""
    start = {"a": 1e3, "b": 1e3, "c": -1e3, "d": -1e3}
    ours = RMTGBRegressor(0, 20, 0, **STUMPS, theta_init=start, theta_lr=0.0).fit(long.X, long.y, task=long.task)
    expected = np.zeros(len(long.y))
    for side in ("ab", "cd"):
        own = np.isin(long.task, list(side))
        F = np.zeros(len(long.y))
        for _ in range(20):
            tree = DecisionTreeRegressor(max_leaf_nodes=2, random_state=0).fit(long.X, np.where(own, long.y - F, 0.0))
            F += 0.1 * tree.predict(long.X)
        expected[own] = F[own]
    np.testing.assert_allclose(ours.predict(long.X, long.task), expected, atol=EXACT)


def test_swapping_the_two_sides_changes_nothing(long: Long) -> None:
    """Oracle (e): theta -> -theta swaps F_out and F_non and leaves predictions and outlier scores alone."""
    theta = {"a": 0.3, "b": 0.1, "c": 0.2, "d": -0.2}
    one = RMTGBRegressor(5, 30, 5, theta_init=theta).fit(long.X, long.y, task=long.task)
    two = RMTGBRegressor(5, 30, 5, theta_init={t: -v for t, v in theta.items()}).fit(long.X, long.y, task=long.task)
    np.testing.assert_allclose(one.predict(long.X, long.task), two.predict(long.X, long.task), atol=EXACT)
    np.testing.assert_allclose(one.sigma_, 1 - two.sigma_, atol=EXACT)
    np.testing.assert_allclose(one.outlier_score_, two.outlier_score_, atol=EXACT)


def test_renaming_the_tasks_permutes_theta(long: Long) -> None:
    """Oracle (f)."""
    theta = {"a": 0.3, "b": 0.1, "c": 0.2, "d": -0.2}
    new = dict(zip("abcd", "dcba"))
    one = RMTGBRegressor(5, 20, 5, theta_init=theta).fit(long.X, long.y, task=long.task)
    renamed = np.array([new[t] for t in long.task])
    two = RMTGBRegressor(5, 20, 5, theta_init={new[t]: v for t, v in theta.items()}).fit(long.X, long.y, task=renamed)
    found = dict(zip(two.tasks_, two.theta_))
    np.testing.assert_allclose(one.theta_, [found[new[t]] for t in one.tasks_], atol=1e-7)


def test_theta_step_is_the_slope_of_the_task_loss() -> None:
    """Oracle (g): d_t equals a central difference of the loss of task t in theta_t."""
    rng = np.random.default_rng(0)
    task, y = rng.integers(0, 3, 60), rng.standard_normal(60)
    rest, out, non = rng.standard_normal((3, 60, 1))
    theta = rng.standard_normal(3)

    def loss(theta: Any) -> Any:
        s = 1 / (1 + np.exp(-theta))[task][:, None]
        each = 0.5 * (y[:, None] - rest - (1 - s) * non - s * out)[:, 0] ** 2
        return np.bincount(task, weights=each, minlength=3)

    s = 1 / (1 + np.exp(-theta))
    F = rest + (1 - s[task][:, None]) * non + s[task][:, None] * out
    slope = theta_gradient(y[:, None] - F, out - non, s, task)
    h = 1e-6
    for t in range(3):
        step = np.eye(3)[t] * h
        assert slope[t] == pytest.approx((loss(theta + step) - loss(theta - step))[t] / (2 * h), rel=1e-6)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_training_loss_never_rises_in_blocks_1_and_3(long: Long, rate: float) -> None:
    """Oracle (h): a least-squares step of 0 < nu <= 1 cannot raise the squared error."""
    seen: list[dict[str, Any]] = []
    RMTGBRegressor(15, 5, 15, learning_rate=rate, random_state=0, progress=seen.append).fit(long.X, long.y, task=long.task)
    for block in ("shared", "task"):
        losses = [round_["train"] for round_ in seen if round_["block"] == block]
        assert len(losses) == 15
        assert (np.diff(losses) <= 1e-12).all()


def test_predicting_a_subset_gives_the_same_numbers(long: Long) -> None:
    """Oracle (i): the map of task ids is fitted; rows of one task alone get that task's theta and trees."""
    model = RMTGBRegressor(5, 10, 10, random_state=0).fit(long.X, long.y, task=long.task)
    everything = model.predict(long.X, long.task)
    for t in "bd":
        own = long.task == t
        np.testing.assert_array_equal(model.predict(long.X[own], long.task[own]), everything[own])


@pytest.mark.parametrize("tree", [{"max_leaf_nodes": 2}, {"max_depth": 3, "min_samples_leaf": 8}])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_equals_the_plain_implementation(classes: int, tree: dict[str, Any]) -> None:
    """All three blocks and theta, regression and softmax, against the algorithm written down with scikit-learn's trees."""
    X, y, names = make_long(2, n=500)
    task = np.searchsorted(list("abcd"), names)
    y = y if classes == 0 else (y > 0).astype(int) if classes == 2 else np.digitize(y, [-0.5, 0.5])
    theta = np.array([0.1, -0.05, 0.2, -0.1])
    kind = RMTGBClassifier if classes else RMTGBRegressor
    settings = {"max_leaf_nodes": None, **tree}
    ours = kind(6, 8, 6, theta_init=theta, **settings).fit(X, y, task=task)
    theirs = plain_rmtgb(X, y, task, (6, 8, 6), theta=theta, n_classes=classes, **tree)
    np.testing.assert_allclose(ours._raw(X, task), theirs(X, task), atol=EXACT)
    np.testing.assert_allclose(ours.theta_, theirs.theta, atol=EXACT)


def test_finds_the_outlier_task_and_helps_it() -> None:
    """The method's point: the task with another function gets another mix, and a smaller error than by pooling."""
    X, y, task = make_long(0, n=800)
    other = make_long(1, n=800)
    robust = RMTGBRegressor(0, 60, 0, random_state=0).fit(X, y, task=task)
    assert np.argmax(robust.outlier_score_) == list(robust.tasks_).index("d")
    assert robust.outlier_score_.max() > 0.5
    pooled = RMTGBRegressor(60, 0, 0, random_state=0).fit(X, y, task=task)
    own = other.task == "d"
    errors = [np.mean((m.predict(other.X[own], other.task[own]) - other.y[own]) ** 2) for m in (robust, pooled)]
    assert errors[0] < 0.5 * errors[1]


def test_mtgb_is_rmtgb_without_its_second_block(long: Long) -> None:
    settings = {"max_leaf_nodes": 5, "random_state": 0}
    one = MTGBRegressor(12, 8, **settings).fit(long.X, long.y, task=long.task)
    two = RMTGBRegressor(12, 0, 8, **settings).fit(long.X, long.y, task=long.task)
    np.testing.assert_array_equal(one.predict(long.X, long.task), two.predict(long.X, long.task))
    c = (long.y > 0).astype(int)
    one = MTGBClassifier(6, 4, **settings).fit(long.X, c, task=long.task)
    two = RMTGBClassifier(6, 0, 4, **settings).fit(long.X, c, task=long.task)
    np.testing.assert_array_equal(one.predict_proba(long.X, long.task), two.predict_proba(long.X, long.task))


def test_theta_options_do_what_they_say(long: Long) -> None:
    """The mean step is the sum step divided by the rows of the task; theta_l2 shrinks; theta_lr scales."""
    start = dict.fromkeys("abcd", 0.5)
    two = {"n_shared": 3, "n_outlier": 2, "n_task": 0, "theta_init": {**start, "d": -0.5}}

    def moved(**more: Any) -> Any:
        return RMTGBRegressor(**two, **more).fit(long.X, long.y, task=long.task).theta_ - np.array([0.5, 0.5, 0.5, -0.5])

    rows = np.array([(long.task == t).sum() for t in "abcd"])
    by_sum = moved()
    assert np.abs(by_sum).min() > 0
    np.testing.assert_allclose(moved(theta_step="mean"), by_sum / rows, rtol=1e-9)
    np.testing.assert_allclose(moved(theta_lr=0.2), 2 * by_sum, rtol=1e-9)
    shrunk = moved(theta_lr=0.1, theta_l2=0.5, theta_step="mean")
    assert abs(shrunk[0] + 0.5) < 0.5


def test_unseen_task_gets_the_majority(long: Long) -> None:
    """F_sh plus the median mix, no F_t: so a booster of shared trees only gives an unseen task what all others get."""
    model = RMTGBRegressor(10, 10, 5, random_state=0).fit(long.X, long.y, task=long.task)
    shared, out, non = model._parts(long.X)
    s = np.median(model.sigma_)
    np.testing.assert_allclose(model.predict(long.X, ["zz"] * len(long.X)), (shared + (1 - s) * non + s * out)[:, 0], atol=EXACT)


def test_early_stopping_by_block_and_task() -> None:
    """Each block keeps its best round on held-out rows; tasks stop block 3 by themselves; the kept trees are the best ones."""
    X, y, task = make_long(3, n=300)
    y = y + np.random.default_rng(0).standard_normal(len(y)) * np.where(task == "a", 2.0, 0.1)  # nothing to learn for a
    held = make_long(4, n=300)
    settings = {"learning_rate": 0.3, "early_stopping": True, "n_iter_no_change": 5, "random_state": 0}
    model = RMTGBRegressor(200, 50, 60, **settings).fit(X, y, task=task, eval_set=(held.X, held.y, held.task))
    assert model.n_iter_shared_ < 200
    assert model.n_iter_task_[0] < model.n_iter_task_[3]
    kept = {"n_shared": model.n_iter_shared_, "n_outlier": model.n_iter_outlier_}
    again = RMTGBRegressor(**kept, n_task=int(model.n_iter_task_[3]), learning_rate=0.3, random_state=0).fit(X, y, task=task)
    own = task == "d"
    np.testing.assert_allclose(model.predict(X[own], task[own]), again.predict(X[own], task[own]), atol=EXACT)


def test_random_state_covers_everything_and_threads_change_nothing(long: Long) -> None:
    settings = {"subsample": 0.6, "colsample": 0.5, "early_stopping": True}
    fits = [RMTGBRegressor(8, 8, 8, random_state=s, n_jobs=j, **settings) for s, j in ((1, None), (1, 2), (2, None))]
    np.random.seed(0)
    a, b, c = (m.fit(long.X, long.y, task=long.task).predict(long.X, long.task) for m in fits)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


def test_rows_left_out_by_subsampling_are_scored_too() -> None:
    """The cached scores equal the sum of the trees: else residuals would be wrong for the rows not drawn."""
    X, y, task = make_long(5, missing=0.1)
    seen: list[float] = []
    model = RMTGBRegressor(10, 10, 10, subsample=0.4, random_state=0, progress=lambda r: seen.append(r["train"])).fit(
        X, y, task=task
    )
    assert seen[-1] == pytest.approx(0.5 * np.mean((y - model.predict(X, task)) ** 2), rel=1e-9)


def test_class_absent_from_a_task_and_task_of_one_row() -> None:
    X, y, task = make_long()
    c = np.where(task == "a", "no", np.where(y > 0, "yes", "no"))
    task = task.copy()
    task[0] = "single"
    model = RMTGBClassifier(10, 5, 10, random_state=0).fit(X, c, task=task)
    p = model.predict_proba(X, task)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (model.predict(X[task == "a"], task[task == "a"]) == "no").all()


@hypothesis_settings(max_examples=15)
@given(seed=st.integers(0, 10_000), sign=st.sampled_from([-1, 1]), classify=st.booleans())
def test_monotone_constraints_hold_on_random_inputs(seed: int, sign: int, classify: bool) -> None:
    """A larger constrained feature never lowers (raises) the prediction of any task."""
    X, y, task = make_long(seed, n=150, missing=0.05)
    settings = {"monotone_constraints": {0: sign}, "random_state": seed, "learning_rate": 0.5}
    kind = RMTGBClassifier if classify else RMTGBRegressor
    model = kind(4, 4, 4, **settings).fit(X, (y > 0).astype(int) if classify else y, task=task)
    grid = np.repeat(X[:20], 30, axis=0)
    grid[:, 0] = np.tile(np.linspace(-4, 4, 30), 20)
    ids = np.repeat(task[:20], 30)
    f = model.decision_function(grid, ids) if classify else model.predict(grid, ids)
    assert (sign * np.diff(f.reshape(20, 30), axis=1) >= -1e-12).all()


def test_wide_labels_with_holes_equal_the_long_ones() -> None:
    """fit(X, Y with NaN) is fit on the labelled cells, one task a column."""
    X, y, task = make_long()
    Y = np.full((len(X), 4), np.nan)
    code = np.searchsorted(list("abcd"), task)
    Y[np.arange(len(X)), code] = y
    theta = [0.1, 0.2, -0.1, -0.3]
    wide = RMTGBRegressor(5, 5, 5, theta_init=theta).fit(X, Y)
    long_ = RMTGBRegressor(5, 5, 5, theta_init=theta).fit(X, y, task=task)
    np.testing.assert_array_equal(wide.predict(X)[np.arange(len(X)), code], long_.predict(X, task))


def test_importances_by_block_and_task(long: Long) -> None:
    """Feature 0 carries the tasks' functions, feature 3 carries nothing; a block without trees has no gain."""
    model = RMTGBRegressor(20, 0, 20, random_state=0).fit(long.X, long.y, task=long.task)
    blocks = model.importances()
    assert blocks["outlier"].sum() == 0
    assert blocks["task"][0] > 5 * blocks["task"][3]
    each = sum(model.importances(t)["task"] for t in "abcd")
    np.testing.assert_allclose(each, blocks["task"])
    assert model.feature_importances_.sum() == pytest.approx(1)
