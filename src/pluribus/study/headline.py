"""The headline of a study of a table: one recommendation, made on validation, and whether the test part bears it out.

The recommendation stands (`choice.json`, `model/`): the test part chooses nothing. But where it says otherwise, the headline says
so first, so that nobody reads "use it" above a figure that speaks against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pluribus.evaluation.intervals import Interval
from pluribus.evaluation.verdict import WORDS, Comparison, Verdict
from pluribus.study.selection import StudyChoice

SPECIALISTS = "the best model per task"
_USE = {
    "one model": "Use the one model",
    "blend": "Use a blend of several models",
    "committee": "Use the one model with separate models beside it",
    "specialists": "Keep one model per task",
}
_KEPT = "model/ holds it all the same, since the test part chooses nothing."


def headline(choice: StudyChoice, verdict: Verdict | None, tested: Sequence[Mapping[str, Any]] = ()) -> str:
    """What to do, why, and what the test part says of it, in two or three sentences.

    Parameters
    ----------
    choice : StudyChoice
        What was chosen on validation.
    verdict : Verdict or None
        The one model against the best specialists on the test part; None where there is nothing to compare.
    tested : sequence of mapping
        What each option does on the test part: `name`, `delta`, `low`, `high`, `word`; options that are missing were not tested.

    Returns
    -------
    str
        The headline.
    """
    use = _USE.get(choice.recommended, f"Use {choice.recommended}")
    if verdict is None:
        return f"{use}: {choice.reason}. There is no verdict: nothing was compared on the test part."
    if choice.recommended == "one model":
        return _one_model(use, choice, verdict)
    found = next((row for row in tested if row["name"] == choice.recommended), None)
    said = [f"{use}: {choice.reason}."]
    if found is not None and choice.recommended != "specialists":
        change = _change(found["delta"], found["low"], found["high"])
        if found["word"] == "worse":
            said = [
                f"Do not rely on the recommendation ({use.lower()}): on the test part it is {change} than {SPECIALISTS}.",
                _KEPT,
            ]
        elif change:
            said.append(f"On the test part it is {change} than {SPECIALISTS} on average.")
    first = verdict.comparisons[0]
    words = _words(first)
    if words:
        mean = _on_average(first)
        said.append(f"On the test part the one model alone ({verdict.challenger}) is {words}{mean}.")
    return " ".join(said)


def _one_model(use: str, choice: StudyChoice, verdict: Verdict) -> str:
    first = verdict.comparisons[0]
    main = [row for row in first.tasks if row.role == "main"]
    worse, open_ = ([row.task for row in main if row.word == word] for word in ("worse", "undecided"))
    count = "its task" if len(first.tasks) == 1 else f"all {len(first.tasks)} tasks"
    mean, named = _on_average(first), f"{verdict.challenger}"
    if worse or first.overall.word == "worse":
        where = f"worse than {SPECIALISTS} on {_names(worse)}" if worse else f"worse than {SPECIALISTS} on average"
        lead = f"Do not switch to the one model ({named}) yet: validation recommended it, but on the test part it is {where}"
        return f"{lead}{mean}. {_KEPT}"
    if not main:
        return f"{use} ({named}) for {count}: {choice.reason}. No main task was judged on the test part."
    if open_:
        decided = f"; it is {_words(first, ('better', 'as good'))}" if len(open_) < len(main) else ""
        seen = f"The test part does not contradict this, but leaves {_names(open_)} undecided{decided}{mean}."
        return f"{use} ({named}) for {count}: {choice.reason}. {seen}"
    return f"{use} ({named}) for {count}: on the test part, too, it is {_words(first)} compared with {SPECIALISTS}{mean}."


def _words(comparison: Comparison, words: Sequence[str] = WORDS) -> str:
    """`better on a, as good on b`: the main tasks by their word."""
    found = []
    for word in words:
        names = [row.task for row in comparison.tasks if row.role == "main" and row.word == word]
        if names:
            found.append(f"{word} on {_names(names)}")
    return ", ".join(found)


def _on_average(comparison: Comparison) -> str:
    """`; on average 4.4 % worse (0.9 to 7.9)`; nothing where Δm means nothing."""
    overall = comparison.overall
    delta: Interval = overall.delta.deciding
    if overall.word == "undecided" and "means nothing" in overall.reason:
        return ""
    change = _change(delta.value, delta.low, delta.high)
    return f"; on average over the tasks it is {change}" if change else ""


def _change(value: float | None, low: float | None, high: float | None) -> str:
    """A Δm in words: "4.4 % worse (0.9 to 7.9)"; an interval on both sides of 0 names both."""
    if value is None or not math.isfinite(value):
        return ""
    word, other, sign = ("better", "worse", 1.0) if value >= 0 else ("worse", "better", -1.0)
    said = f"{abs(value):.1f} % {word}"
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return said
    near, far = sorted((sign * low, sign * high))
    return f"{said} ({near:.1f} to {far:.1f})" if near >= 0 else f"{said} (from {-near:.1f} % {other} to {far:.1f} % {word})"


def _names(of: Sequence[str], most: int = 6) -> str:
    return ", ".join(of) if len(of) <= most else f"{', '.join(of[: most - 1])} and {len(of) - most + 1} more"
