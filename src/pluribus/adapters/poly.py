"""Poly: an inventory of low-rank skills per layer; a task's update is its weighted average of their parameters.

Ponti, Sordoni, Bengio, Reddy, "Combining Parameter-efficient Modules for Task-level Generalisation", EACL 2023, eqs. 1 and 3:
https://arxiv.org/abs/2202.13914

    w_{t,e} = σ(Z_{t,e}) / (Σ_e' σ(Z_{t,e'}) + 1e-12),   A^t = Σ_e w_{t,e} A_e,   B^t = Σ_e w_{t,e} B_e
    y = W x + (1/r) B^t A^t x

Skills belong to all tasks; a task's own is its row of Z, in every layer. In training the gate is the plain sigmoid (as for T0 in
the authors' later work) or, with `gate="relaxed"`, a relaxed Bernoulli sample (as always in PEFT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.adapter import LinearAdapters, key_of
from pluribus.adapters.lora import LowRank, check_rank
from pluribus.adapters.route import Route
from pluribus.errors import BadInput, unknown
from pluribus.linalg.low_rank import Pick, mix_parameters, mixed_parameters


class Skills(nn.Module):
    """A [skills, r, in], B [skills, out, r] of all tasks; Z [E, heads, skills], a row a task."""

    def __init__(self, size: int, skills: int, heads: int, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bank = LowRank(skills, rank, inputs, outputs)
        self.A, self.B = bank.A, bank.B
        self.Z = nn.Parameter(torch.empty(size, heads, skills))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.Z[slot].uniform_(-1e-3, 1e-3)

    def gate(self, experts: Tensor, sampled: bool) -> Tensor:
        """w [tasks, heads, skills]; every head sums to one."""
        z = self.Z[experts]
        one = torch.ones((), dtype=z.dtype, device=z.device)
        w = torch.distributions.RelaxedBernoulli(one, logits=z).rsample() if sampled else z.sigmoid()
        return w / (w.sum(-1, keepdim=True) + 1e-12)


class Poly(LinearAdapters):
    """skills: size of the inventory of every layer. rank: r. gate: "sigmoid" or "relaxed" (in training only).
    inventory: a trained `Poly` or `MHR` on the same model whose skills are copied; sizes are then its own."""

    name = "poly"
    common = ("*.A", "*.B")
    heads: int
    skills: int
    rank: int

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "attention",
        skills: int = 8,
        rank: int = 8,
        gate: str = "sigmoid",
        inventory: Poly | None = None,
        freeze: bool = True,
    ) -> None:
        self._make(model, tasks, where, skills, rank, gate, 1, {}, inventory, freeze)

    def _make(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        where: str | Sequence[str],
        skills: int,
        rank: int,
        gate: str,
        heads: int,
        more: dict[str, Any],
        inventory: Poly | None,
        freeze: bool,
    ) -> None:
        if gate not in ("sigmoid", "relaxed"):
            raise unknown("gate", gate, ("sigmoid", "relaxed"))
        if inventory is not None:
            where = inventory.settings["where"]
            skills, rank, heads = inventory.skills, inventory.rank, inventory.heads
            more = dict.fromkeys(more, heads)
            inventory.detach()
        settings = {"skills": skills, "rank": rank, "gate": gate, **more}
        LinearAdapters.__init__(self, model, tasks, where, settings, freeze=freeze)
        check_rank(rank, list(self.places.values()))
        self.skills, self.rank, self.heads, self.sampled = skills, rank, heads, gate == "relaxed"
        for path, site in self.places.items():
            if site.inputs % heads or site.outputs % heads:
                what = f"is {heads}, which does not divide {path!r} ({site.inputs} → {site.outputs})"
                raise BadInput(what, where="heads", remedy="choose a common divisor")
            made = Skills(self.capacity, skills, heads, rank, site.inputs, site.outputs)
            if inventory is not None:
                made.A.data.copy_(inventory.site(path).A.data)
                made.B.data.copy_(inventory.site(path).B.data)
            self.sites[key_of(path)] = made
        self.start()

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        p = self.site(path)
        gate = p.gate(pick.unique, self.sampled and module.training)
        return mix_parameters(x, p.A, p.B, gate, pick, y, scale=1 / self.rank)

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        slot, found = torch.tensor([self.slot(task)], device=self.device), {}
        for path in self.places:
            p = self.site(path)
            A, B = mixed_parameters(p.A, p.B, p.gate(slot, False))
            found[f"{path}.weight"] = self.with_change(path, B[0] @ A[0] / self.rank)
        return found
