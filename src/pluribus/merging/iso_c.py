"""Isotropic merging: all directions of the merged update get the same singular value.

Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer. "No Task Left Behind: Isotropic Model Merging with Common and
Task-Specific Subspaces", ICML 2025, https://arxiv.org/abs/2502.04959.

    Iso-C:    Σ_t τ_t = U S V;   τ_M = mean(S) · U V
    Iso-CTS:  common space = the top k_c = 0.8 r directions of Σ_t τ_t;  of each task the top (r − k_c)/T directions of
              (I − U_c U_cᵀ) τ_t;  both stacks by their polar factors;  all singular values ← their mean
    θ = θ0 + α τ_M;  tensors of one dimension are averaged

With one expert Iso-C still flattens the spectrum: it does not return the expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.merging.algebra import Method, Span, fraction, mean
from pluribus.merging.matrices import MatrixStage, matrix_shape, polar, svd


class Isotropic(MatrixStage):
    def __call__(self, tau: Tensor, span: Span, seen: object) -> Tensor:
        shape = matrix_shape(span.shape)
        if shape is None or not tau.any():
            return mean(tau, [1.0] * len(tau))
        return self.merge(tau.view(-1, *shape), span).reshape(-1)

    def merge(self, tau: Tensor, span: Span) -> Tensor:
        u, s, v = svd(tau.sum(0))
        return s.mean() * (u @ v)


@dataclass(frozen=True)
class CommonAndTaskSpecific(Isotropic):
    common: float

    def merge(self, tau: Tensor, span: Span) -> Tensor:
        tasks, r = len(tau), min(tau.shape[1:])
        own = int((r - round(self.common * r)) / tasks)  # directions of each task
        u, s, v = svd(tau.sum(0))
        shared = r - own * tasks  # what does not divide goes to the common space
        u_c, s_c, v_c = u[:, :shared], s[:shared], v[:shared]
        us, ss, vs = [u_c], [s_c], [v_c]
        for t in range(tasks if own else 0):
            u_t, s_t, v_t = svd(tau[t] - u_c @ (u_c.T @ tau[t]))
            us.append(u_t[:, :own])
            ss.append(s_t[:own])
            vs.append(v_t[:own])
        return torch.cat(ss).mean() * (polar(torch.cat(us, 1)) @ polar(torch.cat(vs, 0)))


def iso_c(*, scale: float = 1.5) -> Method:
    """scale: α; tuned in the paper, 1.5 is a good constant for eight tasks."""
    return Method(Isotropic(), scale=scale, weighted=False)


def iso_cts(*, common: float = 0.8, scale: float = 1.5) -> Method:
    """common: k_c/r, the share of the rank given to the common space. scale: α."""
    return Method(CommonAndTaskSpecific(fraction("common", common)), scale=scale, weighted=False)
