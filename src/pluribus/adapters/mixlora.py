"""MixLoRA: experts in the FFN that share its frozen weights, each a LoRA on every map of it; two of them for each token.

Li et al., "MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based Mixture of Experts", 2024, eqs. 4 to 8:
https://arxiv.org/abs/2404.15159

    FFN_e(x) = W₂' act(W₁' x),  W' = W + s B_e A_e
    y = Σ_{e in top-k} g_e FFN_e(x),  g = softmax over the top-k of W_r x
    load loss = c E Σ_e f_e p_e,  f_e: share of choices that fell on e,  p_e: mean of the softmax over all experts

The frozen W₁ x is computed once, and so is W₂, on the mixture of the chosen experts' inner units; between them run k copies of
the activations alone. The load loss is left in `route.penalties` (sum: `route.penalty()`). A plain LoRA on attention, as in the
paper, is a second object: `LoRA(model, tasks, where="attention")`. Nothing here is a task's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.adapter import Adapters, back, key_of, rows_first
from pluribus.adapters.lora import LowRank, check_rank
from pluribus.adapters.route import Route
from pluribus.adapters.sites import Site, every_linear, some_blocks
from pluribus.errors import BadInput
from pluribus.linalg.low_rank import mix_outputs


class ExpertRouter(nn.Module):
    """W_r [E, d]."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(experts, width) * 0.02)


class MixLoRA(Adapters):
    """experts: E. top: k. rank, alpha (default 2r): of every expert's LoRA. load: c."""

    name = "mixlora"
    common = ("*",)

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        experts: int = 8,
        top: int = 2,
        rank: int = 8,
        alpha: float | None = None,
        load: float = 0.01,
        freeze: bool = True,
    ) -> None:
        settings = {"experts": experts, "top": top, "rank": rank, "alpha": alpha, "load": load}
        super().__init__(model, tasks, settings, freeze=freeze)
        if not 1 <= top <= experts:
            raise BadInput(f"is {top} of {experts} experts", where="top", remedy="choose 1 ≤ top ≤ experts")
        self.experts, self.top, self.load = experts, top, load
        self.scale = (2.0 * rank if alpha is None else alpha) / rank
        linear = every_linear(model)
        self.blocks = some_blocks(model, self.name)
        for block in self.blocks:
            inside = {role: block.roles[role] for role in ("fc1", "gate", "fc2") if role in block.roles}
            check_rank(rank, [Site(path, *linear[path]) for path in inside.values()])
            for path in inside.values():
                self.sites[key_of(path)] = LowRank(experts, rank, *linear[path])
            self.sites[f"{key_of(block.path)} (router)"] = ExpertRouter(experts, linear[inside["fc1"]][0])
        self.start()

    def reset(self, slot: int) -> None:
        """Nothing belongs to a task."""

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        for i, block in enumerate(self.blocks):
            for role in ("fc1", "gate"):
                if role in block.roles:
                    yield block.roles[role], "after", (i, role)
            yield block.roles["fc2"], "before", (i, "fc2")
            yield block.roles["fc2"], "after", (i, "fc2")

    def choice(self, i: int, x: Tensor, route: Route) -> tuple[Tensor, Tensor]:
        """The weights and places [rows, tokens, k] of the chosen experts of block i; leaves the load loss."""
        router: Any = self.sites[f"{key_of(self.blocks[i].path)} (router)"]
        logits = torch.nn.functional.linear(x, router.W)
        best, chosen = logits.topk(self.top, -1)
        f = torch.bincount(chosen.flatten(), minlength=self.experts) / chosen.numel()
        p = logits.softmax(-1).flatten(0, -2).mean(0)
        route.penalties[id(self), i] = self.load * self.experts * (f.to(p) * p).sum()
        return best.softmax(-1), chosen

    def delta(self, path: str, x: Tensor, chosen: Tensor) -> Tensor:
        """s B_e A_e x with e the chosen expert of each token: x [rows, tokens, in], chosen [rows, tokens]."""
        p: Any = self.sites[key_of(path)]
        gate = torch.nn.functional.one_hot(chosen, self.experts).to(x.dtype)
        return mix_outputs(x, p.A, p.B, gate, scale=self.scale)

    def after(self, at: Any, module: nn.Module, x: Tensor, y: Tensor, route: Route) -> Tensor:
        i, role = at
        block, pick = self.blocks[i], route.pick(self, y.device)
        path = block.roles[role]
        if role == "fc2":
            weights, chosen, inner = route.memo.pop((id(self), i))
            deltas = sum(weights[..., j, None] * self.delta(path, inner[j], chosen[..., j]) for j in range(self.top))
            return y + back(deltas, y, block.batch)
        rows = rows_first(x, pick, block.batch)
        if (id(self), i) not in route.memo:
            route.memo[id(self), i] = (*self.choice(i, rows, route), [])
        chosen = route.memo[id(self), i][1]
        each = [y + back(self.delta(path, rows, chosen[..., j]), y, block.batch) for j in range(self.top)]
        return torch.cat(each, block.batch if y.ndim == 3 else 0)  # k copies of the batch go through the activation

    def before(self, at: Any, module: nn.Module, x: Tensor, route: Route) -> Tensor:
        i, _ = at
        block, pick = self.blocks[i], route.pick(self, x.device)
        weights, _, inner = route.memo[id(self), i]
        copies = x.chunk(self.top, block.batch if x.ndim == 3 else 0)
        inner[:] = [rows_first(copy, pick, block.batch) for copy in copies]
        mixed = sum(weights[..., j, None] * inner[j] for j in range(self.top))
        return back(mixed, copies[0], block.batch)
