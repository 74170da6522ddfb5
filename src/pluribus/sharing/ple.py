"""PLE, progressive layered extraction: CGC in levels, with a shared path between them.

Tang, Liu, Zhao, Gong, RecSys 2020, section 4.2, x^0 = x for all:

    x_t^l = w_t^l(x_t^{l−1}) · [E_t^l(x_t^{l−1}) ; E_s^l(x_s^{l−1})]   (6)
    x_s^l = w_s^l(x_s^{l−1}) · [E_1^l … E_T^l ; E_s^l],   not built in the last level

Where public code differs: an early version of a public library fed the shared experts with a task's path; they read x_s. The
paper's unequal sample spaces (δ) are what labelled cells are here anyway: a task's loss is the mean over its labelled rows.
Its loss weights ω_k γ_k^i are the balancer's matter; here they stand still (γ = 1).

Through the shared path every task reaches every expert below the last level; those run for any request, and only the last
level's experts, the last two levels' gates and the tower are a task's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.modeling import Features, Shared
from pluribus.sharing.cgc import ExtractionLevel, Paths, check_experts
from pluribus.sharing.stacked import Level, Stacked, Towers, at_least, towered, vectors
from pluribus.tasks import Task


class PLE(Stacked):
    """tasks: in order. width: of the incoming features. levels: L. own: experts of each task a level. shared: shared experts
    a level. expert: units of an expert's layer, or of its layers. tower: hidden units a task, 0 for none. norm: batch norms in
    the experts."""

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        levels: int = 2,
        own: int = 1,
        shared: int = 2,
        expert: int | Sequence[int] = 64,
        tower: int = 32,
        norm: bool = False,
    ) -> None:
        super().__init__(tasks)
        at_least(1, "ple", levels=levels)
        layers = check_experts("ple", own, shared, expert, tower)
        count = len(self.index)
        self.levels = nn.ModuleList(
            ExtractionLevel(count, layers[-1] if i else width, layers, own, shared, last=i == levels - 1, norm=norm)
            for i in range(levels)
        )
        self.towers = Towers(count, layers[-1], tower)
        self.width = self.towers.width
        self.own, self.apart = own, shared == 0  # nothing in common: T separate stacks
        self.owned = {"towers": 1}
        for i in range(levels):
            if self.apart or i == levels - 1:
                self.owned[f"levels.{i}.own"] = own
            if self.apart or i >= levels - 2:
                self.owned[f"levels.{i}.gates"] = 1

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "ple")
        if self.everything(rows):
            first, later, towers = self.kept
            h = first(x)
            for level in later:
                h = level(h)
            return self.handed(towered(h, *towers), features)
        order, active = self.requested(rows, x.device)
        h, h_shared, last = x, x, len(self.levels) - 1
        weights: Tensor = x
        for i, level in enumerate(self.levels):
            everybody = not self.apart and i < last  # whose experts the shared gate reads
            h, common, weights = level(h, h_shared, active if self.apart or i >= last - 1 else None, everybody)
            h_shared = h_shared if common is None else common
        gates = dict(zip(order, weights))
        extra = {"gates": gates, "shared": slice(self.own, None)}
        return Shared(self.towers(h, order, active, rows, features), extra=extra)

    def joined(self) -> tuple[Level, list[Paths], tuple[Tensor, ...]] | None:
        first, *later = cast(Iterable[ExtractionLevel], self.levels)
        if not first.packs() or self.normed:
            return None
        return first.joined(), [level.joined_paths() for level in later], self.towers.joined()
