"""Timing two things side by side: medians over interleaved pairs, one line a ratio, written under docs/results/."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results"
DATA = Path(os.environ.get("PLURIBUS_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Ratio:
    """CPU seconds of `ours` over CPU seconds of `theirs`: medians, and the quartiles of the per-pair ratio."""

    name: str
    ours: float
    theirs: float
    low: float
    high: float
    target: str

    @property
    def value(self) -> float:
        return self.ours / self.theirs

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.value:.2f}x ({self.low:.2f} to {self.high:.2f}), "
            f"{1e3 * self.ours:.2f} ms against {1e3 * self.theirs:.2f} ms; target {self.target}"
        )


def ratio(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    target: str,
    pairs: int = 7,
    clock: Callable[[], float] = time.process_time,
) -> Ratio:
    """Run `ours` and `theirs` alternately `pairs` times (one warm-up each) and print one line."""
    ours(), theirs()
    a, b = [], []
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 else (1, 0):
            start = clock()
            (ours if side == 0 else theirs)()
            (a if side == 0 else b).append(clock() - start)
    each = statistics.quantiles([x / y for x, y in zip(a, b)], n=4)
    found = Ratio(name, statistics.median(a), statistics.median(b), each[0], each[2], target)
    print(found, flush=True)
    return found


def machine() -> str:
    """One line on what the figures were measured on."""
    import torch

    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def table(ratios: list[Ratio]) -> str:
    """The ratios as a Markdown table."""
    rows = ["| what | ratio | quartiles | ours, ms | other, ms | target |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {r.name} | {r.value:.2f} | {r.low:.2f}–{r.high:.2f} | {1e3 * r.ours:.2f} | {1e3 * r.theirs:.2f} | {r.target} |"
        for r in ratios
    ]
    return "\n".join(rows)
