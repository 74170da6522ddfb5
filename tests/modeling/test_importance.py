"""Importance: planted inputs are found, Shapley values are grouped by input, members are mixed, time is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus.boosting.baselines import LightGBMPerTask, features
from pluribus.boosting.candidates import VectorLeafCandidate
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.modeling import Budget, Fitted
from pluribus.modeling.artefact.committee import Committee
from pluribus.modeling.artefact.importance import Importance, by_exchange, by_shapley, mixed

ROWS = np.arange(200)


@pytest.fixture(scope="module")
def data() -> Prepared:
    """y rests on a alone, z on the date and on the category, b on nothing."""
    rng = np.random.default_rng(0)
    n = 900
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D")
    frame["kind"] = rng.choice(["x", "y", "w"], n)
    frame["y"] = frame["a"] * 3 + 0.05 * rng.normal(size=n)
    frame["z"] = (frame["kind"] == "x") * 2.0 + (frame["day"] > "2025-01-01") * 2.0 + 0.05 * rng.normal(size=n)
    table = Table(frame, ["y:regression", "z:regression"], split="random")
    return prepare(table, split(table, 0))


@pytest.fixture(scope="module")
def trees(data: Prepared) -> Any:
    return LightGBMPerTask(rounds=60).fit(data, Budget(60), seed=0)


def wanted(rows: Any = ROWS) -> dict[str, Any]:
    return {"y": rows, "z": rows}


def planted(found: dict[str, Importance]) -> None:
    assert max(found["y"].shares, key=lambda name: found["y"].shares[name]) == "a"
    assert found["y"].shares["a"] > 0.85
    assert found["z"].shares["day"] + found["z"].shares["kind"] > 0.9
    assert min(found["z"].shares["day"], found["z"].shares["kind"]) > 0.25
    for each in found.values():
        assert sum(each.shares.values()) == pytest.approx(1)
        assert set(each.shares) == {"a", "b", "day", "kind"}
        assert each.unmeasured == ()


def test_planted_inputs_are_found_by_treeshap(data: Prepared, trees: Any) -> None:
    """LightGBM's own values: an input that became several features (a date) counts as one."""
    found = trees.importance(data, wanted())
    planted(found)
    assert {each.by for each in found.values()} == {"TreeSHAP"}


def test_planted_inputs_are_found_by_our_trees(data: Prepared) -> None:
    """Vector-leaf trees by this project's own TreeSHAP."""
    planted(VectorLeafCandidate(rounds=60).fit(data, Budget(60), seed=0).importance(data, wanted()))


def test_planted_inputs_are_found_by_exchange(data: Prepared, trees: Any) -> None:
    """The default asks for predictions alone: whatever the artefact is, it finds the same inputs."""
    found = Fitted.importance(trees, data, wanted())
    planted(found)
    assert {each.by for each in found.values()} == {"exchange"}


def test_shapley_values_of_an_input_are_added_before_their_size_counts(data: Prepared) -> None:
    """Features of one column that cancel each other move nothing."""
    names = data.columns.names
    day = next(one for one in data.columns.inputs if one.name == "day")
    own = [names.index(name) for name in (*day.numeric, *day.categorical)]
    assert len(own) >= 2

    def values(rows: Any) -> Any:
        phi = np.zeros((len(rows), len(names), 1))
        phi[:, own[0]], phi[:, own[1]], phi[:, names.index("a")] = 5.0, -5.0, 1.0
        return phi

    assert by_shapley(values, data, ROWS, 10.0).shares == {"a": 1.0, "b": 0.0, "day": 0.0, "kind": 0.0}


def test_shapley_values_are_those_of_lightgbm(data: Prepared, trees: Any) -> None:
    """Base and values add up to the prediction: they are of the right task and in the right order."""
    from unittest.mock import patch

    kept = {}
    with patch("pluribus.boosting.baselines.by_shapley", side_effect=lambda values, data, rows, seconds: values(rows)) as spied:
        kept = trees.importance(data, wanted())
    assert spied.call_count == 2
    said = trees.answer(data, wanted())
    for name, phi in kept.items():
        base = trees.boosters[name].predict(features(data, ROWS), pred_contrib=True)[:, -1]
        assert phi.shape == (len(ROWS), len(data.columns.names), 1)
        np.testing.assert_allclose(base + phi.sum(axis=(1, 2)), said[name], rtol=1e-6)


def test_predictions_that_nothing_moves_have_no_shares(data: Prepared) -> None:
    """A constant is no division by zero."""
    found = by_exchange(lambda part, cells: {name: np.ones(len(rows)) for name, rows in cells.items()}, data, ROWS, ["y"], 10.0)
    assert set(found["y"].shares.values()) == {0.0}


def test_lists_and_maps_are_left_out(data: Prepared) -> None:
    """Their difference is no number."""
    found = by_exchange(lambda part, cells: {name: [1] * len(rows) for name, rows in cells.items()}, data, ROWS, ["y"], 10.0)
    assert found == {}


def test_time_is_kept_and_what_it_cost_is_named(data: Prepared, trees: Any) -> None:
    """No second: nothing is exchanged and every input is named; of Shapley values the first rows count."""
    found = by_exchange(trees.answer, data, ROWS, ["y"], -1.0)
    assert found["y"].unmeasured == ("a", "b", "day", "kind")
    assert trees.importance(data, {"y": ROWS}, seconds=-1.0)["y"].rows == 50


def test_a_committee_asks_the_member_that_answers(data: Prepared, trees: Any) -> None:
    """Not the other one."""
    other = LightGBMPerTask(rounds=5).fit(data, Budget(60), seed=1)
    both = Committee(data.tasks, data.columns, {"one": trees, "two": other}, {"y": "one", "z": "two"})
    found = both.importance(data, wanted())
    assert list(found) == ["y", "z"]
    assert found["y"] == trees.importance(data, wanted())["y"]
    assert found["z"] == other.importance(data, wanted())["z"]


def test_members_are_mixed_by_weight() -> None:
    """Shares, not units; what one member did not reach has no share at all, and the rest still sums to 1."""
    one = Importance("TreeSHAP", {"a": 0.8, "b": 0.2}, 200)
    two = Importance("exchange", {"a": 0.4, "b": 0.6}, 100)
    found = mixed([(3.0, one), (1.0, two)])
    assert found.shares == pytest.approx({"a": 0.7, "b": 0.3})
    assert (found.by, found.rows) == ("TreeSHAP and exchange", 100)
    short = mixed([(1.0, one), (1.0, Importance("exchange", {"a": 1.0}, 100, ("b",)))])
    assert short.unmeasured == ("b",)
    assert short.shares == {"a": pytest.approx(1.0)}
