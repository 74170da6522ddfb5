"""The residual MLP over a table's columns: embeddings → Linear → residual blocks → layer norm.

The block is the one of Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting Deep Learning Models for Tabular Data", NeurIPS
2021 (section 3.2, "ResNet"), cut to one Linear: h ← h + Dropout(ReLU(Linear(Norm(h)))). Differences: layer norm in place of
batch norm (no statistics of the batch, so that a row's output depends on the row alone), and without its own scale and
shift, which the Linear that follows can express.

The same class holds one network or E of them side by side (`copies`), each with its own weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pluribus.modeling.experts import StackedLinear
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.embeddings import EMBEDDINGS, Categorical, Numeric, NumericEmbedding, numbers

__all__ = ["EMBEDDINGS", "TabularMLP"]


class TabularMLP(BankEncoder):
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
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.2,
        embedding: NumericEmbedding = "piecewise_linear",
        bins: int = 8,
        sigma: float = 0.1,
        category_size: int = 8,
        copies: int = 1,
    ) -> None:
        super().__init__()
        features = len(edges)
        values = numbers(embedding, edges, bins=bins, sigma=sigma, copies=copies)
        self.width, self.dropout, self.copies = width, dropout, copies
        self.numeric = Numeric(values, features)
        self.categorical = Categorical(cardinalities, category_size, copies)
        self.first = StackedLinear(copies, self.numeric.width + self.categorical.width, width)
        self.blocks = nn.ModuleList(StackedLinear(copies, width, width) for _ in range(depth))

    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        numeric, categorical = self.numeric(x, active), self.categorical(codes, active)
        h: Tensor = self.first(torch.cat((numeric.expand(len(categorical), -1, -1), categorical), -1), active)
        for block in self.blocks:
            h = h + F.dropout(F.relu(block(self._norm(h), active)), self.dropout, self.training)
        return self._norm(h)

    def _norm(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, (self.width,))
