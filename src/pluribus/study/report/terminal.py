"""The end of a study on the terminal, from `report.json`."""

from __future__ import annotations

from pathlib import Path

from pluribus.files import read_json
from pluribus.study.report import leaderboard, options, slices

MOST_SLICES = 12


def spoken(folder: Path) -> str:
    """What the command line says at the end: the headline, a line a task, and where things are."""
    summary = read_json(folder / "report.json")
    lines = [summary["headline"], ""]
    if summary["verdict"] is not None:
        comparison = summary["verdict"]["comparisons"][0]
        for row in comparison["tasks"]:
            gain = row["gain"]["file"]
            low, high = gain["low"], gain["high"]
            span = "" if low is None or high is None else f" (gain {gain['value']:+.4g}, {low:+.4g} to {high:+.4g})"
            why = f": {row['reason']}" if row["word"] == "undecided" and row["reason"] else ""
            lines.append(f"  {row['task']}: {row['word']} in {row['metric']}{span}{why}")
        lines.append("")
    for part in (options.lines(summary), leaderboard.lines(summary)):
        lines += [*part, ""] if part else []
    worst = list(slices.worst(summary))
    if worst:
        lines += ["Worst slices, exploratory", *(f"  {line}" for line in worst[:MOST_SLICES])]
        lines += [f"  and {len(worst) - MOST_SLICES} more in the report"] if len(worst) > MOST_SLICES else []
        lines.append("")
    lines.append(f"report  {folder / 'report.html'}")
    lines.append(f"model   {folder / 'model'}   (pluribus predict {folder / 'model'} TABLE -o OUT.parquet)")
    lines.append(f"the test split has been opened {summary['openings']} time(s)")
    return "\n".join(lines)
