"""Figures and rows of `report.json` in words. Nothing here judges: every word of a verdict is read, none is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pluribus.tasks import METRICS

Row = Mapping[str, Any]

MOST = 12
"""Tasks that pictures show; the tables show all."""

_TURNS = ("worse", "better", "undecided", "as good")
_HOLES = {"labelled": "labelled", "missing": "missing", "not_applicable": "not applicable", "delayed": "not yet known"}


def finite(value: Any) -> bool:
    """Whether a JSON value is a usable number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, sign: str = "") -> str:
    """Four significant places with a true minus; "n/a" where there is none. Large counts get thin groups."""
    if not finite(value):
        return "n/a"
    if abs(value) >= 10_000:
        return f"{value:{sign},.0f}".replace("-", "−").replace(",", "\u202f")
    return f"{value:{sign}.4g}".replace("-", "−")


def count(n: int, noun: str) -> str:
    """`1 row`, `3 rows`."""
    return f"{n:,}".replace(",", "\u202f") + f" {noun}{'' if n == 1 else 's'}"


def span(interval: Row | None, places: str = "+.4g") -> str:
    """`−0.1 to +0.3`."""
    if interval is None or not finite(interval["low"]) or not finite(interval["high"]):
        return "no interval"
    return f"{interval['low']:{places}} to {interval['high']:{places}}".replace("-", "−")


def deciding(scoped: Row) -> Row:
    """The interval that decides the word: of what would be deployed."""
    found: Row = scoped["file"]
    return found


def measure(name: str) -> str:
    """What people call a metric."""
    found = METRICS.get(name)
    return name if found is None else found.label or name


def direction(name: str) -> str:
    return "higher is better" if name == "max" else "lower is better"


def hole(name: str) -> str:
    return _HOLES.get(name, name)


def short(name: str, most: int = 24) -> str:
    """A name that fits beside a picture; its end, which often tells it from its neighbours, stays."""
    end = most // 2 - 1
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"


def names(of: Sequence[str], most: int = 6) -> str:
    """Names in a row; many of them are counted."""
    return ", ".join(of) if len(of) <= most else f"{', '.join(of[: most - 1])} and {len(of) - most + 1} more"


def label(summary: Row, candidate: str) -> str:
    """What people call a candidate."""
    if candidate == "champion":
        return "Your champion file"
    entry = summary["candidates"].get(candidate)
    return str(entry["label"]) if entry else candidate


def by_reason(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Reason → tasks that are undecided for it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            found.setdefault(row["reason"], []).append(row["task"])
    return found


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """Word → how many main tasks got it, in the order of the four words."""
    said = [row["word"] for row in rows if row["role"] == "main"]
    return {word: said.count(word) for word in ("better", "as good", "worse", "undecided") if word in said}


def telling(summary: Row, most: int = MOST) -> list[str]:
    """The tasks that a picture shows: all where they are few; else the words in turn (worse, better, undecided, as good), of each
    the gains that stand out most from their standard error. In the table's order."""
    order = [task["name"] for task in summary["tasks"]]
    if len(order) <= most:
        return order
    rows = {} if summary["verdict"] is None else {r["task"]: r for r in summary["verdict"]["comparisons"][0]["tasks"]}

    def clarity(name: str) -> float:
        gain = deciding(rows[name]["gain"])
        known = finite(gain["value"]) and finite(gain["se"]) and gain["se"] > 0
        return abs(gain["value"] / gain["se"]) if known else 0.0

    turns = [sorted((n for n in rows if rows[n]["word"] == word), key=clarity, reverse=True) for word in _TURNS]
    turns.append([name for name in order if name not in rows])
    by_turn = [name for turn in zip_longest(*turns) for name in turn if name is not None]
    kept = set(by_turn[:most])
    return [name for name in order if name in kept]


def mean(values: Iterable[Any]) -> float:
    """Mean of the finite values; NaN where there is none."""
    known = [float(v) for v in values if finite(v)]
    return sum(known) / len(known) if known else math.nan


def claimed(summary: Row) -> dict[str, set[str]]:
    """Task → candidates whose test figures are claimed: the winner and its references in the verdict. All others are
    exploratory."""
    choice, verdict = summary["choice"], summary["verdict"]
    if verdict is None:
        return {}
    found: dict[str, set[str]] = {}
    for comparison in verdict["comparisons"]:
        for row in comparison["tasks"]:
            sides = found.setdefault(row["task"], {choice["winner"], choice["specialists"][row["task"]]})
            if comparison["reference"] == "same-encoder specialists" and choice["same_encoder"]:
                sides.add(choice["same_encoder"])
    return found


def duration(seconds: Any) -> str:
    if not finite(seconds):
        return "n/a"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def size(n: Any) -> str:
    if not finite(n):
        return "n/a"
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
