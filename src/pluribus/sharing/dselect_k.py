"""DSelect-k: every task chooses k of n experts, by a choice that is differentiable and in the end exactly sparse.

Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong, Chi, "DSelect-k: Differentiable Selection in the Mixture of
Experts with Applications to Multi-Task Learning", NeurIPS 2021. With m = ⌈log₂ n⌉ and b_i the bits of expert i:

    S(z) = 0 for z ≤ −γ/2,  1 for z ≥ γ/2,  else −2 z³/γ³ + 3 z/(2γ) + ½                     (smooth step)
    r(z)_i = Π_j S(z_j)^{b_ij} (1 − S(z_j))^{1 − b_ij}                                        (single selector)
    q(α, Z) = Σ_c softmax(α)_c r(z^(c))                                                       (k selectors)
    static gate: α and z^(c) are parameters;   per-example gate: α = x A,  z^(c) = x G^(c)    (sections 2.2 and 2.3)
    penalty = λ Σ_c H(r(z^(c))) + ξ Σ_c 1 / Σ_{i<n} r(z^(c))_i                                (binary; n not a power of two)

z starts within ±γ/100 (of the per-example gate: its coefficients do, over √width). An expert that no requested task gives weight
does not run; with the per-example gate it runs on the rows alone that give it weight. The penalty is a task's mean over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.sharing.mmoe import mix_sparse
from pluribus.sharing.stacked import Experts, Stacked, Towers, at_least, vectors, widths_of
from pluribus.tasks import Task


def smooth_step(z: Tensor, gamma: float = 1.0) -> Tensor:
    """The cubic step from 0 to 1 between −γ/2 and γ/2: exactly 0 and 1, and without gradient, outside."""
    inside = -2 * (z / gamma) ** 3 + 1.5 * z / gamma + 0.5
    return torch.where(z <= -gamma / 2, torch.zeros_like(z), torch.where(z >= gamma / 2, torch.ones_like(z), inside))


class DSelectK(Stacked):
    """tasks: in order. width: of the incoming features. experts: n. k: experts a task may choose. expert: units of an expert's
    layer, or of its layers. tower: hidden units a task, 0 for none. gamma: width of the smooth step. entropy, padding: λ and ξ of
    the penalty. per_example: gates that depend on the row. norm: batch norms in the experts."""

    bits: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        experts: int = 8,
        k: int = 2,
        expert: int | Sequence[int] = 64,
        tower: int = 32,
        gamma: float = 1.0,
        entropy: float = 1e-2,
        padding: float = 1e-2,
        per_example: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__(tasks)
        at_least(1, "dselect_k", experts=experts, k=k)
        layers = widths_of(expert, "dselect_k")
        at_least(0, "dselect_k", tower=tower)
        if k > experts:
            raise BadInput(f"k must not be above experts = {experts}, not {k}", where="dselect_k")
        if not gamma > 0:
            raise BadInput(f"gamma must be positive, not {gamma}", where="dselect_k")
        if not (entropy >= 0 and padding >= 0):
            raise BadInput(f"entropy and padding must not be negative, not {entropy} and {padding}", where="dselect_k")
        m, count = max(1, (experts - 1).bit_length()), len(self.index)
        self.gamma, self.entropy, self.padding = gamma, entropy, padding if experts < 2**m else 0.0
        self.register_buffer("bits", (torch.arange(experts)[:, None] >> torch.arange(m)) & 1 == 1, persistent=False)
        self.per_example = per_example
        if per_example:
            self.codes = nn.Parameter(torch.empty(count, width, k, m).uniform_(-gamma / 100, gamma / 100) / width**0.5)
            self.mixing = nn.Parameter(torch.zeros(count, width, k))
        else:
            self.codes = nn.Parameter(torch.empty(count, k, m).uniform_(-gamma / 100, gamma / 100))
            self.mixing = nn.Parameter(torch.zeros(count, k))
        self.experts = Experts(experts, (width, *layers), norm=norm)
        self.towers = Towers(count, layers[-1], tower)
        self.width = self.towers.width
        self.owned = {"codes": 1, "mixing": 1, "towers": 1}

    def selectors(self, active: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """r of the active tasks: [A, k, n], or [A, B, k, n] for the rows x [B, width] of per-example gates."""
        codes: Tensor = self.codes if active is None else self.codes[active]
        if self.per_example:
            codes = torch.einsum("bw,awkm->abkm", cast(Tensor, x), codes)
        step = smooth_step(codes, self.gamma)[..., None, :]
        return torch.where(self.bits, step, 1 - step).prod(-1)

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "dselect_k")
        order, active = self.requested(rows, x.device)
        r = self.selectors(active, x)
        mixing: Tensor = self.mixing if active is None else self.mixing[active]
        if self.per_example:
            mixing = torch.einsum("bw,awk->abk", x, mixing)
        q = torch.einsum("...k,...kn->...n", mixing.softmax(-1), r)
        if self.per_example:
            hidden, gates = mix_sparse(self.experts, x, q), dict(zip(order, q))
        else:
            running = (q > 0).any(0).nonzero()[:, 0]
            outputs = self.experts(x, None if len(running) == q.shape[1] else running)
            hidden = torch.einsum("an,nbd->abd", q[:, running], outputs)
            gates = {name: weight.expand(len(x), -1) for name, weight in zip(order, q)}
        penalties = {}
        share = max(len(x), 1) if self.per_example else 1
        if self.training and self.entropy:
            penalties["dselect_k_entropy"] = self.entropy * torch.special.entr(r.clamp_min(1e-10)).sum() / share
        if self.training and self.padding:
            penalties["dselect_k_padding"] = self.padding * r.sum(-1).clamp_min(1e-3).reciprocal().sum() / share
        return Shared(self.towers(hidden, order, active, rows, features), penalties, {"gates": gates, "shared": slice(None)})
