"""What the tasks' gradients say: who pulls with whom, how that changes, and how the balancers did beside equal weights.

The pictures are of one candidate's first seed; the tables are means over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pluribus.study.report import figures
from pluribus.study.report.evidence import legend
from pluribus.study.report.tables import Html, Pictures, fold, grid, join, section, table, tag
from pluribus.study.report.words import MOST, Row, duration, finite, label, mean, number, telling

PAIRS = 12


def gradients(summary: Row, pictures: Pictures) -> Html:
    """The section, or a line that says why there is none (an older run, one task, too short a training)."""
    heard = {name: [run for run in runs if run] for name, runs in summary.get("diagnostics", {}).items()}
    if not heard:
        why = "No network's gradients were compared: none trained all tasks together, or none for 25 steps."
        return section("gradients", "Do the tasks pull together?", tag("p", why), balancers(summary))
    chosen = summary["choice"]["winner"] if summary["choice"]["winner"] in heard else next(iter(heard))
    first, tasks = heard[chosen][0], _shown(summary, heard[chosen][0])
    drawn = [pictures.draw(figures.cosines(tasks, _square(first, first["cosine"], tasks)), "Mean over the training")]
    moments = first["over_time"]
    for moment in moments if len(moments) < 2 else (moments[0], moments[-1]):
        title = f"After {number(moment['measured'])} of {number(first['measured'])} comparisons"
        known = [name for name in tasks if name in moment["tasks"]]
        drawn.append(pictures.draw(figures.cosines(known, _square(moment, moment["cosine"], known)), title))
    lines = {name: [m["conflict_ratio"] for m in runs[0]["over_time"]] for name, runs in heard.items()}
    labels, key = {name: label(summary, name) for name in summary["candidates"]}, Html("")
    if any(len(line) > 1 for line in lines.values()):
        title = "Conflict ratio over the training, first seed of each candidate"
        drawn.append(pictures.draw(figures.conflicts(lines, labels), title))
        key = legend(labels, lines)
    few = "" if len(tasks) == len(first["tasks"]) else f" The pictures show {len(tasks)} of {len(first['tasks'])} tasks."
    return section(
        "gradients",
        "Do the tasks pull together?",
        tag(
            "p",
            "While a joint network trains, its tasks' gradients at the shared features are compared now and then (every 25 "
            "steps, or every 5 a task; one pass through each head, at most some 2 % of the training). A cosine of −1 is a fight, "
            f"0 indifference, +1 agreement. The maps are those of {label(summary, chosen)}.{few}",
        ),
        grid(drawn),
        key,
        table(
            "Means over the training and the seeds",
            ["candidate", "conflict ratio", "effective tasks", "Pareto gap", "comparisons, each seed"],
            [
                [
                    label(summary, name),
                    *(number(mean(run[key] for run in runs)) for key in ("conflict_ratio", "effective_tasks", "pareto_gap")),
                    ", ".join(str(run["measured"]) for run in runs),
                ]
                for name, runs in heard.items()
            ],
        ),
        tag(
            "p",
            tag("b", "Conflict ratio"),
            ": the share of task pairs whose gradients point apart. ",
            tag("b", "Effective tasks"),
            ": T where the gradients are orthogonal, 1 where they are parallel. ",
            tag("b", "Pareto gap"),
            ": the length of the shortest convex combination of the gradients over their root mean "
            "square; 0 where no step can help every task any more.",
            class_="soft",
        ),
        fold(
            "Pairs of tasks in figures",
            table(f"{label(summary, chosen)}, mean over seeds; the widest {PAIRS} at either end", *_pairs(heard[chosen])),
            _grouping(summary),
            table(
                "Affinity: how much a step along the row's gradient alone lowers the column's loss, to first order; the "
                "largest help is 1",
                ["task", *map(str, first["tasks"][:MOST])],
                _affinity(heard[chosen]),
            ),
        ),
        balancers(summary),
    )


def balancers(summary: Row) -> Html:
    """The balancers that were compared, beside equal weights as they stopped and at equal time."""
    rows = summary.get("balancers") or []
    if not rows:
        return Html("")
    body = []
    for row in sorted(rows, key=lambda r: -(mean(r["skill"]) if r["skill"] else -9e9)):
        gains = [_signed(row[key]) for key in ("minus_equal", "minus_equal_at_equal_time")]
        name = label(summary, row["candidate"])
        body.append([name, number(mean(row["skill"])), *gains, duration(row["seconds"]), number(row["epochs"])])
    heads = ["candidate", "skill on validation", "minus equal", "minus equal, equal time", "a training", "epochs"]
    return join(
        [
            tag("h3", "Balancers beside equal weights"),
            tag(
                "p",
                "All tried the same configurations, hence the same learning rates; the grid of fixed weights one point of its "
                "own with each. Equal time: against the best epoch of equal weights within the same core-seconds, trained on "
                "past their early stop where need be. In brackets the range over seeds; figures of validation, which chose.",
            ),
            table("Best epoch on validation, mean over seeds", heads, body),
        ]
    )


def _grouping(summary: Row) -> Html:
    groups = summary.get("grouping") or []
    if len(groups) < 2:
        return Html("")
    told = "; ".join(", ".join(group) for group in groups)
    return tag("p", f"By affinity, two networks would serve best: {told}. A hint from gradients, tested by nothing here.")


def _signed(values: Sequence[float]) -> str:
    if not values:
        return "n/a"
    span = f" ({number(min(values), '+')} to {number(max(values), '+')})" if len(values) > 1 else ""
    return number(mean(values), "+") + span


def _shown(summary: Row, record: Row) -> list[str]:
    """The tasks of the maps: all where they are few, else those that the other pictures show."""
    known: list[str] = record["tasks"]
    if len(known) <= MOST:
        return [task["name"] for task in summary["tasks"] if task["name"] in known]
    return [name for name in telling(summary) if name in known]


def _square(record: Row, matrix: Any, tasks: Sequence[str]) -> list[list[float]]:
    at = [record["tasks"].index(name) for name in tasks]
    return [[matrix[i][j] for j in at] for i in at]


def _mean(runs: Sequence[Row], key: str, a: str, b: str) -> float:
    found = [run[key][run["tasks"].index(a)][run["tasks"].index(b)] for run in runs if {a, b} <= set(run["tasks"])]
    return mean(v for v in found if finite(v))


def _pairs(runs: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    tasks = runs[0]["tasks"]
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    pairs.sort(key=lambda pair: _mean(runs, "cosine", *pair))
    if len(pairs) > 2 * PAIRS:
        pairs = [*pairs[:PAIRS], *pairs[-PAIRS:]]
    body = [[f"{a} and {b}", number(_mean(runs, "cosine", a, b), "+"), f"{_mean(runs, 'conflicts', a, b):.0%}"] for a, b in pairs]
    return ["pair", "mean cosine", "in conflict"], body


def _affinity(runs: Sequence[Row]) -> list[list[str]]:
    tasks = runs[0]["tasks"][:MOST]
    most = max((abs(_mean(runs, "affinity", a, b)) for a in tasks for b in tasks if a != b), default=1) or 1
    return [[a, *("" if a == b else number(_mean(runs, "affinity", a, b) / most, "+") for b in tasks)] for a in tasks]
