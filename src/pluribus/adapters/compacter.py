"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products, with factors shared over the layers.

Karimi Mahabadi, Henderson, Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021, eqs. 3 and 5:
https://arxiv.org/abs/2106.04647

    D = Σ_{i=1..n} K_i ⊗ (s_i t_iᵀ),    K_i [n, n] common to all layers, s_i [d/n], t_i [m/n]; U likewise with other factors

Rows are multiplied factor by factor; the matrices are never formed. Departures: t of U starts at zero, so that the model starts
as it was; LayerNorms stay frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.adapter import key_of
from pluribus.adapters.bottleneck import BlockAdapters, inner_width
from pluribus.adapters.route import Route
from pluribus.errors import BadInput
from pluribus.linalg.low_rank import Pick


class Rules(nn.Module):
    """K of D and of U, [E, n, n, n] each (over i, rows, columns), common to the layers."""

    def __init__(self, size: int, n: int) -> None:
        super().__init__()
        self.K_D, self.K_U = (nn.Parameter(torch.empty(size, n, n, n)) for _ in "DU")
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        for p in (self.K_D, self.K_U):
            p[slot].normal_(0, 1 / math.sqrt(p.shape[-1]))


class RankOneFactors(nn.Module):
    """The rank-one factors of one layer: s [E, n, in/n], t [E, n, out/n] of D and of U, and the biases."""

    def __init__(self, size: int, width: int, inner: int, n: int) -> None:
        super().__init__()
        self.s_D, self.t_D = nn.Parameter(torch.empty(size, n, width // n)), nn.Parameter(torch.empty(size, n, inner // n))
        self.s_U, self.t_U = nn.Parameter(torch.empty(size, n, inner // n)), nn.Parameter(torch.empty(size, n, width // n))
        self.b_D, self.b_U = nn.Parameter(torch.empty(size, inner)), nn.Parameter(torch.empty(size, width))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        for p in (self.s_D, self.t_D, self.s_U):
            p[slot].uniform_(-1, 1).div_(math.sqrt(p.shape[-1]))
        for p in (self.t_U, self.b_D, self.b_U):
            p[slot].zero_()


def kronecker_product(x: Tensor, K: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """x Σ_i K_i ⊗ s_i t_iᵀ, row by row: x [rows, tokens, n·c]; K [rows, n, n, n]; s [rows, n, c]; t [rows, n, k] → […, n·k]."""
    rows, tokens, n = len(x), x.shape[1], K.shape[1]
    xs = torch.einsum("blac,bic->blia", x.view(rows, tokens, n, -1), s)
    return torch.einsum("blia,biae,bik->blek", xs, K, t).reshape(rows, tokens, -1)


class Compacter(BlockAdapters):
    """n: how many Kronecker products are summed; it has to divide width and m. The rest as in `Bottleneck`."""

    name = "compacter"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        placement: str = "houlsby",
        reduction: float = 8.0,
        n: int = 4,
        act: str = "gelu",
        freeze: bool = True,
    ) -> None:
        super().__init__(model, tasks, placement, act, {"reduction": reduction, "n": n}, freeze=freeze)
        for path, (width, _, _) in self.places.items():
            inner = inner_width(width, reduction)
            if width % n or inner % n:
                what = f"is {n}, which does not divide {width} and {inner} at {path!r}"
                raise BadInput(what, where="n", remedy="choose n or reduction so that it divides both")
            self.sites[key_of(path)] = RankOneFactors(self.capacity, width, inner, n)
        self.sites["rules"] = Rules(self.capacity, n)
        self.start()

    def change(self, path: str, h: Tensor, pick: Pick, route: Route, training: bool) -> Tensor:
        p: Any = self.sites[key_of(path)]
        K: Any = self.sites["rules"]
        ids = pick.counted(len(h))
        inner = self.act(kronecker_product(h, K.K_D[ids], p.s_D[ids], p.t_D[ids]) + p.b_D[ids][:, None])
        b: Tensor = p.b_U[ids]
        return kronecker_product(inner, K.K_U[ids], p.s_U[ids], p.t_U[ids]) + b[:, None]
