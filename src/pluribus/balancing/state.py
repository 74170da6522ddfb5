"""What balancers remember, kept by task name: a task that is absent from a step keeps its state, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of given numbers, made once: a step must not send the same numbers to the device again. Do not write to it."""
    return torch.tensor(values, dtype=dtype, device=device)


class PerTask:
    """One tensor of a fixed shape a task, all of them in one stack; a task unknown so far starts at `start`."""

    def __init__(self, start: float = 0.0) -> None:
        self.start = start
        self.names: list[str] = []
        self.values: Tensor | None = None  # [known tasks, ...]
        self._index: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}

    def rows(self, tasks: tuple[str, ...], like: Tensor) -> Tensor:
        """The states [T, ...] of these tasks; `like` [T, ...] gives shape, dtype and device to those never seen."""
        new = [task for task in tasks if task not in self.names]
        if new or self.values is None:
            fresh = like.new_full((len(new), *like.shape[1:]), self.start)
            self.values = fresh if self.values is None else torch.cat((self.values.to(like.device), fresh.to(self.values.dtype)))
            self.names += new
        if self.values.device != like.device:
            self.values = self.values.to(like.device)
        return self.values.index_select(0, self._where(tasks))

    def put(self, tasks: tuple[str, ...], rows: Tensor) -> None:
        """Write the states of these tasks, which `rows` has been asked for before; no other moves."""
        assert self.values is not None
        self.values = self.values.index_copy(0, self._where(tasks), rows.to(self.values.dtype))

    def state_dict(self) -> dict[str, Any]:
        """Names and values."""
        return {"names": list(self.names), "values": None if self.values is None else self.values.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up names and values."""
        self.names = list(state["names"])
        self.values = None if state["values"] is None else state["values"].clone()
        self._index = {}

    def _where(self, tasks: tuple[str, ...]) -> Tensor:
        assert self.values is not None
        key = (tasks, self.values.device)
        if key not in self._index:
            self._index[key] = torch.tensor([self.names.index(task) for task in tasks], device=self.values.device)
        return self._index[key]


class PerPair(PerTask):
    """One number for each ordered pair of tasks; asked for and written as a matrix [T, T] of the tasks present."""

    def rows(self, tasks: tuple[str, ...], like: Tensor) -> Tensor:
        new = [task for task in tasks if task not in self.names]
        old = len(self.names)
        if new or self.values is None:
            grown = like.new_full((old + len(new), old + len(new)), self.start)
            if self.values is not None:
                grown[:old, :old] = self.values
            self.values = grown
            self.names += new
        if self.values.device != like.device:
            self.values = self.values.to(like.device)
        where = self._where(tasks)
        return self.values.index_select(0, where).index_select(1, where)

    def put(self, tasks: tuple[str, ...], rows: Tensor) -> None:
        assert self.values is not None
        where = self._where(tasks)
        values = self.values.clone()
        values[where.unsqueeze(1), where] = rows.to(values.dtype)
        self.values = values


class Shares(PerTask):
    """Weights on the simplex of all tasks, stored with mean 1. The tasks of a step trade among themselves only."""

    def __init__(self) -> None:
        super().__init__(start=1.0)

    def shares(self, tasks: tuple[str, ...], like: Tensor) -> Tensor:
        """The present tasks' weights [T], scaled to sum to 1 (equal where they have all come down to 0)."""
        raw = self.rows(tasks, like)
        mass = raw.sum()
        return torch.where(mass > 0, raw / mass.clamp_min(1e-30), 1 / len(tasks))

    def trade(self, tasks: tuple[str, ...], shares: Tensor) -> None:
        """Give the present tasks new weights that sum to 1; together they keep the mass they had."""
        mass = self.rows(tasks, shares).sum()
        self.put(tasks, shares * torch.where(mass > 0, mass, float(len(tasks))))


class Scalars:
    """One learnable number a task with its own Adam moments and step count (no weight decay unless asked for).

    A joint optimiser would move the moments, and by its decay the values, of absent tasks too.
    """

    def __init__(self, start: float, lr: float, weight_decay: float = 0.0, betas: Sequence[float] = (0.9, 0.999)) -> None:
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.value, self.first, self.second, self.steps = PerTask(start), PerTask(), PerTask(), PerTask()

    def rows(self, tasks: tuple[str, ...], like: Tensor) -> Tensor:
        """The numbers [T] of the tasks present."""
        return self.value.rows(tasks, like)

    def descend(self, tasks: tuple[str, ...], gradient: Tensor) -> Tensor:
        """One Adam step of the tasks present, against `gradient` [T]; returns the new numbers."""
        x = self.rows(tasks, gradient)
        gradient = gradient + self.weight_decay * x
        a, b = self.betas
        k = self.steps.rows(tasks, gradient) + 1
        m = a * self.first.rows(tasks, gradient) + (1 - a) * gradient
        v = b * self.second.rows(tasks, gradient) + (1 - b) * gradient.square()
        x = x - self.lr * (m / (1 - a**k)) / ((v / (1 - b**k)).sqrt() + 1e-8)
        for store, rows in ((self.value, x), (self.first, m), (self.second, v), (self.steps, k)):
            store.put(tasks, rows)
        return x

    def state_dict(self) -> dict[str, Any]:
        """Values, moments and steps."""
        return {name: getattr(self, name).state_dict() for name in ("value", "first", "second", "steps")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up values, moments and steps."""
        for name in ("value", "first", "second", "steps"):
            getattr(self, name).load_state_dict(state[name])


def generator(seed: int) -> torch.Generator:
    """A balancer's own source of randomness, on the CPU so that all devices and all processes draw alike."""
    return torch.Generator().manual_seed(seed)
