"""CGC, customised gate control: experts of each task beside shared ones; a task's gate sees its own and the shared.

Tang, Liu, Zhao, Gong, "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations", RecSys 2020, section 4.1:

    S_t(x) = [E_t,1 … E_t,m ; E_s,1 … E_s,n](x),   w_t(x) = softmax(W_t x),   g_t(x) = w_t(x) · S_t(x)   (1)–(3)

Where public code differs: DeepCTR-Torch builds as many shared experts as a task has of its own, whatever is asked for; here the
two counts are apart. m = 0 is MMoE, n = 0 separate mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.sharing.stacked import Experts, Gates, Stacked, Towers, at_least, entries, mix, mix_own, vectors
from pluribus.tasks import Task


class Extraction(nn.Module):
    """One level: T·own task experts, `shared` shared ones, T task gates and, unless `last`, a shared gate over all."""

    def __init__(self, tasks: int, width: int, expert: int, own: int, shared: int, last: bool) -> None:
        super().__init__()
        self.tasks, self.m, self.n = tasks, own, shared
        self.own = Experts(tasks * own, (width, expert)) if own else None
        self.shared = Experts(shared, (width, expert)) if shared else None
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


def check_experts(where: str, own: int, shared: int, expert: int, tower: int) -> None:
    """Counts that make sense: neither negative, not both 0."""
    at_least(0, where, own=own, shared=shared, tower=tower)
    at_least(1, where, expert=expert)
    if own + shared == 0:
        raise BadInput("a task needs an expert: own and shared are both 0", where=where, remedy="set one of them to 1")


class CGC(Stacked):
    """tasks: in order. width: of the incoming features. own: experts of each task. shared: experts of all. expert: units of
    an expert's layer. tower: hidden units a task, 0 for none. Only the requested tasks' experts and the shared ones run."""

    def __init__(
        self, tasks: Sequence[Task], width: int, *, own: int = 1, shared: int = 2, expert: int = 64, tower: int = 32
    ) -> None:
        super().__init__(tasks)
        check_experts("cgc", own, shared, expert, tower)
        self.level = Extraction(len(self.index), width, expert, own, shared, last=True)
        self.towers = Towers(len(self.index), expert, tower)
        self.width = self.towers.width
        self.owned = {"level.own": own, "level.gates": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "cgc")
        order, active = self.requested(rows, x.device)
        hidden, _, weights = self.level(x, x, active, all_experts=False)
        extra = {"gates": dict(zip(order, weights)), "shared": slice(self.level.m, None)}
        return Shared(self.towers(hidden, order, active, rows, features), extra=extra)
