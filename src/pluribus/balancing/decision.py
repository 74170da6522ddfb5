"""What one call of `combine` or `backward` decided."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class Decision:
    """What one call decided; found in ``balancer.last``.

    Parameters
    ----------
    tasks : tuple of str
        The tasks present, on any rank.
    losses : Tensor
        [T], detached.
    weights : Tensor or None
        [T], detached; None where the balancer gives a direction and no weights, and in a skipped step.
    gram : Tensor or None
        [T, T]; None where none was measured.
    source : str
        Where the signal came from: "losses", "features", "last", "full", "grouped", "closure", or "held" for weights of an
        earlier call.
    why : str
        The reason for that source.
    skipped : bool
        Some loss was not finite, and the balancer was not called.
    age : int
        Calls since the weights were computed.
    every : int
        The weights are computed at every so many calls.
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
