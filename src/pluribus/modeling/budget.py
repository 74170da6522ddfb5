"""What a fit may spend, and how it shares that out over its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Budget:
    """What one fit may spend: core-seconds (CPU time of the process, so that a busy machine takes nothing away; of each
    process where several fit together), and threads at a time. folder: where an unfinished fit may keep what it needs to go
    on, if anywhere."""

    seconds: float
    threads: int = 1
    folder: Path | None = None


def in_turn(sizes: Sequence[float], go_on: Callable[[int, float], bool], until: float) -> None:
    """Train parts one after another until all have ended or this process has spent `until` CPU seconds.

    go_on(i, deadline) trains part i from where it stands to its end (True) or to the deadline. Each part is given its share, by
    size, of the seconds that are left; those whose share was too short go on with what the others did not need.
    """
    left = list(range(len(sizes)))
    while left:
        waiting = sum(sizes[i] for i in left)
        cut = []
        for i in left:
            now = time.process_time()
            if not go_on(i, now + max(0.0, until - now) * sizes[i] / max(1e-9, waiting)):
                cut.append(i)
            waiting -= sizes[i]
        left = cut if time.process_time() < until else []
