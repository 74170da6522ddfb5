"""Weights of rows by task and of classes: every cell counts as the user says, and no class is lost without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pluribus.data.leakage import lineage
from pluribus.data.prepared import prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.options import roles


def frame(rows: int = 120) -> pd.DataFrame:
    """A binary target of one in four, classes, a number; weights."""
    place = np.arange(rows)
    return pd.DataFrame(
        {
            "x": place * 1.0,
            "bad": np.where(place % 4 == 0, "yes", "no"),
            "grade": np.array(["a", "b", "c"])[place % 3],
            "loss": np.where(place % 5 == 0, np.nan, place / 7),
            "w": 1.0 + place % 2,
            "own": 2.0 + place % 3,
        }
    )


TASKS = ["bad", "grade", "loss"]


def test_a_task_takes_its_own_column_in_place_of_the_common_one() -> None:
    """Otherwise --weight loss=own weighs other tasks too, or loses the common weights."""
    table = Table(frame(), TASKS, weight=["w", "loss=own"], split="random")
    own, common = table.frame["own"].to_numpy(), table.frame["w"].to_numpy()
    assert np.array_equal(table.cells["loss"].weight, own[table.cells["loss"].rows])  # type: ignore[arg-type]
    assert np.array_equal(table.cells["bad"].weight, common)  # type: ignore[arg-type]
    assert table.inputs == ("x",)
    alone = Table(frame().drop(columns="w"), TASKS, weight="loss=own", split="random")
    assert alone.cells["bad"].weight is None
    assert alone.weight is None


def test_balanced_classes_have_the_same_weight_in_all() -> None:
    """sklearn's formula n / (K · n_k) is the oracle; with row weights, the sums of weights take the counts' place."""
    from sklearn.utils.class_weight import compute_class_weight

    data = frame().drop(columns=["w", "own"])
    table = Table(data, TASKS, class_weights="balanced", split="random")
    cells = table.cells["bad"]
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=cells.values)
    assert np.allclose(cells.weight, expected[np.asarray(cells.values, int)])  # type: ignore[arg-type]
    assert table.cells["loss"].weight is None
    weighed = Table(frame().drop(columns="own"), TASKS, weight="w", class_weights="bad=balanced", split="random")
    sums = np.bincount(np.asarray(weighed.cells["bad"].values, int), weighed.cells["bad"].weight)
    assert np.allclose(sums, sums[0])
    assert np.array_equal(weighed.cells["grade"].weight, weighed.frame["w"])  # type: ignore[arg-type]


def test_named_classes() -> None:
    """A class may be named alone, or with its task; over balanced ones, what is named holds."""
    data = frame().drop(columns=["w", "own"])
    cells = Table(data, TASKS, class_weights=["balanced", "yes=5", "grade:c=0.5"], split="random").cells
    weight = {k: set(np.round(np.asarray(cells["bad"].weight)[np.asarray(cells["bad"].values) == k], 9)) for k in (0, 1)}
    assert weight[1] == {5.0}
    assert weight[0] == {round(120 / (2 * 90), 9)}
    grade = np.asarray(cells["grade"].weight)[np.asarray(cells["grade"].values) == 2]
    assert set(grade) == {0.5}


def test_weights_reach_what_is_prepared_and_its_hash(tmp_path: Path) -> None:
    """Candidates read `Prepared.cells`; a run of other weights is another run."""
    from pluribus.data.prepared import Prepared

    table = Table(frame(), TASKS, weight="loss=own", ignore=["w"], class_weights="yes=3", split="random")
    data = prepare(table, split(table))
    data.save(tmp_path / "p")
    again = Prepared.load(tmp_path / "p")
    for name in TASKS:
        one, other = table.cells[name].weight, again.cells[name].weight
        assert (one is None and other is None) or np.array_equal(one, other)  # type: ignore[arg-type]
    plain = Table(frame(), TASKS, ignore=["w", "own"], split="random")
    assert lineage(table)["bad"] != lineage(plain)["bad"]
    assert lineage(table)["loss"] != lineage(plain)["loss"]
    assert lineage(table)["grade"] != lineage(Table(frame(), TASKS, weight="w", split="random"))["grade"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "nope"}, "unknown weight column 'nope'"),
        ({"weight": "loss=nope"}, "unknown weight column 'nope'"),
        ({"weight": "los=w"}, "unknown task 'los'"),
        ({"weight": ["w", "own"]}, "'w' and 'own' for all tasks"),
        ({"weight": ["loss=w", "loss=own"]}, "named twice"),
        ({"weight": "loss=bad"}, "weights must be numbers"),
        ({"weight": "bad=zero"}, "all cells of class 'yes' have the weight 0"),
        ({"weight": "loss=none"}, "weights must be numbers"),
        ({"weight": "loss=unlabelled"}, "all labelled cells have the weight 0"),
        ({"class_weights": "yes=0"}, "could not be learnt"),
        ({"class_weights": "yes=-1"}, "could not be learnt"),
        ({"class_weights": "yes=much"}, "gives no class a weight"),
        ({"class_weights": "yse=2"}, "unknown class 'yse'"),
        ({"class_weights": "bda=balanced"}, "unknown task 'bda'"),
        ({"class_weights": "loss=balanced"}, "has no classes"),
        ({"class_weights": "heavy"}, "gives no class a weight"),
    ],
)
def test_wrong_weights_are_one_line(options: dict[str, str], message: str) -> None:
    """Zero weights for a whole class would end as a model that never predicts it."""
    data = frame()
    data["zero"] = np.where(data["bad"] == "yes", 0.0, 1.0)
    data["none"] = 0.0
    data["unlabelled"] = data["loss"].isna().astype(float)
    with pytest.raises(BadInput) as caught:
        Table(data, TASKS, split="random", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert caught.value.remedy


def test_one_word_stays_a_word() -> None:
    """Study files of before say `weight: w`; the command line must ask for the same run."""
    assert roles({"weight": ("w",), "class_weights": ()}) == {"weight": "w"}
    assert roles({"weight": ("w", "t=v")}) == {"weight": ["w", "t=v"]}
