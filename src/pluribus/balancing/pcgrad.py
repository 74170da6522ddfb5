"""PCGrad: project every gradient off the others that it conflicts with, in random order, and sum.

Source: Yu et al. (2020), Gradient Surgery for Multi-Task Learning, Alg. 1: for each i, g' = g_i; for j in a random order of
the others: if g'·g_j < 0: g' −= (g'·g_j/‖g_j‖²) g_j. d = Σ_i g'_i. Only the Gram matrix matters: g'_i = Σ_j c_ij g_j.

Where public codes differ: LibMTL orders all j, i included, and works on full vectors, O(T² P). Here every row i walks its own
permutation at once: T rounds on a [T, T] matrix. The projection uses the current g' and the original g_j, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.state import generator
from pluribus.linalg.cosine import cosine


def orders(size: int, shuffle: bool, source: torch.Generator, device: torch.device) -> Tensor:
    """[T, T]: row i is an order of the other tasks, then i itself."""
    keys = torch.rand(size, size, generator=source) if shuffle else torch.arange(size).float().repeat(size, 1)
    keys.fill_diagonal_(torch.inf)
    return keys.argsort(1).to(device, non_blocking=True)


@dataclass(eq=False)
class PCGrad(Balancer):
    """w = Σ_i c_i, each c_i ≥ 0 with c_ii = 1.

    shuffle: random orders (default), else 0, 1, 2, …. seed: of the balancer's own generator.
    """

    shuffle: bool = True
    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    mutable: ClassVar[tuple[str, ...]] = ("generator",)

    def reset(self) -> None:
        self.generator = generator(self.seed)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        norm, inverse, cosines = cosine(signal)
        size = len(tasks)
        order = orders(size, self.shuffle, self.generator, signal.device)
        step = order.T.unsqueeze(2).unbind(0)  # [T, 1] each: the k-th in every row's order
        row = cosines.index_select(0, order.T.flatten()).view(size, size, size).unbind(0)  # and its cosines with all
        dots = cosines * norm.unsqueeze(1)  # g'_i · ĝ_j
        taken = []
        for k in range(size - 1):
            off = dots.gather(1, step[k]).clamp_max_(0)
            dots.addcmul_(off, row[k], value=-1)
            taken.append(off)
        added = torch.zeros_like(norm)
        if taken:
            added.index_add_(0, order[:, :-1].flatten(), -torch.cat(taken, 1).flatten())
        return (1 + added * inverse).to(signal.dtype)
