"""AdapterFusion: per layer and token, a target task attends over the outputs of frozen source adapters.

Pfeiffer, Kamath, Rücklé, Cho, Gurevych, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", EACL 2021,
eq. 3: https://arxiv.org/abs/2005.00247

    q = W_q h + b_q,  k_s = W_k o_s + b_k,  v_s = W_v o_s,   o_s = up_s(h) (before the residual)
    p = softmax_s(q · k_s / T),   h ← h + Σ_s p_s v_s

W_v starts at the identity (1e-6 beside the diagonal) and is pulled there by 0.01 ‖I − W_v‖². The temperature T is a constant (the
authors' code lowers it inside the forward pass, a state that recomputation would repeat).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.adapter import key_of
from pluribus.adapters.bottleneck import Bottleneck
from pluribus.adapters.composition import Composition
from pluribus.adapters.route import Route
from pluribus.linalg.low_rank import Pick


class Fusion(nn.Module):
    """Q, K, V [E, d, d] and b_q, b_k [E, d]."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.Q, self.K, self.V = (nn.Parameter(torch.empty(size, width, width)) for _ in "QKV")
        self.b_q, self.b_k = (nn.Parameter(torch.empty(size, width)) for _ in "qk")
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        width = self.Q.shape[-1]
        for p in (self.Q, self.K):
            p[slot].uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width))
        for p in (self.b_q, self.b_k):
            p[slot].zero_()
        self.V[slot].fill_(1e-6).fill_diagonal_(1.0)


class AdapterFusion(Composition):
    """sources: the trained `Bottleneck` adapters. dropout: on the scores. temperature: T. penalty: weight of ‖I − W_v‖², left in
    `route.penalties`."""

    name = "adapterfusion"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        sources: Bottleneck | Mapping[str, Any],
        dropout: float = 0.0,
        temperature: float = 1.0,
        penalty: float = 0.01,
        freeze: bool = True,
    ) -> None:
        settings = {"dropout": dropout, "temperature": temperature, "penalty": penalty}
        super().__init__(model, tasks, sources, settings, freeze=freeze)
        self.dropout, self.temperature, self.weight = dropout, temperature, penalty
        for path, (width, _, _) in self.places.items():
            self.sites[key_of(path)] = Fusion(self.capacity, width)
        self.start()

    def change(self, path: str, h: Tensor, pick: Pick, route: Route, training: bool) -> Tensor:
        key = key_of(path)
        f: Any = self.sites[key]
        p = self.source(key)
        if self.weight:
            gap = f.V[pick.unique] - torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
            route.penalties[id(self), key] = self.weight * gap.square().sum()
        (rows, tokens, width), size = h.shape, len(p.D)
        latent = self.latent(key, h).view(rows, tokens, size, -1)
        o = torch.einsum("blsm,sdm->blsd", latent, p.U) + p.b_U * self.sources.scale
        ids = pick.counted(rows)
        q = torch.baddbmm(f.b_q[ids][:, None], h, f.Q[ids].transpose(1, 2))
        flat = o.reshape(rows, tokens * size, width)
        k = torch.baddbmm(f.b_k[ids][:, None], flat, f.K[ids].transpose(1, 2)).view(o.shape)
        v = torch.bmm(flat, f.V[ids].transpose(1, 2)).view(o.shape)
        scores = F.dropout(torch.einsum("bld,blsd->bls", q, k), self.dropout, training) / self.temperature
        return torch.einsum("bls,blsd->bld", scores.softmax(-1), v)
