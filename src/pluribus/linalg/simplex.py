"""Euclidean projection on the simplex {w ≥ 0, Σ w = total} (Held, Wolfe, Crowder 1974: sort, then threshold)."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(x: Tensor, total: float = 1.0) -> Tensor:
    """The nearest point of the simplex to each row of x [..., T], without a copy to the host.

    Exact up to rounding: w = max(x − τ, 0) with τ such that Σ w = total.
    """
    x = x - x.amax(-1, keepdim=True)  # does not change the answer, and keeps equal huge entries apart from `total`
    ordered = x.sort(dim=-1, descending=True).values
    rank = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    threshold = (ordered.cumsum(-1) - total) / rank
    kept = (ordered > threshold).sum(-1, keepdim=True).clamp_min(1)
    return (x - threshold.gather(-1, kept - 1)).clamp_min(0)
