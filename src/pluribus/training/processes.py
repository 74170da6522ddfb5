"""Several processes, one batch: exact sums over ranks.

Every rank holds the model and its share of the rows. Losses travel as (sum, count): counts are summed over ranks *before*
the division, gradients after the backward pass, so that unequal numbers of labels per rank give the union batch's result.
A task that has labels on some rank is present on all of them; a parameter without a gradient on every rank keeps None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(this process's rank, number of processes); (0, 1) outside `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Gone(RuntimeError):
    """Another process of the group has ended, so that this one cannot go on."""


@contextmanager
def together() -> Iterator[None]:
    """Inside, a collective that fails because another process is gone raises `Gone`, in one line."""
    try:
        yield
    except RuntimeError as error:
        rank, size = world()
        if size == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        raise Gone(f"process {rank} of {size} stops: another process of the group has ended or cannot be reached") from error


_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|socket|timed out", re.IGNORECASE)


def share(rows: Tensor) -> Tensor:
    """This process's share of a batch's rows: every world-th, so that the union is the batch."""
    rank, size = world()
    return rows[rank::size]


def sum_by_name(values: dict[str, Tensor], names: Iterable[str], device: torch.device) -> dict[str, Tensor]:
    """Scalars summed over the ranks, for every name that any rank has.

    Parameters
    ----------
    values : dict of str to Tensor
        Name → scalar, on this rank.
    names : iterable of str
        All names that any rank may have, in the same order on each.
    device : torch.device
        Where the sums are wanted.

    Returns
    -------
    dict of str to Tensor
        Name → sum, in float32; on one process the values as they are.
    """
    if world()[1] == 1:
        return values
    names = list(names)
    packed = torch.zeros(2, len(names), dtype=torch.float64, device=device)
    for i, name in enumerate(names):
        if name in values:
            packed[0, i], packed[1, i] = values[name].double(), 1.0
    dist.all_reduce(packed)
    total, present = packed.cpu()
    return {name: total[i].to(device, torch.float32) for i, name in enumerate(names) if present[i] > 0}


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over the ranks in one message; a parameter that no rank has a gradient for keeps None."""
    if world()[1] == 1:
        return
    like = parameters[0]
    has = like.new_tensor([p.grad is not None for p in parameters], requires_grad=False)
    flat = torch.cat([*(torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters), has])
    dist.all_reduce(flat)
    *found, counts = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
    for p, g, count in zip(parameters, found, counts.tolist()):
        p.grad = g.view_as(p) if count else None


def gather(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The arrays of all ranks one after another (first dimensions may differ)."""
    if world()[1] == 1:
        return values
    lengths = torch.zeros(world()[1], dtype=torch.int64)
    lengths[world()[0]] = len(values)
    dist.all_reduce(lengths)
    longest = int(lengths.max())
    padded = torch.zeros(longest, *values.shape[1:], dtype=torch.float64)
    padded[: len(values)] = torch.from_numpy(values)
    boxes = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(boxes, padded)
    return np.concatenate([box[:length].numpy() for box, length in zip(boxes, lengths.tolist())])


def agree(flag: bool) -> bool:
    """Whether any rank says so."""
    if world()[1] == 1:
        return flag
    box = torch.tensor([int(flag)])
    if dist.get_backend() == "nccl":
        box = box.cuda()
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return bool(box.item())


def total(value: float) -> float:
    """The sum of a number over the ranks."""
    if world()[1] == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(box)
    return float(box)
