"""Localizing task information: TALL masks and Consensus Merging.

Wang, Dimitriadis, Ortiz-Jiménez, Fleuret, Frossard. "Localizing Task Information for Improved Model Merging and Compression",
ICML 2024, https://arxiv.org/abs/2405.07813.

    τ_M = Σ_t τ_t (or TIES' disjoint sum);     m_t = [ |τ_t| ≥ λ |τ_M − τ_t| ]
    expert t rebuilt:  θ0 + m_t ⊙ τ_M           consensus:  θ = θ0 + α [ Σ_t m_t ≥ k ] ⊙ τ_M

Paper and public code: the code compares strictly (>), the paper's and ours is ≥; they differ only where both sides are equal
(an entry that no task moved, whose τ_M is 0 anyway). k = 0 removes nothing, k > T everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.algebra import MergeStage, Method, Span, one_of
from pluribus.merging.ties import DisjointSum
from pluribus.merging.trim import Trim


def masks(tau: Tensor, merged: Tensor, threshold: float) -> Tensor:
    """m_t [T, n] of task vectors [T, n] and their multi-task vector [n]."""
    return tau.abs() >= threshold * (merged - tau).abs()


@dataclass(frozen=True)
class Localised(MergeStage):
    """Consensus of at least k masks, or with a task its own mask."""

    threshold: float
    k: int
    source: str
    density: float
    task: str | None

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        if self.source == "sum":
            merged = tau.sum(0)
        else:
            merged = self.trimmed(tau, span, seen)
        found = masks(tau, merged, self.threshold)
        kept = found.sum(0) >= self.k if self.task is None else found[span.tasks.index(self.task)]
        return merged.mul_(kept)

    @property
    def trim(self) -> Trim:
        return Trim(self.density)

    @property
    def need(self) -> Any:
        return "elementwise" if self.source == "sum" else self.trim.need

    def observe(self, view: Any) -> Any:
        return self.trim.observe(view)

    def trimmed(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return DisjointSum()(self.trim(tau.clone(), span, seen), span, None)


def _localised(threshold: float, k: int, source: str, density: float, task: str | None) -> Localised:
    one_of("source", source, ("sum", "ties"))
    if not threshold >= 0:
        raise BadInput(f"threshold is {threshold}", where="threshold", remedy="use 0 or more (the paper: 0.2 to 0.6)")
    return Localised(threshold, k, source, density, task)


def consensus(*, k: int = 2, threshold: float = 0.4, source: str = "sum", density: float = 0.2, scale: float = 0.3) -> Method:
    """k: how many tasks must use an entry. threshold: λ. source: τ_M from "sum" or "ties" at `density`. scale: α."""
    return Method(_localised(threshold, k, source, density, None), scale=scale, weighted=False)


def tall_masks(*, task: str | None = None, threshold: float = 0.4, source: str = "sum", density: float = 0.2) -> Method:
    """The expert `task` rebuilt from the multi-task vector and its mask. The paper picks λ in {0.2, …, 0.6} on validation."""
    if task is None:
        raise BadInput("tall_masks gives one model per task and no task is named", where="task", remedy="give task=NAME")
    return Method(_localised(threshold, 0, source, density, task), weighted=False, task=task)
