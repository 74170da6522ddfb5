"""The folder of a run: whose it is, and what stands in it.

    study.yaml       the settings, and the hash that the run is identified by
    log.jsonl        what happened, a line an event
    work/            what a run that goes on needs: prepared data, trials or scores
    choice.json      what was chosen on validation; written before the test split is opened, and never again
    opened.json      that this run has opened the test split
    verdict.json     the words of the test split, where there is a verdict
    model/           the recommended model
    results.parquet  one row a method, seed, task and metric
    report.json      everything the report says; the run is finished when it is there
    report.html      drawn from report.json

Each file is written whole or not at all, so that the same call goes on where a killed one stopped. Beside the run folders stands
`.test_openings.json`: how often each test split was opened by all of them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from pluribus.errors import BadInput
from pluribus.evaluation.ledger import Row
from pluribus.evaluation.verdict import Verdict
from pluribus.files import atomic_file, file_lock, read_json, read_yaml
from pluribus.files.plain import plain
from pluribus.modeling import Fitted, load

OPENINGS = ".test_openings.json"
REMEDY = "choose another --name"
MADE = ("report.json", "report.html", "choice.json", "opened.json", "verdict.json", "results.parquet")
"""What is made of a run's trials, beside `model/`."""


@dataclass(frozen=True)
class StudyResult:
    """What a finished study left below its folder.

    Parameters
    ----------
    folder : Path
        The run's folder.
    choice : dict
        What `choice.json` holds.
    verdict : Verdict or None
        The verdict on the test split; None where nothing could be compared.
    """

    folder: Path
    choice: dict[str, Any]
    verdict: Verdict | None

    @cached_property
    def model(self) -> Fitted:
        """The recommended model, loaded."""
        return load(self.folder / "model")

    @property
    def report(self) -> Path:
        """The page that shows it all."""
        return self.folder / "report.html"


def open_run(folder: str | Path) -> StudyResult:
    """A finished run from its folder.

    Raises
    ------
    BadInput
        The folder holds no finished run.
    """
    return RunFolder(folder).result()


class RunFolder:
    """One run's folder.

    Parameters
    ----------
    path : str or Path
        `RUNS/NAME`; it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.work = self.path / "work"
        self._claimed: str | None = None

    # -- whose it is ----------------------------------------------------------------------------------------------

    def claim(
        self,
        configuration: str,
        settings: Mapping[str, Any],
        *,
        about: str,
        goes_on: Callable[[Mapping[str, Any]], bool] = lambda held: False,
    ) -> None:
        """Take the folder for one configuration: a new one, or one that an earlier call took for the same.

        A folder in which nothing was computed yet (a mere plan) may be taken for another configuration. So may one whose run goes
        on as this one: then its trials stay, and what was made of them (choice, verdict, model, report) is removed, so that it is
        made anew and the test split is opened, and counted, again.

        Parameters
        ----------
        configuration : str
            The hash of all that the results depend on.
        settings : mapping
            What `study.yaml` says to people, beside the hash.
        about : str
            What the hash is about, for the message: "settings or data".
        goes_on : callable
            Whether the trials of a run with other settings, as its `study.yaml` holds them, are trials of this one.

        Raises
        ------
        BadInput
            Another run holds the folder, or it is no run's.
        """
        import yaml

        held, self._claimed = self._configuration(), configuration
        if held == configuration:
            return
        if held is None and self.path.exists() and any(self.path.iterdir()):
            raise BadInput("exists and is not a run", where=str(self.path), remedy=REMEDY)
        row = {**settings, "configuration": configuration}

        def write() -> None:
            with atomic_file(self.path / "study.yaml") as aside:
                aside.write_text(yaml.safe_dump(row, sort_keys=False, allow_unicode=True), "utf-8")

        if not self.work.exists():
            write()
            return
        if not goes_on(read_yaml(self.path / "study.yaml")):
            raise BadInput(f"holds a run with other {about}", where=str(self.path), remedy=REMEDY)
        with file_lock(self.path / ".lock"):
            for name in MADE:  # the report first: without it the run is not finished
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "model", ignore_errors=True)
            write()

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep other processes out of a claimed folder while the block runs.

        Parameters
        ----------
        waiting : callable
            Called once where another process works on this run, before waiting for its end.

        Raises
        ------
        BadInput
            Somebody claimed the folder for another configuration since.
        """
        with file_lock(self.path / ".lock", waiting):
            if self._configuration() != self._claimed:
                raise BadInput("was taken by another run meanwhile", where=str(self.path), remedy=REMEDY)
            yield

    def _configuration(self) -> str | None:
        """The hash that the folder is claimed for; "" where its `study.yaml` names none, None where it has no such file."""
        path = self.path / "study.yaml"
        if not path.is_file():
            return None
        held = read_yaml(path)
        return str(held.get("configuration", "")) if isinstance(held, dict) else ""

    # -- the files of a walk, in their order ----------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "report.json").is_file()

    def choice(self) -> dict[str, Any] | None:
        """What an earlier call chose, or None. It stands: the test split may have been opened since."""
        path = self.path / "choice.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = read_json(path)
        return found

    def write_choice(self, choice: Mapping[str, Any]) -> None:
        """Write down what was chosen."""
        self._write("choice.json", choice, indent=1)

    def open_test(self, split: str) -> int:
        """Count that this run opens a test split; a run that goes on has opened it once.

        Parameters
        ----------
        split : str
            The hash of the test split: runs of one split share the count.

        Returns
        -------
        int
            How often runs of this folder's parent have opened the split, this one included.
        """
        mine, path = self.path / "opened.json", self.path.parent / OPENINGS
        with file_lock(self.path.parent / ".lock"):
            counts: dict[str, int] = read_json(path) if path.is_file() else {}
            if not mine.is_file():
                counts[split] = counts.get(split, 0) + 1
                with atomic_file(path) as aside:
                    aside.write_text(json.dumps(counts, indent=1), "utf-8")
                self._write("opened.json", {"configuration": self._claimed})
        return counts.get(split, 1)

    def write_verdict(self, verdict: Verdict) -> None:
        """Write what the test split says."""
        self._write("verdict.json", verdict.to_dict(), indent=1)

    def write_results(self, rows: Sequence[Row]) -> None:
        """Write the figures of all methods, a row each."""
        import pandas as pd

        columns = [field.name for field in fields(Row)]
        frame = pd.DataFrame([vars(row) for row in rows], columns=columns)
        with atomic_file(self.path / "results.parquet") as aside:
            frame.astype({"seconds": "float64", "memory": "float64"}).to_parquet(aside, index=False)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what the report is drawn from; with it the run is finished."""
        self._write("report.json", summary)

    def result(self) -> StudyResult:
        """What the finished run left.

        Raises
        ------
        BadInput
            The run is not finished.
        """
        if not self.finished:
            raise BadInput("holds no finished study", where=str(self.path), remedy="run `pluribus study` first")
        verdict = self.path / "verdict.json"
        found = Verdict.from_dict(read_json(verdict)) if verdict.is_file() else None
        return StudyResult(self.path, read_json(self.path / "choice.json"), found)

    def _write(self, name: str, value: Mapping[str, Any], indent: int | None = None) -> None:
        with atomic_file(self.path / name) as aside:
            aside.write_text(json.dumps(plain(value), allow_nan=False, indent=indent), "utf-8")
