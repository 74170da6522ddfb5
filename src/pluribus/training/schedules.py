"""Schedules: a factor on a learning rate, on the weight decay or on dropout, as a function of how much of the training is done.

`share` is in [0, 1]: 0 at the first step, 1 behind the last one. So a schedule has the same shape whatever the number of steps.

| name          | factor                                    | ends at |
|---------------|-------------------------------------------|---------|
| "constant"    | 1                                         | 1       |
| "cosine"      | ½ (1 + cos πt)                            | 0       |
| "coslog4"     | ½ (1 − cos 2π log₂(1 + 15 t))             | 0       |
| "flat_cosine" | 1 until t = ½, then ½ (1 + cos π(2t − 1)) | 0       |

"coslog4" rises from 0 and falls back to 0 four times, at t = 1/15, 3/15, 7/15 and 1: each cycle is twice as long as the one
before it (Holzmüller, Grinsztajn, Steinwart, "Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on Tabular Data",
NeurIPS 2024, which takes it for the learning rate and "flat_cosine" for weight decay and dropout).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

Scheduled = Literal["constant", "cosine", "coslog4", "flat_cosine"]


def constant(share: float) -> float:
    """1."""
    return 1.0


def cosine(share: float) -> float:
    """½ (1 + cos πt)."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def coslog4(share: float) -> float:
    """½ (1 − cos 2π log₂(1 + 15 t))."""
    return 0.5 * (1 - math.cos(2 * math.pi * math.log2(1 + 15 * min(1.0, share))))


def flat_cosine(share: float) -> float:
    """1 until t = ½, then ½ (1 + cos π(2t − 1))."""
    return 1.0 if share <= 0.5 else cosine(2 * share - 1)


SCHEDULES: Mapping[Scheduled, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "coslog4": coslog4,
    "flat_cosine": flat_cosine,
}


@runtime_checkable
class ToldOfProgress(Protocol):
    """A part of a model that changes over the training, by its dropout for example. The trainer calls `anneal` before every
    step."""

    def anneal(self, share: float) -> None:
        """Take note of how much of the training is done."""
