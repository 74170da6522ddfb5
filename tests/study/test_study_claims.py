"""The pure parts of `benchmarks/study_claims`: what arms are shown, how held-out rows are cut, what means over tables mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.study_claims.page import ONE, RECOMMENDED, Judged, claims, over_tables
from benchmarks.study_claims.rivals import goodness, read


def _table(folder: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=rows), "who": np.arange(rows) // 4, "a": rng.normal(size=rows)})
    frame.loc[3, "a"] = np.nan
    frame.to_parquet(folder / "frame.parquet")
    about = {"targets": {"a": "regression"}, "task_column": None, "group": "who", "split": "random"}
    (folder / "about.json").write_text(json.dumps(about), "utf-8")
    np.save(folder / "split-0.npy", np.repeat([0, 1, 2], rows // 3))
    return folder


def test_no_rival_is_shown_a_label_of_the_test_part(tmp_path: Path) -> None:
    """If it failed, a rival could tune on what it is judged by."""
    data = read(_table(tmp_path), 0)
    assert np.isnan(data.y["a"][data.test]).all()
    assert len(data.labelled("a")) == 39
    assert list(data.x.columns) == ["x"]  # neither the target nor the group is an input


def test_rivals_cut_whole_groups_and_hold_out_every_row_once(tmp_path: Path) -> None:
    """If it failed, rivals would be tuned on groups that they have seen, and look weaker than they are."""
    data = read(_table(tmp_path), 0)
    rows = data.labelled("a")
    cuts = data.cuts(rows)
    assert sorted(np.concatenate([held for _, held in cuts])) == rows.tolist()
    for fit, held in cuts:
        assert not set(data.units[fit]) & set(data.units[held])
        assert not set(fit) & set(held)


def test_goodness_of_one_class_is_its_log_likelihood() -> None:
    """If it failed, a fold with one class would end a search by an error or a NaN."""
    assert goodness("binary", np.array([1.0, 1.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(0.5))
    assert goodness("binary", np.array([0.0, 1.0]), np.array([0.2, 0.7])) == 1


def test_means_count_tables_not_splits() -> None:
    """If it failed, a table with more splits would weigh more."""
    mean, low, high = over_tables([("a", 0.0), ("a", 2.0), ("b", 5.0), ("c", float("nan"))])
    assert (mean, low, high) == (3.0, 1.0, 5.0)


def test_a_claim_that_was_not_measured_is_neither_reached_nor_missed() -> None:
    """If it failed, an empty page would claim success."""
    assert all(reached is None for _, _, reached in claims([], {}, 120.0))


def test_one_worse_table_fails_the_first_claim() -> None:
    """If it failed, losers would not be counted."""
    from benchmarks.study_claims.cells import OURS, Key

    made = [
        Judged(
            name, 0, {"y": "rmse"}, 100, delta={RECOMMENDED: gain, ONE: gain}, word={RECOMMENDED: word}, worse={RECOMMENDED: n}
        )
        for name, gain, word, n in (("good", 5.0, "better", 0), ("bad", -1.5, "worse", 1))
    ]
    cells = {Key(name, 0, OURS, 120.0): {"facts": {}} for name in ("good", "bad")}
    found = claims(made, cells, 120.0)
    assert [reached for _, _, reached in found[:3]] == [False, True, False]
    assert "bad (split 0)" in found[0][1]
