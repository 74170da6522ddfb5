"""The headline: what was recommended on validation, and never against the words of the test part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pluribus.evaluation.verdict import WORDS, Verdict
from pluribus.study.headline import headline
from pluribus.study.report.options import lines
from pluribus.study.report.page import page
from pluribus.study.selection import StudyChoice

Make = Callable[..., dict[str, Any]]
TASKS = ["default", "prepay"]


@pytest.fixture(scope="module")
def verdict(summary_of: Make) -> Verdict:
    return Verdict.from_dict(summary_of(TASKS, 1.0, 1.0)["verdict"])


def choice(recommended: str = "one model", reason: str = "no main task is worse on validation") -> StudyChoice:
    return StudyChoice(
        "joint", dict.fromkeys(TASKS, "alone"), None, recommended, dict.fromkeys(TASKS, "joint"), {}, {}, {}, {}, reason
    )


def worded(verdict: Verdict, words: Any, overall: str = "as good") -> Verdict:
    """The verdict with other words."""
    first, *others = verdict.comparisons
    rows = tuple(replace(row, word=word) for row, word in zip(first.tasks, words))
    said = replace(first, tasks=rows, overall=replace(first.overall, word=overall))  # type: ignore[arg-type]
    return replace(verdict, comparisons=(said, *others))


@pytest.mark.parametrize("words", list(itertools.product(WORDS, repeat=2)))
@pytest.mark.parametrize("overall", WORDS)
def test_it_never_recommends_what_the_test_part_contradicts(verdict: Verdict, words: tuple[str, str], overall: str) -> None:
    """A worse task, or a worse mean, comes first and names itself; an open one is named; only what is decided is called so."""
    said = headline(choice(), worded(verdict, words, overall))
    worse = [task for task, word in zip(TASKS, words) if word == "worse"]
    open_ = [task for task, word in zip(TASKS, words) if word == "undecided"]
    contradicted = bool(worse) or overall == "worse"
    assert said.startswith("Do not switch to the one model (Joint) yet") == contradicted
    assert said.startswith("Use the one model (Joint) for all 2 tasks") != contradicted
    if contradicted:
        assert "validation recommended it, but on the test part it is worse than the best model per task" in said
        assert "model/ holds it all the same" in said
        assert all(task in said for task in worse)
    elif open_:
        assert f"does not contradict this, but leaves {', '.join(open_)} undecided" in said
        assert (" it is " in said.partition("undecided")[2].partition("; on average")[0]) == (len(open_) == 1)
    else:
        assert "on the test part, too, it is" in said
    assert ". ." not in said
    assert said.endswith(".")


def test_the_mean_is_said_in_words(summary_of: Make) -> None:
    """Per cent, better or worse, with the interval: no signs to decode. A mean that means nothing is not said."""
    found = Verdict.from_dict(summary_of(TASKS, 1.0, 3.0)["verdict"])
    delta = found.comparisons[0].overall.delta.deciding
    assert delta.high < 0
    assert f"on average over the tasks it is {-delta.value:.1f} % worse ({-delta.high:.1f} to {-delta.low:.1f})" in headline(
        choice(), found
    )
    both = Verdict.from_dict(summary_of(TASKS, [1.1, 0.9], 1.0, rows=80)["verdict"])
    delta = both.comparisons[0].overall.delta.deciding
    assert delta.low < 0 < delta.high
    assert " % worse " in headline(choice(), both)
    assert " % better)" in headline(choice(), both) or " % worse)" in headline(choice(), both)
    first = found.comparisons[0]
    empty = replace(first, overall=replace(first.overall, word="undecided", reason="the reference is near 0: it means nothing"))
    assert "on average" not in headline(choice(), replace(found, comparisons=(empty,)))


def test_other_options_are_held_to_the_test_part_too(verdict: Verdict) -> None:
    """A blend that the test part finds worse is not headed by "use it"; specialists are the reference."""
    tested = [{"name": "blend", "delta": -2.04, "low": -3.0, "high": -1.0, "word": "worse"}]
    said = headline(choice("blend", "it is 1.0 % better"), verdict, tested)
    assert said.startswith(
        "Do not rely on the recommendation (use a blend of several models): on the test part it is 2.0 % worse"
    )
    tested[0] |= {"delta": 2.04, "low": -1.0, "high": 3.0, "word": "undecided"}
    said = headline(choice("blend", "it is 1.0 % better"), verdict, tested)
    assert said.startswith(
        "Use a blend of several models: it is 1.0 % better. On the test part it is 2.0 % better (from 1.0 % worse to 3.0 %"
    )
    said = headline(choice("specialists", "sharing hurts prepay"), verdict)
    assert said.startswith("Keep one model per task: sharing hurts prepay. On the test part the one model alone (Joint) is ")


def test_without_a_verdict_nothing_is_claimed() -> None:
    """No specialist ran: the recommendation says why, and that nothing was compared."""
    assert headline(choice("specialists", "no joint model ran"), None) == (
        "Keep one model per task: no joint model ran. There is no verdict: nothing was compared on the test part."
    )


def test_the_options_are_shown_where_there_are_some(summary_of: Make) -> None:
    """Validation beside test, costs, the recommended one marked; runs of before options have none."""
    summary = summary_of(TASKS)
    assert lines(summary) == []
    assert "What could be deployed" not in page(summary)
    one = {
        "name": "one model",
        "delta": -0.43,
        "low": -1.0,
        "high": 0.2,
        "worse": ["prepay"],
        "fits": 5,
        "bytes": 4000,
        "flops": 1800.0,
    }
    blend = {**one, "name": "blend", "delta": 1.26, "worse": [], "low": None, "high": None}
    summary["choice"]["options"] = [blend, one]
    summary["options"] = [{"name": "one model", "delta": -0.9, "low": -2.0, "high": 0.3, "word": "as good", "recommended": True}]
    board = {"candidate": "joint", "recommended": True, "undertrained": False, "fits": 1, "valid": 0.1, "test": 0.1}
    summary["leaderboard"] = [{**board, "fit_seconds": 1.0, "rows_per_second": 9.0, "bytes": 9, "peak_memory": 9}]
    told, html = "\n".join(lines(summary)), page(summary)
    assert "→ one model" in told
    assert "→ blend" not in told
    for said in ("−0.4", "−1.0 to +0.2", "−0.9", "−2.0 to +0.3", "+1.3", "4 kB"):
        assert said in told
        assert said in html
    assert "worse on prepay" in html
