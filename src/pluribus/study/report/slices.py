"""What the slices say: a table a task and column, and the worst slice in a sentence. All of it is exploratory."""

from __future__ import annotations

from collections.abc import Iterator

from pluribus.study.report.tables import Html, badge, join, table, tag
from pluribus.study.report.words import Row, deciding, finite, measure, number, span

CAUTION = "Exploratory: slices are looked at after the fact, and among many of them some words are wrong by chance."


def of_task(summary: Row, name: str) -> Html:
    """The slices of one task; nothing where the study has none."""
    parts = []
    for each in summary.get("slices") or ():
        body = []
        for one in each["slices"]:
            row = one["tasks"].get(name)
            if row is None:
                why = one["unjudged"].get(name, "no label")
                body.append([one["name"], number(one["rows"]), "n/a", "n/a", "n/a", "no interval", f"not judged: {why}"])
                continue
            said = join([badge(row["word"]), *(["the worst one"] if each["worst"].get(name) == one["name"] else [])])
            body.append(
                [
                    one["name"],
                    number(one["rows"]),
                    number(row["challenger"]["file"]["value"]),
                    number(row["reference"]["file"]["value"]),
                    number(row["gain"]["file"]["value"], "+"),
                    span(deciding(row["gain"])),
                    said,
                ]
            )
        heads = [each["column"], "test rows", "one model", "specialists", "gain", "interval of the gain", "word"]
        parts.append(table(f"{name} by {each['column']}, on the test part", heads, body))
    return join([*parts, tag("p", CAUTION, class_="soft")]) if parts else Html("")


def worst(summary: Row) -> Iterator[str]:
    """A line a column and task: the slice where the one model is worst, beside all rows."""
    verdict = summary["verdict"]
    whole = {} if verdict is None else {row["task"]: row for row in verdict["comparisons"][0]["tasks"]}
    for each in summary.get("slices") or ():
        for task, name in each["worst"].items():
            one = next((s for s in each["slices"] if s["name"] == name), None)
            if one is None or task not in one["tasks"] or task not in whole:
                continue
            value, everywhere = one["tasks"][task]["challenger"]["file"]["value"], whole[task]["challenger"]["file"]["value"]
            if finite(value) and finite(everywhere):
                metric = measure(whole[task]["metric"])
                yield f"{task} by {each['column']}: worst in {name}, {metric} {number(value)} (all rows {number(everywhere)})"
