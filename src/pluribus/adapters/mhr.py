"""Multi-head adapter routing: Poly whose routing differs between blocks ("heads") of the inputs and outputs.

Caccia, Ponti, Su, Pereira, Le Roux, Sordoni, "Multi-Head Adapter Routing for Cross-Task Generalization", NeurIPS 2023, §3:
https://arxiv.org/abs/2211.03831

    A^t = [Σ_e w_{t,q,e} A_{q,e}]_q,   B^t = [Σ_e w_{t,q,e} B_{q,e}]_q,   y = W x + (1/r) B^t A^t x

Head q owns the q-th stretch of inputs (of A) and outputs (of B); the r latent numbers are common. A new task is adapted by its
routing alone (`MHRz`: heads · skills numbers a layer), or by the average of the skills, fine-tuned as one LoRA (`MHRmu`).

The authors' release keeps all skills for μ and trains them under a constant average, where Adam takes other steps than on the
average itself; here the average is taken first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pluribus.adapters.lora import LoRA
from pluribus.adapters.poly import Poly


class MHR(Poly):
    """heads: has to divide the inputs and outputs of every adapted map. The rest as in `Poly`."""

    name = "mhr"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "attention",
        skills: int = 8,
        heads: int = 8,
        rank: int = 8,
        gate: str = "sigmoid",
        inventory: Poly | None = None,
        freeze: bool = True,
    ) -> None:
        self._make(model, tasks, where, skills, rank, gate, heads, {"heads": heads}, inventory, freeze)


class MHRz(MHR):
    """Only the routing is trained; the skills are `inventory`'s, or as they start (a baseline)."""

    name = "mhr_z"

    def start(self) -> None:
        super().start()
        for site in self.sites.values():
            site.A.requires_grad_(False)
            site.B.requires_grad_(False)


class MHRmu(LoRA):
    """A LoRA per task that starts at the average of `inventory`'s skills (without one, where LoRA starts), with s = 1/r."""

    name = "mhr_mu"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "attention",
        rank: int = 8,
        dropout: float = 0.0,
        plan: str | None = None,
        inventory: Poly | None = None,
        freeze: bool = True,
    ) -> None:
        if inventory is not None:
            where, rank = inventory.settings["where"], inventory.rank
            inventory.detach()
        self.__dict__["mean"] = None
        super().__init__(model, tasks, where=where, rank=rank, alpha=1.0, dropout=dropout, plan=plan, freeze=freeze)
        del self.settings["alpha"], self.settings["rank_stabilised"]
        if inventory is not None:
            self.__dict__["mean"] = {
                path: (inventory.site(path).A.detach().mean(0), inventory.site(path).B.detach().mean(0)) for path in self.places
            }
            for slot in self.slots.values():
                self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        super().reset(slot)
        for path, (A, B) in (self.__dict__["mean"] or {}).items():
            self.site(path).A[slot] = A
            self.site(path).B[slot] = B
