"""NearSwap: move towards the expert only where it is near.

Public code only (mergekit, after an idea by Alchemonaut): w = clip(t/|θ1 − θ0|, 0, 1), θ = w θ1 + (1 − w) θ0,
which is θ0 + clamp(τ, −t, t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.algebra import MergeStage, Method, Span


@dataclass(frozen=True)
class Clamp(MergeStage):
    t: float

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return tau[0].clamp_(-self.t, self.t)


def nearswap(*, t: float = 1e-3) -> Method:
    """t: the largest step of an entry. Takes one expert."""
    if not t >= 0:
        raise BadInput(f"t is {t}", where="t", remedy="use 0 or more")
    return Method(Clamp(t), experts=(1, 1), weighted=False)
