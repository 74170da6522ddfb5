"""The min-norm point of the convex hull of T vectors, from their Gram matrix: argmin_{w ∈ simplex} wᵀ G w.

Source of the problem: Wolfe (1976), Finding the nearest point in a polytope. It is the non-negative programme
min_{y ≥ 0} ½ yᵀ G y − 1ᵀ y up to scale: there G y ≥ 1 with equality on the support, so that w = y / Σ y fulfils
(G w)_t ≥ wᵀ G w with equality where w_t > 0. Solved exactly (active set) in the scaled variable b = D y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pluribus.linalg.cosine import cosine, ridge
from pluribus.linalg.nonnegative_qp import nonnegative_qp


def min_norm(gram: Tensor) -> Tensor:
    """Weights w [..., T] on the simplex that minimise wᵀ G w for G [..., T, T], in the dtype of `gram`.

    A zero row takes all the weight (the point 0 lies in the hull). Residual: (G w)_t ≥ wᵀ G w − 1e-9·max G for a Gram
    matrix in float64, 4·T·eps·max G in float32 (the ridge that makes duplicate rows share their weight).
    """
    norm, inverse, cosines = cosine(gram)
    cosines.diagonal(dim1=-2, dim2=-1).add_(ridge(gram))
    y = inverse * nonnegative_qp(cosines, -inverse)
    zero = (norm == 0).to(y.dtype)
    y = torch.where(zero.any(-1, keepdim=True), zero, y)
    return (y / y.sum(-1, keepdim=True)).to(gram.dtype)
