"""The leaderboard: its scores against another way to compute them, its order, its costs, and where it is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pluribus.modeling import load
from pluribus.study.leaderboard import rows_per_second
from pluribus.study.memory import forget_peak, peak
from pluribus.study.report import write_report
from pluribus.study.report.leaderboard import lines
from pluribus.study.report.terminal import spoken
from pluribus.study.trial import averaged, cell_scores, skills

Make = Callable[..., dict[str, Any]]


def board_of(result: Any) -> dict[str, dict[str, Any]]:
    held = json.loads((result.folder / "report.json").read_text())
    return {row["candidate"]: row for row in held["leaderboard"]}


def test_every_candidate_has_a_row_the_best_first(finished: Any) -> None:
    """Sorted by the score of validation, which chose; those that answer in `model/` are marked."""
    _, result = finished
    board = board_of(result)
    assert set(board) == set(result.choice["rules"])
    assert [row["valid"] for row in board.values()] == sorted(result.choice["rules"].values(), reverse=True)
    marked = {name for name, row in board.items() if row["recommended"]}
    assert marked == set(result.choice["answers"].values())


def test_test_scores_are_the_skill_of_the_fits(finished: Any) -> None:
    """Oracle: the judge of trainings, told that the test part is the valid part, on the predictions of the kept models."""
    study, result = finished
    rows = study.data.parts
    as_valid = study.data.with_parts(train=rows["train"], valid=rows["test"])
    trials = result.folder / "work" / "trials"
    for name, row in board_of(result).items():
        folders = sorted(trials.glob(f"final-{name}-*"))
        each = [cell_scores(load(folder / "model"), as_valid, "valid", calibrated=True) for folder in folders]
        said = averaged(as_valid.tasks, each, 0)
        assert row["test"] == pytest.approx(np.mean(list(skills(as_valid, said).values())), rel=1e-9)


def test_costs_are_those_of_the_trials(finished: Any) -> None:
    """Seconds of all finals together, bytes of a model folder, and the memory that also stands in results.parquet."""
    _, result = finished
    for name, row in board_of(result).items():
        folders = sorted((result.folder / "work" / "trials").glob(f"final-{name}-*"))
        held = [json.loads((folder / "result.json").read_text()) for folder in folders]
        assert row["fits"] == len(held) == 2
        assert row["fit_seconds"] == pytest.approx(sum(each["seconds"] for each in held))
        sizes = {sum(f.stat().st_size for f in (folder / "model").rglob("*") if f.is_file()) for folder in folders}
        assert row["bytes"] in sizes
        assert row["rows_per_second"] > 0
        assert row["peak_memory"] == max(each["peak_memory"] for each in held) > 50e6
        frame = pd.read_parquet(result.folder / "results.parquet")
        assert set(frame.loc[frame["method"] == name, "memory"]) == {float(each["peak_memory"]) for each in held}


def test_speed_is_of_one_thread_and_leaves_the_threads_alone(finished: Any) -> None:
    """Threads of this process are as before, also where predicting fails; no row is no speed."""
    import torch

    study, result = finished
    model, before = load(result.folder / "model"), torch.get_num_threads()
    none = study.learnable.with_parts(train=study.learnable.parts["train"], valid=np.empty(0, np.int64))
    assert rows_per_second(model, none) is None

    class Seen(type(model)):  # type: ignore[misc]
        def scores(self, data: Any, rows: Any, tasks: Any) -> Any:
            assert torch.get_num_threads() == 1
            assert 0 < len(rows) <= 500
            raise RuntimeError

    model.__class__ = Seen
    with pytest.raises(RuntimeError):
        rows_per_second(model, study.learnable)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot forget a peak")
def test_peak_is_since_it_was_forgotten() -> None:
    """What an earlier trial of the same worker held is not this one's."""
    held = np.ones(160_000_000 // 8)
    del held
    high = peak()
    forget_peak()
    low = peak()
    assert high is not None
    assert low is not None
    assert low < high - 100e6
    again = np.ones(80_000_000 // 8)
    assert (peak() or 0) > low + 60e6
    del again


def test_it_is_on_the_terminal_and_on_the_page(finished: Any) -> None:
    """The same rows, the recommended one marked."""
    _, result = finished
    told, html = spoken(result.folder), result.report.read_text()
    summary = json.loads((result.folder / "report.json").read_text())
    for name, row in board_of(result).items():
        label = summary["candidates"][name]["label"]
        (line,) = [each for each in told.splitlines() if label in each and "%" not in each]
        assert ("→" in line) == row["recommended"]
        assert f"{row['test']:.4f}".replace("-", "−") in line
    assert html.count('id="leaderboard"') == 1


def test_failed_and_refused_candidates_are_named(summary_of: Make) -> None:
    """Without a row there is a reason; a champion, which is a file, has no costs."""
    summary = summary_of(["default"])
    row = {"candidate": "joint", "recommended": True, "undertrained": True, "fits": 1, "valid": -0.25, "test": None}
    costs = {"fit_seconds": 5.0, "rows_per_second": 1234567.0, "bytes": 4000, "peak_memory": None}
    champion = {**row, "candidate": "champion", "recommended": False, "valid": None, **dict.fromkeys(costs)}
    summary |= {
        "leaderboard": [{**row, **costs}, champion],
        "failed": {"other": "it diverged"},
        "left_out": {"pooled": "it is wide"},
    }
    told = "\n".join(lines(summary))
    for said in (
        "Joint (undertrained)",
        "−0.2500",
        "1\u202f200\u202f000",
        "4 kB",
        "Your champion file",
        "n/a",
        "other failed: it diverged",
    ):
        assert said in told
    assert "pooled did not run: it is wide" in told


def test_reports_of_before_the_leaderboard_are_drawn(summary_of: Make, tmp_path: Path) -> None:
    """A `report.json` without it gives a page and an end without it."""
    (tmp_path / "report.json").write_text(json.dumps(summary_of(["default"])))
    assert 'id="leaderboard"' not in write_report(tmp_path).read_text()
    assert "Leaderboard" not in spoken(tmp_path)
