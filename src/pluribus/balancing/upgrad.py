"""UPGrad: project every task's gradient on the cone where no task is hurt, then average.

Source: Quinton and Rey (2024), Jacobian Descent for Multi-Objective Optimization, eq. 6–7: for u ∈ R^T the projection of Jᵀu
on {d: J d ≥ 0} is Jᵀv with v = argmin_{v ≥ u} vᵀ G v; UPGrad is w = Σ_i v(p_i e_i).

Where public codes differ: TorchJD divides G by its trace, adds 1e-4 I and calls quadprog row by row on the host; that ridge
leaves a visible conflict. Here all T problems share one batched active-set call, unregularised by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_preference, preference_of
from pluribus.errors import BadInput
from pluribus.linalg.cosine import cosine, ridge
from pluribus.linalg.nonnegative_qp import nonnegative_qp


def project_on_dual_cone(gram: Tensor, u: Tensor, regularisation: float = 0.0) -> Tensor:
    """v [..., T] = argmin_{v ≥ u} vᵀ (G + r·tr(G)·I) v for u [..., T]: s = v − u solves min_{s ≥ 0} sᵀGs + 2(Gu)ᵀs.

    KKT: s ≥ 0, G v ≥ 0, s·(G v) = 0, to 1e-9 of max G (float64) beside the ridge that stands in for r = 0.
    """
    gram = gram + regularisation * gram.diagonal().sum() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    norm, inverse, cosines = cosine(gram)
    u = u.to(norm) * norm
    linear = torch.where(norm > 0, u @ cosines, 0.0)
    cosines.diagonal().add_(ridge(gram))
    s = nonnegative_qp(cosines, linear)
    return torch.where(norm > 0, (u + s) * inverse, 0.0)


def check_regularisation(owner: Balancer, value: float) -> None:
    """The ridge, as a share of the trace, must not be negative."""
    if not value >= 0:
        raise BadInput(f"regularisation is {value}", where=type(owner).__name__, remedy="give 0 or a small number as 1e-4")


@dataclass(eq=False)
class UPGrad(Balancer):
    """w = Σ_i v(p_i e_i); J d ≥ 0. A task without gradient gets weight 0.

    preference: p (default 1/T each). regularisation: ridge as a share of the trace (default 0; TorchJD's 1e-4).
    """

    preference: Preference = None
    regularisation: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        check_preference(self.preference)
        check_regularisation(self, self.regularisation)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        p = preference_of(self.preference, tasks, signal, 1 / len(tasks))
        return project_on_dual_cone(signal, torch.diag(p), self.regularisation).sum(0).to(signal.dtype)
