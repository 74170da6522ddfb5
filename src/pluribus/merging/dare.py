"""DARE: drop task-vector entries at random and rescale the rest.

Yu, Yu, Yu, Huang, Li. "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", ICML 2024,
https://arxiv.org/abs/2311.03099.

    τ̂_t = m_t ⊙ τ_t / (1 − p),   m_t ~ Bernoulli(1 − p);   then task arithmetic, or TIES' election and disjoint mean

Paper and public code: mergekit rescales by ‖τ‖₁ / ‖m ⊙ τ‖₁ (`rescale="l1"`), which equals 1/(1 − p) only in the limit.
Fails where task vectors are large (full fine-tuning at a high learning rate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pluribus.merging.algebra import (
    DisjointMean,
    MergeStage,
    Method,
    Need,
    Span,
    View,
    WeightedSum,
    fraction,
    one_of,
    random_bits,
    total,
)

COMBINE = {"linear": WeightedSum, "ties": DisjointMean}
RESCALE = ("expectation", "l1", "none")


@dataclass(frozen=True)
class Drop(MergeStage):
    """Keep each entry with probability `density`, and rescale."""

    density: float
    rescale: str = "expectation"

    def __post_init__(self) -> None:
        fraction("density", self.density)
        one_of("rescale", self.rescale, RESCALE)

    @property
    def need(self) -> Need:
        return "statistic" if self.rescale == "l1" and 0 < self.density < 1 else "elementwise"

    def drop(self, tau: Tensor, span: Span) -> Tensor:
        last = round(self.density * 2**32) - 1 - 2**31  # an entry stays where its 32 bits are at most this
        for t, task in enumerate(span.tasks):
            for start, stop, bits in random_bits(span, task):
                tau[t, start:stop].mul_(bits <= last)
        return tau

    def observe(self, view: View) -> Any:
        whole = total(view, lambda tau, span: tau.abs().sum(1))
        kept = total(view, lambda tau, span: self.drop(tau.clone(), span).abs().sum(1))
        return [float(a / b) if b > 0 else 1.0 for a, b in zip(whole, kept)]

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        if self.density == 1:
            return tau
        if round(self.density * 2**32) == 0:
            return tau.zero_()
        self.drop(tau, span)
        if self.rescale == "expectation":
            return tau.div_(self.density)
        if self.rescale == "l1":
            for t, factor in enumerate(seen):
                tau[t].mul_(factor)
        return tau


def dare(*, density: float = 0.1, combine: str = "linear", rescale: str = "expectation", scale: float = 1.0) -> Method:
    """density: 1 − p. combine: "linear" or "ties". rescale: "expectation" (the paper's), "l1" or "none". scale: λ."""
    one_of("combine", combine, tuple(COMBINE))
    return Method(COMBINE[combine](), (Drop(density, rescale),), scale=scale, positive=combine == "ties")
