"""CGC, customised gate control: experts of each task beside shared ones; a task's gate sees its own and the shared.

Tang, Liu, Zhao, Gong, "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations", RecSys 2020, section 4.1:

    S_t(x) = [E_t,1 … E_t,m ; E_s,1 … E_s,n](x),   w_t(x) = softmax(W_t x),   g_t(x) = w_t(x) · S_t(x)   (1)–(3)

Where public code differs: DeepCTR-Torch builds as many shared experts as a task has of its own, whatever is asked for; here the
two counts are apart. m = 0 is MMoE, n = 0 separate mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.modeling.experts import beside
from pluribus.sharing.stacked import (
    Experts,
    Gates,
    Level,
    Stacked,
    Towers,
    at_least,
    blend,
    deeper,
    entries,
    mix,
    mix_own,
    towered,
    vectors,
    widths_of,
)
from pluribus.tasks import Task


class ExtractionLevel(nn.Module):
    """One level: T·own task experts, `shared` shared ones, T task gates and, unless `last`, a shared gate over all."""

    def __init__(
        self, tasks: int, width: int, expert: Sequence[int], own: int, shared: int, last: bool, norm: bool = False
    ) -> None:
        super().__init__()
        self.tasks, self.m, self.n = tasks, own, shared
        self.own = Experts(tasks * own, (width, *expert), norm=norm) if own else None
        self.shared = Experts(shared, (width, *expert), norm=norm) if shared else None
        self.gates = Gates(tasks, width, own + shared)
        self.shared_gate = None if last or not shared else Gates(1, width, tasks * own + shared)

    def forward(
        self, x: Tensor, x_shared: Tensor, wanted: Tensor | None, all_experts: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """x: [B, in] for all tasks alike, or a batch for each task whose experts run: the `wanted` ones (places within all
        tasks; None: all), or every task where `all_experts`. Gates run for the wanted ones.

        Returns h [W, B, out], the shared h [B, out] and the gates' weights [W, B, m + n]."""
        among = wanted if all_experts else None  # the wanted ones' places among those whose experts run
        running = None if all_experts else wanted
        weights = self.gates(x if x.ndim == 2 or among is None else x[among], wanted)
        parts: list[Tensor] = []
        outputs: list[Tensor] = []
        if self.own is not None:
            each = x if x.ndim == 2 or self.m == 1 else x.repeat_interleave(self.m, 0)
            own = self.own(each, entries(running, self.m))
            outputs.append(own)
            by_task = own.unflatten(0, (-1, self.m))
            parts.append(mix_own(weights[..., : self.m], by_task if among is None else by_task[among]))
        if self.shared is not None:
            common = self.shared(x_shared)
            outputs.append(common)
            parts.append(mix(weights[..., self.m :], common))
        h = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if self.shared_gate is None:
            return h, None, weights
        return h, mix(self.shared_gate(x_shared), torch.cat(outputs))[0], weights

    # for prediction, all tasks on all rows

    def packs(self) -> bool:
        """Whether there are experts of both sorts, and not so many tasks that gates over the experts of all outweigh these."""
        return self.own is not None and self.shared is not None and self.tasks < self.own.first.outputs

    def everywhere(self) -> tuple[Tensor, Tensor]:
        """The tasks' gates as gates over all experts, with logits of −∞ where they do not look: [T, in, E] and [T, E]."""
        t, m, n = self.tasks, self.m, self.n
        weight = self.gates.weight.new_zeros(t, self.gates.inputs, t * m + n)
        bias = weight.new_full((t, t * m + n), -torch.inf)
        for i in range(t):
            seen = [*range(i * m, (i + 1) * m), *range(t * m, t * m + n)]
            weight[i][:, seen], bias[i, seen] = self.gates.weight[i], 0.0
        return weight, bias

    def joined(self) -> Level:
        """As a first level, whose parts all read the same rows: the mixtures of the tasks and, unless last, the shared one."""
        common = [] if self.shared_gate is None else [(self.shared_gate.weight, None)]
        return Level.of([cast(Experts, self.own), cast(Experts, self.shared)], self.everywhere(), *common)

    def joined_paths(self) -> Paths:
        """As a later level, where every task and the shared path has rows of its own."""
        own, shared = cast(Experts, self.own), cast(Experts, self.shared)
        common = [] if self.shared_gate is None else [(self.shared_gate.weight, None)]
        weight, bias = beside((shared.first.weight, shared.first.bias), *common)
        paths = beside((own.first.weight, own.first.bias), self.everywhere(), groups=self.tasks)
        return Paths(*paths, weight[0], bias[0, 0], self.m, self.n, own.first.outputs, deeper([own, shared]))


