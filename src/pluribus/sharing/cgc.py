"""CGC, customised gate control: experts of each task beside shared ones; a task's gate sees its own and the shared.

Tang, Liu, Zhao, Gong, "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations", RecSys 2020, section 4.1:

    S_t(x) = [E_t,1 … E_t,m ; E_s,1 … E_s,n](x),   w_t(x) = softmax(W_t x),   g_t(x) = w_t(x) · S_t(x)   (1)–(3)

Where public code differs: DeepCTR-Torch builds as many shared experts as a task has of its own, whatever is asked for; here the
two counts are apart. m = 0 is MMoE, n = 0 separate mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.modeling.experts import beside
from pluribus.sharing.stacked import Experts, Gates, Stacked, Towers, at_least, entries, mix, mix_own, towered, vectors, widths_of
from pluribus.tasks import Task


class Extraction(nn.Module):
    """One level: T·own task experts, `shared` shared ones, T task gates and, unless `last`, a shared gate over all."""

    def __init__(
        self, tasks: int, width: int, expert: Sequence[int], own: int, shared: int, last: bool, norm: bool = False
    ) -> None:
        super().__init__()
        self.tasks, self.m, self.n, self.units, self.deep = tasks, own, shared, expert[0], len(expert) > 1
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

    # for prediction, all tasks on all rows: as few products as there are different inputs

    def joined(self, first: bool) -> tuple[Tensor, ...]:
        """first: everything reads the same rows → one matrix; else one per path and one of the shared path."""
        own, shared = cast(Experts, self.own), cast(Experts, self.shared)
        common = [] if self.shared_gate is None else [self.shared_gate]
        if first:
            weight, bias = beside(own.first, shared.first, self.gates, *common)
            return weight[0], bias[0]
        weight, bias = beside(shared.first, *common)
        return *beside(own.first, self.gates, groups=self.tasks), weight[0], bias[0]

    def packed(self, x: Tensor, x_shared: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x: [B, in] that everything reads, or the paths [T, B, in] → h [T, B, out] and the shared h (last level: x_shared)."""
        t, m, n, u, rows = self.tasks, self.m, self.n, self.units, x_shared.shape[0]
        if x.ndim == 2:
            h = torch.addmm(kept[1], x, kept[0])
            end = (t * m + n) * u
            each, gates, common = h[:, :end].view(rows, -1, u), h[:, end : end + t * (m + n)].view(rows, t, -1), h[:, end:]
            common_gate = common[:, None, t * (m + n) :]
            own, shared = self._rest(each[:, : t * m], each[:, t * m :])
        else:
            paths = torch.baddbmm(kept[1], x, kept[0]).transpose(0, 1)
            common = torch.addmm(kept[3], x_shared, kept[2])
            gates, common_gate = paths[..., m * u :], common[:, None, n * u :]
            own, shared = self._rest(paths[..., : m * u].reshape(rows, t * m, u), common[:, : n * u].view(rows, n, u))
        g = torch.softmax(gates, -1)
        mine = own * g[..., :1] if m == 1 else (g[..., None, :m] @ own.view(rows, t, m, -1)).squeeze(2)
        h = torch.baddbmm(mine, g[..., m:], shared).transpose(0, 1)
        if self.shared_gate is None:
            return h, x_shared
        return h, torch.bmm(torch.softmax(common_gate, -1), torch.cat((own, shared), 1))[:, 0]

    def _rest(self, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """The experts after their first products, with the rows first: [B, E, units] → [B, E, out]."""
        if self.deep:
            own = cast(Experts, self.own).after_first(own.transpose(0, 1)).transpose(0, 1)
            return own.contiguous(), cast(Experts, self.shared).after_first(shared.transpose(0, 1)).transpose(0, 1)
        return own.relu(), shared.relu()


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
        self, tasks: Sequence[Task], width: int, *, own: int = 1, shared: int = 2, expert: int | Sequence[int] = 64,
        tower: int = 32, norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(tasks)
        layers = check_experts("cgc", own, shared, expert, tower)
        self.level = Extraction(len(self.index), width, layers, own, shared, last=True, norm=norm)
        self.towers = Towers(len(self.index), layers[-1], tower)
        self.width = self.towers.width
        self.owned = {"level.own": own, "level.gates": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "cgc")
        if self.everything(rows):
            kept = cast(tuple[Tensor, ...], self.kept)
            return self.handed(towered(self.level.packed(x, x, kept[:2])[0], *kept[2:]), features)
        order, active = self.requested(rows, x.device)
        hidden, _, weights = self.level(x, x, active, all_experts=False)
        extra = {"gates": dict(zip(order, weights)), "shared": slice(self.level.m, None)}
        return Shared(self.towers(hidden, order, active, rows, features), extra=extra)

    def joined(self) -> tuple[Tensor, ...] | None:
        if not (self.level.m and self.level.n) or self.normed:
            return None
        return *self.level.joined(first=True), *self.towers.joined()
