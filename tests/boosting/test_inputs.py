"""Every shape of input, and every bad one: a clear line instead of a wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.boosting.tables import make_long, make_wide

from pluribus.boosting import (
    MTGBRegressor,
    MultiTaskBoosting,
    PerTaskRegressor,
    RMTGBClassifier,
    RMTGBRegressor,
    VectorLeafBoostingClassifier,
    VectorLeafBoostingRegressor,
)
from pluribus.errors import BadInput

SMALL: dict[str, Any] = {"random_state": 0, "max_leaf_nodes": 6}


def frame(n: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"x": rng.standard_normal(n), "colour": pd.Categorical(rng.choice(["red", "green", "blue"], n))})
    table["place"] = rng.choice(["north", "south"], n)
    table["y"] = table["x"] + 2.0 * (table["colour"] == "red") + 0.1 * rng.standard_normal(n)
    return table


# shapes ---------------------------------------------------------------------------------------------------------------


def test_frame_with_categories_and_a_task_column() -> None:
    """Categories are read natively, by value and not by code; the task may be a column's name."""
    table = frame()
    X, y = table[["x", "colour", "place"]], table["y"]
    model = MTGBRegressor(30, 10, **SMALL).fit(X, y, task="place")
    found = model.predict(X, task="place")
    assert np.mean((found - y) ** 2) < 0.1 * np.var(y)
    recoded = X.assign(colour=X["colour"].cat.reorder_categories(["red", "blue", "green"]))
    np.testing.assert_array_equal(model.predict(recoded, task="place"), found)
    np.testing.assert_array_equal(model.predict(X.drop(columns="place"), X["place"]), found)


@pytest.mark.parametrize("kind", [MTGBRegressor, VectorLeafBoostingRegressor, PerTaskRegressor])
def test_unknown_category_is_read_as_missing(kind: Any) -> None:
    table = frame()
    model = kind(**SMALL).fit(table[["x", "colour"]], table["y"])
    new, gone = table[["x", "colour"]].astype({"colour": object}), table[["x", "colour"]].astype({"colour": object})
    new.loc[:, "colour"], gone.loc[:, "colour"] = "violet", None
    np.testing.assert_array_equal(model.predict(new), model.predict(gone))


def test_the_categorical_split_is_the_best_partition() -> None:
    """Fisher: for squared error the best of all 2^7 partitions of 8 categories is a prefix of their order by mean."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 8, 200)
    y = rng.standard_normal(8)[code] + rng.standard_normal(200)
    model = VectorLeafBoostingRegressor(1, learning_rate=1.0, max_depth=1, cat_smooth=0.0, categorical_features=[0]).fit(
        code[:, None].astype(float), y
    )
    best = np.inf
    for subset in range(1, 128):
        left = (subset >> code) & 1 == 1
        best = min(best, ((y[left] - y[left].mean()) ** 2).sum() + ((y[~left] - y[~left].mean()) ** 2).sum())
    assert ((y - model.predict(code[:, None].astype(float))) ** 2).sum() == pytest.approx(best)


def test_categories_of_vector_leaves_are_ordered_by_their_main_direction() -> None:
    """Two opposite outputs: sums of their gradients cancel, the direction of largest spread does not."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 10, 400)
    effect = np.where(np.arange(10) % 2 == 0, 1.0, -1.0)[code]
    Y = np.column_stack([effect, -effect]) + 0.01 * rng.standard_normal((400, 2))
    model = VectorLeafBoostingRegressor(1, learning_rate=1.0, max_depth=1, categorical_features=[0]).fit(code[:, None], Y)
    assert np.mean((model.predict(code[:, None]) - Y) ** 2) < 0.01


def test_more_than_255_categories() -> None:
    """The rarest ones are read as missing; nothing overflows."""
    rng = np.random.default_rng(0)
    names = np.array([f"c{i}" for i in range(400)])
    table = pd.DataFrame({"c": rng.choice(names, 5000), "x": rng.standard_normal(5000)})
    y = table["c"].isin(names[:50]) * 3.0 + table["x"]
    model = MTGBRegressor(40, 0, **SMALL).fit(table, y)
    assert len(model.columns_.categories[0]) == 255
    assert np.mean((model.predict(table) - y) ** 2) < 0.8 * np.var(y)


@pytest.mark.parametrize("kind", [RMTGBRegressor, VectorLeafBoostingRegressor, PerTaskRegressor])
def test_the_prediction_comes_in_the_labels_container(kind: Any) -> None:
    X, Y = make_wide(missing=0.2)
    as_array = kind(**SMALL).fit(X, Y)
    assert as_array.predict(X).shape == Y.shape
    named = pd.DataFrame(Y, columns=["a", "b", "c"])
    as_frame = kind(**SMALL).fit(X, named).predict(X)
    assert list(as_frame.columns) == ["a", "b", "c"]
    as_dict = kind(**SMALL).fit(X, {name: named[name] for name in named}).predict(X)
    assert list(as_dict) == ["a", "b", "c"]
    np.testing.assert_array_equal(as_frame["b"], as_array.predict(X)[:, 1])
    np.testing.assert_array_equal(as_dict["b"], as_array.predict(X)[:, 1])
    one = as_array.predict(X[:5], task=[1] * 5)  # and one prediction a row, where the task is given
    np.testing.assert_array_equal(one, as_array.predict(X[:5])[:, 1])


