"""What a study compares, and the one way through a study.

    check → claim the folder → trials → choose (choice.json) → open the test split once, counted → verdict → model → report

A study is a run folder × an arena × a crew: the folder says what is finished, the arena what is compared, the crew who computes.
Killed at any moment, the same call goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pluribus.evaluation.ledger import Row
from pluribus.evaluation.verdict import Verdict
from pluribus.study.crews import Crew
from pluribus.study.progress import Reporter
from pluribus.study.report import write_report
from pluribus.study.run_folder import RunFolder, StudyResult

Results = TypeVar("Results")
"""What an arena's trials left: the arena's own record, handed back to each later step."""


class Arena(Protocol[Results]):
    """What is compared, step by step. `run` calls the methods in this order; none looks at the test split before `judge`.

    Attributes
    ----------
    about : str
        What `configuration` is a hash of, in words: "settings or data".
    """

    about: str

    def check(self) -> None:
        """Find whatever cannot be used, as `BadInput`; nothing is written yet."""
        ...

    def configuration(self) -> str:
        """The hash of everything that the results depend on; a run goes on only under the same."""
        ...

    def goes_on(self, held: Mapping[str, Any]) -> bool:
        """Whether the trials of a run with other settings (what its `study.yaml` says) are trials of this one, too."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What `study.yaml` says to people."""
        ...

    def trials(self, folder: RunFolder, crew: Crew, report: Reporter) -> Results:
        """Train or score everything that is compared, on the train and valid parts; what is finished is taken as it is."""
        ...

    def choose(self, results: Results) -> Mapping[str, Any]:
        """Choose on the valid part alone. Keys that every choice has: `recommended`, `reason`."""
        ...

    def test_split(self) -> str:
        """The hash of the test split, by which its openings are counted."""
        ...

    def judge(self, folder: RunFolder, results: Results, choice: Mapping[str, Any]) -> Verdict | None:
        """Open the test split, and judge what was chosen against its references; None where there is nothing to compare."""
        ...

    def deploy(self, folder: RunFolder, results: Results, choice: Mapping[str, Any], verdict: Verdict | None) -> None:
        """Write `model/`."""
        ...

    def rows(self, folder: RunFolder, results: Results, choice: Mapping[str, Any]) -> Sequence[Row]:
        """The test figures of all methods, for `results.parquet`."""
        ...

    def summary(
        self, folder: RunFolder, results: Results, choice: Mapping[str, Any], verdict: Verdict | None
    ) -> Mapping[str, Any]:
        """What `report.json` says, beside the choice, the verdict, the openings and the seconds."""
        ...


def claim(arena: Arena[Results], folder: RunFolder) -> None:
    """Check everything, and take the run's folder for this arena's configuration.

    Raises
    ------
    BadInput
        Something cannot be used, or another run holds the folder; nothing is written then.
    """
    arena.check()
    folder.claim(arena.configuration(), arena.settings(), about=arena.about, goes_on=arena.goes_on)


def run(arena: Arena[Results], folder: RunFolder, crew: Crew, report: Reporter) -> StudyResult:
    """Walk through a study, from its settings to its report; go on where an earlier call with the same settings stopped.

    Parameters
    ----------
    arena : Arena
        What is compared.
    folder : RunFolder
        Where everything is left.
    crew : Crew
        Who computes the trials.
    report : Reporter
        Who is told of the progress.

    Returns
    -------
    StudyResult
        What the run left.

    Raises
    ------
    BadInput
        Something cannot be used, or another run holds the folder.
    """
    claim(arena, folder)
    with folder.locked(lambda: report.note("another process works on this run; this one waits for its end")):
        if folder.finished:
            report.note("finished before; nothing is trained again")
        else:
            _walk(arena, folder, crew, report)
        write_report(folder.path)
    report.event("end", seconds=report.seconds)
    return folder.result()


def _walk(arena: Arena[Results], folder: RunFolder, crew: Crew, report: Reporter) -> None:
    results = arena.trials(folder, crew, report)
    choice = folder.choice()
    if choice is None:
        choice = dict(arena.choose(results))
        folder.write_choice(choice)
    report.note(f"chosen on validation: {choice['recommended']} ({choice['reason']})")
    openings = folder.open_test(arena.test_split())
    report.note(f"the test split is opened for the {_ordinal(openings)} time")
    verdict = arena.judge(folder, results, choice)
    if verdict is not None:
        folder.write_verdict(verdict)
    arena.deploy(folder, results, choice, verdict)
    folder.write_results(arena.rows(folder, results, choice))
    found = {
        "choice": choice,
        "verdict": None if verdict is None else verdict.to_dict(),
        "openings": openings,
        "seconds": report.seconds,
    }
    folder.write_summary({**found, **arena.summary(folder, results, choice, verdict)})


def _ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"
