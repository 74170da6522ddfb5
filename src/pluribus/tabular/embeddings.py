"""Embeddings of columns: numbers as piecewise-linear or periodic features, categories in one table.

Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022. For a number x:

- `Plain`: x itself (standardised by the preprocessing);
- `PiecewiseLinear`, equation 1: bins with edges b_0 < … < b_K at quantiles, e_k = (x − b_{k−1}) / (b_k − b_{k−1}), cut to 0
  below the bin and to 1 above it; outside the edges the first and the last bin go on;
- `PLR`, equation 2 with Linear and ReLU: v = [cos 2πcx, sin 2πcx], c_j ~ N(0, σ²), then ReLU(Linear(v)).

Where paper and public code (rtdl_num_embeddings) differ, or leave it open:

- beyond the edges the first and the last bin go on for one bin's width only (paper and code: without end), so that a row far
  outside the training range does not drown the others;
- the encoding feeds the first layer directly (the paper's "Q"); bins come from quantiles, not from a target tree;
- c is truncated at 3σ as in the code; `lite` shares the Linear between features, as in the code;
- a missing number contributes zeros, and an indicator column per feature says so (neither source treats missing values).

Every embedding can be one of E copies side by side (a bank of networks, each with its own frequencies and tables). Shapes:
x [E or 1, B, F] → [E or 1, B, width]; NaN is replaced before any arithmetic, so that it never reaches a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pluribus.errors import unknown
from pluribus.modeling.experts import StackedLinear

NumericEmbedding = Literal["plain", "piecewise_linear", "plr", "plr_lite"]
EMBEDDINGS: tuple[NumericEmbedding, ...] = ("plain", "piecewise_linear", "plr", "plr_lite")
MAX_ENCODED = 2048  # columns of the piecewise-linear encoding in all; with more features, each gets fewer bins


class Plain(nn.Module):
    """Each number as it is: width F."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.width = features

    @property
    def feature(self) -> Tensor:
        """[width] the feature that each column belongs to."""
        return torch.arange(self.width)

    def forward(self, x: Tensor, present: Tensor, active: Tensor | None = None) -> Tensor:
        return x


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding: width Σ (edges_f − 1).

    edges: per feature, ascending distinct numbers, at least two. bins: at most so many per feature; edges are thinned evenly.
    """

    def __init__(self, edges: Sequence[ArrayLike], bins: int = 16) -> None:
        super().__init__()
        bins = max(1, min(bins, MAX_ENCODED // max(1, len(edges))))
        feature, lower, size, least, most = [], [], [], [], []
        for i, given in enumerate(edges):
            kept = thinned(given, bins)
            count = len(kept) - 1
            feature += [i] * count
            lower += kept[:-1].tolist()
            size += np.diff(kept).tolist()
            least += [-1.0] + [0.0] * (count - 1)
            most += [1.0] * (count - 1) + [2.0]
        self.width = len(feature)
        self.register_buffer("feature", torch.tensor(feature, dtype=torch.int64))
        self.register_buffer("lower", torch.tensor(lower, dtype=torch.float32))
        self.register_buffer("slope", 1 / torch.tensor(size, dtype=torch.float32))
        self.register_buffer("least", torch.tensor(least, dtype=torch.float32))
        self.register_buffer("most", torch.tensor(most, dtype=torch.float32))

    feature: Tensor
    lower: Tensor
    slope: Tensor
    least: Tensor
    most: Tensor

    def forward(self, x: Tensor, present: Tensor, active: Tensor | None = None) -> Tensor:
        shape = (*x.shape[:-1], self.width)
        x, present = x.flatten(0, -2), present.flatten(0, -2)
        e = (x.index_select(1, self.feature) - self.lower) * self.slope
        e = torch.minimum(torch.maximum(e, self.least), self.most)
        return (e * present.index_select(1, self.feature)).reshape(shape)


class PLR(nn.Module):
    """Periodic features, Linear, ReLU: width F · `width_per_feature`.

    frequencies: count per feature (48). sigma: their spread (0.01), the hyper-parameter that matters; try 0.01 … 1.
    lite: one Linear for all features instead of one each. copies: E.
    """

    def __init__(
        self,
        features: int,
        *,
        frequencies: int = 48,
        sigma: float = 0.01,
        per_feature: int = 8,
        lite: bool = True,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.features, self.per_feature, self.lite = features, per_feature, lite
        self.width = features * per_feature
        c = torch.empty(copies, features, frequencies)
        self.c = nn.Parameter(nn.init.trunc_normal_(c, 0.0, sigma, -3 * sigma, 3 * sigma))
        self.linear = StackedLinear(copies * (1 if lite else features), 2 * frequencies, per_feature)

    @property
    def feature(self) -> Tensor:
        """[width] the feature that each column belongs to."""
        return torch.arange(self.features).repeat_interleave(self.per_feature)

    def forward(self, x: Tensor, present: Tensor, active: Tensor | None = None) -> Tensor:
        c = self.c if active is None else self.c[active]
        angle = 2 * math.pi * c[:, None] * x[..., None]  # [A, B, F, frequencies]
        v = torch.cat((angle.cos(), angle.sin()), -1)
        copies, rows = v.shape[:2]
        if self.lite:
            e = self.linear(v.flatten(1, 2), active)
            e = e.reshape(copies, rows, self.features, self.per_feature)
        else:
            which = None
            if active is not None:
                which = (active[:, None] * self.features + torch.arange(self.features, device=active.device)).reshape(-1)
            e = self.linear(v.transpose(1, 2).flatten(0, 1), which)
            e = e.reshape(copies, self.features, rows, self.per_feature).transpose(1, 2)
        return (F.relu(e) * present[..., None]).reshape(copies, rows, self.width)


def numbers(
    embedding: NumericEmbedding,
    edges: Sequence[ArrayLike],
    *,
    bins: int = 16,
    sigma: float = 0.1,
    per_feature: int = 8,
    copies: int = 1,
) -> Plain | PiecewiseLinear | PLR:
    """The embedding of that name for features with these quantile edges: the switch `embedding` of every encoder.

    bins: of "piecewise_linear". sigma, per_feature: of "plr" (a Linear for each feature) and "plr_lite" (one for all).
    """
    if embedding not in EMBEDDINGS:
        raise unknown("numeric embedding", embedding, EMBEDDINGS)
    if embedding == "plain":
        return Plain(len(edges))
    if embedding == "piecewise_linear":
        return PiecewiseLinear(edges, bins)
    return PLR(len(edges), sigma=sigma, per_feature=per_feature, lite=embedding == "plr_lite", copies=copies)


class Numeric(nn.Module):
    """Numbers → features: an embedding beside one missing indicator per feature."""

    def __init__(self, embedding: Plain | PiecewiseLinear | PLR, features: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.width = embedding.width + features

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """x [E or 1, B, F] with NaN where missing → [E or 1, B, width]."""
        missing = x.isnan()
        known = torch.where(missing, 0.0, x)
        e = self.embedding(known, (~missing).to(x.dtype), active)
        return torch.cat((e, missing.to(x.dtype).expand(len(e), -1, -1)), -1)


class Categorical(nn.Module):
    """All categorical columns in one table [E, Σ cardinalities, size], each column at its offset: width C · size.

    cardinalities: codes per column, the code for missing (0) and the code for unseen (1) included.
    """

    offsets: Tensor

    def __init__(self, cardinalities: Sequence[int], size: int = 8, copies: int = 1) -> None:
        super().__init__()
        self.size = size
        self.width = len(cardinalities) * size
        starts = np.concatenate(([0], np.cumsum(cardinalities)[:-1])) if len(cardinalities) else np.zeros(0)
        self.register_buffer("offsets", torch.tensor(starts, dtype=torch.int64))
        self.table = nn.Parameter(torch.empty(copies, int(sum(cardinalities)), size).uniform_(-1, 1) / math.sqrt(size))

    def forward(self, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """codes [E or 1, B, C] → [E, B, width]."""
        table = self.table if active is None else self.table[active]
        copies, rows = len(table), table.shape[1]
        place = codes.long() + self.offsets
        if copies > 1:
            place = place + (torch.arange(copies, device=place.device) * rows)[:, None, None]
        return F.embedding(place, table.reshape(copies * rows, self.size)).flatten(2)


def thinned(edges: ArrayLike, bins: int) -> NDArray[np.float64]:
    """At most `bins` + 1 of the distinct edges, evenly spaced among them, both ends kept; a constant gets one unit bin."""
    given = np.asarray(edges, dtype=np.float64)
    kept = np.unique(given[np.isfinite(given)])
    if len(kept) == 0:
        return np.array([0.0, 1.0])
    if len(kept) == 1:
        return np.array([kept[0], kept[0] + 1.0])
    places = np.linspace(0, len(kept) - 1, min(bins, len(kept) - 1) + 1).round().astype(int)
    return np.asarray(kept[np.unique(places)])
