"""The evidence: gains, joint against single, learning curves, holes, calibration, costs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pluribus.study.report import figures
from pluribus.study.report.tables import Html, Pictures, badge, bullets, fold, grid, join, section, table, tag
from pluribus.study.report.verdict import deltas
from pluribus.study.report.words import (
    MOST,
    Row,
    by_reason,
    claimed,
    count,
    duration,
    finite,
    hole,
    label,
    mean,
    measure,
    number,
    size,
    span,
    telling,
)

MOST_HOLES = 40
_COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", number),
    "flops_per_row": ("FLOPs per row", number),
    "bytes": ("bytes", size),
    "train_seconds": ("training, core-seconds", duration),
    "rows_per_second": ("rows per second", number),
}


def gains(summary: Row, pictures: Pictures) -> Html:
    verdict = summary["verdict"]
    if verdict is None:
        return section("gains", "Gain, task by task", tag("p", f"There is no verdict: {summary['choice']['reason']}."))
    shown = telling(summary)
    drawn, tables = [], []
    for comparison in verdict["comparisons"]:
        rows = comparison["tasks"]
        against = f"{verdict['challenger']} against {comparison['reference']}"
        here = [name for name in shown if any(row["task"] == name for row in rows)]
        drawn.append(pictures.draw(figures.gains(comparison, here), f"Against {comparison['reference']}"))
        heads = [
            "task",
            "word",
            "metric",
            "one model",
            "reference",
            "gain",
            "the method",
            "this file",
            "tolerance",
            "p",
            "p (Holm)",
            "rows",
            "units",
            "seeds",
        ]
        body = [
            [
                row["task"] + ("" if row["role"] == "main" else " (auxiliary)"),
                badge(row["word"]),
                f"{measure(row['metric'])} {'↑' if row['direction'] == 'max' else '↓'}",
                number(row["challenger"]["file"]["value"]),
                number(row["reference"]["file"]["value"]),
                number(row["gain"]["file"]["value"], "+"),
                span(row["gain"]["method"]),
                span(row["gain"]["file"]),
                number(row["tolerance"]),
                number(row["p"]),
                number(row["p_holm"]),
                number(row["rows"]) + ("" if row["positives"] is None else f" ({number(row['positives'])} of the rarer class)"),
                str(row["units"]),
                f"{len(row['challenger_seeds'])} / {len(row['reference_seeds'])}",
            ]
            for row in rows
        ]
        reasons = [f"{', '.join(tasks)}: {reason}" for reason, tasks in by_reason(rows).items()]
        tables.append(
            fold(
                f"Figures: {against}",
                table(f"{against}: scope {comparison['scope']}", heads, body),
                tag("p", "Undecided because:") if reasons else "",
                bullets(reasons),
            )
        )
    delta = table(
        "Δm over the main tasks, in per cent of the reference",
        ["reference", "scope", "Δm", f"{verdict['level']:.0%} interval", "tolerance", "p", "word"],
        deltas(summary),
    )
    return section(
        "gains",
        "Gain, task by task",
        _few(summary, shown),
        tag(
            "p",
            "Right of the line the one model is better. Each task has its own axis, in the unit of its metric. Thick: the "
            "interval of ",
            tag("b", "the method"),
            " (other seeds, other data of this kind); thin: of ",
            tag("b", "this file"),
            " (these trained models). Shaded: the tolerance within which a loss does not matter.",
        ),
        tag("div", *drawn, class_="pair"),
        delta,
        *tables,
    )


def scores(summary: Row, pictures: Pictures) -> Html:
    """Every candidate on every task; only winner and references are claimed."""
    test, sure, verdict = summary["test"], claimed(summary), summary["verdict"]
    labels = {name: label(summary, name) for name in test}
    shown, drawn, body = telling(summary), [], []
    for task in summary["tasks"]:
        name = task["name"]
        for metric in task["metrics"] if len(summary["tasks"]) <= 40 else task["metrics"][:1]:
            cells: list[str] = []
            for candidate in test:
                values = [seed[name].get(metric["name"]) for seed in test[candidate] if name in seed]
                main = metric["name"] == task["metrics"][0]["name"]
                mark = "" if main and candidate in sure.get(name, ()) else " exploratory"
                cells.append(tag("span", number(mean(values)), tag("i", mark)) if values else "")
            body.append([name, f"{measure(metric['name'])} {'↑' if metric['direction'] == 'max' else '↓'}", *cells])
        if name in shown:
            main = task["metrics"][0]["name"]
            seeds = {c: [seed[name][main] for seed in test[c] if name in seed] for c in test}
            drawn.append(
                pictures.draw(figures.scores(task, seeds, labels, sure.get(name, set()), _intervals(summary, name)), name)
            )
    more = "" if len(summary["tasks"]) <= 40 else " Other metrics are in results.parquet."
    claim = (
        "Filled: what the verdict claims (winner and references, with the interval of the method). Hollow: "
        if verdict is not None
        else "Hollow: "
    )
    return section(
        "scores",
        "Joint against single",
        _few(summary, shown),
        tag(
            "p",
            claim,
            tag("b", "exploratory"),
            " figures of the other candidates, which were looked at on the test split but not "
            "chosen by it; take no decision from them. Small strokes: single seeds.",
        ),
        grid(drawn),
        fold(
            "All figures on the test split",
            table(f"Test split, mean over seeds.{more}", ["task", "metric", *labels.values()], body),
        ),
    )


def _intervals(summary: Row, task: str) -> dict[str, Row]:
    """Candidate → the interval of its metric on a task, where the verdict gives one."""
    choice, found = summary["choice"], {}
    for comparison in summary["verdict"]["comparisons"] if summary["verdict"] is not None else []:
        side = {"same-encoder specialists": choice["same_encoder"], "best specialists": choice["specialists"].get(task)}
        for row in comparison["tasks"]:
            if row["task"] == task:
                found[choice["winner"]] = row["challenger"]["method"] or row["challenger"]["file"]
                if side.get(comparison["reference"]):
                    found[side[comparison["reference"]]] = row["reference"]["method"] or row["reference"]["file"]
    return found


def curves(summary: Row, pictures: Pictures) -> Html:
    candidates, shown = summary["candidates"], telling(summary)
    labels = {name: label(summary, name) for name in candidates}
    drawn, body = [], []
    for task in summary["tasks"]:
        runs = {c: [run.get(task["name"]) or [] for run in candidates[c]["curves"]] for c in candidates}
        for c, lines in runs.items():
            if any(lines):
                known = [[v for v in line if finite(v)] for line in lines]
                best = [max(v) if task["metrics"][0]["direction"] == "max" else min(v) for v in known if v]
                body.append(
                    [
                        task["name"],
                        labels[c],
                        measure(task["metrics"][0]["name"]),
                        ", ".join(str(len(v)) for v in lines),
                        number(mean(best)),
                        number(mean(v[-1] for v in known if v)),
                        "yes" if task["name"] in candidates[c]["undertrained"] else "no",
                    ]
                )
        if task["name"] in shown and any(any(lines) for lines in runs.values()):
            drawn.append(pictures.draw(figures.curves(task, runs, labels), task["name"]))
    heads = ["task", "candidate", "metric", "checks, each seed", "best (mean)", "last (mean)", "undertrained"]
    return section(
        "curves",
        "Learning curves",
        _few(summary, shown),
        tag(
            "p",
            "The main metric on validation at each check, a line a seed. A curve that still "
            "moves when it ends was stopped early; who was cut short by the budget is said below, candidate by candidate.",
        ),
        legend(labels, candidates),
        grid(drawn),
        fold("Learning curves in figures", table("Validation during training", heads, body)),
    )


def legend(labels: Mapping[str, str], shown: Collection[str]) -> Html:
    """Which colour and dash is which candidate, of those shown; `labels` are all candidates', by name."""
    dashes = ("", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3", "5 2")
    items = []
    for k, (name, words) in enumerate(labels.items()):
        if name not in shown:
            continue
        dash = dashes[figures.dash_of(k)]
        line = (
            '<svg viewBox="0 0 34 8" aria-hidden="true"><line x1="1" x2="33" y1="4" y2="4" '
            f'stroke="var(--c{k % figures.COLOURS})" '
            f'stroke-width="3" stroke-dasharray="{dash}"/></svg>'
        )
        items.append(tag("li", Html(line), " ", words))
    return tag("ul", *items, class_="legend")


def holes(summary: Row, pictures: Pictures) -> Html:
    """Which labels are there, and whether chance took the others away."""
    words, codes, asked = summary["holes"]["words"], summary["holes"]["codes"], summary["labelled_at_random"]
    found = {name: w["text"] for w in summary["warnings"] if w["kind"] == "not_at_random" for name in w["names"]}
    order = list(codes)
    if len(order) > MOST_HOLES:
        order = sorted(order, key=lambda name: -sum(c > 0 for c in codes[name]))[:MOST_HOLES]
        order = [name for name in codes if name in order]
    by_time = "rows in the order of time →" if summary["unit"] == "day" else "rows in the order of the table →"
    picture = pictures.draw(figures.holes(words, {name: codes[name] for name in order}, by_time)) if order else Html("")
    legend = tag(
        "ul", *(tag("li", tag("span", class_=f"swatch h{k}"), " ", hole(w)) for k, w in enumerate(words)), class_="legend"
    )
    parts = list(summary["parts"])
    body = []
    for task in summary["tasks"]:
        row = [task["name"]]
        for part in parts:
            cells = task["cells"][part]
            row.append(" · ".join(f"{number(n)} {hole(w)}" for w, n in cells.items() if n or w == "labelled"))
        area = asked.get(task["name"])
        body.append([*row, "not asked" if area is None else f"AUC {area:.2f}", found.get(task["name"], "")])
    checked = [
        tag("span", name, f": {found.get(name) or 'no sign that labels are missing by a rule of the inputs'} (AUC {area:.2f})")
        for name, area in list(asked.items())[:MOST]
    ]
    verdict = (
        join([tag("p", "How well the inputs predict whether a cell is labelled (0.5: not at all):"), bullets(checked)])
        if checked
        else tag("p", _unasked(summary))
    )
    return section(
        "holes",
        "Labels and holes",
        legend,
        picture,
        tag("p", _cut(len(codes), len(order), "task")) if len(order) < len(codes) else "",
        tag("h3", "Labelled at random?"),
        verdict,
        tag(
            "p",
            "A cell that is not applicable has no answer and counts nowhere; a missing one has an answer that nobody wrote down. "
            "Conclusions hold for rows like the labelled ones.",
            class_="soft",
        ),
        fold(
            "Labels in figures",
            table("Cells of each task and part", ["task", *parts, "is the label's presence predictable?", "finding"], body),
        ),
    )


def _unasked(summary: Row) -> str:
    if summary["settings"].get("task_column"):
        return "Not asked: in the long layout the task column itself says which rows are a task's."
    return "No task has both 50 labels and 50 missing ones among its training rows, so there was nothing to ask."


def calibration(summary: Row, pictures: Pictures) -> Html:
    tables = {name: bins for name, bins in summary["reliability"].items() if bins}
    if not tables:
        return section("calibration", "Calibration", tag("p", "There is no binary task with predictions to look at."))
    shown = [name for name in telling(summary) if name in tables] or list(tables)[:MOST]
    drawn = [pictures.draw(figures.reliability(name, tables[name]), name) for name in shown]
    body, errors = [], []
    for name, bins in tables.items():
        total = sum(b["weight"] or 0 for b in bins)
        gap = sum(b["weight"] * abs(b["predicted"] - b["observed"]) for b in bins) / total if total else float("nan")
        errors.append([name, number(gap), str(len(bins))])
        body += [[name, number(b["predicted"]), number(b["observed"]), span(b, ".4g"), number(b["rows"])] for b in bins]
    return section(
        "calibration",
        "Calibration",
        _cut(len(tables), len(shown), "binary task") if len(shown) < len(tables) else "",
        tag(
            "p",
            "Of the model in model/, on validation, with cross-fitted calibration. On the dashed line a probability "
            "means what it says.",
        ),
        grid(drawn),
        table("Mean gap between predicted and observed, weighted by rows", ["task", "gap", "bins"], errors),
        fold(
            "Reliability in figures",
            table("Bins of equal weight", ["task", "predicted", "observed", "interval", "rows"], body[:2000]),
        ),
    )


def costs(summary: Row, pictures: Pictures) -> Html:
    """The winner against the T specialists it would replace, and what is deployed."""
    winner, given = summary["choice"]["winner"], summary["costs"]
    one = (summary["candidates"].get(winner) or {}).get("costs") or {}
    many, deployed = given.get("specialists") or {}, given.get("model") or {}
    T = len(summary["tasks"])
    ratios, body = {}, []
    for key, (name, form) in _COSTS.items():
        a, b = one.get(key), many.get(key)
        ratio = None
        if a is not None and b is not None and finite(a) and finite(b) and a > 0 and b > 0:
            ratio = a / b if key == "rows_per_second" else b / a
            ratios[name] = ratio
        times = (
            "n/a" if ratio is None else f"{number(ratio)} times cheaper" if ratio >= 1 else f"{number(1 / ratio)} times dearer"
        )
        if ratio is not None and key == "rows_per_second":
            times = times.replace("cheaper", "faster").replace("dearer", "slower")
        body.append([name, form(a), form(b), times, form(deployed.get(key))])
    picture = pictures.draw(figures.costs(ratios), "The one model against the specialists together") if ratios else Html("")
    missing = [] if many else ["What the specialists cost together is not known: not all of them were trained here."]
    if winner is None:
        missing.append("No joint model ran.")
    each = [
        [c["label"], *(form((c["costs"] or {}).get(key)) for key, (_, form) in _COSTS.items()), duration(mean(c["seconds"]))]
        for c in summary["candidates"].values()
    ]
    heads = [
        "cost",
        label(summary, winner) if winner else "one model",
        f"{T} specialist{'' if T == 1 else 's'} together",
        "one model is",
        "what model/ holds",
    ]
    return section(
        "costs",
        "What it costs",
        tag("p", " ".join(missing)) if missing else "",
        picture,
        table("One model against its specialists", heads, body),
        tag(
            "p",
            "Trees: a node counts as two parameters. Rows per second: one thread, encoded rows. A candidate that fits all "
            "tasks at once counts by its share of them.",
            class_="soft",
        ),
        fold(
            "Costs of every candidate",
            table("Costs of the best seed", ["candidate", *(n for n, _ in _COSTS.values()), "seconds, mean of seeds"], each),
        ),
    )


def _few(summary: Row, shown: list[str]) -> Html:
    total = len(summary["tasks"])
    return tag("p", _cut(total, len(shown), "task"), class_="soft") if len(shown) < total else Html("")


def _cut(total: int, shown: int, noun: str) -> Html:
    return Html(f"The pictures show {shown} of {count(total, noun)}, the most telling ones; the tables below hold all of them.")
