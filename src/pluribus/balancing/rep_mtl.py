"""Rep-MTL: a regulariser of the tasks' saliency on the shared representation.

Source: Wang et al. (2025), Rep-MTL: Unleashing the Power of Representation-level Task Saliency for Multi-Task Learning.
Z [B, C, H, W] shared features (vectors: H = W = 1), S_t = ∂ℓ_t/∂Z.

    TSR   Ŝ_t = mean over channels of S_t ;  P_{i,t} = |Ŝ_{i,t}| / Σ_k |Ŝ_{i,k}|  at each of the B·H·W places i
          L_tsr = mean_i ( − Σ_t P_{i,t} log P_{i,t} )
    CSA   M_t = S_t S_tᵀ [B, C, C] ;  A = mean_t S_t, Â = A Aᵀ ;  z^t_b, z^a_b: normalised vec(M_t[b]), vec(Â[b])
          L_csa = mean_{b,t} −log( exp(z^a_b·z^t_b/τ) / Σ_{k≠b} exp(z^a_b·z^a_k/τ) )
    L     = Σ_t ℓ_t + λ_tsr L_tsr + λ_csa L_csa

The entropy is minimised: each place should matter to few tasks. S_t keeps its graph, so second derivatives run through the
heads, and from there into Z and the encoder. No C × C matrix is formed where H·W is smaller:
⟨S Sᵀ, U Uᵀ⟩ = ‖Sᵀ U‖²_F, for vectors (s·u)².

No public code. Chosen here, since not found in the paper: the values of λ and τ; similarity as cosine; the mean over t in
L_csa. A task without gradient on a sample (no label there) takes no part in that sample; a place without any is left out.
S is divided by its largest entry first, which changes neither term and keeps 1/B of a mean loss out of the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.errors import BadInput

TINY = 1e-12


@dataclass(frozen=True)
class RepMTL:
    """``penalty = RepMTL()(losses, features=z)``: a scalar with a graph, for `combine`'s ``extra=`` or to be added to any loss.

    tsr, csa: λ_tsr and λ_csa (default 0.1 each; 0 leaves the term out). tau: τ (default 0.1).
    channels: the channel dimension of the features, 1 for [B, C, …] (default), -1 for tokens [B, L, C].
    """

    tsr: float = 0.1
    csa: float = 0.1
    tau: float = 0.1
    channels: int = 1

    def __post_init__(self) -> None:
        for name, value in (("tsr", self.tsr), ("csa", self.csa)):
            if not (math.isfinite(value) and value >= 0):
                raise BadInput(f"{name} is {value}", where="RepMTL", remedy="give a number that is not negative")
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise BadInput(f"tau is {self.tau}", where="RepMTL", remedy="give a positive number")

    def __call__(self, losses: Mapping[str, Tensor], *, features: Tensor) -> Tensor:
        if self.tsr == 0 and self.csa == 0:
            return features.new_zeros(())
        S = saliency(losses, features)
        if self.channels % features.ndim != 1:
            S = S.movedim(self.channels % features.ndim + 1, 2)
        S = S.flatten(3) if S.ndim > 3 else S[..., None]  # [T, B, C, HW]
        total = S.new_zeros(())
        if self.tsr:
            total = total + self.tsr * saliency_entropy(S)
        if self.csa:
            total = total + self.csa * saliency_contrast(S, self.tau)
        return total


def saliency(losses: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """S [T, *Z] with its graph, in float32 at least, the largest entry 1."""
    rows = []
    for task, loss in losses.items():
        if not loss.requires_grad:
            raise BadInput("it has no graph", where=f"loss of task {task!r}", remedy="compute it with gradients on")
        (g,) = torch.autograd.grad(loss, features, create_graph=True, allow_unused=True)
        if g is None:
            raise BadInput(
                f"the loss of task {task!r} does not depend on them",
                where="features",
                remedy="pass the tensor from which this loss was computed",
            )
        rows.append(g if g.dtype in (torch.float32, torch.float64) else g.float())
    if not rows:
        raise BadInput("there is no loss", where="losses", remedy="pass at least one")
    S = torch.stack(rows)
    return S / S.detach().abs().amax().clamp_min(torch.finfo(S.dtype).tiny)


def saliency_entropy(S: Tensor) -> Tensor:
    """L_tsr in [0, log T] of S [T, B, C, HW]: 0 where each place matters to one task."""
    size = S.mean(2).abs()  # [T, B, HW]
    total = size.sum(0)
    P = size / (total + TINY)
    entropy = -(P * (P + TINY).log()).sum(0)
    alive = (total > 0).to(S.dtype)
    return (entropy * alive).sum() / alive.sum().clamp_min(1)


def saliency_contrast(S: Tensor, tau: float) -> Tensor:
    """L_csa of S [T, B, C, HW]; 0 for a single sample, which has nobody to be told apart from."""
    B = S.shape[1]
    if B < 2:
        return S.new_zeros(())
    present = (S.detach().flatten(2).abs().amax(2) > 0).to(S.dtype)  # [T, B]
    A = S.sum(0) / present.sum(0).clamp_min(1)[:, None, None]
    own = _affinity(A[None], A[None])[0]  # [B]
    positive = _affinity(S, A[None]) / ((_affinity(S, S) * own).clamp_min(0) + TINY).sqrt()  # [T, B]
    across = _all_pairs(A) / ((own[:, None] * own).clamp_min(0) + TINY).sqrt()
    inside = torch.eye(B, dtype=torch.bool, device=S.device) | (present.sum(0) == 0)
    negative = (across / tau).masked_fill(inside, -torch.inf).logsumexp(1)
    negative = torch.where(negative.isfinite(), negative, 0.0)
    return ((negative - positive / tau) * present).sum() / present.sum().clamp_min(1)


def _affinity(S: Tensor, U: Tensor) -> Tensor:
    """⟨S Sᵀ, U Uᵀ⟩ sample by sample for [T, B, C, HW], the smaller of C and HW being squared."""
    if S.shape[2] < S.shape[3]:
        return ((S @ S.mT) * (U @ U.mT)).sum((2, 3))
    return (S.mT @ U).square().sum((2, 3))


def _all_pairs(A: Tensor) -> Tensor:
    """⟨A_b A_bᵀ, A_k A_kᵀ⟩ for all pairs [B, B] of A [B, C, HW]."""
    B, C, L = A.shape
    if C < L:
        M = (A @ A.mT).flatten(1)
        return M @ M.T
    flat = A.mT.reshape(B * L, C)
    return (flat @ flat.T).square().view(B, L, B, L).sum((1, 3))
