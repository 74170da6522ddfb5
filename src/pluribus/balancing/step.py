"""What one call of `combine` or `backward` decided."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class Step:
    """What one call decided; found in ``balancer.last``.

    Parameters
    ----------
    tasks: the tasks present, on any rank.
    losses: [T], detached.
    weights: [T], detached; None where the balancer gives a direction and no weights, and in a skipped step.
    gram: [T, T], or None where none was measured.
    source: where the signal came from: "losses", "features", "last", "full", "grouped", or "held" for weights of an earlier call.
    why: the reason for that source.
    skipped: some loss was not finite, and the balancer was not called.
    age: calls since the weights were computed.
    every: the weights are computed at every so many calls.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None = None
    gram: Tensor | None = None
    source: str = "losses"
    why: str = ""
    skipped: bool = False
    age: int = 0
    every: int = 1
