"""What a running study tells: lines, `log.jsonl`, and for trainings a progress bar where there is a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pluribus.study.plan import Plan, Trial

SCALARS = ("conflict_ratio", "effective_tasks", "pareto_gap")  # of the tasks' gradients, as `balancing.Diagnostics` has them


def on_terminal(line: str) -> None:
    """Say a line on the terminal, beside what a command prints."""
    print(line, file=sys.stderr, flush=True)


class Reporter:
    """Tells a study's progress.

    Parameters
    ----------
    folder : Path
        The run's folder; `log.jsonl` grows there.
    say : callable or None
        Gets each line that is for people; None: only the log is written.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] | None = on_terminal) -> None:
        self.log, self.say = folder / "log.jsonl", say
        self.began = time.monotonic()
        self.bar: Any = None
        self.line: Any = None

    @property
    def seconds(self) -> float:
        """Since the reporter was made."""
        return time.monotonic() - self.began

    def event(self, name: str, **fields: Any) -> None:
        """A line of the log."""
        with open(self.log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": name, "time": round(time.time(), 3), **fields}) + "\n")

    def note(self, text: str) -> None:
        """A line for people and for the log."""
        self.event("note", text=text)
        self._say(text)

    def warn(self, text: str) -> None:
        """A warning for people and for the log."""
        self.event("warning", text=text)
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        if self.say is not None:
            self.say(text)

    @contextlib.contextmanager
    def running(self, planned: Plan) -> Iterator[None]:
        """Show a bar over the trials while the block runs."""
        total = sum(len(road.screens(0)) + len(planned.draws) for road in planned.roads)
        if self.say is None:
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        what = TextColumn("{task.description}")
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), what)
        with Progress(*columns, console=console, disable=not console.is_terminal) as self.bar:
            self.line = self.bar.add_task("", total=total)
            yield
        self.bar = None

    def trial(self, trial: Trial, result: dict[str, Any], *, again: bool = False) -> None:
        """A trial has finished (or had, in an earlier run)."""
        status = result["status"]
        drawn = f"seed {trial.seed}" if trial.fold is None else f"fold {trial.fold[0] + 1} of {trial.fold[1]}"
        fields = {key: result.get(key) for key in ("rule", "seconds", "undertrained", "error") if result.get(key) is not None}
        measured = result.get("diagnostics") or {}
        fields |= {key: round(measured[key], 4) for key in SCALARS if key in measured}
        self.event("trial", trial=trial.id, status=status, again=again, **fields)
        if status == "done":
            phase = f"screen, configuration {trial.index + 1}" if trial.phase == "screen" else trial.phase
            text = f"{trial.candidate} ({drawn}, {phase}) {result['seconds']:.{int(result['seconds'] < 10)}f} s"
        else:
            text = f"{trial.candidate} ({drawn}) failed: {result.get('error')}"
        if self.bar is not None:
            self.bar.update(self.line, advance=1, description=text)
        if self.bar is None or self.bar.disable or status != "done":
            self._say(("kept: " if again else "") + text)
