"""How the claim came about: warnings, the choice on validation, settings, hashes, and how to read the four words."""

from __future__ import annotations

import json
from typing import Any

from pluribus.evaluation.verdict import BOUNDED, FEWEST_POSITIVES, FEWEST_UNITS, RELATIVE
from pluribus.study.report.tables import Html, badge, bullets, fold, join, section, table, tag
from pluribus.study.report.words import Row, count, direction, duration, label, mean, measure, names, number


def reading(summary: Row) -> Html:
    """The four words, as `evaluation.verdict` gives them."""
    verdict = summary["verdict"]
    level = summary["settings"].get("level", 0.95) if verdict is None else verdict["level"]
    told = {
        "better": f"the gain is above zero, at {1 - level:.0%} after Holm's adjustment for the number of tasks.",
        "as good": "not shown to be better, but the whole interval lies above minus the tolerance: at most a loss that does "
        f"not matter (by default {BOUNDED} of a metric that is bounded by 1, {RELATIVE:.0%} of the reference's value of others).",
        "worse": f"the gain is below zero, at {1 - level:.0%} after Holm's adjustment, and the loss may exceed the tolerance.",
        "undecided": "the data do not tell; the reason stands beside the word. Always so with fewer than "
        f"{FEWEST_POSITIVES} test rows of a binary task's rarer class, fewer than {FEWEST_UNITS} units, a reference without "
        "skill, or a model that the budget cut short.",
    }
    terms = [join([tag("dt", badge(word)), tag("dd", meaning)]) for word, meaning in told.items()]
    scopes = [
        tag("span", tag("b", "The method"), ": what training again with other seeds, on other data of this kind, would give."),
        tag(
            "span",
            tag("b", "This file only"),
            ": these trained models on other data of this kind; nothing about training them again.",
        ),
        tag(
            "span",
            tag("b", "Δm"),
            ": the mean over main tasks of the relative change of the main metric, signed so that plus is better.",
        ),
        tag(
            "span",
            tag("b", "Best specialists"),
            ": the best separate model of each task, chosen on validation (should I switch?). ",
            tag("b", "Same-encoder specialists"),
            ": the winner's network, one per task (does sharing help?).",
        ),
    ]
    return section("reading", "How to read the words", tag("dl", *terms), bullets(scopes))


def warnings(summary: Row) -> Html:
    """What could make the study lie, and what was noted on the way."""
    findings = [tag("span", tag("b", w["kind"].replace("_", " ")), ": ", w["text"]) for w in summary["warnings"]]
    told = bullets(findings, "warnings") if findings else tag("p", "The checks for leakage found nothing to warn of.")
    parts, units, unit = summary["parts"], summary["units"], summary["unit"]
    body = [[part, number(n), number(units.get(part)) if unit != "row" else "each row its own"] for part, n in parts.items()]
    notes = bullets(summary["notes"])
    champion = summary["champion"]
    return section(
        "warnings",
        "Warnings and the split",
        told,
        table(f"Split: {summary['split']}; what is resampled: {unit}", ["part", "rows", f"units ({unit})"], body),
        tag("h3", "Notes") if notes else "",
        notes,
        tag(
            "p",
            f"{champion} must have been fitted on the train part only, which cannot be checked here; it is one file, "
            "and claims about it are about that file.",
        )
        if champion
        else "",
    )


