"""The plan: equal seconds for every road, and candidates by name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from pluribus.errors import BadInput
from pluribus.study.plan import most_configurations
from pluribus.study.spec import configuration_hash, parse


def _spent(plan: Any, name: str) -> float:
    road = next(road for road in plan.roads if road.candidate == name)
    return road.final_seconds * len(plan.draws) + road.screening_seconds * len(road.screens(0))


def test_what_a_road_does_not_need_goes_to_the_others(study_of: Any, loans: Any) -> None:
    """The specialists of one kind are one road; all seconds are given away, and nobody gets less than half an even share."""
    plan = study_of(loans, budget="20m", configurations=4, name="p").plan()
    shares = [_spent(plan, road.candidate) for road in plan.roads]
    assert sum(shares) == pytest.approx(0.9 * 1200)
    even = sum(shares) / len(shares)
    assert min(shares) >= 0.5 * even - 1e-9
    tight = study_of(loans, budget="9s", name="p").plan()
    spent = {road.candidate: _spent(tight, road.candidate) for road in tight.roads}
    dearest = max(tight.roads, key=lambda road: road.estimate)
    assert sum(spent.values()) == pytest.approx(0.9 * 9)
    assert spent[dearest.candidate] >= 0.9 * 9 / len(spent) - 1e-9
    trainings = {road.candidate: road.trainings for road in plan.roads}
    assert trainings["lightgbm_per_task"] == 4 * (4 + 2)
    assert trainings["shared_bottom_equal"] == 4 + 2


@pytest.mark.parametrize(("rows", "most"), [(10, 4), (100, 4), (500, 8), (10_000, 40), (10**7, 100)])
def test_the_number_of_configurations_follows_the_rows(rows: int, most: int) -> None:
    assert most_configurations(rows) == most


def test_small_tables_are_not_screened_unless_asked(study_of: Any, loans: Any) -> None:
    """700 rows: a screening would choose by luck."""
    roads = study_of(loans, budget="20m", configurations=None, name="p").plan().roads
    assert all(len(road.configurations) == 1 for road in roads)


def test_a_tight_budget_drops_twins_then_fits(study_of: Any, loans: Any) -> None:
    plan = study_of(loans, budget="3s", seeds=None, configurations=None, candidates=None, name="p").plan()
    assert len(plan.draws) == 1
    assert "fits of each candidate, not 3" in plan.text()
    assert "--budget decides" in plan.left_out["realmlp_single"]


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


def test_settings_are_fixed_in_every_configuration(study_of: Any, loans: Any) -> None:
    """What the study file fixes for a candidate is not searched; the others are searched as ever."""
    names = ["single_networks", "mmoe", "shared_bottom+nash"]
    settings = {"mmoe": {"experts": 3}, "shared_bottom": {"width": 32}, "shared_bottom+nash": {"depth": 1}}
    plan = study_of(loans, candidates=names, settings=settings, budget="40m", configurations=3, name="p").plan()
    roads = {road.candidate: road.configurations for road in plan.roads}
    assert {one["experts"] for one in roads["mmoe"]} == {3}
    assert len({one["lr"] for one in roads["mmoe"] if "lr" in one}) == 2
    assert {(one["width"], one["depth"]) for one in roads["shared_bottom+nash"]} == {(32, 1)}
    assert roads["single_networks"][0] == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mmeo": {"experts": 3}}, "settings: unknown candidate 'mmeo'; did you mean 'mmoe'"),
        ({"mmoe": {"expert_count": 3}}, "unknown setting 'expert_count'"),
        ({"mmoe": {"experts": 0}}, "experts must be a whole number of at least 1, not 0"),
        ({"home": {"categories": {"a": ["default", "losses"]}}}, "unknown task 'losses'; did you mean 'loss'"),
        ({"single_networks": {"embedding": "plt"}}, "unknown numeric embedding 'plt'"),
        ({"multitab_net": {"mask": "task_task"}}, "unknown mask 'task_task'; did you mean 'task_to_task'"),
    ],
)
def test_wrong_settings_end_the_study_before_it_trains(study_of: Any, loans: Any, settings: Any, message: str) -> None:
    names = ["single_networks", "mmoe", "home", "multitab_net"]
    with pytest.raises(BadInput, match=message):
        study_of(loans, candidates=names, settings=settings, budget="40m", name="p").plan()


def test_runs_of_before_settings_keep_their_hash() -> None:
    """A study file without `settings` is the configuration it was."""
    spec = parse({"table": "t.csv", "targets": ["y"]}, where="x")
    later = {
        "class_weights",
        "slices",
        "text",
        "items",
        "max_length",
        "settings",
        "folds",
        "prefer",
        "tolerance",
        "allow_committee",
    }
    later |= {"thousands", "decimal", "na", "dayfirst", "types", "separator", "encoding"}
    row = {**spec.model_dump(exclude={"name", "table", "champion", *later}), "allow_committee": False}
    assert configuration_hash(spec, "d") == hashlib.sha256(json.dumps([row, "d"], sort_keys=True).encode()).hexdigest()
    other = parse({"table": "t.csv", "targets": ["y"], "settings": {"mmoe": {"experts": 3}}}, where="x")
    assert configuration_hash(other, "d") != configuration_hash(spec, "d")


def test_where_none_of_the_candidates_can_run_those_that_can_are_named(study_of: Any, loans: Any) -> None:
    with pytest.raises(BadInput, match=r"no candidate can run .*lightgbm_pooled: pooling needs the long layout") as caught:
        study_of(loans, candidates=["lightgbm_pooled"], name="p").plan()
    named = str(caught.value).partition("; name others: ")[2].split(", ")
    assert {"single_networks", "mmoe", "tabm"} <= set(named)
    assert not {"lightgbm_pooled", "m2trec", "text_full", "rmtgb"} & set(named)
