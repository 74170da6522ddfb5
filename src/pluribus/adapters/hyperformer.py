"""HyperFormer++: one hypernetwork emits every task's adapters from embeddings of task, layer and position.

Karimi Mahabadi, Ruder, Dehghani, Henderson, "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared
Hypernetworks", ACL 2021, §3 (the ++ form): https://arxiv.org/abs/2106.04489

    I = MLP([z_t; layer; position]),  U = W^U I,  D = W^D I,  γ = W^γ I,  β = W^β I
    h ← h + LN_{γ,β}(U gelu(D h))

Of a task's own are z_t alone. Departures: W^γ starts at zero, so that the model starts as it was; the backbone's LayerNorms stay
frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.bottleneck import BlockAdapters, inner_width
from pluribus.adapters.route import Route
from pluribus.errors import BadInput
from pluribus.linalg.low_rank import Pick, per_row


class TaskEmbedding(nn.Module):
    """z [E, size of the embedding]."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.empty(size, width))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.z[slot].normal_()


class HyperFormer(BlockAdapters):
    """embedding: size of the embeddings of tasks, layers and positions, and of I. The rest as in `Bottleneck`."""

    name = "hyperformer"
    common = ("mlp.*", "place", "emit.*")

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        placement: str = "houlsby",
        reduction: float = 16.0,
        act: str = "gelu",
        embedding: int = 64,
        freeze: bool = True,
    ) -> None:
        settings = {"reduction": reduction, "embedding": embedding}
        super().__init__(model, tasks, placement, act, settings, freeze=freeze)
        widths = {width for width, _, _ in self.places.values()}
        if len(widths) > 1:
            raise BadInput(f"the blocks have several widths {sorted(widths)}", where="hyperformer", remedy="use bottleneck")
        self.width = widths.pop()
        self.inner = inner_width(self.width, reduction)
        self.sites["task"] = TaskEmbedding(self.capacity, embedding)
        self.index = {path: i for i, path in enumerate(self.places)}
        roles = 2 if placement == "houlsby" else 1
        self.place = nn.Parameter(torch.randn(len(self.places) // roles + roles, embedding))  # layers, then positions
        self.layers, self.roles = len(self.places) // roles, roles
        self.mlp = nn.Sequential(nn.Linear(3 * embedding, embedding), nn.ReLU(), nn.Linear(embedding, embedding))
        size = self.width * self.inner
        self.emit = nn.ModuleDict(
            {
                name: nn.Linear(embedding, n, bias=False)
                for name, n in (("D", size), ("U", size), ("gamma", self.width), ("beta", self.width))
            }
        )
        for name, std in (("D", 1 / self.width), ("U", 1 / self.inner)):
            nn.init.normal_(self.emit[name].weight, 0, math.sqrt(std / embedding))  # type: ignore[arg-type]
        for name in ("gamma", "beta"):
            nn.init.zeros_(self.emit[name].weight)  # type: ignore[arg-type]
        self.start()

    def emitted(self, path: str, experts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """D [U, m, d], U [U, d, m], γ and β [U, d] of one place for these tasks."""
        i = self.index[path]
        task: Any = self.sites["task"]
        where = torch.cat((self.place[i // self.roles], self.place[self.layers + i % self.roles]))
        I = self.mlp(torch.cat((task.z[experts], where.expand(len(experts), -1)), 1))
        D, U, gamma, beta = (self.emit[name](I) for name in ("D", "U", "gamma", "beta"))
        return D.view(-1, self.inner, self.width), U.view(-1, self.width, self.inner), gamma, beta

    def change(self, path: str, h: Tensor, pick: Pick, route: Route, training: bool) -> Tensor:
        D, U, gamma, beta = self.emitted(path, pick.unique)
        local = pick.local()
        ids = local.counted(len(h))
        inner = F.layer_norm(per_row(h, D, U, local, between=self.act), (self.width,))
        return inner * gamma[ids][:, None] + beta[ids][:, None]
