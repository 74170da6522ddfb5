"""Several processes, one batch: exact sums over ranks.

Every rank holds the model and its share of the rows. Losses travel as (sum, count): counts are summed over ranks *before*
the division, gradients after the backward pass, so that unequal numbers of labels per rank give the union batch's result.
A task that has labels on some rank is present on all of them; a parameter without a gradient on every rank keeps None.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def share(rows: Tensor) -> Tensor:
    """This process's share of a batch's rows: every world-th, so that the union is the batch."""
    rank, size = world()
    return rows[rank::size]


def sum_counts(counts: dict[str, Tensor], tasks: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Counts summed over the ranks, for every task present on any rank."""
    if world()[1] == 1:
        return counts
    packed = torch.zeros(2, len(tasks), dtype=torch.float64, device=device)
    for i, name in enumerate(tasks):
        if name in counts:
            packed[0, i], packed[1, i] = counts[name].double(), 1.0
    dist.all_reduce(packed)
    total, present = packed.cpu()
    return {name: total[i].to(device, torch.float32) for i, name in enumerate(tasks) if present[i] > 0}


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over the ranks in one message; a parameter that no rank has a gradient for keeps None."""
    if world()[1] == 1:
        return
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    if dist.get_backend() == "nccl":
        has = has.to(parameters[0].device)
    dist.all_reduce(has, op=dist.ReduceOp.MAX)
    wanted = [p for p, flag in zip(parameters, has.tolist()) if flag]
    if not wanted:
        return
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    flat = torch.cat([piece.reshape(-1) for piece in pieces])
    dist.all_reduce(flat)
    start = 0
    for p in wanted:
        p.grad = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


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
