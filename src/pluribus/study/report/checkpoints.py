"""The report of a study of checkpoints: the verdict, then quality against memory and latency, then every figure."""

from __future__ import annotations

from typing import Any

from pluribus.study.report import evidence, verdict
from pluribus.study.report.figures import AXIS, around, label, layout_of
from pluribus.study.report.tables import Html, Pictures, bullets, section, table, tag
from pluribus.study.report.words import Row, measure, number

PLACES = {"gains": "Gains", "memory": "Memory", "roads": "Roads", "settings": "Settings"}


def parts(summary: Row, pictures: Pictures) -> list[Html]:
    """The sections, in order."""
    return [
        verdict.top(summary),
        evidence.gains(summary, pictures),
        _memory(summary, pictures),
        _roads(summary),
        _settings(summary),
    ]


def _memory(summary: Row, pictures: Pictures) -> Html:
    """Δm over the experts against what is stored."""
    rows = summary["candidates"]
    names = list(rows)
    x, y = [rows[n]["bytes"] / 1e6 for n in names], [rows[n]["delta"] for n in names]
    layout = layout_of(320, margin={"l": 8, "r": 16, "t": 16, "b": 46})
    title = {"text": "stored, MB", "font": {"size": 12}}
    layout["xaxis"] = {**AXIS, "title": title, "rangemode": "tozero", "range": [0, 1.15 * max(x)]}
    layout["yaxis"] = {
        **AXIS,
        "automargin": True,
        "range": around([*y, 0.0]),
        "title": {"text": "Δm on test, %", "font": {"size": 12}},
    }
    layout["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": "--soft", "width": 1}}
    ]
    chosen = summary["choice"]["deployed"]
    data = [
        {
            "x": [a],
            "y": [b],
            "mode": "markers+text",
            "text": [label(n)],
            "textposition": "top center",
            "hoverinfo": "skip",
            "cliponaxis": False,
            "marker": {"size": 13 if n == chosen else 9, "color": "--better" if n == chosen else "--c0"},
        }
        for n, a, b in zip(names, x, y)
    ]
    told = "; ".join(f"{n} {number(a)} MB, {number(b, '+')} %" for n, a, b in zip(names, x, y))
    figure: dict[str, Any] = {"data": data, "layout": layout, "alt": f"Stored megabytes and Δm over the experts: {told}."}
    what = "Higher is better, left is smaller. Δm is the mean relative change of the tasks' test scores over their experts."
    return section("memory", "Quality against memory", tag("p", what), pictures.draw(figure))


def _roads(summary: Row) -> Html:
    tasks, rows = {task["name"]: task for task in summary["tasks"]}, summary["candidates"]
    heads = ["road", "Δm test, %", "MB", "p50, ms", "p99, ms"]
    for task, about in tasks.items():
        heads += [f"{task}: {measure(about['metric'])} {'↑' if about['direction'] == 'max' else '↓'} valid", "test"]
    body = []
    for name, row in sorted(rows.items(), key=lambda pair: -pair[1]["delta"]):
        latency = row["latency"] or {"p50": None, "p99": None}
        cells = [name, number(row["delta"], "+"), number(row["bytes"] / 1e6), number(latency["p50"]), number(latency["p99"])]
        for task in tasks:
            cells += [number(row["valid"][task]), number(row["test"][task])]
        body.append(cells)
    lines = [f"{name}: {why}" for name, why in summary["failed"].items()]
    lines += [f"{name}: left out, the budget was spent" for name in summary["left_out"]]
    how = (
        "Latency: one row of one task through the served container, tasks in turn, in this process. Only the recommended road "
        f"is claimed; the choice looked at the valid split: {summary['choice']['rule']}."
    )
    return section("roads", "Every road", tag("p", how), table("Scores, memory and latency", heads, body), bullets(lines))


def _settings(summary: Row) -> Html:
    experts = summary["settings"]["experts"]
    body = [
        [task, about["path"], about["valid"], about["test"], ", ".join(summary["heads"][task][:4]) or "none"]
        for task, about in experts.items()
    ]
    lines = [
        f"base: {summary['settings']['base']}",
        f"evaluated by {summary['evaluate']}",
        f"{summary['seconds']:.0f} core-seconds",
        *summary["notes"],
    ]
    return section(
        "settings", "Settings", table("Experts", ["task", "path", "valid", "test", "head (never merged)"], body), bullets(lines)
    )
