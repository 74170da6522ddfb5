"""What the parts of a model hand on: features of an encoder, features per task, outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pluribus.tasks.forms import Form

_DIMENSIONS = {"list": 3, "map": 4}  # of a batch of sequences, and of a batch of maps


@dataclass(frozen=True)
class Features:
    """What an encoder or a sharing architecture hands on.

    Parameters
    ----------
    main : Tensor
        [B, d], [B, L, d] or [B, C, H, W].
    levels : tuple of Tensor
        What there is beside: a vector a place of a sequence [B, L, d]; a pyramid of maps [B, C, H, W], from fine to coarse.
    mask : Tensor or None
        [B, L] bool, the valid places of a sequence.
    context : mapping
        Task-independent side information by name.
    selected : bool
        Whether `main` already holds only the rows that were requested for its task.
    """

    main: Tensor
    levels: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    context: Mapping[str, Tensor] = field(default_factory=dict)
    selected: bool = False

    def per(self, form: Form) -> Features:
        """What tasks read that answer by one row a cell ("value"), by place of a list or by place of a map.

        The first reads `main`; the others the levels that are sequences or maps, the first of which becomes `main`. Where there
        are none, all read `main`.
        """
        if form == "value":
            return self
        levels = tuple(level for level in self.levels if level.ndim == _DIMENSIONS[form])
        return replace(self, main=levels[0], levels=levels) if levels else self

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
    """Task → outputs for the requested cells, in the order of their rows: [m, width], [m, L, width] or [m, width, H, W].

    Parameters
    ----------
    tasks : mapping
        The outputs by task.
    shared : tuple of Tensor
        The tensors that leave the shared part; there balancers take the tasks' gradients.
    penalties : mapping
        Auxiliary losses by name (scalars), added to the total, never balanced; never module state.
    extra : mapping
        Anything else an objective may want (gate weights, intermediate states).
    places : mapping
        Task that answers by place of a list → [m, L] bool, the places that its rows have.
    """

    tasks: Mapping[str, Tensor]
    shared: tuple[Tensor, ...] = ()
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, task: str) -> Tensor:
        return self.tasks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


@dataclass(frozen=True)
class Shared:
    """What a sharing architecture hands to the heads.

    Parameters
    ----------
    tasks : mapping
        Requested task → its features.
    penalties, extra : mapping
        What ends up in `Outputs`.
    """

    tasks: Mapping[str, Features]
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def beside(self, other: Shared) -> Shared:
        """Both together; penalties of one name add up."""
        if not self.tasks:
            return other
        penalties = dict(self.penalties)
        for name, value in other.penalties.items():
            penalties[name] = penalties[name] + value if name in penalties else value
        return Shared({**self.tasks, **other.tasks}, penalties, {**self.extra, **other.extra})
