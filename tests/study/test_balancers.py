"""Balancers in a study: compared on one grid, beside fixed weights and equal time; gradients speak in log and report."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.files import read_json
from pluribus.study import spec as specs
from pluribus.study.plan import plan
from pluribus.study.report import figures
from pluribus.study.report.evidence import legend
from pluribus.study.report.page import page
from pluribus.tabular.fixed_weights import SharedBottomFixed, points


def test_the_grid_of_fixed_weights() -> None:
    """If this fails, the strongest plain baseline of a comparison is not the grid it says."""
    assert points(["a", "b"]) == [{"a": 1.0, "b": 1.0}, {"a": 1.6, "b": 0.4}, {"a": 0.4, "b": 1.6}]
    many = points([str(t) for t in range(40)])
    assert len(many) == 12
    assert all(sum(point.values()) == pytest.approx(40) for point in many)
    assert many == points([str(t) for t in range(40)])


def _learnable(study: Any) -> Prepared:
    found: Prepared = study.learnable
    return found


def test_all_compared_roads_try_the_same_learning_rates(study_of: Any, loans: Any) -> None:
    """If this fails, a balancer is praised for a better learning rate."""
    settings = {"candidates": ["lightgbm_per_task"], "balancers": ["nash", "dwa"], "configurations": 4, "budget": "2h"}
    study = study_of(loans, **settings)
    roads = {road.candidate: road for road in study.plan().roads}
    assert set(roads) == {
        "lightgbm_per_task",
        "shared_bottom_equal",
        "shared_bottom_fixed",
        "shared_bottom+nash",
        "shared_bottom+dwa",
    }
    equal = roads["shared_bottom_equal"].configurations
    assert len(equal) == 4
    assert roads["shared_bottom+nash"].configurations == roads["shared_bottom+dwa"].configurations == equal
    fixed = roads["shared_bottom_fixed"].configurations
    assert sorted({c["point"] for c in fixed}) == [0, 1, 2, 3, 4]
    assert {c.get("lr") for c in fixed} == {c.get("lr") for c in equal}
    poor = specs.parse({"table": "x", "targets": ["default"], **settings, "budget": "30s"}, where="test")
    roads = {road.candidate: road for road in plan(poor, _learnable(study)).roads}
    assert len(roads["shared_bottom_equal"].configurations) == len(roads["shared_bottom+nash"].configurations)
    assert len(roads["shared_bottom_fixed"].configurations) == 5  # the grid is tried whatever the budget


def test_a_point_beyond_the_grid_is_refused(study_of: Any, loans: Any) -> None:
    with pytest.raises(BadInput, match="a whole number below 5"):
        SharedBottomFixed(point=5).balancer(_learnable(study_of(loans)))


def test_a_study_of_balancers(study_of: Any, loans: Any) -> None:
    """If this fails, a balancer is not compared with what its time could have bought, or the report keeps silent of it."""
    study = study_of(loans, candidates=["lightgbm_per_task"], balancers=["upgrad"], seeds=1, name="balanced", budget="900s")
    folder = study.run().folder
    summary = read_json(folder / "report.json")
    rows = {row["candidate"]: row for row in summary["balancers"]}
    assert set(rows) == {"shared_bottom_equal", "shared_bottom_fixed", "shared_bottom+upgrad"}
    assert rows["shared_bottom_equal"]["minus_equal"] == [0.0]
    assert len(rows["shared_bottom+upgrad"]["minus_equal_at_equal_time"]) <= 1
    longer = [name for name in summary["test"] if name == "shared_bottom_equal_time"]
    told = [n for n in summary["notes"] if "slowest balancer" in n or "longer than equal weights" in n]
    assert len(told) == 1
    assert bool(longer) == ("trained on for" in told[0])
    assert summary["choice"]["winner"] != "shared_bottom_equal_time"
    heard = summary["diagnostics"]
    assert set(heard) >= {"shared_bottom_equal", "shared_bottom+upgrad"}
    assert 0 <= heard["shared_bottom_equal"][0]["conflict_ratio"] <= 1
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert any("conflict_ratio" in event and event["trial"].startswith("final-shared_bottom") for event in logged)
    html = (folder / "report.html").read_text("utf-8")
    assert "Do the tasks pull together?" in html
    assert "Balancers beside equal weights" in html
    assert re.search(r'aria-label="Cosines of the tasks(&#x27;|\') gradients: default and prepay', html)


RECORD = {
    "tasks": ["default", "prepay", "loss"],
    "steps": 16,
    "measured": 16,
    "conflict_ratio": 0.5,
    "effective_tasks": 2.5,
    "pareto_gap": 0.3,
    "cosine": [[1, -0.4, 0.2], [-0.4, 1, 0.0], [0.2, 0.0, 1]],
    "conflicts": [[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]],
    "affinity": [[4, -2, 1], [-2, 4, 0], [1, 0, 4]],
}


def _record(**more: Any) -> dict[str, Any]:
    moment = {
        "measured": 8,
        "conflict_ratio": 0.6,
        "effective_tasks": 2.4,
        "pareto_gap": 0.4,
        "tasks": RECORD["tasks"],
        "cosine": RECORD["cosine"],
    }
    return {**RECORD, "over_time": [moment, {**moment, "measured": 16, "conflict_ratio": 0.4}], **more}


def test_a_candidate_has_one_colour_in_every_picture() -> None:
    """Broken: a line in the conflict picture has no name, or the colour that another candidate has above it."""
    labels = {"alone": "Alone", "joint": "Joint"}
    (line,) = figures.conflicts({"joint": [0.6, 0.4]}, labels)["data"]
    assert line["name"] == "Joint"
    assert line["line"]["color"] == "--c1"
    key = str(legend(labels, ["joint"]))
    assert "Joint" in key
    assert "var(--c1)" in key
    assert "Alone" not in key


def test_the_panel_of_gradients(summary_of: Any) -> None:
    """If this fails, the report lost its picture of who fights whom, or its text for those who cannot see it."""
    summary = summary_of(["default", "prepay", "loss"])
    html = page({**summary, "diagnostics": {"joint": [_record(), None]}, "grouping": [["default", "loss"], ["prepay"]]})
    assert "default and prepay −0.4; default and loss +0.2" in html
    assert "from 60% to 40%" in html
    assert "two networks would serve best: default, loss; prepay" in html
    assert '"type":"heatmap"' in html
    assert 'class="legend"' in html[html.index("Do the tasks pull together?") : html.index("Means over the training")]
    few = page({**summary, "diagnostics": {"joint": [_record(over_time=[])]}})
    assert "Do the tasks pull together?" in few
    bare = page(summary)
    assert "No network&#x27;s gradients were compared" in bare
