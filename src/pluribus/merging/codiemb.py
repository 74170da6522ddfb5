"""CoDiEmb's delta-guided fusion: checkpoints weigh, tensor by tensor, by how far each moved.

Zhang, et al. "CoDiEmb: A Collaborative yet Distinct Framework for Unified Representation Learning in Information Retrieval and
Semantic Textual Similarity", 2025, https://arxiv.org/abs/2508.11442.

    δ_k[l] = θ_k[l] − θ0[l];   w_k[l] = ‖δ_k[l]‖^p / Σ_j ‖δ_j[l]‖^p;   θ[l] = θ0[l] + Σ_k w_k[l] δ_k[l]

The paper's function of the norm is not published; p = 1 is ours. p = 0 is the uniform soup.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, mean, norms


@dataclass(frozen=True)
class DeltaGuided(MergeStage):
    power: float
    needs: ClassVar[Need] = "statistic"

    def observe(self, view: View) -> Any:
        size = norms(view)
        if self.power == 0 or not float(size.max()):
            return [1.0] * len(size)
        return (size / size.max()).pow(self.power).tolist()

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        first = next(t for t, w in enumerate(seen) if w)  # the running mean starts at an expert that moved
        return mean(tau[first:], seen[first:])


def codiemb(*, power: float = 1.0) -> Method:
    """power: p, how strongly the distance moved counts."""
    if not power >= 0:
        raise BadInput(f"power is {power}", where="power", remedy="use 0 or more")
    return Method(DeltaGuided(power), weighted=False)
