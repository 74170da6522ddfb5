"""LoRA: one low-rank update per task and linear map, all in one bank.

Hu, Shen, Wallis, et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, eq. 3:
https://arxiv.org/abs/2106.09685

    h = W₀ x + s B A x,   A [r, in] uniform(±1/√in),  B [out, r] = 0,   s = α/r, or α/√r (Kalajdzievski 2023, rsLoRA)

Departures: A is drawn as `nn.Linear` draws (as in the authors' code; the paper says Gaussian). Tasks may have different ranks and
scales: smaller ones are padded with zeros, which changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.adapter import LinearAdapters, key_of
from pluribus.adapters.route import Route
from pluribus.adapters.sites import Site
from pluribus.errors import BadInput
from pluribus.linalg.low_rank import Pick, frozen_per_row, per_row


class LowRank(nn.Module):
    """The bank of one linear map: A [E, r, in], B [E, out, r]."""

    def __init__(self, size: int, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(size, rank, inputs))
        self.B = nn.Parameter(torch.empty(size, outputs, rank))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        bound = 1 / math.sqrt(self.A.shape[2])
        self.A[slot].uniform_(-bound, bound)
        self.B[slot].zero_()


def check_rank(rank: int, sites: Sequence[Site]) -> None:
    """A rank is at least 1 and at most what every layer has."""
    if rank < 1:
        raise BadInput(f"is {rank}", where="rank", remedy="choose at least 1")
    for site in sites:
        if rank > min(site.inputs, site.outputs):
            what = f"is {rank}, more than the rank of {site.path!r} ({site.inputs} → {site.outputs})"
            raise BadInput(what, where="rank", remedy=f"choose at most {min(site.inputs, site.outputs)}")


def plain(module: nn.Module) -> bool:
    """Whether a call of the module is its forward and one hook, so that its output is nobody's but the hook's."""
    others = (module._backward_hooks, module._backward_pre_hooks, module.__dict__.get("forward"))
    return len(module._forward_hooks) == 1 and not any(others)


def frozen(module: nn.Module, *tensors: Tensor) -> bool:
    """Whether a linear map takes no gradient and all tensors are of its precision, as `frozen_per_row` needs it."""
    still = not any(p.requires_grad for p in module.parameters())
    weight: Any = module.weight
    same = all(type(t) in (Tensor, nn.Parameter) and t.dtype == weight.dtype for t in tensors)
    return still and same and not torch.is_autocast_enabled(weight.device.type)


class LoRA(LinearAdapters):
    """One update of rank `rank` per task on every linear map that `where` names.

    alpha: α, by default 2 · rank. rank_stabilised: s = α/√r. dropout: share of inputs of A dropped in training.
    plan: an evaluation plan of `pluribus.linalg.low_rank`, chosen by shape unless given.
    """

    name = "lora"
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "all",
        rank: int = 8,
        alpha: float | None = None,
        rank_stabilised: bool = False,
        dropout: float = 0.0,
        plan: str | None = None,
        freeze: bool = True,
    ) -> None:
        settings = {"rank": rank, "alpha": alpha, "rank_stabilised": rank_stabilised, "dropout": dropout, "plan": plan}
        super().__init__(model, tasks, where, settings, freeze=freeze)
        check_rank(rank, list(self.places.values()))
        self.rank, self.dropout, self.plan = rank, dropout, plan
        alpha = 2.0 * rank if alpha is None else alpha
        self.usual = alpha / (math.sqrt(rank) if rank_stabilised else rank)
        self.uniform = True
        self.register_buffer("scale", torch.full((self.capacity,), self.usual))
        for path, site in self.places.items():
            self.sites[key_of(path)] = LowRank(self.capacity, rank, site.inputs, site.outputs)
        self.start()

    def reset(self, slot: int) -> None:
        super().reset(slot)
        self.scale[slot] = self.usual

    def touched(self, slot: int | None = None) -> None:
        super().touched(slot)
        changed = list(self.slots.values()) if slot is None else [slot]
        self.uniform = (self.uniform or slot is None) and bool((self.scale[changed] == self.usual).all())

    def scales(self) -> float | Tensor:
        """s: one number where all tasks have the usual one, else one per slot."""
        return self.usual if self.uniform else self.scale

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        bank = self.site(path)
        alone = type(module) is nn.Linear and plain(module) and not torch.compiler.is_compiling()  # nobody else has seen y
        write = alone and not torch.is_grad_enabled()
        if self.dropout and module.training:
            x = F.dropout(x, self.dropout)
        elif alone and not write and self.plan is None and frozen(module, x, y, bank.A, bank.B):
            return frozen_per_row(x, bank.A, bank.B, pick, y, module.weight, scale=self.scales())  # type: ignore[arg-type]
        return per_row(x, bank.A, bank.B, pick, y, scale=self.scales(), plan=self.plan, write=write)

    def change(self, path: str, task: str) -> Tensor:
        """s B A of one task at one site, [out, in]."""
        slot, bank = self.slot(task), self.site(path)
        found: Tensor = self.scale[slot] * (bank.B[slot] @ bank.A[slot])
        return found

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        return {f"{path}.weight": self.with_change(path, self.change(path, task)) for path in self.places}
