"""Folds: whole units, every class in every fold, and every row predicted by a model that did not see it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pluribus
from pluribus.data import Table, prepare, split
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.study import Study
from pluribus.study.folds import assembled, fold_parts, whole, why_not
from pluribus.tasks.metrics import Terms


def _frame(n: int = 240, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    frame = pd.DataFrame(x, columns=list("abc"))
    frame["rare"] = (rng.random(n) < 1 / (1 + np.exp(2 - 2 * x[:, 0]))).astype(int)
    frame["value"] = x @ [1.0, -1.0, 0.5] + 0.3 * rng.normal(size=n)
    frame.loc[rng.random(n) < 0.3, "value"] = np.nan
    frame["who"] = rng.integers(0, n // 3, n)
    return frame


def _data(group: str | None = None, seed: int = 0) -> Prepared:
    table = Table(
        _frame(seed=seed), ["rare:binary", "value:regression"], split="random", group=group, ignore=() if group else ("who",)
    )
    return prepare(table, split(table, 0))


@given(seed=st.integers(0, 20), folds=st.integers(2, 7), group=st.sampled_from([None, "who"]))
def test_folds_are_a_deal_of_whole_units(seed: int, folds: int, group: str | None) -> None:
    """Broken: a unit stands on both sides of a fit, or a row is in no fold, or in two."""
    data = _data(group)
    parts = [fold_parts(data, folds, fold, seed) for fold in range(folds)]
    held = np.concatenate([part.parts["valid"] for part in parts])
    np.testing.assert_array_equal(np.sort(held), whole(data).parts["valid"])
    for part in parts:
        assert not set(data.units[part.parts["train"]]) & set(data.units[part.parts["valid"]])
        assert len(part.labelled("rare", "valid"))
    sizes = [len(part.parts["valid"]) for part in parts]
    assert max(sizes) - min(sizes) <= (1 if group is None else 12)
    positives = [part.labelled("rare", "valid").numbers.sum() for part in parts]
    assert max(positives) - min(positives) <= (1 if group is None else 8)


def test_predictions_of_folds_are_put_into_the_order_of_the_cells() -> None:
    data = _data()
    parts = [fold_parts(data, 4, fold, 0) for fold in range(4)]
    said = [
        {
            "rare": part.labelled("rare", "valid").rows.astype(float),
            "value": Terms({"rmse": part.labelled("value", "valid").rows[:, None].astype(float)}),
        }
        for part in parts
    ]
    found = assembled(whole(data), parts, said)
    np.testing.assert_array_equal(found["rare"], whole(data).labelled("rare", "valid").rows)
    np.testing.assert_array_equal(found["value"].each["rmse"][:, 0], whole(data).labelled("value", "valid").rows)


def test_folds_that_cannot_be_had_say_why() -> None:
    assert "need as many units" in str(why_not(_data(), 500, 0))
    few = _frame(60)
    few["rare"] = (np.arange(60) < 3).astype(int)
    few["value"] = np.arange(60.0)
    table = Table(few, ["value:regression", "rare:binary"], split="random", ignore=("who",))
    assert "'rare'" in str(why_not(prepare(table, split(table, 0)), 5, 0))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    study = Study(
        _frame(),
        ["rare:binary", "value:regression"],
        folder=tmp_path_factory.mktemp("runs"),
        name="small",
        ignore=["who"],
        candidates=["lightgbm_per_task", "shared_bottom_equal"],
        settings={"lightgbm_per_task": {"rounds": 30}, "shared_bottom_equal": {"epochs": 4}},
        budget="120s",
        repeats=200,
        jobs=1,
    )
    return study, study.run()


def test_a_small_table_is_chosen_on_out_of_fold_predictions(result: Any) -> None:
    """Below 3,000 units: five fits without a fold each, and their average is deployed."""
    _, found = result
    choice = json.loads((found.folder / "choice.json").read_text())
    assert choice["judged_on"] == "out of fold"
    trials = sorted(path.name for path in (found.folder / "work" / "trials").iterdir())
    assert [name for name in trials if "shared_bottom" in name] == [f"final-shared_bottom_equal-0-s0-f{k}of5" for k in range(5)]
    for each in choice["weights"].values():
        assert sum(each.values()) == pytest.approx(1)
        assert len(each) >= 5
    model = pluribus.load(found.folder / "model")
    assert model.artefact == "average"
    said = model.predict(_frame())
    assert said["rare__p"].between(0, 1).all()


def test_the_figures_are_those_of_the_model_that_is_left(result: Any) -> None:
    """Broken: the report speaks of single fits, and users are served their average."""
    study, found = result
    report = json.loads((found.folder / "report.json").read_text())
    recommended = next(option for option in report["options"] if option["recommended"])
    assert recommended["name"] == report["choice"]["recommended"]
    from pluribus.evaluation import metrics

    test = study.data.parts["test"]
    model = pluribus.load(found.folder / "model")
    said = model.calibrated(study.data, test, ["value"])["value"]
    cells = study.data.labelled("value", "test")
    mine = metrics.compute("rmse", said[np.searchsorted(test, cells.rows)], cells.values)
    option = next(each for each in report["choice"]["options"] if each["name"] == recommended["name"])
    if all(weight == 1 for weight in option["answers"]["value"].values()):
        (name,) = option["answers"]["value"]
        assert report["test_deployed"][name]["value"]["rmse"] == pytest.approx(mine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 20, "group": "few"}, "need as many units"),
        ({"folds": 3, "split": "column:part"}, "one valid part"),
        ({"folds": 3, "balancers": ["nash"]}, "balancers are compared on one valid part"),
    ],
)
def test_folds_that_are_asked_for_and_impossible_are_refused(tmp_path: Any, settings: dict[str, Any], message: str) -> None:
    frame = _frame().assign(few=np.arange(240) % 16, part=np.resize(["train", "train", "train", "valid", "test"], 240))
    ignore = [name for name in ("who", "few", "part") if not any(name in str(value) for value in settings.values())]
    study = Study(frame, ["rare:binary", "value:regression"], folder=tmp_path, ignore=ignore, **settings)
    with pytest.raises(BadInput, match=message):
        study.plan()


def test_one_fold_keeps_one_valid_part(tmp_path: Any) -> None:
    study = Study(_frame(), ["rare:binary", "value:regression"], folder=tmp_path, ignore=["who"], folds=1)
    assert study.plan().folds is None
    assert len(study.plan().draws) == 3
