"""One model for many tasks: Encoder → Sharing → Heads, running only what the requested cells can reach.

    inputs ──encoder──▶ Features ──sharing──▶ {task: Features} ──heads──▶ {task: outputs}

An architecture whose sharing is woven into the encoder subclasses `MultiTaskModel` and writes `forward` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import unknown
from pluribus.modeling.heads import Heads
from pluribus.tasks import Task


@dataclass(frozen=True)
class Features:
    """What an encoder or a sharing architecture hands on.

    main: [B, d], [B, L, d] or [B, C, H, W].
    levels: a pyramid or taps, from fine to coarse.
    mask: [B, L] bool of valid places.
    context: task-independent side information by name.
    selected: whether `main` already holds only the rows that were requested for its task.
    """

    main: Tensor
    levels: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)
    selected: bool = False

    def at(self, rows: Tensor | None) -> Features:
        """Only these rows (all where None, or where they are selected already)."""
        if rows is None or self.selected:
            return self
        return replace(
            self,
            main=self.main[rows],
            levels=tuple(level[rows] for level in self.levels),
            mask=None if self.mask is None else self.mask[rows],
            context={name: value[rows] for name, value in self.context.items()},
            selected=True,
        )


@dataclass(frozen=True)
class Outputs(Mapping[str, Tensor]):
    """Task → outputs [m, width] for the requested cells, in the order of their rows.

    shared: the tensors that leave the shared part; where gradient balancers listen.
    penalties: auxiliary losses by name (scalars), added to the total, never balanced; never module state.
    extra: anything else an objective may want (gate weights, intermediate states).
    """

    tasks: Mapping[str, Tensor]
    shared: tuple[Tensor, ...] = ()
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, task: str) -> Tensor:
        return self.tasks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class Encoder(nn.Module, ABC):
    """Inputs → Features. `width` is the size of the last (or channel) dimension of `Features.main`."""

    width: int

    @abstractmethod
    def forward(self, inputs: Any, context: Mapping[str, Tensor]) -> Features: ...


@dataclass(frozen=True)
class Shared:
    """What a sharing architecture hands to the heads: one `Features` per requested task, beside the penalties and extras
    that end up in `Outputs`."""

    tasks: Mapping[str, Features]
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


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
