"""Own trees: each task goes on alone from the shared trees, and keeps its trees where they help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from pluribus.boosting import MultiTaskBoosting, VectorLeafBoostingRegressor, load, shap_values
from pluribus.boosting.candidates import VectorLeafCandidate
from pluribus.boosting.own_trees import gain_and_error
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget

SETTINGS: dict[str, Any] = {"learning_rate": 0.3, "max_leaf_nodes": 4, "early_stopping": True, "n_iter_no_change": 8}


def _apart(n: int = 900, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Two targets that need different columns, the second alone a fine function of its own: (X, Y) to fit on and held out."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 20, (n, 4)).astype(float)
    Y = np.column_stack([X[:, 0] + rng.normal(size=n), 3 * np.sin(X[:, 1]) + 0.1 * rng.normal(size=n)])
    cut = 2 * n // 3
    return X[:cut], Y[:cut], X[cut:], Y[cut:]


def test_gain_and_error_by_hand() -> None:
    """Broken: rows of one unit count as independent evidence. Means of units -1, 1, 3: error sqrt(4/3) like any mean of three."""
    found = gain_and_error(np.array([-1.0, 1.0, 3.0]), None, np.array([7, 3, 5]))
    assert found == (1.0, pytest.approx(np.sqrt(4 / 3)))
    doubled = gain_and_error(np.repeat([-1.0, 1.0, 3.0], 2), None, np.repeat([7, 3, 5], 2))
    assert doubled == (1.0, pytest.approx(np.sqrt(4 / 3)))
    weighted = gain_and_error(np.array([-1.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0]), np.array([7, 3, 5]))
    assert weighted == (1.0, pytest.approx(np.sqrt(4 / 3)))
    assert gain_and_error(np.ones(4), None, np.zeros(4)) == (1.0, np.inf)
    assert gain_and_error(np.ones(2), np.zeros(2), np.arange(2)) == (0.0, np.inf)


def test_they_are_ordinary_boosting_from_the_shared_scores() -> None:
    """Oracle: scikit-learn's trees on the residuals of the shared part, one after another."""
    X, Y, X_held, Y_held = _apart()
    model = VectorLeafBoostingRegressor(40, own_trees=True, min_samples_leaf=5, **SETTINGS).fit(X, Y, eval_set=(X_held, Y_held))
    assert 1 in model.own_trees_
    F = model._shared(X)[:, 1]
    theirs = model._shared(X_held)[:, 1]
    for _ in range(len(model.own_trees_[1])):
        tree = DecisionTreeRegressor(max_leaf_nodes=4, min_samples_leaf=5).fit(X, Y[:, 1] - F)
        F += 0.3 * tree.predict(X)
        theirs += 0.3 * tree.predict(X_held)
    np.testing.assert_allclose(model.predict(X_held)[:, 1], theirs, rtol=1e-9)
    assert np.mean((theirs - Y_held[:, 1]) ** 2) < 0.8 * np.mean((model._shared(X_held)[:, 1] - Y_held[:, 1]) ** 2)


def test_shared_trees_do_not_know_of_them() -> None:
    """Broken: own trees change what the others answer. Holes, mixed kinds, drawn rows and columns."""
    X, Y, X_held, Y_held = _apart(1500)
    labels = {"a": np.where(np.arange(len(Y)) % 3 == 0, np.nan, Y[:, 0]), "b": Y[:, 1], "c": (X[:, 3] > 9).astype(float)}
    held = {"a": Y_held[:, 0], "b": Y_held[:, 1], "c": (X_held[:, 3] > 9).astype(float)}
    kinds = {"a": "regression", "b": "regression", "c": "binary"}
    drawn = {"subsample": 0.7, "colsample": 0.6, "random_state": 0, **SETTINGS}
    plain = MultiTaskBoosting(kinds, 60, **drawn).fit(X, labels, eval_set=(X_held, held))
    alone = MultiTaskBoosting(kinds, 60, own_trees=True, **drawn).fit(X, labels, eval_set=(X_held, held))
    assert "b" in alone.own_trees_
    np.testing.assert_array_equal(plain.trees_.value, alone.trees_.value)
    before, after = plain.predict(X_held), alone.predict(X_held)
    odds = [model.answers(X_held, ["c"])["c"] for model in (plain, alone)]
    assert np.array_equal(*odds) == ("c" not in alone.own_trees_)
    for name in ("a", "b"):
        same = np.array_equal(before[name], after[name])
        assert same == (name not in alone.own_trees_), name


