"""Bottleneck adapters: a small two-layer network per task behind (or beside) the sublayers.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751 (`houlsby`);
Pfeiffer et al., "AdapterFusion", EACL 2021, https://arxiv.org/abs/2005.00247 (`pfeiffer`);
He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR 2022, https://arxiv.org/abs/2110.04366
(`parallel`):

    h ← h + s (U act(D h + b_D) + b_U)

`houlsby`: h is the output of attention and that of the FFN, before the residual is added; `pfeiffer`: of the FFN alone;
`parallel`: D reads the input of the FFN instead, and the sum goes to its output.

Departures: U starts at zero, not near it, so that the model starts as it was. AdapterHub's Pfeiffer adapter reads the sum after
its LayerNorm; here h is the sublayer's output, as in the paper's figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.adapter import Adapters, back, key_of, rows_first
from pluribus.adapters.route import Route
from pluribus.adapters.sites import every_linear, some_blocks
from pluribus.errors import BadInput, unknown
from pluribus.linalg.low_rank import Pick, per_row_perceptron

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "identity": lambda x: x}
PLACEMENTS = {"houlsby": ("o", "fc2"), "pfeiffer": ("fc2",), "parallel": ("fc2",)}


class Down(nn.Module):
    """D [E, m, d], b_D [E, m], U [E, d, m], b_U [E, d]."""

    def __init__(self, size: int, width: int, inner: int) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.empty(size, inner, width))
        self.b_D = nn.Parameter(torch.empty(size, inner))
        self.U = nn.Parameter(torch.empty(size, width, inner))
        self.b_U = nn.Parameter(torch.empty(size, width))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        self.D[slot].normal_(0, 0.02)
        for p in (self.b_D, self.U, self.b_U):
            p[slot].zero_()


class BlockAdapters(Adapters):
    """Adapters on the outputs of sublayers. `places`: path of the map that ends a sublayer → (width, batch dimension, what its
    adapter reads: "" for that output, else the path of the map whose input it reads)."""

    def __init__(
        self, model: nn.Module, tasks: Sequence[Any], placement: str, act: str, settings: dict[str, Any], *, freeze: bool
    ) -> None:
        if placement not in PLACEMENTS:
            raise unknown("placement", placement, PLACEMENTS)
        if act not in ACTIVATIONS:
            raise unknown("activation", act, ACTIVATIONS)
        super().__init__(model, tasks, {"placement": placement, "act": act, **settings}, freeze=freeze)
        linear = every_linear(model)
        self.act_name = act
        self.places: dict[str, tuple[int, int, str]] = {}
        for block in some_blocks(model, self.name):
            for role in PLACEMENTS[placement]:
                path = block.roles[role]
                reads = block.roles["fc1"] if placement == "parallel" else ""
                self.places[path] = (linear[path][1], 0 if role == "o" else block.batch, reads)
                if reads and linear[reads][0] != linear[path][1]:
                    raise BadInput(f"the FFN at {block.path!r} changes the width", where="placement", remedy="use pfeiffer")

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        for path, (_, _, reads) in self.places.items():
            if reads:
                yield reads, "before", path
            yield path, "after", path

    def before(self, at: Any, module: nn.Module, x: Tensor, route: Route) -> Tensor:
        route.memo[id(self), at] = x  # what the sublayer got, for the adapter at its end
        return x

    def after(self, at: Any, module: nn.Module, x: Tensor, y: Tensor, route: Route) -> Tensor:
        _, batch, reads = self.places[at]
        pick = route.pick(self, y.device)
        h = route.memo.pop((id(self), at)) if reads else y
        change = self.change(at, rows_first(h, pick, batch), pick, route, module.training)
        return y + back(change, y, batch)

    def change(self, path: str, h: Tensor, pick: Pick, route: Route, training: bool) -> Tensor:
        """What is added to the sublayer's output, from what the adapter reads: h [rows, tokens, d]."""
        raise NotImplementedError

    @property
    def act(self) -> Callable[[Tensor], Tensor]:
        return ACTIVATIONS[self.act_name]


def inner_width(width: int, reduction: float) -> int:
    """m = d / reduction, at least 1."""
    if reduction < 1:
        raise BadInput(f"is {reduction}", where="reduction", remedy="choose at least 1: the adapter is a bottleneck")
    return max(1, round(width / reduction))


class Bottleneck(BlockAdapters):
    """placement: "pfeiffer", "houlsby" or "parallel". reduction: d / m. act: "relu", "gelu", "silu" or "identity".
    scale: s (4 is usual for `parallel`)."""

    name = "bottleneck"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Any],
        *,
        placement: str = "pfeiffer",
        reduction: float = 16.0,
        act: str = "relu",
        scale: float = 1.0,
        freeze: bool = True,
    ) -> None:
        super().__init__(model, tasks, placement, act, {"reduction": reduction, "scale": scale}, freeze=freeze)
        self.scale = scale
        for path, (width, _, _) in self.places.items():
            self.sites[key_of(path)] = Down(self.capacity, width, inner_width(width, reduction))
        self.start()

    def change(self, path: str, h: Tensor, pick: Pick, route: Route, training: bool) -> Tensor:
        p: Any = self.sites[key_of(path)]
        return per_row_perceptron(h, p.D, p.b_D, p.U, p.b_U, self.act, pick, scale=self.scale)
