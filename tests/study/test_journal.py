"""The journal: a trial's folder appears whole, and only by the study's own process."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluribus.files import atomic_folder
from pluribus.study.crews.local import Workers
from pluribus.study.journal import Journal
from pluribus.study.plan import Trial

TRIAL = Trial("final", "net", {"lr": 0.1, "widths": (8, 8)}, 0, 60.0)


def _compute(scratch: str, trial: Trial, how: str = "well") -> dict[str, Any]:
    """What a worker does: a folder in the scratch folder, and the result."""
    result = {"status": "done", **vars(trial), "pid": os.getpid()}
    with atomic_folder(Path(scratch) / trial.id) as made:
        (made / "model").mkdir()
        if how == "dies":
            os._exit(1)
        (made / "result.json").write_text(json.dumps(result))
        (made / "model" / "backbone.safetensors").write_text("frozen")
    return result


def test_a_trial_appears_by_the_studys_own_process(tmp_path: Path) -> None:
    """If this fails, a worker that outlives its study can put a trial into the folder of the next one."""
    with Journal(tmp_path / "trials") as journal, Workers(2) as crew:
        calls = [(str(journal.scratch), replace(TRIAL, seed=seed)) for seed in (0, 1)]
        for _, outcome in crew.run(_compute, calls):
            assert isinstance(outcome, dict)
            assert outcome["pid"] != os.getpid()
            trial = replace(TRIAL, seed=outcome["seed"])
            assert not (tmp_path / "trials" / trial.id).exists()
            assert journal.finished(trial) is None
            journal.keep(trial)
            assert journal.finished(trial) is not None
        assert journal.result(TRIAL.id)["status"] == "done"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trials"]
    one, two = (journal.model(replace(TRIAL, seed=seed).id) / "backbone.safetensors" for seed in (0, 1))
    assert one.samefile(two), "equal weights are stored twice"


def test_a_worker_that_dies_leaves_no_trial(tmp_path: Path) -> None:
    """Out of memory in the middle of writing: the trial is not there, the others are, and nothing else is left."""
    other = replace(TRIAL, seed=1)
    with Journal(tmp_path / "trials") as journal, Workers(2) as crew:
        calls = [(str(journal.scratch), TRIAL, "dies"), (str(journal.scratch), other)]
        found = dict(crew.run(_compute, calls))
        journal.keep(other)
    assert "died" in str(found[0])
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [other.id]
    assert not (tmp_path / "scratch").exists()


def test_what_a_killed_study_left_is_removed(tmp_path: Path) -> None:
    """Also what the workers of the first edition, which wrote beside the trials, left there."""
    killed = Journal(tmp_path / "trials").__enter__()
    _compute(str(killed.scratch), TRIAL)
    (tmp_path / "trials" / f".{TRIAL.id}.x1.tmp").mkdir()
    with Journal(tmp_path / "trials") as journal:
        assert journal.finished(TRIAL) is None
        assert journal.scratch != killed.scratch
        assert not killed.scratch.exists()
        _compute(str(killed.scratch), TRIAL)  # a process that outlives the killed study
        journal.keep(TRIAL)
        assert list((tmp_path / "trials").iterdir()) == []
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (TRIAL, True),
        (replace(TRIAL, seconds=9.0), True),  # a second row gets what is left of the budget, and that is a matter of luck
        (replace(TRIAL, settings={"lr": 0.2, "widths": (8, 8)}), False),
        (replace(TRIAL, settings={"lr": 0.1}), False),
    ],
)
def test_a_trial_is_known_by_its_fields(other: Trial, same: bool, tmp_path: Path) -> None:
    """If this fails, a program that draws other configurations takes the results of the old ones for theirs."""
    with Journal(tmp_path / "trials") as journal:
        _compute(str(journal.scratch), TRIAL)
        journal.keep(TRIAL)
        assert (journal.finished(other) is not None) == same
        if not same:
            _compute(str(journal.scratch), other)
            journal.keep(other)
            assert journal.finished(other) is not None
            assert journal.finished(TRIAL) is None
