"""Task by task: for each its word, every candidate's metrics, calibration, the inputs that count, its slices and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pluribus.study.report import slices
from pluribus.study.report.tables import Html, badge, bullets, fold, join, section, table, tag
from pluribus.study.report.words import (
    Row,
    claimed,
    count,
    deciding,
    finite,
    hole,
    label,
    mean,
    measure,
    names,
    number,
    span,
    telling,
)

MOST_TASKS = 40
MOST_INPUTS = 15
_BY = {"TreeSHAP": "by TreeSHAP", "exchange": "by exchanging each input between rows and measuring how far the predictions move"}


def tasks(summary: Row) -> Html:
    """A fold for each task; of many tasks the most telling ones."""
    shown = telling(summary, MOST_TASKS)
    folds = [_task(summary, task) for task in summary["tasks"] if task["name"] in shown]
    few = "" if len(shown) == len(summary["tasks"]) else f"{len(shown)} of {count(len(summary['tasks']), 'task')} are shown."
    lead = "All that is known of one task. The inputs' shares are of the model in model/, on validation rows, and sum to 100 %."
    return section("tasks", "Task by task", tag("p", lead, " ", few), _worst(summary), *folds)


def _worst(summary: Row) -> Html:
    """The worst slices, where there are slices."""
    lines = list(slices.worst(summary))
    return join([tag("h3", "Worst slices"), bullets(lines), tag("p", slices.CAUTION, class_="soft")]) if lines else Html("")


def _task(summary: Row, task: Row) -> Html:
    name, verdict = task["name"], summary["verdict"]
    row = next((r for r in verdict["comparisons"][0]["tasks"] if r["task"] == name), None) if verdict is not None else None
    title = tag("span", tag("b", name), f" ({task['kind']}) ", "" if row is None else badge(row["word"]))
    parts = [
        _word(row, verdict),
        _metrics(summary, task),
        _calibration(summary, name),
        importance(summary, name),
        slices.of_task(summary, name),
        _labels(task),
    ]
    return fold(title, *(part for part in parts if part))


def _word(row: Row | None, verdict: Row | None) -> Html:
    """What the verdict says of the task, in one sentence."""
    if row is None or verdict is None:
        return Html("")
    gain = deciding(row["gain"])
    why = f" Why: {row['reason']}." if row["reason"] else ""
    said = f"{verdict['challenger']} against {verdict['comparisons'][0]['reference']}: gain {number(gain['value'], '+')} "
    return tag("p", said, f"({span(gain)}) in {measure(row['metric'])}; {count(row['rows'], 'test row')}.", why)


def _metrics(summary: Row, task: Row) -> Html:
    """Every metric of every candidate on the test part, mean over its fits."""
    test, sure = summary["test"], claimed(summary).get(task["name"], set())
    body = []
    for candidate, fits in test.items():
        mine = [fit[task["name"]] for fit in fits if task["name"] in fit]
        if mine:
            claim = "claimed" if candidate in sure else "exploratory"
            body.append(
                [label(summary, candidate), *(number(mean(fit.get(m["name"]) for fit in mine)) for m in task["metrics"]), claim]
            )
    heads = [
        "candidate",
        *(f"{measure(m['name'])} {'↑' if m['direction'] == 'max' else '↓'}" for m in task["metrics"]),
        "figures are",
    ]
    return table(f"{task['name']} on the test part, mean over fits; the first metric judges", heads, body) if body else Html("")


def _calibration(summary: Row, name: str) -> Html:
    bins = summary["reliability"].get(name)
    if not bins:
        return Html("")
    total = sum(each["weight"] or 0 for each in bins)
    gap = sum(each["weight"] * abs(each["predicted"] - each["observed"]) for each in bins) / total if total else float("nan")
    said = f"Predicted and observed probabilities differ by {number(gap)} on average, on validation ("
    return tag("p", said, tag("a", "calibration", href="#calibration"), ").")


def importance(summary: Row, name: str) -> Html:
    """The inputs that the model's predictions of a task rest on; nothing where it was not measured."""
    found: Mapping[str, Any] | None = summary.get("importance", {}).get(name)
    if not found:
        return Html("")
    order = sorted(found["shares"], key=lambda each: -found["shares"][each])
    shown = order[:MOST_INPUTS]
    body = [[each, _percent(found["shares"][each]), _bar(found["shares"][each])] for each in shown]
    rest = sum(found["shares"][each] for each in order[MOST_INPUTS:])
    lines = []
    if len(order) > MOST_INPUTS:
        lines.append(f"{count(len(order) - MOST_INPUTS, 'other input')}: {_percent(rest)} together.")
    if found["unmeasured"]:
        lines.append(f"Not measured, the time was too short: {names(found['unmeasured'])}.")
    how = " and ".join(_BY.get(each, each) for each in found["by"].split(" and "))
    title = f"Inputs of {name}: share of what moves its predictions, {how}, {count(found['rows'], 'row')}"
    return join([table(title, ["input", "share", ""], body) if body else "", bullets(lines)])


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if finite(share) else "n/a"


def _bar(share: Any) -> Html:
    wide = 100 * share if finite(share) else 0.0
    return tag("span", class_="bar", style=f"width:{wide:.1f}px", aria_hidden="true")


def _labels(task: Row) -> Html:
    body = [[part, *(number(n) for n in cells.values())] for part, cells in task["cells"].items()]
    heads = ["part", *(hole(word) for word in next(iter(task["cells"].values())))]
    return table(f"Cells of {task['name']}", heads, body)
