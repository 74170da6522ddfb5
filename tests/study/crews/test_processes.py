"""Several processes train one trial: the study works as with one, and a process that ends costs one trial, not the study."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluribus.errors import BadInput
from pluribus.files import read_json
from pluribus.study.crews.processes import Team, run_together


def sum_of_ranks(folder: str, what: str) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    if what == "die once" and rank == 1 and not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse" and rank == 1:
        return {"status": "failed", "error": "rank 1 saw NaN"}
    box = torch.tensor([rank + 1.0])
    dist.all_reduce(box)
    return {"status": "done", "sum": float(box)}


def test_a_closed_team_leaves_no_process(tmp_path: Path) -> None:
    """If this fails, an interrupted study leaves trainings behind."""
    team = Team(2)
    outcome = team.call(sum_of_ranks, (str(tmp_path), "well"))
    assert isinstance(outcome, dict)
    pids = [member.pid for member in team.members]
    team.close()
    time.sleep(0.1)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert team.call(sum_of_ranks, (str(tmp_path), "well")) == "the study was ended"


def test_what_teams_answer(tmp_path: Path) -> None:
    """If this fails, a process of a team that dies or refuses hangs the study or is blamed on the next trial."""
    words = ["well", "die once", "refuse", "well", "die"]
    found = dict(run_together(sum_of_ranks, [(str(tmp_path), word) for word in words], 1, 2))
    for i in (0, 1, 3):
        assert found[i]["sum"] == 3.0  # type: ignore[index]
    assert found[2] == {"status": "failed", "error": "rank 1 saw NaN"}
    assert "process" in str(found[4])
    assert "ended" in str(found[4])


def test_a_study_of_two_processes(study_of: Any, loans: Any, tmp_path: Path) -> None:
    """If this fails, `--processes 2` trains something else than one process, or does not say so."""
    settings = {"candidates": ["shared_bottom_equal", "lightgbm_per_task"], "seeds": 1}
    one = study_of(loans, name="one", **settings)
    two = study_of(loans, name="two", **settings)
    two.processes, two.teams = 2, 1
    first, second = one.run(), two.run()
    trial = "final-shared_bottom_equal-0-s0"
    records = [read_json(r.folder / "work" / "trials" / trial / "result.json") for r in (first, second)]
    assert [r["processes"] for r in records] == [1, 2]
    assert read_json(second.folder / "work" / "trials" / "final-lightgbm_per_task-0-s0" / "result.json")["processes"] == 1
    assert abs(records[0]["rule"] - records[1]["rule"]) < 0.05
    frame = loans.drop(columns=["default", "prepay", "loss", "calls"])
    a, b = (r.model.predict(frame) for r in (first, second))
    assert np.corrcoef(a["loss"], b["loss"])[0, 1] > 0.95
    assert any("2 processes each" in note for note in read_json(second.folder / "report.json")["notes"])


def test_the_number_of_processes_is_checked(study_of: Any, loans: Any) -> None:
    """If this fails, `--processes 0` divides by zero."""
    from pluribus.study import Study

    with pytest.raises(BadInput, match=r"^processes: is 0; it must be at least 1"):
        Study(loans, ["default"], processes=0)
