"""The leaderboard: every candidate by its score on validation, with what it costs; on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pluribus.study.report import options
from pluribus.study.report.tables import Html, badge, bullets, section, table, tag
from pluribus.study.report.words import Row, duration, label, number, size

HEADS = ("candidate", "validation", "test", "fit", "rows/s", "size", "peak memory")
MEANING = (
    "Sorted by validation: mean skill over the main tasks, 0 is always the same answer, 1 is perfect. Test: the same on the test "
    "part, exploratory, no part of the choice. Fit: core-seconds of all its fits. Rows/s and size: of one fit, one thread. "
    "Peak memory: of the worker process, libraries included."
)


def leaderboard(summary: Row) -> Html:
    """The section of the page; nothing for runs of before there was one."""
    rows = summary.get("leaderboard")
    if not rows:
        return Html("")
    body = []
    for row in rows:
        name, *figures = _cells(summary, row)
        mark = badge("recommended") if row["recommended"] else ""
        body.append([tag("span", name, " ", mark), *figures])
    return section(
        "leaderboard",
        "Leaderboard",
        tag("p", MEANING),
        options.of_study(summary),
        table("Candidates, the best on validation first", HEADS, body),
        bullets(left_out(summary)),
    )


def left_out(summary: Row) -> list[str]:
    """Candidates that have no row, with the reason."""
    held = {row["candidate"] for row in summary["leaderboard"]}
    failed = [f"{name} failed: {why}" for name, why in summary["failed"].items() if name not in held]
    return failed + [f"{name} did not run: {why}" for name, why in summary["left_out"].items() if name not in held]


def lines(summary: Row) -> list[str]:
    """The leaderboard for a terminal; nothing for runs of before there was one."""
    rows = summary.get("leaderboard")
    if not rows:
        return []
    cells = [HEADS, *(tuple(_cells(summary, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADS))]
    marks = ["  ", *("→ " if row["recommended"] else "  " for row in rows)]
    found = []
    for mark, (name, *figures) in zip(marks, cells):
        told = "  ".join(cell.rjust(width) for cell, width in zip(figures, widths[1:]))
        found.append(f"  {mark}{name.ljust(widths[0])}  {told}".rstrip())
    return [
        "Leaderboard, by validation (→ recommended)",
        *found,
        "  Scores: mean over the main tasks; 0 is always the same answer, 1 is perfect. Test scores had no part in the choice.",
        *(f"  {line}" for line in left_out(summary)),
    ]


def _cells(summary: Row, row: Mapping[str, Any]) -> list[str]:
    name = label(summary, row["candidate"]) + (" (undertrained)" if row["undertrained"] else "")
    return [
        name,
        _score(row["valid"]),
        _score(row["test"]),
        duration(row["fit_seconds"]),
        number(None if row["rows_per_second"] is None else float(f"{row['rows_per_second']:.2g}")),
        size(row["bytes"]),
        size(row["peak_memory"]),
    ]


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}".replace("-", "−")
