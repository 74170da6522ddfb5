"""An exponential moving average of another balancer's weights: w̄_t ← β w̄_t + (1 − β) w_t, a task's first weight as it is.

Smooths methods whose weights jump from batch to batch (a convention of many code bases, no one paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_between
from pluribus.balancing.state import PerTask
from pluribus.errors import BadInput


class EMA(Balancer):
    """Smoothed weights of `inner`. beta: β in [0, 1] (default 0.9; 0 is the inner balancer itself)."""

    def __init__(self, inner: Balancer, beta: float = 0.9) -> None:
        check_between(self, 0, 1, beta=beta)
        if inner.signal == "jacobian":
            raise BadInput(f"{type(inner).__name__} has no weights to average", where="EMA", remedy="wrap a method with weights")
        if "closure" in inner.needs:
            raise BadInput(
                f"{type(inner).__name__} sets its weights inside its own step, which cannot be averaged from outside",
                where="EMA",
                remedy="use it without EMA (AutoLambda smooths λ by its rate), or wrap the balancer inside it",
            )
        self.inner, self.beta = inner, beta
        for name in ("needs", "doors", "batches", "distributed"):  # the wrapped method's own
            vars(self)[name] = getattr(inner, name)
        vars(self)["mutable"] = ("inner", "mean", "seen")
        self.reset()

    def reset(self) -> None:
        self.inner.reset()
        self.mean, self.seen = PerTask(), PerTask()

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        w = self.inner.compute(signal, tasks, losses)
        mean, seen = self.mean.rows(tasks, w), self.seen.rows(tasks, w)
        mean = torch.where(seen > 0, self.beta * mean + (1 - self.beta) * w, w)
        self.mean.put(tasks, mean)
        self.seen.put(tasks, torch.ones_like(seen))
        return mean

    @property
    def wants_after_step(self) -> bool:
        return self.inner.wants_after_step

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        self.inner.after_step(losses)

    def epoch_end(self) -> None:
        self.inner.epoch_end()

    def __repr__(self) -> str:
        settings: dict[str, Any] = {"inner": self.inner, "beta": self.beta}
        return f"EMA({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
