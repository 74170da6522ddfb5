"""The one way through a study, walked by a toy arena: which of three numbers has the largest square?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pluribus.errors import BadInput
from pluribus.evaluation.ledger import Row, read_runs
from pluribus.study import arena
from pluribus.study.crews import Crew
from pluribus.study.crews.local import Workers
from pluribus.study.progress import Reporter
from pluribus.study.run_folder import RunFolder, StudyResult


def _square(number: int) -> dict[str, Any]:
    return {"square": number**2}


class Toy:
    """An arena of numbers."""

    about = "numbers"

    def __init__(self, numbers: tuple[int, ...] = (1, 3, 2), *, ends_at: str = "") -> None:
        self.numbers, self.ends_at, self.steps = numbers, ends_at, list[str]()

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.ends_at:
            raise KeyboardInterrupt

    def check(self) -> None:
        if not self.numbers:
            raise BadInput("holds no number", where="toy", remedy="give one")

    def goes_on(self, held: Any) -> bool:
        return False

    def configuration(self) -> str:
        return str(self.numbers)

    def settings(self) -> dict[str, Any]:
        return {"numbers": list(self.numbers)}

    def trials(self, folder: RunFolder, crew: Crew, report: Reporter) -> dict[int, int]:
        self._step("trials")
        folder.work.mkdir(exist_ok=True)
        outcomes = crew.run(_square, [(number,) for number in self.numbers])
        return {self.numbers[i]: found["square"] for i, found in outcomes if isinstance(found, dict)}

    def choose(self, results: dict[int, int]) -> dict[str, Any]:
        self._step("choose")
        winner = max(results, key=lambda number: results[number])
        return {"winner": winner, "recommended": "one model", "reason": "the largest square"}

    def test_split(self) -> str:
        self._step("test_split")
        return "squares"

    def judge(self, folder: RunFolder, results: dict[int, int], choice: Mapping[str, Any]) -> None:
        assert (folder.path / "choice.json").is_file()
        self._step("judge")

    def deploy(self, folder: RunFolder, results: dict[int, int], choice: Mapping[str, Any], verdict: None) -> None:
        self._step("deploy")
        (folder.path / "model").mkdir(exist_ok=True)

    def rows(self, folder: RunFolder, results: dict[int, int], choice: Mapping[str, Any]) -> list[Row]:
        return [Row(str(n), 0, "square", "size", float(s), "max", "largest") for n, s in results.items()]

    def summary(self, folder: RunFolder, results: dict[int, int], choice: Mapping[str, Any], verdict: None) -> dict[str, Any]:
        told = {"name": folder.path.name, "headline": f"{choice['winner']} is chosen.", "versions": {}}
        return {"schema_version": 1, "kind": "toy", "tasks": [], "candidates": {}, "warnings": [], "parts": {"test": 3}, **told}


def _run(toy: Toy, path: Path, jobs: int = 1) -> StudyResult:
    with Workers(jobs) as crew:
        return arena.run(toy, RunFolder(path), crew, Reporter(path, None))


def test_a_toy_walks_through(tmp_path: Path) -> None:
    """If this fails, a new domain must write its own study again: claim, choice, openings, report."""
    toy = Toy()
    found = _run(toy, tmp_path / "toy", jobs=2)
    assert toy.steps == ["trials", "choose", "test_split", "judge", "deploy"]
    assert found.choice["winner"] == 3
    assert found.verdict is None
    assert "3 is chosen." in found.report.read_text("utf-8")
    assert {row.method: row.value for row in read_runs([found.folder])} == {"1": 1.0, "2": 4.0, "3": 9.0}
    summary = json.loads((found.folder / "report.json").read_text())
    assert summary["openings"] == 1
    assert summary["choice"] == found.choice


def test_a_finished_run_is_drawn_again_and_nothing_else(tmp_path: Path) -> None:
    _run(Toy(), tmp_path / "toy")
    (tmp_path / "toy" / "report.html").unlink()
    again = Toy()
    assert _run(again, tmp_path / "toy").report.is_file()
    assert again.steps == []


@pytest.mark.parametrize("step", ["trials", "choose", "test_split", "judge", "deploy"])
def test_wherever_it_ends_the_same_call_goes_on(step: str, tmp_path: Path) -> None:
    """The choice is made once, and the test split opened once, whatever happens in between."""
    with pytest.raises(KeyboardInterrupt):
        _run(Toy(ends_at=step), tmp_path / "toy")
    chosen = (tmp_path / "toy" / "choice.json").is_file()
    assert chosen == (step in ("test_split", "judge", "deploy"))
    again = Toy()
    assert _run(again, tmp_path / "toy").choice["winner"] == 3
    assert ("choose" in again.steps) != chosen
    assert json.loads((tmp_path / "toy" / "report.json").read_text())["openings"] == 1


def test_a_choice_is_not_made_again_once_the_test_split_may_be_known(tmp_path: Path) -> None:
    """If this fails, a study can be stopped after a look at the test split and choose anew."""
    with pytest.raises(KeyboardInterrupt):
        _run(Toy(ends_at="judge"), tmp_path / "toy")
    path = tmp_path / "toy" / "choice.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "winner": 2}))
    assert _run(Toy(), tmp_path / "toy").choice["winner"] == 2


def test_what_cannot_be_used_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no number"):
        _run(Toy(()), tmp_path / "runs" / "toy")
    assert not (tmp_path / "runs").exists()
    _run(Toy(), tmp_path / "toy")
    with pytest.raises(BadInput, match="holds a run with other numbers"):
        _run(Toy((5,)), tmp_path / "toy")


def test_every_opening_is_counted_over_the_runs_beside_each_other(tmp_path: Path) -> None:
    openings = []
    for name in ("one", "two"):
        _run(Toy(), tmp_path / name)
        openings.append(json.loads((tmp_path / name / "report.json").read_text())["openings"])
    assert openings == [1, 2]
