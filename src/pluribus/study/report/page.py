"""The page: the parts in order, with style, script and plotly inlined. It loads nothing, and its policy forbids it to."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pluribus.study.report import checkpoints, evidence, protocol, verdict
from pluribus.study.report.experts import experts
from pluribus.study.report.gradients import gradients
from pluribus.study.report.leaderboard import leaderboard
from pluribus.study.report.tables import Html, Pictures, join, tag
from pluribus.study.report.tasks import tasks
from pluribus.study.report.words import Row

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
_PLACES = {
    "leaderboard": "Leaderboard",
    "gains": "Gains",
    "scores": "Joint against single",
    "tasks": "Tasks",
    "curves": "Curves",
    "gradients": "Gradients",
    "experts": "Experts",
    "holes": "Labels",
    "calibration": "Calibration",
    "costs": "Costs",
    "warnings": "Warnings",
    "choosing": "Choice",
    "settings": "Settings",
    "reading": "The words",
}


def page(summary: Row) -> str:
    """The whole report as text."""
    pictures = Pictures()
    places, parts = _PAGES.get(summary.get("kind", "table"), (_PLACES, _short))
    first, *rest = parts(summary, pictures)
    there = {key: name for key, name in places.items() if any(f'id="{key}"' in part for part in rest)}
    links = tag("ul", *(tag("li", tag("a", name, href=f"#{key}")) for key, name in there.items()))
    body = join([first, tag("nav", links, aria_label="On this page"), *rest])
    head = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
        tag("title", f"{summary['name']}: {summary['headline']}"),
        f"<style>{_read('style.css')}</style>\n</head>",
    ]
    bar = tag("header", tag("p", tag("b", "Pluribus"), " study ", tag("b", summary["name"])), _toggle())
    quiet = "<noscript><p>Without scripts the pictures stay empty; the tables below each of them say the same.</p></noscript>"
    foot = tag(
        "footer",
        tag(
            "p", f"Drawn by Pluribus {summary['versions'].get('pluribus', '')} from report.json; nothing is loaded from anywhere."
        ),
    )
    return "\n".join(
        [
            *head,
            "<body>",
            tag("a", "Skip to the evidence", href="#gains", class_="skip"),
            bar,
            "<main>",
            quiet,
            body,
            "</main>",
            foot,
            f'<script type="application/json" id="pictures">{_json(pictures.all)}</script>',
            f"<script>{plotly()}</script>",
            f"<script>{_read('page.js')}</script>",
            "</body>\n</html>\n",
        ]
    )


def _parts(summary: Row, pictures: Pictures) -> list[Html]:
    """The sections of a table's study, in order."""
    return [
        verdict.top(summary),
        leaderboard(summary),
        evidence.gains(summary, pictures),
        evidence.scores(summary, pictures),
        tasks(summary),
        evidence.curves(summary, pictures),
        gradients(summary, pictures),
        experts(summary),
        evidence.holes(summary, pictures),
        evidence.calibration(summary, pictures),
        evidence.costs(summary, pictures),
        protocol.warnings(summary),
        protocol.choosing(summary),
        protocol.settings(summary),
        protocol.reading(summary),
    ]


def _short(summary: Row, pictures: Pictures) -> list[Html]:
    """What can be shown of any study: the verdict, and the gains."""
    return [verdict.top(summary), evidence.gains(summary, pictures)]


_PAGES = {"table": (_PLACES, _parts), "checkpoints": (checkpoints.PLACES, checkpoints.parts)}
"""Kind of study → the names of its sections, and what makes them."""


def plotly() -> str:
    """plotly.js as the plotly package ships it; read without importing the package's Python."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")


def _toggle() -> Html:
    return tag("button", "Dark theme", type="button", id="theme")


def _json(value: Any) -> str:
    """JSON that no HTML parser can mistake for markup."""
    found = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return found.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _read(name: str) -> str:
    return files("pluribus.study.report").joinpath(name).read_text("utf-8")
