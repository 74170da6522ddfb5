"""The constant predictor as a candidate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import BadInput
from pluribus.files import sha256
from pluribus.modeling import Budget, load
from pluribus.modeling.constant import Constant
from pluribus.tasks import Task

BUDGET = Budget(1.0)


def test_the_best_by_the_main_metric(mixed: Prepared) -> None:
    """Oracle: shares of the classes, weighted means, and the median where the absolute error counts."""
    fitted = Constant().fit(mixed, BUDGET, 0)
    answers = fitted.scores(mixed, np.array([5, 5, 0]), ["loss", "grade", "default"])
    assert answers["loss"] == pytest.approx(np.full(3, mixed.labelled("loss", "train").values.mean()))
    shares = np.bincount(mixed.labelled("grade", "train").values.astype(int)) / len(mixed.labelled("grade", "train"))
    np.testing.assert_allclose(answers["grade"], np.tile(shares, (3, 1)))
    assert answers["default"] == pytest.approx(np.full(3, mixed.labelled("default", "train").values.mean()))
    median = replace(mixed, tasks=(Task("loss", "regression", metrics=("mae",)),), cells={"loss": mixed.cells["loss"]})
    found = Constant().fit(median, BUDGET, 0).values["loss"]
    assert found == pytest.approx(np.median(mixed.labelled("loss", "train").values), rel=1e-3)


def test_weights_count(mixed: Prepared) -> None:
    cells = mixed.cells["loss"]
    weight = (np.arange(len(cells)) % 3 == 0).astype(float)
    data = replace(mixed.only(["loss"]), cells={"loss": Cells(cells.rows, cells.values, weight)})
    train = data.labelled("loss", "train")
    assert Constant().fit(data, BUDGET, 0).values["loss"] == pytest.approx(train.values[train.weight == 1].mean())


def test_what_it_reads_does_not_matter(mixed: Prepared) -> None:
    """A table of texts alone has a constant too; nothing counts as ignored."""
    assert Constant().unreadable(mixed) is None
    assert Constant().ignored(mixed) == []
    assert Constant().estimate(mixed) < 0.01


def test_no_label_is_said(mixed: Prepared) -> None:
    data = replace(mixed.only(["loss"]), cells={"loss": Cells(np.empty(0, np.int64), np.empty(0))})
    with pytest.raises(BadInput, match="task 'loss': has no label in the training part"):
        Constant().fit(data, BUDGET, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "x"}, "not a number"),
        ({"grade": [1.0]}, r"task 'grade': has shape \[1\], not \[3\]"),
        ({"other": 1.0}, "no constant for each"),
    ],
)
def test_damage_is_named(mixed: Prepared, tmp_path: Path, change: dict[str, object], message: str) -> None:
    Constant().fit(mixed, BUDGET, 0).save(tmp_path / "m")
    path = tmp_path / "m" / "constants.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    manifest = json.loads((tmp_path / "m" / "pluribus.json").read_text("utf-8"))
    manifest["files"]["constants.json"] = sha256(path)
    (tmp_path / "m" / "pluribus.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BadInput, match=message):
        load(tmp_path / "m")