def test_dict_of_tables() -> None:
    X, y, task = make_long()
    tables, labels = {t: X[task == t] for t in "abcd"}, {t: y[task == t] for t in "abcd"}
    model = RMTGBRegressor(5, 5, 5, **SMALL).fit(tables, labels)
    same = RMTGBRegressor(5, 5, 5, **SMALL).fit(
        np.concatenate(list(tables.values())),
        np.concatenate(list(labels.values())),
        task=np.repeat(list("abcd"), [len(v) for v in labels.values()]),
    )
    found = model.predict(tables)
    assert list(found) == list("abcd")
    np.testing.assert_array_equal(found["c"], same.predict(tables["c"], ["c"] * len(tables["c"])))
    assert model.score(tables, labels) == pytest.approx(same.score(X, y, task=task))


def test_probabilities_of_wide_labels_are_a_dict_with_each_tasks_classes() -> None:
    X, Y = make_wide()
    labels = {"sign": Y[:, 0] > 0, "size": np.digitize(Y[:, 1], [-1, 1])}
    p = VectorLeafBoostingClassifier(5, **SMALL).fit(X, labels).predict_proba(X)
    assert p["sign"].shape == (len(X), 2)
    assert p["size"].shape == (len(X), 3)


def test_probabilities_by_row_of_tasks_with_different_classes() -> None:
    """[n, most classes], 0 beyond a task's own: the same numbers as task by task."""
    X, Y = make_wide()
    labels = {"sign": Y[:, 0] > 0, "size": np.digitize(Y[:, 1], [-1, 1])}
    model = MultiTaskBoosting({"sign": "binary", "size": "multiclass"}, 5, **SMALL).fit(X, labels)
    whole = model.predict_proba(X)
    ids = np.where(np.arange(len(X)) % 2 == 0, "sign", "size")
    by_row = model.predict_proba(X, ids)
    np.testing.assert_array_equal(by_row[::2, :2], whole["sign"][::2])
    assert (by_row[::2, 2] == 0).all()
    np.testing.assert_array_equal(by_row[1::2], whole["size"][1::2])


def test_missing_inputs_are_allowed_and_go_where_the_gain_is_largest() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400)
    y = np.where(np.isnan(np.where(rng.random(400) < 0.3, np.nan, x)), 5.0, 0.0)
    x[y == 5.0] = np.nan
    model = VectorLeafBoostingRegressor(1, learning_rate=1.0, max_depth=1).fit(x[:, None], y)
    np.testing.assert_allclose(model.predict([[np.nan], [-3.0], [3.0]]), [5.0, 0.0, 0.0], atol=1e-12)


# bad input ------------------------------------------------------------------------------------------------------------


def refused(match: str, fit: Any) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        fit()
    assert "\n" not in str(caught.value)


