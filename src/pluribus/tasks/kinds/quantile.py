"""Quantiles of a number at several levels: the pinball loss (Koenker & Bassett, "Regression Quantiles", 1978).

    loss(q, y) = mean over levels l of  max(l·(y − q_l), (l − 1)·(y − q_l))

Outputs are the first quantile and the softplus of the steps from each to the next, so that quantiles never cross:

    q_1 = z_1,   q_l = z_1 + Σ_{1 < j ≤ l} softplus(z_j)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.columns import Column
from pluribus.tasks.forms import Values
from pluribus.tasks.kinds import constants
from pluribus.tasks.kinds.record import Declared, Empty, Kind, register, side_by_side

LEVELS = (0.1, 0.5, 0.9)
SMALLEST_STEP = 1e-4


def _link(outputs: Tensor) -> Tensor:
    """Quantiles [m, L], ascending."""
    return torch.cat((outputs[:, :1], outputs[:, :1] + F.softplus(outputs[:, 1:]).cumsum(1)), 1)


def _pinball(levels: tuple[float, ...]) -> Callable[..., Tensor]:
    def loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        error = values.to(outputs.dtype)[:, None] - _link(outputs)
        level = outputs.new_tensor(levels)
        return torch.maximum(level * error, (level - 1) * error).mean(1)

    return loss


def _empirical(levels: tuple[float, ...]) -> Callable[[Tensor, int], Tensor]:
    def start(values: Tensor, _: int) -> Tensor:
        found = torch.from_numpy(np.quantile(values.double().numpy(), levels))
        steps = found.diff().clamp_min(SMALLEST_STEP)
        return torch.cat((found[:1], steps + torch.log(-torch.expm1(-steps)))).float()  # softplus, inverted

    return start


class Quantile(Kind):
    """A number in TASK; its quantiles in TASK__q0.1, TASK__q0.5, …"""

    def of(self, task: Declared) -> Kind:
        """The record whose loss knows the task's levels."""
        return _at(task.levels or LEVELS)

    def check(self, task: Declared) -> None:
        """Levels ascend between 0 and 1."""
        levels = task.levels or LEVELS
        if not all(low < high for low, high in zip((0.0, *levels), (*levels, 1.0))):
            what = f"levels must ascend between 0 and 1, not {', '.join(f'{level:g}' for level in levels)}"
            raise BadInput(what, where=f"task {task.name!r}", remedy="write them as 0.1, 0.5, 0.9")

    def shape(self, task: Declared) -> tuple[int, ...]:
        """(L,)"""
        return (len(task.levels or LEVELS),)

    def settle(self, task: Any, column: Column, notes: list[str]) -> Any:
        """The levels, where the task names none."""
        return task if task.levels else task.with_(levels=LEVELS)

    def constant(self, task: Declared, values: Values, weight: NDArray[np.float64]) -> Any:
        """The labels' quantiles [L]."""
        return constants.quantiles(np.asarray(values, np.float64), weight, task.levels or LEVELS)

    def columns(self, task: Declared) -> tuple[str, ...]:
        """TASK__qLEVEL for every level."""
        return tuple(f"{task.name}__q{level}" for level in task.levels or LEVELS)

    def found_in(self, name: str, columns: Collection[str]) -> dict[str, Any] | None:
        """The levels that TASK__qLEVEL name."""
        named = [column.removeprefix(f"{name}__q") for column in columns if column.startswith(f"{name}__q")]
        try:
            levels = tuple(sorted(float(each) for each in named))
        except ValueError:
            return None
        return {"levels": levels} if levels else None

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """A quantile a column; predictions [m, L]."""
        return {column: predictions[:, i] for i, column in enumerate(self.columns(task))}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """Quantiles [n, L]."""
        return side_by_side(self, task, columns)


QUANTILE = register(
    Quantile(
        "quantile",
        lambda _: len(LEVELS),
        _pinball(LEVELS),
        _link,
        _empirical(LEVELS),
        ("pinball", "coverage"),
        standardise=True,
        form="quantiles",
    )
)


@functools.cache
def _at(levels: tuple[float, ...]) -> Kind:
    return replace(QUANTILE, width=lambda _: len(levels), loss=_pinball(levels), start=_empirical(levels))
