"""A Gram matrix taken apart into row norms and cosines, the form in which every solver here works.

G = D C D with D = diag(G)^½. Rows may differ in length by twelve orders of magnitude; C has a unit diagonal whatever they are.
Solvers work in float64 where the device has it: a T × T problem costs nothing, and G squares the condition of J.
"""

from __future__ import annotations

import torch
from torch import Tensor


def working(x: Tensor) -> Tensor:
    """`x` in the precision that solvers use: float64, or float32 on devices without it."""
    return x.float() if x.device.type == "mps" else x.double()


def cosine(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D [..., T], its inverse (0 where D is 0) and C [..., T, T] of a Gram matrix, in working precision.

    A zero row gets a unit vector of its own: C has 1 on its diagonal and 0 elsewhere in its row.
    """
    gram = working(gram)
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = torch.where(norm > 0, 1 / norm, 0.0)
    cosines = gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    cosines.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return norm, inverse, cosines


def ridge(gram: Tensor, floor: float = 1e-10) -> float:
    """What solvers add to the diagonal of C: above the rounding of a Gram matrix of this dtype, at least `floor`."""
    return max(floor, 4 * gram.shape[-1] * torch.finfo(gram.dtype).eps)


def settled(open_: Tensor) -> bool:
    """Whether an iteration may stop: looked up on the CPU only, so that an accelerator never waits for the host."""
    return open_.device.type == "cpu" and not bool(open_.any())


def pseudo_inverse(matrix: Tensor, rounding: float | None = None) -> Tensor:
    """Moore–Penrose inverse of a symmetric positive semi-definite matrix; eigenvalues below 4·T·λ_max·rounding count as zero.

    rounding: the relative rounding error of the entries, that of the type in which they were *measured* (default: their own).
    """
    values, vectors = torch.linalg.eigh(matrix)
    eps = torch.finfo(matrix.dtype).eps if rounding is None else rounding
    cut = 4 * values.amax(-1, keepdim=True).clamp_min(0) * matrix.shape[-1] * eps
    inverse = torch.where(values > cut, 1 / values, 0.0)
    found: Tensor = (vectors * inverse.unsqueeze(-2)) @ vectors.mT
    return found
