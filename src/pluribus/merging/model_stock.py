"""Model Stock: how far to go from the pretrained weights to the experts' mean, from the angle between the experts.

Jang, Yun, Han. "Model Stock: All we need is just a few fine-tuned models", ECCV 2024, https://arxiv.org/abs/2403.19522.

    d_i = θ_i − θ0,  c = mean pairwise cosine of the d_i,  t = N c / (1 + (N − 1) c),   θ = t · mean(θ_i) + (1 − t) θ0

Public code: mergekit does not clamp c < 0, where t turns negative near −1/(N − 1); here c is clamped to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, gram, mean


def ratio(products: Tensor) -> Tensor:
    """t [...] from inner products [..., N, N]; a task vector of norm 0 has cosine 0 with all."""
    n = products.shape[-1]
    norm = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    norm = norm.masked_fill(norm == 0, 1)
    cosines = products / norm[..., :, None] / norm[..., None, :]
    off = ~torch.eye(n, dtype=torch.bool)
    c = cosines[..., off].mean(-1).clamp(0, 1)
    return n * c / (1 + (n - 1) * c)


@dataclass(frozen=True)
class Stock(MergeStage):
    by_rows: bool

    @property
    def need(self) -> Need:
        return "rows" if self.by_rows else "statistic"

    def observe(self, view: View) -> Any:
        return float(ratio(gram(view)))

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        if not self.by_rows:
            return mean(tau, [1.0] * len(tau)).mul_(seen)
        rows = tau.view(len(tau), -1, span.columns)
        wide = rows.transpose(0, 1).double()
        t = ratio(wide @ wide.transpose(1, 2)).to(tau.dtype)
        return (mean(tau, [1.0] * len(tau)).view(-1, span.columns) * t[:, None]).view(-1)


def model_stock(*, by_rows: bool = False) -> Method:
    """by_rows: an angle for each row of a tensor instead of one for the tensor. Takes at least two experts."""
    return Method(Stock(by_rows), experts=(2, 1 << 30), weighted=False)
