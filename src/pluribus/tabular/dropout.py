"""ReLU and dropout in one step of the graph, with cheap randomness: relu(x) ⊙ m / (1 − p), m ∈ {0, 1} with P(m = 0) = p.

A unit takes sixteen random bits, four units a draw, so that p is met to 1/65536; torch draws a double a unit, which on a CPU
takes longer than a layer's product. Backward keeps the result alone: where it is positive, the unit was positive and kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LEVELS = 2**16


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """ReLU, and in training dropout of a share p of the units, the others scaled by 1/(1 − p). Random bits come from torch's
    global generator."""
    if not training or p == 0:
        return torch.relu(x)
    found: Tensor = _ReLUDropout.apply(x, p)  # type: ignore[no-untyped-call]
    return found


def kept(like: Tensor, p: float) -> Tensor:
    """m, of the shape, layout and dtype of a dense tensor."""
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    dropped = round(p * _LEVELS) - _LEVELS // 2
    return (bits.view(torch.int16)[:count] >= dropped).to(like.dtype).as_strided(like.shape, like.stride())


class _ReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        found = torch.relu(x)
        found.mul_(kept(found, p).mul_(1 / (1 - p)))
        ctx.save_for_backward(found)
        ctx.scale = 1 / (1 - p)
        return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (found,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(slope, found, 0).mul_(ctx.scale), None
