"""Where a study searches a candidate's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(map(repr, self.options))

    def sample(self, rng: np.random.Generator) -> Any:
        return self.options[int(rng.integers(len(self.options)))]


@dataclass(frozen=True)
class Uniform:
    """A real number between two bounds."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}"

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class LogUniform:
    """A positive number whose logarithm is uniform between two bounds."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g} (log)"

    def sample(self, rng: np.random.Generator) -> float:
        return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))


@dataclass(frozen=True)
class IntRange:
    """A whole number between two bounds, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} … {self.high} (whole)"

    def sample(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True)
class SearchSpace:
    """Setting → where it is searched. The defaults of the candidate are always the first configuration tried."""

    ranges: Mapping[str, Choice | Uniform | LogUniform | IntRange] = field(default_factory=dict)

    def sample(self, seed: int, count: int) -> list[dict[str, Any]]:
        """`count` configurations: the defaults (an empty dict), then seeded random draws."""
        rng = np.random.default_rng(seed)
        draws = [{name: r.sample(rng) for name, r in sorted(self.ranges.items())} for _ in range(count - 1)]
        return [{}, *draws] if self.ranges else [{}]
