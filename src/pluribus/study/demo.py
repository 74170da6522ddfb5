"""The demo: a study of the New York flights of 2013."""

from __future__ import annotations

from pathlib import Path

from pluribus.data.flights import flights
from pluribus.study.report.terminal import spoken
from pluribus.study.study import Study

ROWS = 60_000


def run_demo(
    rows: int | None = ROWS,
    budget: str = "5m30s",
    *,
    folder: str | Path = "runs",
    jobs: int | None = None,
    name: str | None = None,
) -> str:
    """Run (or go on with) the study and return what to say at the end."""
    stem = "flights" if rows == ROWS else f"flights-{rows or 'all'}"
    table = flights(rows)
    study = Study(table, folder=folder, name=name or stem, budget=budget, jobs=jobs, quiet=False)
    result = study.run()
    return spoken(result.folder)
