"""What encoders of tables have in common: E networks of one shape side by side, on rows that they share or on their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from pluribus.modeling import Encoder, Features, Heads
from pluribus.tabular.members import MemberHeads
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class BankEncoder(Encoder):
    """Inputs {"numeric": [B, F] float, "categorical": [B, C] int} → Features.main [B, …, width].

    The first dimension of every parameter is a multiple of `copies`: E networks, each with its own slice.

    copies: E. piece: rows times copies that go through at a time where no gradient is wanted, so that memory is bounded.
    members: how many predictions a row gets, where that is not one.
    """

    copies: int
    piece: int = 2**16

    @classmethod
    def of(cls, columns: FittedColumns, *, copies: int = 1, **settings: Any) -> Self:
        """The encoder for tables that `columns` encodes."""
        made: Any = cls
        found: Self = made(columns.bin_edges, columns.cardinalities, copies=copies, **settings)
        return found

    def heads(self, tasks: Sequence[Task]) -> Heads:
        """The heads that fit: with members where it has members."""
        return Heads(tasks, self.width) if self.members is None else MemberHeads(tasks, self.width, self.members)

    @abstractmethod
    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        """x [A or 1, B, F], codes [A or 1, B, C] → [A, B, …, width] of the active copies (int64 [A], None for all)."""

    def run(self, inputs: Mapping[str, Tensor], active: Tensor | None = None) -> Tensor:
        """Features [A, B, …, width] of the active copies (int64 [A], default all E).

        inputs: rows that all copies read ([B, F], [B, C]) or a batch for each ([A, B, F], [A, B, C]).
        """
        x, codes = inputs["numeric"], inputs["categorical"]
        if x.ndim == 2:
            x, codes = x[None], codes[None]
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.features(x, codes, active)
        rows, step = x.shape[1], max(1, self.piece // (self.copies if active is None else len(active)))
        if rows <= step:
            return self.features(x, codes, active)
        cuts = [slice(start, start + step) for start in range(0, rows, step)]
        return torch.cat([self.features(x[:, cut], codes[:, cut], active) for cut in cuts], 1)

    def forward(self, inputs: Mapping[str, Tensor], context: Mapping[str, Tensor]) -> Features:
        return Features(self.run(inputs)[0], context=context)
