"""SCE: select by variance, calculate weights by energy, erase the minority's signs.

Wan, Zhong, Yang, Chen, Quan. "FuseChat: Knowledge Fusion of Chat Models", 2024, https://arxiv.org/abs/2408.07990.

    select:     the fraction `density` of the entries with a non-zero variance over t (one mask for all task vectors)
    calculate:  w_t = mean(τ_t²) / Σ_s mean(τ_s²), per tensor
    erase:      entries against the sign of Σ_t τ_t;      τ_M = Σ w_t τ_t keep_t / max(Σ w_t keep_t, 1e-6)

With one expert no entry varies, so that a density below 1 gives the base. Ties in variance go to the lower flat index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, fraction, keep_count, total
from pluribus.merging.select import ALL, Cut, top


def variance(tau: Tensor) -> Tensor:
    """Per entry over the models, [1, n]."""
    return tau.var(dim=0, correction=0, keepdim=True)


@dataclass(frozen=True)
class SelectCalculateErase(MergeStage):
    density: float
    needs: ClassVar[Need] = "statistic"

    def select(self, tau: Tensor, cut: Cut, start: int) -> Tensor:
        return tau if cut is ALL else tau * cut.mask(variance(tau), start)

    def observe(self, view: View) -> Any:
        cut = ALL
        if self.density < 1:
            count, varied = 0, 0
            for span, tau in view.chunks():
                count, varied = span.numel, varied + int(torch.count_nonzero(variance(tau)))

            def chunks() -> Iterator[tuple[int, Tensor]]:
                for span, tau in view.chunks():
                    yield span.start, variance(tau)

            cut = top(chunks, 1, [keep_count(self.density, varied)], count)[0][0]
        energy = total(view, lambda tau, span: self.select(tau, cut, span.start).double().square().sum(1))
        sum_ = float(energy.sum())
        return cut, [float(e) / sum_ if sum_ > 0 else 1 / len(energy) for e in energy]

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        cut, weights = seen
        tau = self.select(tau, cut, span.start)
        sign = tau.sum(0).sign_()
        agree = (tau.sign() == sign).to(tau.dtype).mul_(torch.tensor(weights, dtype=tau.dtype)[:, None])
        if len(tau) == 1:
            return tau[0]
        return (tau * agree).sum(0).div_(agree.sum(0).clamp_(min=1e-6))


def sce(*, density: float = 1.0, scale: float = 1.0) -> Method:
    """density: fraction of the varying entries kept. scale: λ."""
    return Method(SelectCalculateErase(fraction("density", density)), scale=scale, weighted=False)
