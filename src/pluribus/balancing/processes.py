"""Several processes: every figure a balancer hears is that of the union batch, and is the same on all ranks.

Two conventions of the loss are served (`reduction`):

- "mean": each rank's loss is the mean over its own rows and gradients are averaged over ranks afterwards (what
  DistributedDataParallel does). The loss that is descended is (1/W) Σ_r ℓ_t^r; rows of z differ between ranks, hence
  G = (1/W²) Σ_r G_r.
- "sum": each rank's loss is already divided by the global count and gradients are summed: G = Σ_r G_r.

A task that only some ranks see takes part with the ranks that see it, the others add zero to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus.errors import unknown

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Processes:
    """The processes of one step. Without torch.distributed (or with one process) every method is the identity.

    group: the process group; None for the default one.
    size: how many processes; rank: which is this one.
    reduction: how the ranks' losses make the loss that is descended, see the module.
    """

    group: Any
    size: int
    rank: int
    reduction: Reduction

    @classmethod
    def alone(cls) -> Processes:
        """This process only, whatever else is running."""
        return cls(None, 1, 0, "sum")

    @classmethod
    def running(cls, group: Any = None, *, reduction: Reduction = "mean") -> Processes:
        """The running process group (default: all processes); this process alone where torch.distributed is not in use."""
        if reduction not in ("mean", "sum"):
            raise unknown("reduction", reduction, ("mean", "sum"), where="Processes.running")
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
            return cls.alone()
        return cls(group, dist.get_world_size(group), dist.get_rank(group), reduction)

    @property
    def share(self) -> float:
        """What one rank's gradient counts for in the union's: 1/W ("mean") or 1 ("sum")."""
        return 1 / self.size if self.reduction == "mean" else 1.0

    def gather(self, value: Any) -> list[Any]:
        """A small picklable value of every rank, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Σ over ranks of equally shaped tensors, in place where there is something to add."""
        if self.size > 1:
            tensor = tensor.contiguous()
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def cat(self, rows: Tensor) -> Tensor:
        """The ranks' rows (their number may differ), one below the other in the order of ranks."""
        if self.size == 1:
            return rows
        counts = self.gather(rows.shape[0])
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:n] for part, n in zip(parts, counts)])

    def same(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on every rank: weights must not differ, not even by a rounding."""
        if self.size > 1:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, src=dist.get_global_rank(self.group, 0) if self.group else 0, group=self.group)
        return tensor


def union(names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All ranks' task names, each once, in the order in which the ranks give them."""
    return tuple(dict.fromkeys(name for ranks in names for name in ranks))


def sharded(parameters: Sequence[Tensor], outputs: Sequence[Tensor] = ()) -> bool:
    """Whether some parameter is held in pieces (FSDP, fully_shard, ZeRO-3), so that no rank has its gradient.

    outputs: tensors that the parameters' module returned; FSDP gathers whole parameters for the pass, which look like any
    other, but it leaves its hooks on what the module returns.
    """
    marks = ("_fsdp_flattened", "_is_flat_param", "ds_id")
    if any(type(p).__name__ in ("DTensor", "FlatParameter") or any(hasattr(p, m) for m in marks) for p in parameters):
        return True
    hooks = [hook for output in outputs for hook in (getattr(output, "_backward_hooks", None) or {}).values()]
    return any(".fsdp" in (getattr(getattr(hook, "func", hook), "__module__", None) or "") for hook in hooks)
