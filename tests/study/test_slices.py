"""`--slice COL`: what a study says of a column's values, in report.json, on the page and on the terminal."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from pluribus.errors import BadInput
from pluribus.study.report.page import page
from pluribus.study.report.terminal import spoken

TARGETS = ["default", "loss:regression"]


@pytest.fixture(scope="module")
def sliced(loans: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from pluribus.study import Study

    folder = tmp_path_factory.mktemp("sliced")
    settings = {"budget": "600s", "seeds": 2, "configurations": 1, "repeats": 200, "jobs": 1, "split": "random"}
    candidates = ["shared_bottom_equal", "lightgbm_per_task"]
    frame = loans.drop(columns=["opened", "customer", "prepay", "calls"]).assign(loan=range(len(loans)))
    study = Study(frame, TARGETS, folder=folder, id="loan", slices=["region", "exposure"], candidates=candidates, **settings)
    return study, study.run()


def test_slices_are_those_of_the_test_rows(sliced: Any) -> None:
    """Every test row is in one slice of each column; numbers are cut into four; an input and a mere column may be sliced by."""
    study, result = sliced
    held = json.loads((result.folder / "report.json").read_text())["slices"]
    assert [each["column"] for each in held] == ["region", "exposure"]
    test = study.table.frame.iloc[study.split.parts["test"]]
    for each in held:
        assert sum(one["rows"] for one in each["slices"]) == len(test)
    region, exposure = held
    assert {one["name"]: one["rows"] for one in region["slices"]} == {
        **test["region"].value_counts().to_dict(),
        "(missing)": test["region"].isna().sum(),
    }
    assert len(exposure["slices"]) == 4
    assert set(region["worst"]) == {"default", "loss"}
    for task, name in region["worst"].items():
        values = {
            one["name"]: one["tasks"][task]["challenger"]["file"]["value"] for one in region["slices"] if task in one["tasks"]
        }
        pick = min if task == "default" else max
        assert name == pick(values, key=lambda each: values[each])


def test_they_are_shown(sliced: Any) -> None:
    """The worst slice is on the terminal and at the head of the section; each task's fold has a table a column."""
    _, result = sliced
    summary = json.loads((result.folder / "report.json").read_text())
    told, html = spoken(result.folder), page(summary)
    worst = summary["slices"][0]["worst"]["default"]
    assert f"default by region: worst in {worst}, AUC " in told
    assert f"default by region: worst in {worst}, AUC " in html
    for task in ("default", "loss"):
        for column in ("region", "exposure"):
            assert f"{task} by {column}, on the test part" in html
    assert html.count("the worst one") == 4


def test_tiny_slices_are_not_judged(sliced: Any) -> None:
    """The page says why instead of a word."""
    _, result = sliced
    summary = json.loads((result.folder / "report.json").read_text())
    one = summary["slices"][0]["slices"][-1]
    one["tasks"], one["unjudged"] = {}, {"default": "3 units with a label, fewer than 10"}
    assert "not judged: 3 units with a label, fewer than 10" in page(summary)


def test_unknown_columns_are_named(study_of: Any, loans: pd.DataFrame) -> None:
    """Before anything is trained."""
    with pytest.raises(BadInput, match="regoin") as error:
        study_of(loans, slices=["regoin"]).plan()
    assert "region" in str(error.value)