def test_bad_tables_labels_and_tasks() -> None:
    X, y, task = make_long()
    _, Y = make_wide(n=len(X))
    model = RMTGBRegressor(2, 2, 2, **SMALL)
    refused("infinity", lambda: model.fit(np.where(X > 2, np.inf, X), y, task=task))
    refused("inconsistent numbers of samples", lambda: model.fit(X, y[:-1], task=task))
    refused("task: has shape", lambda: model.fit(X, y, task=task[:-1]))
    refused("task: is missing in row 3", lambda: model.fit(X, y, task=np.where(np.arange(len(X)) == 3, None, task)))
    refused("task: is missing in row 0", lambda: model.fit(X, y, task=np.full(len(X), np.nan)))
    refused("NaN, first in row 5", lambda: model.fit(X, np.where(np.arange(len(X)) == 5, np.nan, y), task=task))
    refused("task 1: has no label at all", lambda: model.fit(X, np.column_stack([y, np.full(len(y), np.nan)])))
    refused("not numbers", lambda: model.fit(X, np.array(["a", "b"] * (len(X) // 2)), task=task))
    refused("together with one column of labels a task", lambda: model.fit(X, Y, task=task))
    refused("sample_weight: has shape", lambda: model.fit(X, y, task=task, sample_weight=np.ones(3)))
    refused("negative", lambda: model.fit(X, y, task=task, sample_weight=-np.ones(len(X))))
    refused("zero everywhere", lambda: model.fit(X, y, task=task, sample_weight=np.zeros(len(X))))
    refused("task 'a': has no label with a positive weight", lambda: model.fit(X, y, task=task, sample_weight=task != "a"))
    refused("early_stopping is off", lambda: model.fit(X, y, task=task, eval_set=(X, y, task)))
    refused("names a column, but X is not a frame", lambda: model.fit(X, y, task="shop"))
    refused("unknown column 'shop'", lambda: model.fit(frame()[["x"]], frame()["y"], task="shop"))
    refused("dict with the tasks of X", lambda: model.fit({"a": X}, {"b": y}))
    refused("different widths", lambda: model.fit({"a": X, "b": X[:, :2]}, {"a": y, "b": y}))


def test_bad_predictions() -> None:
    X, y, task = make_long()
    model = RMTGBRegressor(2, 2, 2, unknown_task="error", **SMALL).fit(X, y, task=task)
    refused("task 'zz' was not there at fit", lambda: model.predict(X[:2], ["zz", "a"]))
    refused("several tasks", lambda: model.predict(X))
    refused("features", lambda: model.predict(X[:, :3], task))
    refused("infinity", lambda: model.predict(np.full((1, 4), np.inf), ["a"]))
    table = frame()
    model = RMTGBRegressor(2, 2, 2, **SMALL).fit(table[["x", "colour"]], table["y"])
    refused("feature names", lambda: model.predict(table[["x", "colour"]].rename(columns={"x": "z"})))
    refused("column x: is not numeric", lambda: model.predict(table[["x", "colour"]].assign(x="high")))
    mixed = MultiTaskBoosting({"a": "regression", "b": "count"}, 2).fit(X, {"a": y, "b": np.abs(np.round(y))})
    refused("unseen task has no kind", lambda: mixed.predict(X[:1], ["zz"]))


@pytest.mark.parametrize(
    ("constraints", "match"),
    [
        ({"x": 1, 0: -1}, "constrained twice"),
        ({"colour": 1}, "categorical"),
        ({"x": 2}, "not a direction"),
        ({"weight": 1}, "unknown column 'weight'"),
        ({5: 1}, "no column 5"),
        ([1, 0, 0], "3 constraints for 2 columns"),
    ],
)
def test_contradictory_or_impossible_constraints(constraints: Any, match: str) -> None:
    table = frame()
    for kind in (RMTGBRegressor, VectorLeafBoostingRegressor, PerTaskRegressor):
        model = kind(monotone_constraints=constraints, **SMALL)
        refused(match, lambda model=model: model.fit(table[["x", "colour"]], table["y"]))


def test_constraints_that_the_method_cannot_keep() -> None:
    X, y, _ = make_long()
    three = np.digitize(y, [-0.5, 0.5])
    refused("3 classes have no order", lambda: RMTGBClassifier(monotone_constraints={0: 1}).fit(X, three))
    refused("3 classes have no order", lambda: VectorLeafBoostingClassifier(monotone_constraints={0: 1}).fit(X, three))
    _, Y = make_wide(n=len(X))
    for other in ({"split_by": "gain_of_sum"}, {"sketch": "top"}):
        refused("gains of all outputs", lambda o=other: VectorLeafBoostingRegressor(monotone_constraints={0: 1}, **o).fit(X, Y))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not a number above 0"),
        ({"max_leaf_nodes": 1}, "max_leaf_nodes: 1 is not a whole number from 2"),
        ({"subsample": 1.5}, "subsample"),
        ({"max_bins": 256}, "max_bins"),
        ({"n_shared": -1}, "n_shared"),
        ({"n_task": 2.5}, "n_task"),
        ({"unknown_task": "guess"}, "unknown_task"),
        ({"theta_step": "meen"}, "did you mean 'mean'"),
        ({"theta_init": np.nan}, "theta_init"),
    ],
)
def test_bad_parameters(settings: dict[str, Any], match: str) -> None:
    X, y, task = make_long()
    refused(match, lambda: RMTGBRegressor(**settings).fit(X, y, task=task))


def test_bad_kinds_and_weights_of_outputs() -> None:
    X, y, _ = make_long()
    refused("unknown kind 'binari'; did you mean 'binary'", lambda: MultiTaskBoosting("binari").fit(X, y))
    refused("negative counts", lambda: MultiTaskBoosting("count").fit(X, y))
    refused("call it multiclass", lambda: MultiTaskBoosting("binary").fit(X, np.digitize(y, [-0.5, 0.5])))
    refused("kind task 'b' is", lambda: MultiTaskBoosting({"a": "regression"}).fit(X, {"a": y, "b": y}))
    refused("output_weight", lambda: VectorLeafBoostingRegressor(output_weight=[1.0, 2.0]).fit(X, y))


def test_a_task_with_one_row_and_a_class_absent_from_a_task() -> None:
    """Both are legal: such a task learns what the others teach it, or its constant."""
    X, y, task = make_long()
    task = task.copy()
    task[7] = "lonely"
    for kind in (RMTGBRegressor, VectorLeafBoostingRegressor, PerTaskRegressor):
        found = kind(**SMALL).fit(X, y, task=task).predict(X, task)
        assert np.isfinite(found).all()
    labels = {"all": y > 0, "none": np.zeros(len(y), dtype=int)}
    p = VectorLeafBoostingClassifier(3).fit(X, labels).predict_proba(X)
    np.testing.assert_array_equal(p["none"], np.ones((len(X), 1)))


def test_missing_numba_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "numba", None)
    X, y, _ = make_long()
    with pytest.raises(BadInput, match=r"pip install 'pluribus\[boost\]'"):
        RMTGBRegressor(1, 0, 0).fit(X, y)
