"""Tokens of columns: every column of a row becomes a vector of one width, for encoders that attend over columns.

Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting Deep Learning Models for Tabular Data", NeurIPS 2021, section 3.3:

    token_j = b_j + x_j w_j            (numbers)          token_c = b_c + E_c[x_c]        (categories)

and in place of x_j w_j any embedding of numbers ("On Embeddings for Numerical Features in Tabular Deep Learning", 2022): the
piecewise-linear encoding times a matrix a feature, or PLR of the token's width. Ours: a missing number contributes a learnt
vector m_j in place of its embedding (the paper has no missing values), as the flat embeddings have an indicator for it.

Shapes as everywhere: E copies side by side, inputs [E or 1, B, F] and [E or 1, B, C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pluribus.tabular.embeddings import PLR, Categorical, NumericEmbedding, numbers


class Tokens(nn.Module):
    """Columns → tokens [A, B, F + C, width], numbers first.

    edges, cardinalities: as for the encoders. embedding, bins, sigma: see `pluribus.tabular.embeddings.numbers`.
    """

    place: Tensor

    def __init__(
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        width: int,
        *,
        embedding: NumericEmbedding = "plain",
        bins: int = 8,
        sigma: float = 0.1,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.numbers, self.count = width, len(edges), len(edges) + len(cardinalities)
        self.values = numbers(embedding, edges, bins=bins, sigma=sigma, per_feature=width, copies=copies)
        # of each feature: its columns in the flat encoding, filled up with one of zeros, and its indicator of "missing"
        own = [torch.nonzero(self.values.feature == j)[:, 0].tolist() for j in range(self.numbers)]
        longest = 0 if isinstance(self.values, PLR) else max(map(len, own), default=0)
        zeros = self.values.width + self.numbers
        padded = [[*each, *[zeros] * (longest - len(each))][:longest] + [self.values.width + j] for j, each in enumerate(own)]
        self.register_buffer("place", torch.tensor(padded, dtype=torch.int64).reshape(self.numbers, longest + 1))
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(copies, self.numbers, longest + 1, width).uniform_(-bound, bound))
        self.categorical = Categorical(cardinalities, width, copies)
        self.bias = nn.Parameter(torch.empty(copies, self.count, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """x [E or 1, B, F] with NaN where missing, codes [E or 1, B, C] → [A, B, F + C, width]."""
        weight, bias = (p if active is None else p[active] for p in (self.weight, self.bias))
        copies, rows = len(bias), x.shape[1]
        missing = x.isnan()
        known, present = torch.where(missing, 0.0, x), (~missing).to(x.dtype)
        e = self.values(known, present, active)
        if isinstance(self.values, PLR):
            numeric = e.reshape(len(e), rows, self.numbers, self.width)
            numeric = torch.addcmul(numeric, missing.to(x.dtype)[..., None], weight[:, None, :, 0])
        else:
            flat = torch.cat((e, missing.to(e.dtype), e.new_zeros(*e.shape[:2], 1)), -1)
            own = flat.index_select(-1, self.place.flatten()).reshape(len(e), rows, *self.place.shape)
            own = own.transpose(1, 2).expand(copies, -1, -1, -1)  # [A, F, B, K]
            numeric = torch.matmul(own, weight).transpose(1, 2)
        categorical = self.categorical(codes, active).reshape(copies, rows, self.count - self.numbers, self.width)
        tokens: Tensor = torch.cat((numeric.expand(copies, -1, -1, -1), categorical), 2) + bias[:, None]
        return tokens
