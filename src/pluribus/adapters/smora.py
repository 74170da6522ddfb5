"""SMoRA: every rank of one LoRA is an expert, and a router activates k of them for each token.

Zhao et al., "Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task Learning", 2025:
https://arxiv.org/abs/2501.15103

    y = W x + s B (g(x) ⊙ A x),   K = top-k of W_g x + b,   g = softmax over K of W_g x, 0 elsewhere,   s = α/k
    after a step (`balance`):  b_i ← b_i + u sign(mean load − load_i)

b takes part in the choice alone, never in g, and has no gradient. With `block=c` an expert is c ranks: a mixture of LoRAs of rank
c (c = r with one expert is LoRA). Not found in the paper, and chosen here: u = 1e-3, s, and `mean1` as the default, which
multiplies g by k so that a chosen expert counts 1 on average ("sum1" leaves the softmax as it is). All experts are computed and
masked: without an indexed kernel two plain products are faster than gathers. Nothing here is a task's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.adapter import LinearAdapters, key_of
from pluribus.adapters.lora import LowRank, check_rank
from pluribus.adapters.route import Route, repeated
from pluribus.errors import BadInput, unknown
from pluribus.linalg.low_rank import Pick, mix_outputs

NORMALISATIONS = ("mean1", "sum1")


class LowRankExperts(nn.Module):
    """A [E, c, in], B [E, out, c], the router W_g [E, in], its balancing bias b [E] and how many tokens chose each expert."""

    b: Tensor
    load: Tensor

    def __init__(self, experts: int, block: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bank = LowRank(experts, block, inputs, outputs)
        self.A, self.B = bank.A, bank.B
        self.W_g = nn.Parameter(torch.randn(experts, inputs) * 0.02)
        self.register_buffer("b", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts))

    def reset(self, slot: int) -> None:
        """Nothing belongs to a task."""


class SMoRA(LinearAdapters):
    """rank: r, all ranks together. active: k, how many are used by a token; both in ranks, multiples of `block`.
    alpha: α (default 2k). gate: "mean1" or "sum1". For a balanced load call `balance()` after each step."""

    name = "smora"
    common = ("*",)

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        where: str | Sequence[str] = "all",
        rank: int = 16,
        active: int = 4,
        block: int = 1,
        alpha: float | None = None,
        gate: str = "mean1",
        freeze: bool = True,
    ) -> None:
        settings = {"rank": rank, "active": active, "block": block, "alpha": alpha, "gate": gate}
        super().__init__(model, tasks, where, settings, freeze=freeze)
        if gate not in NORMALISATIONS:
            raise unknown("gate", gate, NORMALISATIONS)
        if block < 1 or rank % block or active % block or not block <= active <= rank:
            what = f"rank {rank}, active {active} and block {block} do not fit"
            raise BadInput(what, where="block", remedy="block has to divide both, and block ≤ active ≤ rank")
        check_rank(block, list(self.places.values()))
        self.k = active // block
        self.factor = (2.0 * active if alpha is None else alpha) / active * (self.k if gate == "mean1" else 1)
        for path, site in self.places.items():
            self.sites[key_of(path)] = LowRankExperts(rank // block, block, site.inputs, site.outputs)
        self.start()

    def gate(self, path: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """g [rows, tokens, E] (summing to one) and the chosen experts [rows, tokens, k]."""
        p = self.site(path)
        logits = torch.nn.functional.linear(x, p.W_g)
        chosen = (logits.detach() + p.b).topk(self.k, -1).indices
        g = torch.zeros_like(logits).scatter(-1, chosen, logits.gather(-1, chosen).softmax(-1))
        return g, chosen

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        p = self.site(path)
        g, chosen = self.gate(path, x)
        if module.training and repeated() is None:
            with torch.no_grad():
                p.load += torch.bincount(chosen.flatten(), minlength=len(p.load))
        return mix_outputs(x, p.A, p.B, g, y, scale=self.factor)

    @torch.no_grad()
    def balance(self, u: float = 1e-3) -> None:
        """Move every router's bias towards equal loads, by the loads since the last call."""
        for p in self.sites.values():
            load: Any = p.load
            p.b += u * torch.sign(load.mean() - load)  # type: ignore[operator]
            load.zero_()
