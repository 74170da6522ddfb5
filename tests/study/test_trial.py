"""Trials and their workers: pure, whole or absent, and no death takes the study along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data import Table, prepare, split
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.study.plan import Trial
from pluribus.study.trial import (
    best_threshold,
    calibrate,
    finished,
    read_predictions,
    run_trial,
    valid_predictions,
    write_predictions,
)
from pluribus.tabular.joint_networks import SharedBottomEqual
from pluribus.tasks.forms import Ragged
from pluribus.tasks.metrics import Terms


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.9]), st.booleans()), min_size=1, max_size=40))
def test_best_threshold_is_the_best(rows: list[tuple[float, bool]]) -> None:
    """Against every possible threshold: if this fails, labels are cut at the wrong place."""
    p, y = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])

    def f1(threshold: float) -> float:
        said = p >= threshold
        return 2 * float((said * y).sum()) / max(1.0, said.sum() + y.sum())

    found = best_threshold(p, y)
    if y.sum():
        assert f1(found) >= max(f1(t) for t in np.unique(p)) - 1e-12
    else:
        assert found == 0.5


def test_same_configuration_same_result(study_of: Any, loans: Any, tmp_path: Any) -> None:
    """A trial is a function of its fields: two runs agree to the last digit."""
    study = study_of(loans, name="a")
    study.learnable.save(tmp_path / "p")
    trial = Trial("final", "shared_bottom_equal", {}, 1, 1000.0)
    results = []
    for where in ("x", "y"):
        (tmp_path / where).mkdir()
        results.append(run_trial(str(tmp_path / "p"), str(tmp_path / where), trial, 0))
    assert results[0]["scores"] == results[1]["scores"]
    a, b = (valid_predictions(tmp_path / where, trial.id) for where in ("x", "y"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_refused_fit_is_a_failed_trial(study_of: Any, loans: Any, tmp_path: Any) -> None:
    """A setting that cannot be used stops the trial with its reason, not the study."""
    study_of(loans, name="a").learnable.save(tmp_path / "p")
    (tmp_path / "t").mkdir()
    trial = Trial("final", "shared_bottom_equal", {"widht": 3}, 0, 100.0)
    result = run_trial(str(tmp_path / "p"), str(tmp_path / "t"), trial, 0)
    assert result["status"] == "failed"
    assert "did you mean 'width'" in result["error"]
    held = finished(tmp_path / "t", trial)
    assert held is not None
    assert held["status"] == "failed"


def test_trials_never_see_test_labels(study_of: Any, loans: Any) -> None:
    """The prepared table that workers load holds no label of a test row and no test part."""
    study = study_of(loans, name="a")
    test = set(study.split.parts["test"].tolist())
    assert set(study.learnable.parts) == {"train", "valid"}
    for cells in study.learnable.cells.values():
        assert not test & set(cells.rows.tolist())


def test_predictions_and_terms_are_kept_side_by_side(tmp_path: Any) -> None:
    """Broken: a resumed study of maps judges other numbers, or a task whose name holds "//" is lost."""
    kept = {
        "a": np.arange(3.0),
        "b//c": np.ones((2, 2)),
        "d//e": Terms({"iou": np.arange(6.0).reshape(3, 2), "f1": np.zeros((3, 1))}),
    }
    write_predictions(tmp_path / "valid.npz", kept)
    found = read_predictions(tmp_path / "valid.npz")
    assert set(found) == set(kept)
    np.testing.assert_equal(found["a"], kept["a"])
    np.testing.assert_equal(found["b//c"], kept["b//c"])
    np.testing.assert_equal(dict(found["d//e"].each), dict(kept["d//e"].each))
    with pytest.raises(BadInput, match="too large to keep"):
        write_predictions(tmp_path / "other.npz", {"g": Ragged.of([[1], [2, 3]])})


def test_rows_of_weight_0_do_not_calibrate() -> None:
    """A class whose valid rows nearly all weigh 0 cannot be calibrated on: the trial goes on without, and does not fail."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 2))
    y = (x[:, 0] + rng.normal(size=800) > 0).astype(int)
    weight = np.where((y == 1) & (np.arange(800) > 40), 0.0, 1.0)
    table = Table(pd.DataFrame({"a": x[:, 0], "y": y, "z": x[:, 1], "w": weight}), ["y", "z"], weight="w", split="random")
    data = prepare(table, split(table, 0))
    fitted = SharedBottomEqual(epochs=1).fit(data, Budget(30.0), 0)
    assert set(calibrate(fitted, data)) == {"y", "z"}
    assert fitted.calibration == {}
