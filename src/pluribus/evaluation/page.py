"""A verdict as one page of HTML: self-contained, no script, no network; light and dark, phone and desk, prints."""

from __future__ import annotations

import math
from html import escape

from pluribus.evaluation.intervals import Interval
from pluribus.evaluation.verdict import Comparison, TaskVerdict, Verdict, number, span

_STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--paper:#fff;--line:#d0d7de;--better:#0b6e3a;--worse:#b3261e;--good:#0550ae;--open:#6e5400}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--paper:#0d1117;--line:#3d444d;--better:#5bd08b;
--worse:#ff9b93;--good:#79b8ff;--open:#e3c04d}}
*{box-sizing:border-box}body{margin:0 auto;max-width:90rem;padding:1rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;line-height:1.35}h2{font-size:1.1rem;margin-top:2rem}
p.soft,li,caption,footer{color:var(--soft)}.scroll{overflow-x:auto}.scroll:focus{outline:2px solid var(--good)}
table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}caption{text-align:left;padding-bottom:.4rem}
th,td{text-align:right;padding:.3rem .35rem;
border-bottom:1px solid var(--line);white-space:nowrap}th:first-child{text-align:left;white-space:normal;
min-width:7rem;max-width:14rem}
@media(min-width:40rem){th:first-child{min-width:10rem}}h1,p,li{max-width:64rem}
td.word{font-weight:600}.better{color:var(--better)}.worse{color:var(--worse)}.as-good{color:var(--good)}.undecided{color:var(--open)}
svg{width:100%;height:auto;max-width:30rem}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .axis{stroke:var(--soft)}svg .band{fill:var(--line)}svg g{stroke:currentColor;fill:currentColor}svg g text{stroke:none}
"""


def page(verdict: Verdict, title: str = "Verdict") -> str:
    """The whole page as text. All names come from outside and are escaped."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{escape(verdict.headline)}</h1>",
        f'<p class="soft">{escape(_method(verdict))}</p>',
    ]
    for comparison in verdict.comparisons:
        parts += _section(verdict, comparison)
    if verdict.notes:
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in verdict.notes), "</ul>"]
    parts.append("</main><footer><p>Made by Pluribus from prediction files alone.</p></footer></body></html>\n")
    return "\n".join(parts)


def _method(verdict: Verdict) -> str:
    unit = f"{verdict.units} units ({verdict.unit})" if verdict.unit != "row" else "each row its own unit"
    return (
        f"{verdict.rows} test rows, {unit}; {verdict.level:.0%} intervals from {verdict.repeats} resamples of whole units, plus "
        f"between-seed variance where a side has several seeds; p-values adjusted by Holm over tasks. Gain: positive is better. "
        f"As good: the interval lies above minus the tolerance."
    )


def _section(verdict: Verdict, comparison: Comparison) -> list[str]:
    overall = comparison.overall
    because = f" ({overall.reason})" if overall.reason else ""
    heads = (
        "task",
        "word",
        "metric",
        verdict.challenger,
        comparison.reference,
        "gain",
        "interval",
        "this file only",
        "tolerance",
        "p",
        "p (Holm)",
        "rows",
        "seeds",
    )
    lines = [
        f"<h2>{escape(verdict.challenger)} against {escape(comparison.reference)}</h2>",
        f'<p>Scope: {escape(comparison.scope)}. Overall: <span class="{_class(overall.word)}">{overall.word}</span>, '
        f"Δm {number(overall.delta.file.value, '+')} % {span(overall.delta.deciding)}{escape(because)}.</p>",
        _picture(comparison),
        f'<div class="scroll" tabindex="0" role="region" aria-label="Figures against {escape(comparison.reference)}"><table>',
        "<caption>Figures of each task</caption><thead><tr>",
        *(f'<th scope="col">{escape(head)}</th>' for head in heads),
        "</tr></thead><tbody>",
        *(_row(task) for task in comparison.tasks),
        "</tbody></table></div>",
    ]
    reasons = [f"<li>{escape(t.task)}: {t.word} because {escape(t.reason)}</li>" for t in comparison.tasks if t.reason]
    return [*lines, "<ul>", *reasons, "</ul>"] if reasons else lines


def _class(word: str) -> str:
    return word.replace(" ", "-")


def _row(task: TaskVerdict) -> str:
    name = task.task + ("" if task.role == "main" else " (auxiliary)")
    cells = (
        f"{task.metric} {'↑' if task.direction == 'max' else '↓'}",
        number(task.challenger.file.value),
        number(task.reference.file.value),
        number(task.gain.file.value, "+"),
        span(task.gain.deciding),
        span(task.gain.file),
        number(task.tolerance),
        _chance(task.p),
        _chance(task.p_holm),
        str(task.rows),
        f"{len(task.challenger_seeds)} / {len(task.reference_seeds)}",
    )
    word = f'<td class="word {_class(task.word)}">{task.word}</td>'
    return f'<tr><th scope="row">{escape(name)}</th>{word}' + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"


def _chance(p: float) -> str:
    """A p-value; how much smaller than any level it is says nothing."""
    return "< 0.0001" if p < 1e-4 else number(p)


def _picture(comparison: Comparison) -> str:
    """Each task's gain with its interval, in units of its standard error's scale: one line a task, 0 in the middle."""
    shown = [task for task in comparison.tasks if math.isfinite(task.gain.deciding.low)]
    if not shown:
        return ""
    height, width = 46, 360  # the width of a phone: letters are never smaller than they are meant to be
    half = width / 2 - 10
    middle = width / 2
    said = "; ".join(f"{t.task}: gain {number(t.gain.file.value, '+')} {span(t.gain.deciding)}, {t.word}" for t in shown)
    parts = [
        f'<svg viewBox="0 0 {width} {height * len(shown) + 24}" role="img" aria-label="Gains with intervals. {escape(said)}">',
        f'<text x="{middle}" y="{height * len(shown) + 16}" text-anchor="middle">worse ← 0 → better</text>',
    ]
    for i, task in enumerate(shown):
        y = height * i + 30
        gain: Interval = task.gain.deciding
        reach = max(abs(gain.low), abs(gain.high), abs(task.tolerance), 1e-300)  # each task has its own scale
        low, high, value, band = (middle + half * v / reach for v in (gain.low, gain.high, gain.value, -task.tolerance))
        name = task.task if len(task.task) <= 34 else task.task[:33] + "…"
        parts += [
            f'<text x="0" y="{y - 14}">{escape(name)}: {task.word}</text>',
            f'<rect class="band" x="{band:.1f}" y="{y - 9}" width="{middle - band:.1f}" height="18"/>',
            f'<line class="axis" x1="{middle}" x2="{middle}" y1="{y - 10}" y2="{y + 10}"/>',
            f'<g class="{_class(task.word)}"><line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke-width="3"/>',
            f'<circle cx="{value:.1f}" cy="{y}" r="5"/></g>',
        ]
    return "\n".join([*parts, "</svg>", '<p class="soft">Each line has its own scale; the grey band is the tolerance.</p>'])