class Paths(NamedTuple):
    """A level whose tasks read rows of their own: mixtures of the level before [B, T + 1, d], the shared one last, → the same,
    without the shared one behind the last level."""

    weight: Tensor  # [T, d, m · units + E]: a task's experts, and its gate over all E
    bias: Tensor
    common: Tensor  # [d, n · units (+ E)]: the shared experts, and the shared gate unless this is the last level
    common_bias: Tensor
    m: int
    n: int
    units: int
    deeper: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, h: Tensor) -> Tensor:
        paths, shared = h.split_with_sizes((h.shape[1] - 1, 1), 1)
        mine = torch.baddbmm(self.bias, paths.transpose(0, 1), self.weight).transpose(0, 1)
        own, gates = mine.split_with_sizes((self.m * self.units, mine.shape[2] - self.m * self.units), 2)
        theirs = torch.mm(shared[:, 0], self.common).add_(self.common_bias)
        if theirs.shape[1] > self.n * self.units:
            theirs, common_gate = theirs.split_with_sizes((self.n * self.units, gates.shape[2]), 1)
            gates = torch.cat((gates, common_gate[:, None]), 1)
        rows = len(h)
        e = torch.cat((own.reshape(rows, -1, self.units), theirs.view(rows, -1, self.units)), 1)
        return blend(e.relu_(), gates, self.deeper)


def check_experts(where: str, own: int, shared: int, expert: int | Sequence[int], tower: int) -> tuple[int, ...]:
    """Counts that make sense: neither negative, not both 0. Returns the units of an expert's layers."""
    at_least(0, where, own=own, shared=shared, tower=tower)
    if own + shared == 0:
        raise BadInput("a task needs an expert: own and shared are both 0", where=where, remedy="set one of them to 1")
    return widths_of(expert, where)


class CGC(Stacked):
    """tasks: in order. width: of the incoming features. own: experts of each task. shared: experts of all. expert: units of
    an expert's layer, or of its layers. tower: hidden units a task, 0 for none. norm: batch norms in the experts. Only the
    requested tasks' experts and the shared ones run."""

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        own: int = 1,
        shared: int = 2,
        expert: int | Sequence[int] = 64,
        tower: int = 32,
        norm: bool = False,
    ) -> None:
        super().__init__(tasks)
        layers = check_experts("cgc", own, shared, expert, tower)
        self.level = ExtractionLevel(len(self.index), width, layers, own, shared, last=True, norm=norm)
        self.towers = Towers(len(self.index), layers[-1], tower)
        self.width = self.towers.width
        self.owned = {"level.own": own, "level.gates": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "cgc")
        if self.everything(rows):
            level, towers = self.kept
            return self.handed(towered(level(x), *towers), features)
        order, active = self.requested(rows, x.device)
        hidden, _, weights = self.level(x, x, active, all_experts=False)
        extra = {"gates": dict(zip(order, weights)), "shared": slice(self.level.m, None)}
        return Shared(self.towers(hidden, order, active, rows, features), extra=extra)

    def joined(self) -> tuple[Level, tuple[Tensor, ...]] | None:
        return (self.level.joined(), self.towers.joined()) if self.level.packs() and not self.normed else None
