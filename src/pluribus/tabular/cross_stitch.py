"""Cross-stitch through whole networks: one for each task from the input on, embeddings included, stitched after every layer.

Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016, equation (1), for T tasks:

    h̃_t^l = Σ_s α^l_ts h_s^l,   after the first layer and after every residual block of `TabularMLP`

Differences: the paper's networks start pretrained on their own tasks, these start at random together. α = I is the T single
networks of the same shape. The same stitches on one encoder's features, shared by the tasks: `pluribus.sharing.CrossStitch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Heads, MultiTaskModel, Outputs, Shared
from pluribus.modeling.experts import StackedLinear
from pluribus.sharing.cross_stitch import Stitch
from pluribus.sharing.stacked import Stacked, at_least
from pluribus.tabular.flat import Flat
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class _Networks(Stacked):
    """T networks on embeddings of their own, context "own" [B, T, D], stitched after each layer; the heads read [B, width]."""

    def __init__(
        self, tasks: Sequence[Task], inputs: int, *, width: int = 128, depth: int = 2, dropout: float = 0.2, own: float = 0.9
    ) -> None:
        super().__init__(tasks)
        at_least(1, "cross_stitch", width=width)
        at_least(0, "cross_stitch", depth=depth)
        if not 0 <= own <= 1:
            raise BadInput(f"own must lie between 0 and 1, not {own}", where="cross_stitch")
        count = len(self.index)
        self.width, self.dropout = width, dropout
        self.first = StackedLinear(count, inputs, width)
        self.blocks = nn.ModuleList(StackedLinear(count, width, width) for _ in range(depth))
        self.stitches = nn.ModuleList(Stitch(count, own) for _ in range(1 + depth))
        self.owned = {f"stitches.{depth}": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        order, active = self.requested(rows, features.main.device)
        h: Tensor = self.first(features.context["own"].transpose(0, 1))
        last = len(self.blocks)
        for i, stitch in enumerate(self.stitches):
            if i:
                h = h + F.dropout(F.relu(self.blocks[i - 1](self._norm(h))), self.dropout, self.training)
            h = stitch(h, active if i == last else None)
        return Shared({name: Features(one) for name, one in zip(order, self._norm(h).unbind())})

    def _norm(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, (self.width,))


class CrossStitchNetworks(MultiTaskModel):
    """encoder: embeddings, one copy a task, in the tasks' order."""

    def __init__(self, tasks: Sequence[Task], encoder: Flat, networks: _Networks) -> None:
        super().__init__(tasks, encoder, networks, Heads(tasks, networks.width))

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.2,
        own: float = 0.9,
        **settings: Any,
    ) -> CrossStitchNetworks:
        """The model for tables that `columns` encodes. own: α_tt at the start; settings: those of `Flat`."""
        encoder = Flat.of(columns, copies=len(tasks), **settings)
        return cls(tasks, encoder, _Networks(tasks, encoder.width, width=width, depth=depth, dropout=dropout, own=own))

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows = self.requested(rows)
        x = self.encoder.run(inputs)  # type: ignore[operator]
        x = x.expand(len(self.tasks), -1, -1)
        shared = self.share(Features(x[0], context={"own": x.transpose(0, 1)}), rows)
        return Outputs(self.heads(shared.tasks, rows), shared=(x,))
