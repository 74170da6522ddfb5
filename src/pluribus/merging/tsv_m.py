"""TSV-M: task singular vectors, cut to their share of the rank and made orthogonal to one another.

Gargiulo, Crisostomi, Bucarelli, Scardapane, Silvestri, Rodolà. "Task Singular Vectors: Reducing Task Interference in Model
Merging", CVPR 2025, https://arxiv.org/abs/2412.00081.

    τ_t = U_t S_t V_t; keep k = floor(r/T) triplets of each;  U = [U_1 … U_T], S, V likewise
    U⊥ = polar(U), V⊥ = polar(V);    τ_M = U⊥ diag(S) V⊥

1. Tensors of one dimension are averaged. Kernels are matrices out × (in · height · width); the code leaves them to the mean.
2. Where T > r one triplet of each is kept.
3. One expert interferes with nobody and is returned as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pluribus.merging.algebra import Method, Span
from pluribus.merging.matrices import MatrixStage, polar, svd


class TaskSingularVectors(MatrixStage):
    def merge(self, tau: Tensor, span: Span) -> Tensor:
        k = max(1, min(tau.shape[1:]) // len(tau))
        us, ss, vs = [], [], []
        for t in range(len(tau)):
            u, s, v = svd(tau[t])
            us.append(u[:, :k])
            ss.append(s[:k])
            vs.append(v[:k])
        return (polar(torch.cat(us, 1)) * torch.cat(ss)) @ polar(torch.cat(vs, 0))


def tsv_m(*, scale: float = 1.0) -> Method:
    """scale: α, 1 in the paper."""
    return Method(TaskSingularVectors(), scale=scale, weighted=False)
