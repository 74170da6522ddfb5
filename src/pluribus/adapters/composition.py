"""Compositions over frozen source adapters: what AdapterFusion and ScaLearn share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.bottleneck import BlockAdapters, Bottleneck
from pluribus.errors import BadInput


class Composition(BlockAdapters):
    """Target tasks that combine the frozen adapters of source tasks.

    sources: a trained `Bottleneck` (its model's hooks are taken out and its weights frozen; it is part of this storage from then
        on), or its tasks and settings as a mapping (as saved).
    """

    common = ("sources.*",)
    sources: Bottleneck

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        sources: Bottleneck | Mapping[str, Any],
        settings: dict[str, Any],
        *,
        freeze: bool,
    ) -> None:
        if isinstance(sources, Mapping):
            made = dict(sources)
            sources = Bottleneck(model, made.pop("tasks"), **made)
        if not isinstance(sources, Bottleneck) or sources.model is not model:
            raise BadInput("are not bottleneck adapters of this model", where="sources", remedy="train Bottleneck on it first")
        if sources.free:
            raise BadInput("have empty slots", where="sources", remedy="save and load them, which leaves no holes")
        sources.detach()
        about = {"tasks": list(sources.tasks), **sources.settings}
        placement, act = sources.settings["placement"], sources.settings["act"]
        super().__init__(model, tasks, placement, act, settings, freeze=freeze)
        self.settings = {"sources": about, **settings}
        self.sources = sources.requires_grad_(False)

    def source(self, key: str) -> Any:
        """The stacked parameters of the sources at one place."""
        return self.sources.sites[key]

    def latent(self, key: str, h: Tensor) -> Tensor:
        """act(D_s h + b_D,s) of all S sources, scaled: [rows, tokens, S · m]."""
        p = self.source(key)
        found = self.act(torch.nn.functional.linear(h, p.D.flatten(0, 1), p.b_D.flatten()))
        return found * self.sources.scale if self.sources.scale != 1 else found
