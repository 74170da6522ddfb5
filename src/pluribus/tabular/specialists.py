"""T specialists in one bank: an encoder once per task, nothing shared, stored and run as stacked weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pluribus import catalog
from pluribus.data import Rows
from pluribus.modeling import Features, MultiTaskModel, Outputs, Shared, Sharing
from pluribus.modeling.model import Slices
from pluribus.tabular.bank import BankEncoder
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class _Apart(Sharing):
    """No sharing at all; only its width is used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Features, rows: Rows) -> Shared:
        return Shared(dict.fromkeys(rows, features))


class Specialists(MultiTaskModel):
    """One network per task. encoder: a bank with one copy per task, in the tasks' order."""

    def __init__(self, tasks: Sequence[Task], encoder: BankEncoder) -> None:
        super().__init__(tasks, encoder, _Apart(encoder.width), encoder.heads(tasks))
        self.index = {task.name: i for i, task in enumerate(tasks)}

    @classmethod
    def of(cls, tasks: Sequence[Task], columns: FittedColumns, *, encoder: str = "tabular_mlp", **settings: Any) -> Specialists:
        """The bank for tables that `columns` encodes. encoder: its name in the catalog; settings: those of the encoder."""
        made = catalog.get("encoder", encoder).resolve()
        return cls(tasks, made.of(columns, copies=len(tasks), **settings))

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows = self.requested(rows)
        order = [name for name in self.index if name in rows]
        if not order:
            return Outputs({})
        active: Tensor | None = None
        if len(order) < len(self.index):
            active = torch.tensor([self.index[name] for name in order], device=self.heads.bias.device)
        hidden = cast(BankEncoder, self.encoder).run(inputs, active)
        return Outputs(self.heads({name: Features(hidden[i]) for i, name in enumerate(order)}, rows))

    def shared_parameters(self) -> list[nn.Parameter]:
        return []

    def parameters_of(self, task: str) -> Slices:
        found = super().parameters_of(task)
        for parameter in self.encoder.parameters():
            each = len(parameter) // len(self.index)
            found.append((parameter, slice(self.index[task] * each, (self.index[task] + 1) * each)))
        return found
