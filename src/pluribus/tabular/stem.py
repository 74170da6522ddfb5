"""STEM: a table of embeddings for every task beside a shared one; all are read, only one's own and the shared are trained.

Su, Pan, Wang, Chen, Hu, Xiao, Jiang, "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024
(arXiv 2308.13537): with e_s the experts on table s (s = 1 … T and the shared one, 0) and sg the stop-gradient,

    h_t = g_t,0 e_0 + g_t,t e_t + Σ_{s ≠ t} g_t,s sg(e_s),   g_t = softmax(e_t W_t)          (all forward, own backward)

so that a task borrows what others learnt of a value without pulling their embeddings about. Our choices: an expert is the tabular
MLP on its table (one a table); the gate reads the task's own expert, where the paper's reads embeddings. A benchmark's version
detaches the shared experts too, by an index that never matches; we follow the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.modeling import Features, Heads, MultiTaskModel, Outputs, Shared
from pluribus.modeling.model import Slices
from pluribus.sharing.stacked import Gates, Stacked, Towers, at_least, mix
from pluribus.tabular.mlp import TabularMLP
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class _AllForward(Stacked):
    """The gates' mixture of all experts and the towers on it. width: of the experts."""

    def __init__(self, tasks: Sequence[Task], width: int, tower: int) -> None:
        super().__init__(tasks)
        at_least(0, "stem", tower=tower)
        self.gates = Gates(len(self.index), width, 1 + len(self.index))
        self.towers = Towers(len(self.index), width, tower)
        self.width = self.towers.width
        self.owned = {"gates": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        """features.main: the shared expert [B, d]; context "own": the tasks' [B, T, d]."""
        common, own = features.main, features.context["own"].transpose(0, 1)
        order, active = self.requested(rows, common.device)
        mine = own if active is None else own[active]
        weights = self.gates(mine, active)
        places = torch.arange(len(own), device=common.device) if active is None else active
        self_weight = weights.gather(-1, (1 + places)[:, None, None].expand(-1, len(common), 1))
        # x − sg(x) is 0 with the gradient of x: the mixture reads everything stopped, these two let the gradient through
        hidden = mix(weights, torch.cat((common[None], own)).detach())
        hidden = hidden + weights[..., :1] * (common - common.detach()) + self_weight * (mine - mine.detach())
        extra = {"gates": dict(zip(order, weights)), "shared": slice(0, 1)}
        return Shared(self.towers(hidden, order, active, rows, Features(common)), extra=extra)


class STEM(MultiTaskModel):
    """encoder: the shared expert. own: a bank with one copy per task, in the tasks' order."""

    def __init__(self, tasks: Sequence[Task], encoder: TabularMLP, own: TabularMLP, tower: int = 0) -> None:
        sharing = _AllForward(tasks, encoder.width, tower)
        super().__init__(tasks, encoder, sharing, Heads(tasks, sharing.width))
        self.own = own
        self.index = {task.name: i for i, task in enumerate(tasks)}

    @classmethod
    def of(cls, tasks: Sequence[Task], columns: FittedColumns, *, tower: int = 0, **settings: Any) -> STEM:
        """The model for tables that `columns` encodes; settings: those of `TabularMLP`."""
        own = TabularMLP.of(columns, copies=len(tasks), **settings)
        return cls(tasks, TabularMLP.of(columns, **settings), own, tower)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows = self.requested(rows)
        common = self.encoder(inputs, context or {})
        own = self.own.run(inputs)
        shared = self.share(Features(common.main, context={"own": own.transpose(0, 1)}), rows)
        outputs = self.heads(shared.tasks, rows)
        return Outputs(outputs, shared=(common.main,), penalties=shared.penalties, extra=shared.extra)

    def parameters_of(self, task: str) -> Slices:
        found = super().parameters_of(task)
        parameters: list[nn.Parameter] = list(self.own.parameters())
        for p in parameters:
            each = len(p) // len(self.index)
            found.append((p, slice(self.index[task] * each, (self.index[task] + 1) * each)))
        return found
