"""A candidate is added to a finished run: its trials are the only new ones, and the test split is opened, and counted, again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pluribus.errors import BadInput
from pluribus.study.kept_plan import kept
from pluribus.study.plan import Plan, Road, chosen_candidates
from pluribus.study.spec import parse

FIRST = ["shared_bottom_equal", "lightgbm_per_task"]
TARGETS = ["default", "loss:regression"]


def study_in(folder: Path, loans: pd.DataFrame, **settings: Any) -> Any:
    from pluribus.study import Study

    given = {"id": "loan", "split": "random", "budget": "600s", "seeds": 2, "configurations": 1, "repeats": 200, "jobs": 1}
    frame = loans.drop(columns=["opened", "customer", "prepay", "calls"])
    return Study(frame, TARGETS, folder=folder, name="r", **{**given, "candidates": FIRST, **settings})


def marks(folder: Path) -> dict[str, int]:
    """Each trial's folder with the time at which it appeared."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "r" / "work" / "trials").iterdir()}


def test_only_the_new_candidate_is_trained(loans: pd.DataFrame, tmp_path: Path) -> None:
    """Old trials stand untouched; choice, verdict, model and report are of all candidates; openings go up, and are said."""
    before_result = study_in(tmp_path, loans).run()
    before = marks(tmp_path)
    model = (before_result.folder / "model" / "pluribus.json").read_bytes()
    result = study_in(tmp_path, loans, candidates=[*FIRST, "single_networks"], slices=["region"]).run()
    after = marks(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {name.split("-")[1] for name in set(after) - set(before)} == {"single_networks"}
    summary = json.loads((result.folder / "report.json").read_text())
    assert set(result.choice["rules"]) == {*FIRST, "single_networks"}
    assert {row["candidate"] for row in summary["leaderboard"]} == {*FIRST, "single_networks"}
    assert summary["openings"] == 2
    assert [each["column"] for each in summary["slices"]] == ["region"]
    assert (result.folder / "model" / "pluribus.json").is_file()
    assert model
    told = (result.folder / "log.jsonl").read_text()
    assert "the test split is opened for the 2nd time" in told
    again = study_in(tmp_path, loans, candidates=[*FIRST, "single_networks"], slices=["region"]).run()  # finished: nothing is new
    assert json.loads((again.folder / "report.json").read_text())["openings"] == 2
    assert marks(tmp_path) == after
    with pytest.raises(BadInput, match="another --name"):  # fewer candidates than the run has
        study_in(tmp_path, loans).run()


@pytest.mark.parametrize(
    "other", [{"seeds": 3}, {"budget": "500s"}, {"settings": {"shared_bottom_equal": {"width": 8}}}, {"seed": 1}]
)
def test_any_other_setting_still_needs_another_name(other: dict[str, Any], loans: pd.DataFrame, tmp_path: Path) -> None:
    """Beside more candidates: what was trained was trained under other settings. Nothing of the run is touched."""
    study = study_in(tmp_path, loans)
    study.plan()
    (tmp_path / "r" / "work").mkdir()
    (tmp_path / "r" / "report.json").write_text("{}")
    with pytest.raises(BadInput, match="other settings or data"):
        study_in(tmp_path, loans, candidates=[*FIRST, "single_networks"], **other).plan()
    assert (tmp_path / "r" / "report.json").is_file()
    study_in(tmp_path, loans, candidates=[*FIRST, "tabm"], settings={"tabm": {"width": 8}}).plan()  # what is set for the new one
    assert not (tmp_path / "r" / "report.json").exists()


def test_other_data_are_another_run(loans: pd.DataFrame, tmp_path: Path) -> None:
    """One label changes: the trials are of other data. A run of before the hash stood in study.yaml is not added to, either."""
    study_in(tmp_path, loans).plan()
    (tmp_path / "r" / "work").mkdir()
    changed = loans.copy()
    changed.loc[0, "loss"] += 1.0
    with pytest.raises(BadInput, match="other settings or data"):
        study_in(tmp_path, changed, candidates=[*FIRST, "single_networks"]).plan()
    path = tmp_path / "r" / "study.yaml"
    held = yaml.safe_load(path.read_text())
    del held["data"]
    path.write_text(yaml.safe_dump(held))
    with pytest.raises(BadInput, match="other settings or data"):
        study_in(tmp_path, loans, candidates=[*FIRST, "single_networks"]).plan()


def test_a_plus_adds_to_the_others() -> None:
    """`+NAME` alone: beside the defaults; among names: one more of them; an unknown one is named without its plus."""

    def names(*candidates: str) -> list[str]:
        return chosen_candidates(parse({"table": "t.csv", "targets": ["y"], "candidates": list(candidates)}, where="test"))

    usual = chosen_candidates(parse({"table": "t.csv", "targets": ["y"]}, where="test"))
    assert names("+tabm") == [*usual, "tabm"]
    assert names("single_networks", "+tabm") == ["single_networks", "tabm"]
    assert names(f"+{usual[0]}") == usual
    with pytest.raises(BadInput, match="'nobody'"):
        names("+nobody")


def test_roads_of_earlier_calls_are_kept(tmp_path: Path) -> None:
    """With fewer configurations in the new plan finished finals keep their place; a road that is now too dear stays."""
    a = Road("a", "A", False, ({"w": 1}, {"w": 2}), 1.0, 5.0, 3.0, 4)
    b = Road("b", "B", True, ({},), 0.0, 5.0, 3.0, 2)
    first = kept(Plan((a, b), {}, (0, 1), 60.0), tmp_path / "roads.json")
    assert first.roads == (a, b)
    shorter = Road("a", "A", False, ({"w": 1},), 0.0, 2.0, 3.0, 2)
    c = Road("c", "C", False, ({"t": (1, 2)},), 0.0, 2.0, 3.0, 2)
    later = kept(Plan((shorter, c), {"b": "too dear", "d": "cannot run"}, (0, 1), 60.0), tmp_path / "roads.json")
    assert later.roads == (a, c, b)
    assert later.left_out == {"d": "cannot run"}
    assert kept(Plan((a, b, c), {}, (0, 1), 60.0), tmp_path / "roads.json").roads == (a, b, c)
