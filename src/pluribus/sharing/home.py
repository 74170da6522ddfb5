"""HoME: a hierarchy of multi-gate experts with normalised experts, feature gates, self gates and a mask of who sees whom.

Wang, Wang, Zhang, Zhou and others, "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou", 2024
(arXiv 2408.05430). Tasks lie in categories c. With v the incoming features:

    expert(x)   = Swish(BN(Linear(x)))                                               (expert normalisation)
    FeaGate(v)  = Σ_l softmax(v W)_l · 2σ(v B_l A_l),   an expert reads v ⊙ FeaGate(v)   (feature gates)
    m_c         = softmax(gate_c(v)) · [E_shared ; E_c] + SelfGate_c(v) · E_c          (level 1, a category)
    m_shared    = softmax(gate_s(v)) · [all meta experts] + SelfGate_s(v) · E_shared    (level 1, common)
    h_t         = softmax(gate_t(z)) · [E_global ; E_category(c) ; E_t] + SelfGate_t(z) · E_t,   z = [m_c ; m_shared]

SelfGate is a softmax over the block's own experts, or σ where there is one. A task never sees level-2 experts of another category
or task. Not settled by the text, our choice: z joins m_c and m_shared and feeds the category's and the task's experts, the global
ones read m_shared; A starts at 0, so that every feature gate starts as the identity. A public re-implementation hands the gate
itself to the expert, without the product with v; we follow the equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Features, Shared
from pluribus.sharing.stacked import Experts, Gates, Stacked, Towers, at_least, entries, mix, mix_own, vectors
from pluribus.tasks import Task


def normalised(size: int, inputs: int, outputs: int, norm: bool) -> Experts:
    """E experts Swish(BN(Linear(x)))."""
    return Experts(size, (inputs, outputs), norm=norm, activation=F.silu)


class FeatureGates(nn.Module):
    """G gates on the input: x [B, D] → x ⊙ FeaGate_g(x) [A, B, D]; `mixed` low-rank gates of rank `rank` each."""

    def __init__(self, size: int, width: int, rank: int, mixed: int) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(size, width, mixed) / width**0.5)
        self.down = nn.Parameter(torch.randn(size, mixed, width, rank) / width**0.5)
        self.up = nn.Parameter(torch.zeros(size, mixed, rank, width))

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        mixing, down, up = (p if active is None else p[active] for p in (self.mixing, self.down, self.up))
        gates, mixed, width, rank = down.shape
        low = x @ down.permute(2, 0, 1, 3).reshape(width, -1)  # all gates read the same rows: one product
        each = low.view(-1, gates * mixed, rank).transpose(0, 1)
        gate = torch.bmm(each, up.flatten(0, 1)).sigmoid_().view(gates, mixed, -1, width)
        logits = x @ mixing.transpose(0, 1).flatten(1)
        share = (2 * torch.softmax(logits.view(-1, gates, mixed), -1)).permute(1, 2, 0)[..., None]
        found = gate[:, 0] * share[:, 0]
        for i in range(1, mixed):  # few; as one batched product of rows it would be a thousand tiny ones
            found = torch.addcmul(found, gate[:, i], share[:, i])
        return x * found


class SelfGates(Gates):
    """Gates over a block's own experts: softmax where there are several, σ where there is one."""

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        if self.outputs > 1:
            return super().forward(x, active)
        weight: Tensor = self.weight if active is None else self.weight[active]
        return torch.sigmoid(torch.matmul(x, weight))


