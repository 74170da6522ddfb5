"""PCB-Merging: parameters compete within a task and between tasks; the winners weigh.

Du, Lee, Li, Jiang, Guo, Yu, et al. "Parameter Competition Balancing for Model Merging", NeurIPS 2024,
https://arxiv.org/abs/2410.02396.

    a = |τ_t| clipped at its 1e-4 and 1 − 1e-4 quantiles;  norm = min-max over the task vector
    intra_t = exp(T · norm(a_t)²);   inter_t = tanh(τ_t ⊙ Σ_s τ_s);   β_t = intra_t ⊙ inter_t
    the lowest 1 − r of β_t → 0, the rest min-max scaled;   τ_M = Σ_t β_t τ_t / Σ_t β_t;   θ = θ0 + λ τ_M

Paper and public code
1. Quantiles and norms run over the whole task vector (`scope="global"`) or per tensor.
2. The code has two versions of inter; this is the one it runs.
3. Min-max makes the smallest kept entry 0, so that even one expert at r = 1 is not returned exactly.
4. The code lets a negative β in where fewer than r of a vector's entries have β > 0; here those are 0 as well.
5. τ_M is taken of the clipped τ, as in the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, fraction, keep_count, one_of
from pluribus.merging.select import top
from pluribus.merging.trim import SCOPES

CLIP = 1e-4


@dataclass(frozen=True)
class Competition(MergeStage):
    ratio: float
    scope: str

    @property
    def need(self) -> Need:
        return "statistic" if self.scope == "per_tensor" else "all"

    def observe(self, view: View) -> Any:
        return self.survey([view])

    def survey(self, views: Sequence[View]) -> Any:
        count = rows = 0
        for view in views:
            for span, tau in view.chunks():
                count, rows = count + span.numel, len(tau)
                break
        if not count:
            return []
        # the order statistics of the authors' code: sorted[int(d q)] and sorted[int(d (1 − q)) − 1]
        ks = [count - min(int(count * CLIP), count - 1), count - max(int(count * (1 - CLIP)) - 1, 0)]

        def magnitudes() -> Iterator[tuple[int, Tensor]]:
            at = 0
            for view in views:
                for span, tau in view.chunks():
                    yield at + span.start, tau.abs()
                at += span.numel

        bounds = [(self._value(low, magnitudes, t), high.value) for t, (low, high) in enumerate(top(magnitudes, rows, ks, count))]

        def betas() -> Iterator[tuple[int, Tensor]]:
            at = 0
            for view in views:
                for span, tau in view.chunks():
                    yield at + span.start, self.beta(tau, bounds).clamp_(min=0).abs_()  # no negative zero
                at += span.numel

        keep = keep_count(self.ratio, count)
        cuts = top(betas, rows, [min(1, count - 1), keep], count)
        ends = [(self._value(border, betas, t), self._peak(peak, betas, t)) for t, (peak, border) in enumerate(cuts)]
        return [(*b, *e) for b, e in zip(bounds, ends)]

    @staticmethod
    def _value(cut: Any, chunks: Any, row: int) -> float:
        """The least value a cut keeps (of "all", the minimum)."""
        return cut.value if cut.value > 0 else min(float(values[row].min()) for _, values in chunks() if values.shape[1])

    @staticmethod
    def _peak(cut: Any, chunks: Any, row: int) -> float:
        if cut.value not in (0.0, float("inf")):
            return float(cut.value)
        return max(float(values[row].max()) for _, values in chunks() if values.shape[1])

    def beta(self, tau: Tensor, bounds: Sequence[tuple[float, float]]) -> Tensor:
        inter = (tau * tau.sum(0)).tanh_()
        for t, (low, high) in enumerate(bounds):
            wide = high - low if high > low else 1.0
            norm = tau[t].abs().clamp_(low, high).sub_(low).div_(wide)
            inter[t].mul_(norm.square_().mul_(len(tau)).exp_())
        return inter

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        if not tau.shape[1]:
            return tau[0]
        beta = self.beta(tau, [(s[0], s[1]) for s in seen])
        for t, (low, high, least, most) in enumerate(seen):
            beta[t].clamp_(min=least).sub_(least).div_(most - least if most > least else 1.0)
            tau[t].copy_(tau[t].abs().clamp_(low, high).mul_(tau[t].sign()))
        return (beta * tau).sum(0).div_(beta.sum(0).clamp_(min=1e-12))


def pcb(*, ratio: float = 0.1, scope: str = "global", scale: float = 1.0) -> Method:
    """ratio: r, the share of each task vector that competes. scope: "global" or "per_tensor". scale: λ."""
    one_of("scope", scope, SCOPES)
    return Method(Competition(fraction("ratio", ratio), scope), scale=scale, weighted=False)
