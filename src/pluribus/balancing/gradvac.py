"""Gradient Vaccine: pull every pair of gradients up to the cosine it usually has.

Source: Wang, Tsvetkov, Firat, Cao (2021), Gradient Vaccine, Alg. 1: as PCGrad, but with a target φ̂_ij, the moving average of
the observed cosine φ of the current g'_i with g_j (start 0): if φ < φ̂: g' += ‖g'‖(φ̂√(1−φ²) − φ√(1−φ̂²)) / (‖g_j‖√(1−φ̂²)) g_j;
always φ̂ ← (1−β) φ̂ + β φ. The first call equals PCGrad.

Where public codes differ: β is 0.01 in the paper and 0.5 in LibMTL and TorchJD. Targets are kept by pair of task names. One
instance serves one group of parameters (here: whatever the Gram matrix was taken over).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_between
from pluribus.balancing.pcgrad import orders
from pluribus.balancing.state import PerPair, generator
from pluribus.linalg.cosine import cosine


@dataclass(eq=False)
class GradVac(Balancer):
    """w = Σ_i c_i with g'_i = Σ_j c_ij g_j.

    beta: β of the moving average (default 0.01). shuffle: random orders (default), else 0, 1, 2, …. seed: of the generator.
    """

    beta: float = 0.01
    shuffle: bool = True
    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    mutable: ClassVar[tuple[str, ...]] = ("target", "generator")

    def validate(self) -> None:
        check_between(self, 0, 1, beta=self.beta)

    def reset(self) -> None:
        self.target = PerPair()
        self.generator = generator(self.seed)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        norm, inverse, cosines = cosine(signal)
        size = len(tasks)
        order = orders(size, self.shuffle, self.generator, signal.device)
        kept = self.target.rows(tasks, norm.new_empty(size)).to(norm)
        target = kept.gather(1, order).clamp(-1 + 1e-6, 1 - 1e-6)
        step = order.T.unsqueeze(2).unbind(0)  # [T, 1] each: the k-th in every row's order
        row = cosines.index_select(0, order.T.flatten()).view(size, size, size).unbind(0)  # and its cosines with all
        slack = (1 - target.square()).sqrt()
        dots = cosines * norm.unsqueeze(1)  # g'_i · ĝ_j
        square = norm.square().unsqueeze(1)  # ‖g'_i‖²
        given, seen = torch.zeros_like(dots), torch.zeros_like(dots)
        for k in range(size - 1):
            dot = dots.gather(1, step[k])
            length = square.clamp_min(0).sqrt()
            phi = (dot / length.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(-1, 1)
            aim, flat = target[:, k : k + 1], slack[:, k : k + 1]
            pull = length * (aim * (1 - phi.square()).sqrt() - phi * flat) / flat  # along the unit vector ĝ_j
            pull = torch.where(phi < aim, pull, 0.0)
            square = square + pull * (2 * dot + pull)
            dots.addcmul_(pull, row[k])
            given[:, k : k + 1], seen[:, k : k + 1] = pull, phi
        partner = inverse.gather(0, order.flatten()) > 0  # a zero row has no cosine to remember
        here = (norm > 0).unsqueeze(1) & partner.view_as(order)
        phi_ij = torch.zeros_like(dots).scatter_(1, order, torch.where(here, (1 - self.beta) * target + self.beta * seen, target))
        phi_ij.diagonal().copy_(kept.diagonal())
        self.target.put(tasks, phi_ij)
        added = torch.zeros_like(norm).index_add_(0, order.flatten(), given.flatten())
        return (1 + added * inverse).to(signal.dtype)
