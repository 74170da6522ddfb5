"""Arcee fusion: take over from the expert what is important.

Public code only (mergekit, arcee.ai).

    importance = |θ1 − θ0| · KL(softmax(row θ1) ‖ softmax(row θ0));   kept where it is at least median + 1.5 · IQR of the tensor

Public code: mergekit estimates the quantiles on a sample of at most 10⁶ entries; here they are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span


def quantile(x: Tensor, q: float) -> float:
    """Linear interpolation between the order statistics, for any length (torch.quantile stops at 16 Mi entries)."""
    position = q * (len(x) - 1)
    low = int(position)
    a = x.kthvalue(low + 1).values
    b = x.kthvalue(min(low + 2, len(x))).values
    return float(a) + (position - low) * (float(b) - float(a))


@dataclass(frozen=True)
class Important(MergeStage):
    needs: ClassVar[Need] = "tensor"

    def __call__(self, weights: Tensor, span: Span, seen: Any) -> Tensor:
        theta0, theta1 = weights[0], weights[1]
        if not len(theta0):
            return theta0
        p, q = ((x.view(-1, span.columns).softmax(1) + 1e-8) for x in (theta1, theta0))
        divergence = (p * (p / q).log()).sum(1, keepdim=True)
        importance = ((theta1 - theta0).abs().view(-1, span.columns) * divergence).view(-1)
        low, middle, high = (quantile(importance, x) for x in (0.25, 0.5, 0.75))
        found: Tensor = torch.where(importance >= middle + 1.5 * (high - low), theta1, theta0)
        return found


def arcee_fusion() -> Method:
    """Takes two models: what of the second is important replaces the first."""
    return Method(Important(), space="weights", experts=(2, 2), weighted=False)
