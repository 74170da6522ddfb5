"""One model for many tasks: Encoder → Sharing → Heads, running only what the requested cells can reach.

    inputs ──encoder──▶ Features ──sharing──▶ {task: Features} ──heads──▶ {task: outputs}

An architecture whose sharing is woven into the encoder subclasses `MultiTaskModel` and writes `forward` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import unknown
from pluribus.modeling.features import Features, Outputs, Shared
from pluribus.modeling.heads import Heads
from pluribus.tasks import Task


class Encoder(nn.Module, ABC):
    """Inputs → Features. `width` is the size of the last (or channel) dimension of `Features.main`."""

    width: int

    @abstractmethod
    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features: ...


class Sharing(nn.Module, ABC):
    """Features → one Features per requested task. `width` is what the heads receive."""

    width: int

    @abstractmethod
    def forward(self, features: Features, rows: Rows) -> Shared: ...

    def reads(self, task: str) -> tuple[str, ...]:
        """Names of the submodules that outputs of `task` depend on; the others must not run when only it is requested."""
        return tuple(name for name, _ in self.named_children())

    def slices(self, task: str) -> dict[str, slice]:
        """Parameter name → the slice of its first dimension that belongs to `task`, for parameters that stack tasks."""
        return {}


Slices = list[tuple[nn.Parameter, slice | None]]


class MultiTaskModel(nn.Module):
    """Encoder → Sharing → Heads.

    Parameters
    ----------
    tasks: what is predicted, in order.
    encoder, sharing: the parts; the heads are built to fit (`Heads(tasks, sharing.width)`) unless given.
    """

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, sharing: Sharing, heads: Heads | None = None) -> None:
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.encoder = encoder
        self.sharing = sharing
        self.heads = heads or Heads(tasks, sharing.width)

    def requested(self, rows: Rows | None) -> Rows:
        """Every task on every row where `rows` is None; an unknown task is an error."""
        if rows is None:
            return dict.fromkeys(self.tasks)
        for name in rows:
            if name not in self.tasks:
                raise unknown("task", name, self.tasks)
        return rows

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        """Outputs of the requested cells. `rows`: task → row indices (None: all rows); tasks not named do not run."""
        rows = self.requested(rows)
        features = self.encoder(inputs, context or {})
        shared = self.share(features, rows)
        outputs = self.heads(shared.tasks, rows)
        return Outputs(outputs, shared=(features.main,), penalties=shared.penalties, extra=shared.extra)

    def share(self, features: Features, rows: Rows) -> Shared:
        """What the sharing makes of the features for the requested cells. Where no task is asked for (a process's share of a
        batch may have no label) nothing runs."""
        shared: Shared = self.sharing(features, rows) if rows else Shared({})
        return shared

    def predict(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What files and metrics see, in the tasks' own units: the link of the outputs, in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self.heads.link(self(inputs, rows, context))
        finally:
            self.train(training)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the part that every task's features come from: the encoder."""
        return list(self.encoder.parameters())

    def parameters_of(self, task: str) -> Slices:
        """Parameters that only serve `task`, whole or as a slice of the first dimension of a stacked one."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        found: Slices = []
        for part in (self.sharing, self.heads):
            named = dict(part.named_parameters())
            found += [(named[name], where) for name, where in part.slices(task).items()]
        return found


__all__ = ["Encoder", "Features", "MultiTaskModel", "Outputs", "Shared", "Sharing", "Slices"]
