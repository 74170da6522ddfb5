"""The top of the page: the sentence, a word a task, Δm with its interval, the recommendation, and how far the claim reaches."""

from __future__ import annotations

from pluribus.study.report.tables import Html, badge, bullets, card, fold, tag
from pluribus.study.report.words import Row, by_reason, count, counts, deciding, finite, names, number, span

MOST_BADGES = 8
_MODELS = {
    "one model": "Use the one model",
    "blend": "Use a blend of models",
    "committee": "Use a committee",
    "specialists": "Keep your specialists",
}


def top(summary: Row) -> Html:
    """Everything that must be seen without scrolling."""
    verdict = summary["verdict"]
    if verdict is None:
        cards = [_recommendation(summary), _evidence(summary)]
        return tag("section", _sentence(summary["headline"]), tag("div", *cards, class_="cards"), id="verdict", class_="open")
    first = verdict["comparisons"][0]
    parts = [
        *_said(summary["headline"], first),
        tag("div", _delta(verdict, first), _recommendation(summary), _evidence(summary), class_="cards"),
        _reasons(first),
    ]
    return tag("section", *parts, id="verdict", class_=_mood(first))


def _sentence(headline: str) -> Html:
    return tag("h1", headline, class_="long" if len(headline) > 320 else "sentence")


def _mood(comparison: Row) -> str:
    said = counts(comparison["tasks"])
    return "no" if "worse" in said else "open" if "undecided" in said or not said else "yes"


def _said(headline: str, comparison: Row) -> list[Html]:
    """The sentence and a badge a task; where there are many, first how many got each word, and the whole list folded."""
    rows, sentence = comparison["tasks"], _sentence(headline)
    each = [badge(row["word"], row["task"] + ("" if row["role"] == "main" else " (auxiliary)")) for row in rows]
    if len(each) <= MOST_BADGES:
        return [sentence, tag("ul", *each, class_="badges", aria_label="The word on each task")]
    said = [tag("li", badge(word), f" on {count(n, 'main task')}") for word, n in counts(rows).items()]
    listed = tag("ul", *each, class_="badges scroll", aria_label="The word on each task", tabindex="0")
    counted = tag("ul", *said, class_="badges", aria_label="How often each word was given")
    return [counted, sentence, fold("The word on each task", listed)]


def _delta(verdict: Row, comparison: Row) -> Html:
    overall = comparison["overall"]
    found, here = deciding(overall["delta"]), overall["delta"]["file"]
    value = f"{found['value']:+.2f} %".replace("-", "−") if finite(found["value"]) else "n/a"
    why = f": {overall['reason']}" if overall["reason"] else ""
    lines = [
        tag("p", tag("b", value, class_="figure"), " overall ", badge(overall["word"])),
        tag("p", f"{verdict['level']:.0%} interval {span(found, '+.2f')}"),
        tag("p", f"Scope: {comparison['scope']}", class_="soft"),
    ]
    if overall["delta"]["method"] is not None:
        lines.append(tag("p", f"These trained models only: {span(here, '+.2f')}", class_="soft"))
    if why:
        lines.append(tag("p", f"Overall {overall['word']}{why}", class_="soft wide"))
    return card(f"Δm against {comparison['reference']}", *lines)


def _recommendation(summary: Row) -> Html:
    choice, verdict = summary["choice"], summary["verdict"]
    lines = [
        tag("p", tag("b", _MODELS.get(choice["recommended"], choice["recommended"]), class_="figure")),
        tag("p", choice["reason"]),
    ]
    rows = verdict["comparisons"][0]["tasks"] if verdict is not None else []
    worse, open_ = ([r["task"] for r in rows if r["role"] == "main" and r["word"] == word] for word in ("worse", "undecided"))
    shared = choice["recommended"] == "one model"
    if shared and worse:
        lines.append(tag("p", f"The test split contradicts it on {names(worse, 4)}.", class_="warn"))
    elif shared and open_:
        lines.append(tag("p", f"The test split does not settle it on {names(open_, 4)}.", class_="warn"))
    return card("Recommended (by validation)", *lines)


def _evidence(summary: Row) -> Html:
    verdict, findings = summary["verdict"], summary["warnings"]
    lines = []
    if verdict is not None:
        row = verdict["comparisons"][0]["tasks"][0]
        units = f", {count(verdict['units'], verdict['unit'])}" if verdict["unit"] != "row" else ""
        lines.append(f"{count(verdict['rows'], 'test row')}{units}")
        lines.append(f"{count(len(row['challenger_seeds']), 'seed')} against {len(row['reference_seeds'])}")
    else:
        lines.append(count(summary["parts"].get("test", 0), "test row"))
    openings = summary["openings"]
    lines.append(f"test split opened {'once' if openings == 1 else f'{openings} times'}")
    link = tag("a", count(len(findings), "warning"), href="#warnings") if findings else "no warning about the data"
    return card("Evidence", bullets([*lines, link], "plain"))


def _reasons(comparison: Row) -> Html:
    """Why tasks are undecided, one line a reason."""
    grouped = by_reason(comparison["tasks"])
    lines = [f"{names(tasks)}: {reason}" for reason, tasks in grouped.items()]
    if not lines:
        return Html("")
    few = bullets(lines[:4])
    return tag(
        "div", tag("h2", "Why undecided"), few, fold("More reasons", bullets(lines[4:])) if lines[4:] else "", class_="why"
    )


def deltas(summary: Row) -> list[list[str]]:
    """Rows of the table of Δm: a reference and a scope each."""
    found = []
    for c in summary["verdict"]["comparisons"]:
        overall = c["overall"]
        for scope, name in (("method", "the method"), ("file", "this file only")):
            interval = overall["delta"][scope]
            if interval is not None:
                decides = interval is deciding(overall["delta"])
                found.append(
                    [
                        c["reference"],
                        name,
                        f"{interval['value']:+.2f}".replace("-", "−") if finite(interval["value"]) else "n/a",
                        span(interval, "+.2f"),
                        number(overall["tolerance"]),
                        number(overall["p"]) if decides else "",
                        badge(overall["word"]) if decides else "",
                    ]
                )
    return found
