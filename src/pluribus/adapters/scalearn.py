"""ScaLearn: a target task learns only how much of every frozen source adapter it wants.

Frohmann, Holtermann, Masoudian, Lauscher, Rekabsaz, "ScaLearn: Simple and Highly Parameter-Efficient Task Transfer by Learning to
Scale", Findings of ACL 2024, eqs. 2 to 5: https://arxiv.org/abs/2310.01217

    o_l = Σ_s ω_{l,s} ⊙ up_{l,s}(h_l) + residual,    up_s(h) = U_s act(D_s h + b_D,s) + b_U,s

ω_l is [S, d] a layer (ScaLearn) or [S, 1] (Uniform); the ++ forms have one ω for all layers. ω ~ N(c/S, 0.001), c = 2.

No softmax, no sum to one. Dropout drops entries of ω, one mask a forward. The penalty λ/S Σ_s (1 − mean_d ω_s)² is the paper's;
the authors' code sums over d where ω is shared over layers, which is another target: not followed. Since ω multiplies what U_s
puts out, it is folded into U: all sources cost two products, whatever S is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.adapter import key_of
from pluribus.adapters.bottleneck import Bottleneck
from pluribus.adapters.composition import Composition
from pluribus.adapters.route import Route
from pluribus.linalg.low_rank import Pick


class Omega(nn.Module):
    """ω [E, S, d or 1]."""

    def __init__(self, size: int, sources: int, width: int, c: float) -> None:
        super().__init__()
        self.mean = c / sources
        self.omega = nn.Parameter(torch.empty(size, sources, width))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.omega[slot].normal_(self.mean, 0.001)


class ScaLearn(Composition):
    """sources: the trained `Bottleneck` adapters. c: ω starts around c/S. dropout: share of ω's entries dropped in training.
    penalty: λ; the sum over layers is left in `route.penalties`."""

    name = "scalearn"
    uniform: ClassVar[bool] = False
    shared: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        sources: Bottleneck | Mapping[str, Any],
        c: float = 2.0,
        dropout: float = 0.3,
        penalty: float = 0.0,
        freeze: bool = True,
    ) -> None:
        settings = {"c": c, "dropout": dropout, "penalty": penalty}
        super().__init__(model, tasks, sources, settings, freeze=freeze)
        self.dropout, self.weight = dropout, penalty
        for path, (width, _, _) in self.places.items():
            key = "all" if self.shared else key_of(path)
            if key not in self.sites:
                self.sites[key] = Omega(self.capacity, self.sources.capacity, 1 if self.uniform else width, c)
        self.start()

    def change(self, path: str, h: Tensor, pick: Pick, route: Route, training: bool) -> Tensor:
        key = key_of(path)
        site: Any = self.sites["all" if self.shared else key]
        p = self.source(key)
        omega = site.omega[pick.unique]  # [targets, S, d or 1]
        if self.weight:
            gap = (1 - omega.mean(2)).square().mean(1).sum()
            route.penalties[id(self), "all" if self.shared else key] = self.weight * gap
        omega = F.dropout(omega, self.dropout, training)
        latent = self.latent(key, h)
        right = torch.einsum("tsd,sdm->tsmd", omega.expand(-1, -1, p.U.shape[1]), p.U).flatten(1, 2)  # [targets, S m, d]
        bias = (omega * p.b_U).sum(1) * self.sources.scale
        if pick.one is not None:
            return torch.addmm(bias[0], latent.flatten(0, 1), right[0]).view(h.shape)
        ids = pick.local().counted(len(h))
        return torch.baddbmm(bias[ids][:, None], latent, right[ids])


class ScaLearnUniform(ScaLearn):
    """One number per source and layer."""

    name = "scalearn_uniform"
    uniform = True


class ScaLearnPP(ScaLearn):
    """A vector per source, the same in all layers."""

    name = "scalearn_pp"
    shared = True


class ScaLearnUniformPP(ScaLearn):
    """One number per source, the same in all layers: S parameters in all."""

    name = "scalearn_uniform_pp"
    uniform = True
    shared = True
