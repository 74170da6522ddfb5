"""The plan: equal seconds for every road, and candidates by name."""

from __future__ import annotations

from typing import Any

import pytest

from pluribus.errors import BadInput


def _spent(plan: Any, name: str) -> float:
    road = next(road for road in plan.roads if road.candidate == name)
    return road.final_seconds * len(plan.seeds) + road.screening_seconds * len(road.screens(0))


def test_every_road_gets_the_same_seconds(study_of: Any, loans: Any) -> None:
    """The specialists of one kind together are one road, whatever their number."""
    plan = study_of(loans, budget="20m", configurations=4, name="p").plan()
    shares = [_spent(plan, road.candidate) for road in plan.roads]
    assert len(shares) == 4
    assert shares == pytest.approx([0.9 * 1200 / 4] * 4)
    trainings = {road.candidate: road.trainings for road in plan.roads}
    assert trainings["lightgbm_per_task"] == 4 * (4 + 2)
    assert trainings["shared_bottom_equal"] == 4 + 2


def test_small_budgets_do_not_screen(study_of: Any, loans: Any) -> None:
    plan = study_of(loans, budget="2s", configurations=4, name="p").plan()
    assert all(len(road.configurations) == 1 for road in plan.roads)
    assert "may end undertrained" in plan.text()


def test_what_cannot_run_is_named(study_of: Any, loans: Any) -> None:
    plan = study_of(loans, name="p").plan()
    assert "long layout" in plan.left_out["lightgbm_pooled"]
    assert "lightgbm_pooled: left out" in plan.text()


def test_defaults_are_always_among_the_configurations(study_of: Any, loans: Any) -> None:
    plan = study_of(loans, budget="20m", configurations=4, name="p").plan()
    assert all(road.configurations[0] == {} for road in plan.roads)


def test_an_unknown_balancer_is_named(study_of: Any, loans: Any) -> None:
    with pytest.raises(BadInput, match="unknown balancer 'nahs'; did you mean 'nash'"):
        study_of(loans, balancers=["nahs"], name="c").plan()


def test_lightgbm_parameters_are_fixed_in_every_configuration(study_of: Any, loans: Any) -> None:
    plan = study_of(loans, lgbm_params={"num_leaves": 7}, budget="20m", configurations=3, name="p").plan()
    road = next(road for road in plan.roads if road.candidate == "lightgbm_per_task")
    assert {settings["num_leaves"] for settings in road.configurations} == {7}
