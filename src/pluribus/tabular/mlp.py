"""The residual MLP over a table's columns: embeddings → Linear → residual blocks → layer norm.

The block is the one of Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting Deep Learning Models for Tabular Data", NeurIPS
2021 (section 3.2, "ResNet"), cut to one Linear: h ← h + Dropout(ReLU(Linear(Norm(h)))). Differences: layer norm in place of
batch norm (no statistics of the batch, so that a row's output depends on the row alone), and without its own scale and
shift, which the Linear that follows can express.

The same class holds one network or E of them side by side (`copies`), each with its own weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pluribus.errors import unknown
from pluribus.modeling import Encoder, Features
from pluribus.modeling.experts import StackedLinear
from pluribus.tabular.embeddings import PLR, Categorical, Numeric, PiecewiseLinear, Plain

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

NumericEmbedding = Literal["plain", "piecewise_linear", "plr", "plr_lite"]
EMBEDDINGS: tuple[NumericEmbedding, ...] = ("plain", "piecewise_linear", "plr", "plr_lite")


class TabularMLP(Encoder):
    """Inputs {"numeric": [B, F] float, "categorical": [B, C] int} → Features.main [B, width].

    Parameters
    ----------
    edges: per numeric column, quantile edges on the training rows (their number is F).
    cardinalities: codes per categorical column, the codes for missing and unseen included.
    width: hidden units. depth: residual blocks. dropout: share of units dropped in a block.
    embedding: "plain", "piecewise_linear", "plr" or "plr_lite". bins: of the piecewise-linear encoding.
    category_size: width of a category's embedding.
    copies: E networks side by side.
    """

    def __init__(
        self, edges: Sequence[ArrayLike], cardinalities: Sequence[int], *, width: int = 128, depth: int = 2,
        dropout: float = 0.2, embedding: NumericEmbedding = "piecewise_linear", bins: int = 8, sigma: float = 0.1,
        category_size: int = 8, copies: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise unknown("numeric embedding", embedding, EMBEDDINGS)
        features = len(edges)
        values: Plain | PiecewiseLinear | PLR
        if embedding == "plain":
            values = Plain(features)
        elif embedding == "piecewise_linear":
            values = PiecewiseLinear(edges, bins)
        else:
            values = PLR(features, sigma=sigma, lite=embedding == "plr_lite", copies=copies)
        self.width, self.dropout, self.copies = width, dropout, copies
        self.numeric = Numeric(values, features)
        self.categorical = Categorical(cardinalities, category_size, copies)
        self.first = StackedLinear(copies, self.numeric.width + self.categorical.width, width)
        self.blocks = nn.ModuleList(StackedLinear(copies, width, width) for _ in range(depth))

    @classmethod
    def of(cls, columns: FittedColumns, *, copies: int = 1, **settings: Any) -> TabularMLP:
        """The encoder for tables that `columns` encodes."""
        return cls(columns.bin_edges, columns.cardinalities, copies=copies, **settings)

    def run(self, inputs: Mapping[str, Tensor], active: Tensor | None = None) -> Tensor:
        """Features [A, B, width] of the active copies (int64 [A], default all E).

        inputs: rows that all copies read ([B, F], [B, C]) or a batch for each ([A, B, F], [A, B, C]).
        """
        x, codes = inputs["numeric"], inputs["categorical"]
        if x.ndim == 2:
            x, codes = x[None], codes[None]
        numbers, categories = self.numeric(x, active), self.categorical(codes, active)
        h = self.first(torch.cat((numbers.expand(len(categories), -1, -1), categories), -1), active)
        for block in self.blocks:
            h = h + F.dropout(F.relu(block(self._norm(h), active)), self.dropout, self.training)
        return self._norm(h)

    def _norm(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, (self.width,))

    def forward(self, inputs: Mapping[str, Tensor], context: Mapping[str, Tensor]) -> Features:
        return Features(self.run(inputs)[0], context=context)
