"""The options: what could be deployed, each against the best specialists, with what it costs; on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pluribus.study.report.tables import Html, badge, join, table, tag
from pluribus.study.report.words import Row, finite, number, size

HEADS = ("option", "Δm, validation", "interval", "Δm, test", "interval", "fits", "size", "FLOPs/row")
MEANING = (
    "Δm: mean change of the tasks' metrics against the best model per task, in per cent; plus is better. "
    "The test figures had no part in the choice."
)


def of_study(summary: Row) -> Html:
    """The table of the options; nothing for runs of before there were options."""
    body = []
    for row, mark, cells in _rows(summary):
        name, *figures = cells
        worse = f" worse on {', '.join(row['worse'])}" if row.get("worse") else ""
        body.append([tag("span", name, " ", badge("recommended") if mark else "", worse), *figures])
    if not body:
        return Html("")
    return join([table("What could be deployed, the best on validation first", HEADS, body), tag("p", MEANING, class_="soft")])


def lines(summary: Row) -> list[str]:
    """The options for a terminal; nothing for runs of before there were options."""
    rows = _rows(summary)
    if not rows:
        return []
    cells = [HEADS, *(tuple(each) for _, _, each in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADS))]
    found = ["Options, against the best model per task (→ recommended)"]
    for mark, (name, *figures) in zip([False, *(mark for _, mark, _ in rows)], cells):
        told = "  ".join(cell.rjust(width) for cell, width in zip(figures, widths[1:]))
        found.append(f"  {'→' if mark else ' '} {name.ljust(widths[0])}  {told}".rstrip())
    return [*found, "  Δm in per cent, plus is better. The test figures had no part in the choice."]


def _rows(summary: Row) -> list[tuple[Mapping[str, Any], bool, list[str]]]:
    choice = summary["choice"]
    tested = {row["name"]: row for row in summary.get("options") or ()}
    found = []
    for row in choice.get("options") or ():
        seen = tested.get(row["name"], {})
        cells = [
            row["name"],
            _delta(row.get("delta")),
            _interval(row),
            _delta(seen.get("delta")),
            _interval(seen),
            number(row.get("fits")),
            size(row.get("bytes")),
            number(row.get("flops")),
        ]
        found.append((row, row["name"] == choice["recommended"], cells))
    return found


def _delta(value: Any) -> str:
    return f"{value:+.1f}".replace("-", "−") if finite(value) else "n/a"


def _interval(row: Mapping[str, Any]) -> str:
    if not (finite(row.get("low")) and finite(row.get("high"))):
        return "n/a"
    return f"{row['low']:+.1f} to {row['high']:+.1f}".replace("-", "−")
