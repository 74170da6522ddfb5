"""KnOTS: align the task vectors in one basis by a joint decomposition, merge there, map back. Made for LoRA updates.

Stoica, Ramesh, Ecsedi, Choshen, Hoffman. "Model merging with SVD to tie the Knots", ICLR 2025, https://arxiv.org/abs/2410.19735.

    [τ_1 … τ_T] (out × T·in) = U S [V_1 … V_T];   V_M = merge(V_1 … V_T) by TIES or the mean;   τ_M = U S V_M
    singular values up to 1e-4 of the largest are dropped; the decomposition is in float64

With the mean it is the mean of the τ_t exactly, up to what is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.merging.algebra import DisjointMean, Mean, Method, Span, one_of
from pluribus.merging.matrices import MatrixStage
from pluribus.merging.trim import Trim

THRESHOLD = 1e-4


@dataclass(frozen=True)
class Knots(MatrixStage):
    density: float
    combine: str

    def merge(self, tau: Tensor, span: Span) -> Tensor:
        tasks, out, columns = tau.shape
        wide = tau.double().transpose(0, 1).reshape(out, tasks * columns)
        # U and S of a wide matrix are those of its small triangular factor
        q, triangle = torch.linalg.qr(wide.T)
        v, s, u = torch.linalg.svd(triangle, full_matrices=False)
        known = s > THRESHOLD * s[0]
        u, s, v = u[known].T, s[known], (q @ v[:, known]).T
        rows = v.view(len(s), tasks, columns).transpose(0, 1).reshape(tasks, -1)
        inner = Span(span.name, 0, rows.shape[1], (len(s), columns), span.tasks, span.weights, span.seed)
        if self.combine == "mean":
            merged = Mean()(rows, inner, None)
        else:
            trim = Trim(self.density)
            view = _SpanView(inner, rows)
            merged = DisjointMean()(trim(rows, inner, trim.observe(view)), inner, None)
        found: Tensor = (u * s) @ merged.view(len(s), columns)
        return found.to(tau.dtype)


class _SpanView:
    def __init__(self, span: Span, rows: Tensor) -> None:
        self.name, self.shape, self.span, self.rows = span.name, span.shape, span, rows

    def chunks(self):  # type: ignore[no-untyped-def]
        yield self.span, self.rows


def knots(*, combine: str = "ties", density: float = 0.2, scale: float = 1.0) -> Method:
    """combine: "ties" at `density`, or "mean". scale: λ."""
    one_of("combine", combine, ("ties", "mean"))
    Trim(density)
    return Method(Knots(density, combine), scale=scale, positive=True)
