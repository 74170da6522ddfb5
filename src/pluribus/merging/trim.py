"""Trimming by magnitude, the first step of TIES, Breadcrumbs and kin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pluribus.merging.algebra import MergeStage, Need, Span, View, fraction, keep_count, one_of
from pluribus.merging.select import Cut, top

SCOPES = ("per_tensor", "global")


@dataclass(frozen=True)
class Trim(MergeStage):
    """Keep the fraction `density` of |τ_t| that lies below its largest fraction `outliers`; zero the rest.

    scope: "per_tensor" counts within each tensor, "global" over the concatenation of all tensors in
        the order of their names.
    Exactly max(1, round(density · n)) entries stay; where density + outliers > 1 fewer outliers are dropped.
    """

    density: float
    outliers: float = 0.0
    scope: str = "per_tensor"

    def __post_init__(self) -> None:
        fraction("density", self.density)
        fraction("outliers", self.outliers)
        one_of("scope", self.scope, SCOPES)

    @property
    def need(self) -> Need:
        if self.density == 1:
            return "elementwise"
        return "statistic" if self.scope == "per_tensor" else "all"

    def counts(self, n: int) -> tuple[int, int]:
        keep = keep_count(self.density, n)
        drop = min(round(self.outliers * n), n - keep)
        return drop, drop + keep

    def observe(self, view: View) -> list[list[Cut]]:
        def chunks() -> Iterator[tuple[int, Tensor]]:
            for span, tau in view.chunks():
                yield span.start, tau.abs()

        count = rows = 0
        for span, tau in view.chunks():
            count, rows = span.numel, len(tau)
            break
        return top(chunks, rows, self.counts(count), count)

    def survey(self, views: Sequence[View]) -> dict[str, list[list[Cut]]]:
        begin, count, rows = {}, 0, 0
        for view in views:
            begin[view.name] = count
            for span, tau in view.chunks():
                count, rows = count + span.numel, len(tau)
                break

        def chunks() -> Iterator[tuple[int, Tensor]]:
            for view in views:
                for span, tau in view.chunks():
                    yield begin[view.name] + span.start, tau.abs()

        cuts = top(chunks, rows, self.counts(count), count)

        def local(cut: Cut, first: int) -> Cut:
            return cut if cut.last is None else Cut(cut.value, cut.last - first)

        return {name: [[local(cut, first) for cut in row] for row in cuts] for name, first in begin.items()}

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        if self.need == "elementwise":
            return tau
        cuts = seen[span.name] if self.scope == "global" else seen
        for t, (outer, inner) in enumerate(cuts):
            tau[t] = inner.keep(tau[t], span.start)
            if self.outliers:
                tau[t] -= outer.keep(tau[t], span.start)
        return tau