def choosing(summary: Row) -> Html:
    """Validation rules, what was undertrained, failed or left out, and how often the test split was looked at."""
    choice, candidates = summary["choice"], summary["candidates"]
    body = []
    for name, c in candidates.items():
        short = c["undertrained"]
        state = [
            *(["winner"] if name == choice["winner"] else []),
            *([f"undertrained: {names(short, 4)}"] if short else []),
            *([f"a seed failed: {summary['failed'][name]}"] if name in summary["failed"] else []),
        ]
        body.append(
            [
                c["label"],
                "one per task" if c["per_task"] else "joint",
                number(mean(c["rules"])),
                ", ".join(number(r) for r in c["rules"]),
                _settings(c["settings"]) or "defaults",
                duration(sum(s or 0 for s in c["seconds"])),
                "; ".join(state) or "trained to its early stop",
            ]
        )
    for name, why in {**summary["failed"], **summary["left_out"]}.items():
        if name not in candidates:
            kind = "failed" if name in summary["failed"] else "left out"
            body.append([name, "", "n/a", "", "", "", f"{kind}: {why}"])
    heads = ["candidate", "kind", "skill on validation", "each seed", "settings", "training", "state"]
    answers: dict[str, list[str]] = {}
    for task, name in choice["answers"].items():
        answers.setdefault(label(summary, name), []).append(task)
    best = label(summary, choice["winner"]) if choice["winner"] else "none: no joint model ran"
    steps = [
        f"Configurations and candidates were compared on the validation part alone, by their mean skill over a constant "
        f"predictor; the best joint candidate is {best}.",
        f"References, chosen on validation as well: {_references(summary)}.",
        f"Recommended: {choice['recommended']}, because {choice['reason']}. In model/: "
        + "; ".join(f"{who} answers {names(tasks)}" for who, tasks in answers.items())
        + ".",
        tag("span", "All this was written to ", tag("code", "choice.json"), " before the test split was opened."),
        tag("span", tag("b", _opened(summary["openings"]))),
    ]
    words = [[task, badge(word)] for task, word in choice["valid_words"].items()]
    valid = fold(
        "Words on validation (they chose the recommendation and claim nothing)", table("On validation", ["task", "word"], words)
    )
    return section(
        "choosing",
        "How it was chosen",
        tag("ol", *(tag("li", step) for step in steps)),
        table("Candidates", heads, body),
        valid if words else "",
        fold("Plan and budget", tag("pre", summary["plan"], tabindex="0")),
    )


def _opened(times: int) -> str:
    if times == 1:
        return "The test split was opened once: its figures had no part in any choice."
    return (
        f"The test split has been opened {times} times, counted over all runs beside this one with the same test "
        "rows and labels. If what was seen then had a part in what was done now, the intervals are too narrow."
    )


def _references(summary: Row) -> str:
    found: dict[str, list[str]] = {}
    for task, name in summary["choice"]["specialists"].items():
        found.setdefault(label(summary, name), []).append(task)
    return "; ".join(f"{who} on {names(tasks)}" for who, tasks in found.items()) or "none, no specialist ran"


def _settings(values: Row) -> str:
    return ", ".join(f"{key} {number(v) if isinstance(v, float) else v}" for key, v in values.items())


def settings(summary: Row) -> Html:
    given = summary["settings"]
    body = [[key, _plain(value)] for key, value in given.items() if value not in (None, [], {}) and key != "targets"]
    hashes = summary["hashes"]
    marks = [["data", tag("code", hashes["data"])], ["code", tag("code", hashes["code"])]]
    marks += [[f"task {name}", tag("code", value)] for name, value in hashes.get("tasks", {}).items()]
    versions = [[name, str(value)] for name, value in summary["versions"].items()]
    verdict = summary["verdict"]
    how = (
        ""
        if verdict is None
        else (
            f"Intervals: {verdict['level']:.0%}, {verdict['repeats']} resamples of whole units ({verdict['unit']}), between-seed "
            "variance added, t intervals by Satterthwaite; p-values adjusted by Holm over tasks."
        )
    )
    return section(
        "settings",
        "Settings, hashes, versions",
        tag("p", how) if how else "",
        _judged_by(summary),
        table("Versions", ["what", "version"], versions),
        fold("Settings", table("As resolved; what is not listed was not set", ["setting", "value"], body)),
        fold("SHA-256 of data, code and tasks", table("Equal hashes: equal content", ["what", "SHA-256"], marks)),
        tag(
            "p",
            f"{count(len(summary['tasks']), 'task')}; the run took {duration(summary['seconds'])}, "
            "trials of earlier starts not counted.",
            class_="soft",
        ),
    )


def _judged_by(summary: Row) -> Html:
    """What each task is judged by, and how much of it may be lost."""
    body = [
        [
            t["name"],
            t["kind"],
            t["role"],
            measure(t["metrics"][0]["name"]) + ", " + direction(t["metrics"][0]["direction"]),
            _tolerance(t),
        ]
        for t in summary["tasks"]
    ]
    return table("What each task is judged by", ["task", "kind", "role", "judged by", "tolerance"], body)


def _tolerance(task: Row) -> str:
    """A task's tolerance for people."""
    given, share = task["tolerance"], "{} % of the reference's value"
    if given is None:
        return f"{BOUNDED}, or {share.format(number(100 * RELATIVE))} where the metric is not bounded by 1"
    if isinstance(given, str):
        return share.format(given[:-1]) if given.endswith("%") else given
    return share.format(number(100 * given))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
