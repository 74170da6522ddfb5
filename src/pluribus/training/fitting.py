"""What every candidate that trains a network does around its training: seeds, threads, curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Within the block torch's global generator starts at `seed` and `threads` threads compute; both are put back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def plain_curves(curves: Mapping[str, list[float]]) -> dict[str, list[float | None]]:
    """Validation values per task as JSON takes them: None where a metric was not defined."""
    return {name: [value if math.isfinite(value) else None for value in values] for name, values in curves.items()}