def test_what_may_be_chance_is_not_kept() -> None:
    """Labels that are noise, and a gain that rests on a single unit."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 3))
    noise = rng.normal(size=(600, 8))
    fit, held = slice(0, 400), slice(400, 600)
    model = VectorLeafBoostingRegressor(50, own_trees=True, **SETTINGS)
    model.fit(X[fit], noise[fit], eval_set=(X[held], noise[held]))
    assert len(model.own_trees_) <= 2
    X_fit, Y, X_held, Y_held = _apart()
    for units, kept in ((np.arange(len(X_held)), True), (np.zeros(len(X_held)), False)):
        model.fit(X_fit, Y, eval_set=(X_held, Y_held, None, units))
        assert bool(model.own_trees_) == kept


def test_saved_explained_and_weighed(tmp_path: Path) -> None:
    """Broken: a folder, SHAP values or importances forget the own trees."""
    X, Y, X_held, Y_held = _apart()
    model = VectorLeafBoostingRegressor(40, own_trees=True, **SETTINGS).fit(X, Y, eval_set=(X_held, Y_held))
    model.save(tmp_path / "own")
    again = load(tmp_path / "own")
    np.testing.assert_array_equal(again.predict(X_held), model.predict(X_held))
    values, base = shap_values(again, X_held, 1)
    np.testing.assert_allclose(base + values.sum(axis=1), model.predict(X_held)[:, 1:], rtol=1e-9)
    gains = again.importances(1)
    assert gains["own_trees"][1] > gains["own_trees"][3]
    assert again.feature_importances_.sum() == pytest.approx(1)


def test_folders_without_them_still_load(tmp_path: Path) -> None:
    """A folder that an earlier version wrote has no word of own trees."""
    X, Y, _, _ = _apart()
    model = VectorLeafBoostingRegressor(5).fit(X, Y)
    model.save(tmp_path / "old")
    path = tmp_path / "old" / "pluribus.json"
    record = json.loads(path.read_text("utf-8"))
    del record["state"]["own_trees_"], record["parameters"]["own_trees"]
    path.write_text(json.dumps(record), "utf-8")
    np.testing.assert_array_equal(load(tmp_path / "old").predict(X), model.predict(X))


def test_damaged_own_trees_are_named(tmp_path: Path) -> None:
    X, Y, X_held, Y_held = _apart()
    VectorLeafBoostingRegressor(20, own_trees=True, **SETTINGS).fit(X, Y, eval_set=(X_held, Y_held)).save(tmp_path / "own")
    path = tmp_path / "own" / "pluribus.json"
    record = json.loads(path.read_text("utf-8"))
    state = record["state"]["own_trees_"]["dict"]
    state.append([5, state[0][1]])
    path.write_text(json.dumps(record), "utf-8")
    with pytest.raises(BadInput):
        load(tmp_path / "own")


def test_bad_input() -> None:
    X, Y, X_held, Y_held = _apart(90)
    with pytest.raises(BadInput, match="own_trees: needs held-out rows"):
        VectorLeafBoostingRegressor(5, own_trees=True).fit(X, Y)
    with pytest.raises(BadInput, match="eval_set: has units of shape"):
        VectorLeafBoostingRegressor(5, own_trees=True, early_stopping=True).fit(X, Y, eval_set=(X_held, Y_held, None, [1, 2]))


def test_a_budget_that_ends_among_own_trees_names_who_was_cut(mixed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a task that had stopped is called undertrained, or one that was cut short is not. The clock ticks once a round."""
    free = VectorLeafCandidate(patience=5).fit(mixed, Budget(1e9), 0)
    assert free.record["undertrained"] == []
    rounds = {name: len(curve) for name, curve in free.record["curves"].items()}
    last = max(rounds.values())
    ticks = iter(range(10**9))
    monkeypatch.setattr("pluribus.boosting.candidates.time.process_time", lambda: float(next(ticks)))
    cut = VectorLeafCandidate(patience=5).fit(mixed, Budget(last - 2.5), 0)
    assert cut.record["undertrained"] == [name for name, count in rounds.items() if count == last]
    ticks = iter(range(10**9))
    early = VectorLeafCandidate(patience=5).fit(mixed, Budget(3), 0)
    assert early.record["undertrained"] == [task.name for task in mixed.tasks], "none of them went on alone"


def test_their_leaves_are_smaller_on_small_tables(mixed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that were given win; the shared trees keep theirs."""
    from pluribus.boosting import candidates

    def leaves(**settings: int) -> tuple[int, int | None]:
        model = VectorLeafCandidate(rounds=3, **settings).fit(mixed, Budget(60), 0).model
        return model.min_samples_leaf, model.own_min_samples_leaf

    monkeypatch.setattr(candidates, "FEW_ROWS", len(mixed.parts["train"]) + 1)
    assert leaves() == (20, 5)
    assert leaves(min_samples_leaf=3) == (3, 3)
    assert leaves(own_min_samples_leaf=9) == (20, 9)
    monkeypatch.setattr(candidates, "FEW_ROWS", 10)
    assert leaves() == (20, None)