class CategoryNetwork(nn.Module):
    """All that only the tasks of one category read, and below it what only one of them reads."""

    def __init__(
        self,
        tasks: int,
        width: int,
        expert: int,
        meta: int,
        common: int,
        shared: int,
        own: int,
        rank: int,
        mixed: int,
        norm: bool,
    ) -> None:
        super().__init__()
        self.m = own
        self.meta_gate = Gates(1, width, 2 * meta)
        self.meta_self = SelfGates(1, width, meta)
        self.shared_input = FeatureGates(shared, 2 * expert, rank, mixed)
        self.shared = normalised(shared, 2 * expert, expert, norm)
        self.own_input = FeatureGates(tasks * own, 2 * expert, rank, mixed)
        self.own = normalised(tasks * own, 2 * expert, expert, norm)
        self.gates = Gates(tasks, 2 * expert, common + shared + own)
        self.self_gates = SelfGates(tasks, 2 * expert, own)

    def forward(
        self, v: Tensor, meta_shared: Tensor, meta_own: Tensor, m_shared: Tensor, common: Tensor, active: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """v [B, D], meta experts' outputs [n, B, d], m_shared [B, d], the global experts' [g, B, d]; `active`: places of tasks
        within the category. Returns h [A, B, d] and the gates' weights [A, B, g + shared + own]."""
        m = mix(self.meta_gate(v), torch.cat((meta_shared, meta_own)))[0] + mix(self.meta_self(v), meta_own)[0]
        z = torch.cat((m, m_shared), -1)
        many = torch.cat((common, self.shared(self.shared_input(z))))
        running = entries(active, self.m)
        own = self.own(self.own_input(z, running), running).unflatten(0, (-1, self.m))
        weights = self.gates(z, active)
        h = mix(weights[..., : len(many)], many) + mix_own(weights[..., len(many) :], own)
        return h + mix_own(self.self_gates(z, active), own), weights


class HoME(Stacked):
    """tasks: in order. width: of the incoming features.

    categories: word → names of its tasks; every task in exactly one (None: tasks of one kind form a category).
    meta: experts of a group on level 1. common, shared, own: global experts, those of a category and of a task on level 2.
    expert: units of an expert's layer. rank, mixed: of the feature gates. tower: hidden units a task, 0 for none.
    norm: batch norms in the experts; without them also what `fold` leaves behind.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        categories: Mapping[str, Sequence[str]] | None = None,
        meta: int = 1,
        common: int = 1,
        shared: int = 1,
        own: int = 1,
        expert: int = 64,
        rank: int = 8,
        mixed: int = 2,
        tower: int = 32,
        norm: bool = True,
    ) -> None:
        super().__init__(tasks)
        at_least(1, "home", meta=meta, common=common, shared=shared, own=own, expert=expert, rank=rank, mixed=mixed)
        at_least(0, "home", tower=tower)
        self.members = grouped(tasks, categories)
        self.place = {name: (c, i) for c, names in enumerate(self.members) for i, name in enumerate(names)}
        self.n, self.m = meta, own
        groups = 1 + len(self.members)
        self.meta_input = FeatureGates(groups, width, rank, mixed)
        self.meta = normalised(groups * meta, width, expert, norm)
        self.meta_gate = Gates(1, width, groups * meta)
        self.meta_self = SelfGates(1, width, meta)
        self.common_input = FeatureGates(common, expert, rank, mixed)
        self.common = normalised(common, expert, expert, norm)
        for c, names in enumerate(self.members):
            sizes = (len(names), width, expert, meta, common, shared, own, rank, mixed, norm)
            self.add_module(f"category_{c}", CategoryNetwork(*sizes))
        self.towers = Towers(len(self.index), expert, tower)
        self.width = self.towers.width

    def forward(self, features: Features, rows: Rows) -> Shared:
        v = vectors(features, "home")
        order, active = self.requested(rows, v.device)
        gated = self.meta_input(v)
        meta = self.meta(gated if self.n == 1 else gated.repeat_interleave(self.n, 0))
        groups = meta.unflatten(0, (-1, self.n))
        m_shared = mix(self.meta_gate(v), meta)[0] + mix(self.meta_self(v), groups[0])[0]
        common = self.common(self.common_input(m_shared))
        found: dict[str, Tensor] = {}
        gates: dict[str, Tensor] = {}
        for c, names in enumerate(self.members):
            mine = [name for name in names if name in rows]
            if mine:
                places = None if len(mine) == len(names) else torch.tensor([names.index(n) for n in mine], device=v.device)
                h, weights = self._category(c)(v, groups[0], groups[1 + c], m_shared, common, places)
                found |= zip(mine, h)
                gates |= zip(mine, weights)
        hidden = torch.stack([found[name] for name in order])
        extra = {"gates": gates, "shared": slice(len(common))}
        return Shared(self.towers(hidden, order, active, rows, features), extra=extra)

    def _category(self, c: int) -> CategoryNetwork:
        return cast(CategoryNetwork, getattr(self, f"category_{c}"))

    def reads(self, task: str) -> tuple[str, ...]:
        here = f"category_{self.place[task][0]}"
        return tuple(name for name, _ in self.named_children() if name == here or not name.startswith("category_"))

    def slices(self, task: str) -> dict[str, slice]:
        c, i = self.place[task]
        category = f"category_{c}."
        found = {}
        for name, _ in self.named_parameters():
            part = name.removeprefix(category).split(".")[0] if name.startswith(category) else ""
            if part in ("gates", "self_gates"):
                found[name] = slice(i, i + 1)
            elif part in ("own", "own_input"):
                found[name] = slice(i * self.m, (i + 1) * self.m)
            elif name.startswith("towers."):
                found[name] = slice(self.index[task], self.index[task] + 1)
        return found


def grouped(tasks: Sequence[Task], categories: Mapping[str, Sequence[str]] | None) -> list[list[str]]:
    """The categories' tasks, each in the tasks' order; a name that is unknown, missing or there twice is a `BadInput`."""
    names = [task.name for task in tasks]
    if categories is None:
        kinds = dict.fromkeys(task.kind for task in tasks)
        return [[task.name for task in tasks if task.kind == kind] for kind in kinds]
    seen: dict[str, str] = {}
    lists = isinstance(categories, Mapping) and all(isinstance(members, list | tuple) for members in categories.values())
    if not lists:
        remedy = "as in {engage: [like, share]}"
        raise BadInput("must be words, each with its list of tasks", where="home, categories", remedy=remedy)
    for word, members in categories.items():
        for name in members:
            if name not in names:
                raise unknown("task", name, names, where=f"home, category {word!r}")
            if name in seen:
                raise BadInput(f"task {name!r} is also in category {seen[name]!r}", where=f"home, category {word!r}")
            seen[name] = word
        if not members:
            raise BadInput("holds no task", where=f"home, category {word!r}", remedy="leave it out")
    if missing := [name for name in names if name not in seen]:
        raise BadInput(f"task {missing[0]!r} is in no category", where="home, categories", remedy="add it to one")
    return [[name for name in names if seen[name] == word] for word in categories]
