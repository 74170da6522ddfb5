"""An average answers with the weighted mean of its members, each calibrated, and travels as a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pluribus
from pluribus.boosting import baselines
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.modeling.artefact.average import Average


@pytest.fixture
def members(mixed: Prepared) -> dict[str, Any]:
    made = {}
    for seed, rounds in ((0, 5), (1, 20)):
        candidate = baselines.LightGBMPerTask(rounds=rounds)
        made[f"m{seed}"] = candidate.fit(mixed, Budget(60), seed)
    return made


def test_it_is_the_weighted_mean(mixed: Prepared, members: dict[str, Any], tmp_path: Path) -> None:
    names = [task.name for task in mixed.tasks]
    weights = {name: {"m0": 3.0, "m1": 1.0} for name in names}
    weights[names[0]] = {"m1": 7.0}
    average = Average(mixed.tasks, mixed.columns, members, weights)
    rows = np.arange(20)
    one, two = (members[name].calibrated(mixed, rows, names) for name in ("m0", "m1"))
    found = average.scores(mixed, rows, names)
    np.testing.assert_array_equal(found[names[0]], two[names[0]])
    for name in names[1:]:
        np.testing.assert_allclose(found[name], 0.75 * one[name] + 0.25 * two[name], rtol=1e-12)
    average.save(tmp_path / "model")
    again = pluribus.load(tmp_path / "model").scores(mixed, rows, names)
    for name in names:
        np.testing.assert_array_equal(again[name], found[name])
    assert average.costs().parameters == sum(member.costs().parameters for member in members.values())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no member answers it"),
        ({"m0": 0.0}, "not a positive number"),
        ({"m0": float("nan")}, "not a positive number"),
        ({"other": 1.0}, "which is not there"),
    ],
)
def test_weights_that_make_no_mean_are_refused(
    mixed: Prepared, members: dict[str, Any], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        Average(mixed.tasks, mixed.columns, members, {task.name: weights for task in mixed.tasks})


def test_a_member_outside_the_folder_is_refused(mixed: Prepared, members: dict[str, Any], tmp_path: Path) -> None:
    weights = {task.name: {"m0": 1.0, "m1": 1.0} for task in mixed.tasks}
    with pytest.raises(BadInput, match="impossible place"):
        Average.read(tmp_path, {"members": {"m0": "../m0", "m1": "member-1"}, "weights": weights}, mixed.tasks, mixed.columns)
    json.dumps(weights)
