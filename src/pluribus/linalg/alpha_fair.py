"""α-fair weights: the w > 0 with G w = π w^{−1/α}, by damped Newton steps.

Source: Nash bargaining (α = 1; Navon et al. 2022) and its α-fair form (Ban and Ji 2024). With p = 1/α the solution is the
only minimiser of ½ wᵀ G w − Σ π_t w_t^{1−p}/(1−p) (log at p = 1), a strictly convex function. In z = D w it reads
C z = k z^{−p}, k = π D^{p−1}. The Newton step is −(C + diag(p k z^{−p−1}))⁻¹ (C z − k z^{−p}); of six step lengths from 1 to
1/32 the longest is taken after which the function does not rise as steeply as half its fall before; entries that fall do so
by a factor exp(Δ/z), so that they stay positive however small the solution is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pluribus.linalg.cosine import cosine, ridge, settled


def alpha_fair(gram: Tensor, alpha: float = 1.0, preference: Tensor | None = None) -> Tensor:
    """Weights w [..., T] with G w = π w^{−1/α} for G [..., T, T], in the dtype of `gram`.

    A row of norm zero, or of preference zero, gets weight 0 and no say. Where some w ≥ 0 has Jᵀ w = 0 the minimum lies at
    infinity; a ridge (1e-12 in float64, 4·T·eps in float32) on the cosines keeps it finite.
    Residual: |G w − π w^{−p}| ≤ 1e-9 of |G| w, for rows whose lengths differ by a factor of up to 1e12 too.
    """
    p = 1 / alpha
    norm, inverse, cosines = cosine(gram)
    pi = torch.ones_like(norm) if preference is None else preference.to(norm).expand_as(norm)
    voice = (norm > 0) & (pi > 0)
    cosines = torch.where(voice.unsqueeze(-1) & voice.unsqueeze(-2), cosines, 0.0)
    cosines.diagonal(dim1=-2, dim2=-1).fill_(1.0 + ridge(gram, 1e-12))
    k = torch.where(voice, pi, 1.0) * torch.where(voice, norm, 1.0).pow(p - 1)
    z = k.pow(1 / (1 + p))  # exact for orthogonal rows …
    bend = (z * (cosines @ z.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
    z = z * (k * z.pow(1 - p)).sum(-1, keepdim=True).div(bend.clamp_min(1e-30)).pow(1 / (1 + p))  # … and the best multiple
    stop = 1e-6 if gram.dtype == torch.float64 else 1e-4  # quadratic by then: the step just taken left about its square
    for _ in range(100 if gram.device.type == "cpu" else 30):
        push = k * z.pow(-p)
        hessian = cosines + torch.diag_embed(p * push / z)
        slope = push - (cosines @ z.unsqueeze(-1)).squeeze(-1)
        factor, _ = torch.linalg.cholesky_ex(hessian)
        change = torch.nan_to_num(torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1))
        relative = change / z
        if settled(relative.abs() > 0.2):  # near the solution the whole step is right, and no length need be tried
            z = z + change
            if settled(relative.abs() > stop):
                break
        else:
            z = _damped(z, change, cosines, k, p, push, slope)
    return torch.where(voice, z * inverse, 0.0).to(gram.dtype)


def _damped(z: Tensor, change: Tensor, cosines: Tensor, k: Tensor, p: float, push: Tensor, slope: Tensor) -> Tensor:
    """z after the longest of six steps that does not overshoot."""
    shorter = 0.5 ** torch.arange(6, dtype=z.dtype, device=z.device).unsqueeze(-1)  # [6, 1]
    relative = shorter * (change / z).unsqueeze(-2)  # [..., 6, T]
    tried = z.unsqueeze(-2) * torch.where(relative < 0, relative.clamp_min(-8).exp(), 1 + relative)
    ahead = ((tried @ cosines - k.unsqueeze(-2) * tried.pow(-p)) * change.unsqueeze(-2)).sum(-1, keepdim=True)
    now = (slope * change).sum(-1)[..., None, None]  # minus the slope along the step at its start
    rounding = 1e-10 * (push * change.abs()).sum(-1)[..., None, None]
    fine = (ahead <= 0.5 * now + rounding) | (shorter == shorter[-1])
    best = fine.to(z.dtype).argmax(-2, keepdim=True)
    return tried.gather(-2, best.expand(*best.shape[:-1], z.shape[-1])).squeeze(-2)
