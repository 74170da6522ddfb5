"""What a running study tells: progress bars on a terminal, lines elsewhere, and `log.jsonl`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pluribus.study.plan import Plan, Trial

SCALARS = ("conflict_ratio", "effective_tasks", "pareto_gap")  # of the tasks' gradients, as `balancing.Diagnostics` has them


class Reporter:
    """Tells a study's progress. quiet: only the log is written."""

    def __init__(self, folder: Path, jobs: int, *, quiet: bool) -> None:
        self.log = folder / "log.jsonl"
        self.jobs, self.quiet = jobs, quiet
        self.bar: Any = None
        self.line: Any = None

    def event(self, name: str, **fields: Any) -> None:
        """A line of the log."""
        with open(self.log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": name, "time": round(time.time(), 3), **fields}) + "\n")

    def note(self, text: str) -> None:
        self.event("note", text=text)
        self._say(text)

    def warn(self, text: str) -> None:
        self.event("warning", text=text)
        self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def running(self, planned: Plan) -> Iterator[None]:
        """Show a bar over the trials while the block runs."""
        total = sum(len(road.screens(0)) + len(planned.seeds) for road in planned.roads)
        if self.quiet:
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
        fields = {key: result.get(key) for key in ("rule", "seconds", "undertrained", "error") if result.get(key) is not None}
        heard = result.get("diagnostics") or {}
        fields |= {key: round(heard[key], 4) for key in SCALARS if key in heard}
        self.event("trial", trial=trial.id, status=status, again=again, **fields)
        if status == "done":
            phase = f"screen, configuration {trial.index + 1}" if trial.phase == "screen" else trial.phase
            text = f"{trial.candidate} (seed {trial.seed}, {phase}) {result['seconds']:.{int(result['seconds'] < 10)}f} s"
        else:
            text = f"{trial.candidate} (seed {trial.seed}) failed: {result.get('error')}"
        if self.bar is not None:
            self.bar.update(self.line, advance=1, description=text)
        if self.bar is None or self.bar.disable or status != "done":
            self._say(("kept: " if again else "") + text)
