"""Aligned-MTL: replace J by its nearest multiple of an orthogonal matrix, so that no direction dominates.

Source: Senushkin, Patakin, Kuznetsov, Konushin (2023), Independent Component Alignment for Multi-Task Learning, Alg. 1:
G = V Λ Vᵀ (rank r kept), B = √λ V Λ^{−1/2} Vᵀ, w = B p, with λ the smallest kept eigenvalue. The aligned rows B J have Gram λ I
on the row space.

Where public codes differ: p = 1/T in the paper, 1 in LibMTL (whose version cannot run: it calls torch.symeig). "median" and
"rmse" (root of the mean) are TorchJD's other scales. Rank: eigenvalues above λ_max·T·eps, and never above rounding of the dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_preference, preference_of
from pluribus.errors import unknown
from pluribus.linalg.cosine import working

SCALES = ("min", "median", "rmse")


@dataclass(eq=False)
class AlignedMTL(Balancer):
    """w = B p.

    scale: "min" (default, the paper's), "median" or "rmse". preference: p (default 1/T each). A negative entry of J d may remain.
    """

    scale: Literal["min", "median", "rmse"] = "min"
    preference: Preference = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES, where="AlignedMTL")
        check_preference(self.preference)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        gram = working(signal)
        p = preference_of(self.preference, tasks, gram, 1 / len(tasks))
        values, vectors = torch.linalg.eigh(gram)  # ascending
        kept = values > values[-1].clamp_min(0) * len(tasks) * torch.finfo(signal.dtype).eps
        number = kept.sum()
        first = len(tasks) - number  # index of the smallest kept
        if self.scale == "min":
            lam = values.gather(0, first.clamp_max(len(tasks) - 1).unsqueeze(0))
        elif self.scale == "median":
            middle = (first + torch.div(number - 1, 2, rounding_mode="floor")).clamp(0, len(tasks) - 1)
            lam = values.gather(0, middle.unsqueeze(0))
        else:
            lam = torch.where(kept, values, 0.0).sum() / number.clamp_min(1)
        root = torch.where(kept, (lam.clamp_min(0) / values.clamp_min(torch.finfo(gram.dtype).tiny)).sqrt(), 0.0)
        w: Tensor = (vectors * root) @ (vectors.T @ p)
        return w.to(signal.dtype)
