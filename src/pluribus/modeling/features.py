"""What the parts of a model hand on: features of an encoder, features per task, outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


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


@dataclass(frozen=True)
class Shared:
    """What a sharing architecture hands to the heads: one `Features` per requested task, beside the penalties and extras
    that end up in `Outputs`."""

    tasks: Mapping[str, Features]
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
