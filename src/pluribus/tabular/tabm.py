"""TabM: k multilayer perceptrons that share their weights and differ by adapters, trained and asked together.

Gorishniy, Kotelnikov, Babenko, "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling", ICLR 2025
(arXiv 2410.24210), on BatchEnsemble (Wen, Tran, Ba, ICLR 2020, equation 5). Member i's layer, with W shared by all members:

    h_i ← ReLU( ((h_i ⊙ r_i) W) ⊙ s_i + b_i ),   then dropout

At the start the first r is random (signs ±1; normal where numbers are embedded), one value for all the columns of a feature, and
everything else is equal: r = s = 1, one b. So the members differ by how they see the features, and drift apart from there. Every
member has heads of its own, for every task (`members`): trained by the mean of their losses, averaged when predicting.

Where paper and public code (tabm) differ, or leave it open:

- categories have learnt embeddings, shared by the members, where the code has one-hot vectors; a missing number has an indicator;
- piecewise-linear encodings feed the first layer directly (see `embeddings`);
- all members learn from one batch, as the code does by default;
- heads begin at the best constant predictor.

The members lie side by side on one axis, one product a layer for all of them. (h ⊙ r) W ⊙ s + b is computed as written where
rows are few, and as h (r ⊙ W ⊙ s) + b, one weight a member, where they are many for the layer's width: the same numbers, with
fewer passes over the activations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pluribus.modeling import MultiTaskModel
from pluribus.modeling.experts import StackedLinear
from pluribus.sharing import SharedBottom
from pluribus.sharing.stacked import at_least
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.dropout import relu_dropout
from pluribus.tabular.embeddings import Categorical, Numeric, NumericEmbedding, numbers
from pluribus.tabular.members import MemberHeads
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class BatchEnsemble(nn.Module):
    """E times k linear maps: of each copy one weight [in, out], and for every member r [in], s [out] and a bias [out]."""

    def __init__(self, inputs: int, outputs: int, members: int, copies: int = 1) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs) if inputs else 0.0
        self.weight = nn.Parameter(torch.empty(copies, inputs, outputs).uniform_(-bound, bound))
        self.r = nn.Parameter(torch.ones(copies, members, inputs))
        self.s = nn.Parameter(torch.ones(copies, members, outputs))
        bias = torch.empty(copies, 1, outputs).uniform_(-bound, bound)
        self.bias = nn.Parameter(bias.repeat(1, members, 1))

    def forward(self, h: Tensor, active: Tensor | None = None) -> Tensor:
        """h [A, B, in] that all members read, or [A, k, B, in] → [A, k, B, out]."""
        weight, r, s, bias = (p if active is None else p[active] for p in (self.weight, self.r, self.s, self.bias))
        copies, members, outputs = s.shape
        inputs, rows, shared = weight.shape[1], h.shape[-2], h.ndim == 3
        many = not torch.compiler.is_compiling() and inputs * outputs * (1 if shared else 2) < rows * (inputs + outputs)
        if many and shared:  # the members' own weights cost less than the passes over their activations; one product for all
            each = weight[:, :, None] * (r.transpose(1, 2)[..., None] * s[:, None])
            y = torch.baddbmm(bias.reshape(copies, 1, -1), h.expand(copies, -1, -1), each.flatten(2))
            return y.reshape(copies, rows, members, outputs).transpose(1, 2)
        if many:
            each = weight[:, None] * (r[..., None] * s[:, :, None])
            y = torch.baddbmm(bias.flatten(0, 1)[:, None], h.flatten(0, 1), each.flatten(0, 1))
            return y.reshape(copies, members, rows, outputs)
        h = h[:, None] if shared else h
        seen = (h * r[:, :, None]).flatten(1, 2)
        y = torch.bmm(seen, weight).reshape(copies, members, rows, outputs)
        return torch.addcmul(bias[:, :, None], y, s[:, :, None])


class TabMEncoder(BankEncoder):
    """The members' perceptrons: Features.main [B, members, width].

    Parameters
    ----------
    edges, cardinalities: as for `TabularMLP`.
    width: hidden units. depth: layers, each Linear → ReLU → dropout. dropout: share of units dropped. members: k.
    embedding, bins, sigma, category_size: of the columns, as for `TabularMLP`. copies: E ensembles side by side.
    """

    def __init__(
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        *,
        width: int = 512,
        depth: int = 3,
        dropout: float = 0.1,
        members: int = 32,
        embedding: NumericEmbedding = "plain",
        bins: int = 8,
        sigma: float = 0.1,
        category_size: int = 8,
        copies: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, "tabm", width=width, depth=depth, members=members)
        features = len(edges)
        values = numbers(embedding, edges, bins=bins, sigma=sigma, copies=copies)
        self.width, self.dropout, self.copies, self.members = width, dropout, copies, members
        self.piece = 2**16 // members
        self.numeric = Numeric(values, features)
        self.categorical = Categorical(cardinalities, category_size, copies)
        widths = [self.numeric.width + self.categorical.width, *[width] * depth]
        self.layers = nn.ModuleList(BatchEnsemble(a, b, members, copies) for a, b in itertools.pairwise(widths))
        with torch.no_grad():
            r: Any = self.layers[0].r
            r.copy_(first_adapters(embedding, values.feature, features, len(cardinalities), category_size, members, copies))

    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        numeric, categorical = self.numeric(x, active), self.categorical(codes, active)
        h = torch.cat((numeric.expand(len(categorical), -1, -1), categorical), -1)
        for layer in self.layers:
            h = relu_dropout(layer(h, active), self.dropout, self.training)
        return h.transpose(1, 2)


class TabMMiniEncoder(BankEncoder):
    """TabM-mini (section 3.3 of the paper): the members differ by the first r alone, and all layers are shared.

        h_i ← x ⊙ r_i,   then h_i ← ReLU(h_i W + b), dropout, for each layer

    Parameters
    ----------
    edges, cardinalities
        As for `TabularMLP`.
    width : int
        Hidden units.
    depth : int
        Layers.
    dropout : float
        Share of units dropped.
    members : int
        k.
    embedding, bins, sigma, category_size
        Of the columns, as for `TabularMLP`.
    copies : int
        E ensembles side by side.
    """

    def __init__(
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.1,
        members: int = 8,
        embedding: NumericEmbedding = "piecewise_linear",
        bins: int = 16,
        sigma: float = 0.1,
        category_size: int = 8,
        copies: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, "tabm_mini", width=width, depth=depth, members=members)
        values = numbers(embedding, edges, bins=bins, sigma=sigma, copies=copies)
        self.width, self.dropout, self.copies, self.members = width, dropout, copies, members
        self.piece = 2**16 // members
        self.numeric = Numeric(values, len(edges))
        self.categorical = Categorical(cardinalities, category_size, copies)
        widths = [self.numeric.width + self.categorical.width, *[width] * depth]
        self.r = nn.Parameter(
            first_adapters(embedding, values.feature, len(edges), len(cardinalities), category_size, members, copies)
        )
        self.layers = nn.ModuleList(StackedLinear(copies, a, b) for a, b in itertools.pairwise(widths))

    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        numeric, categorical = self.numeric(x, active), self.categorical(codes, active)
        h = torch.cat((numeric.expand(len(categorical), -1, -1), categorical), -1)
        r = self.r if active is None else self.r[active]
        copies, members, _ = r.shape
        h = (h[:, None] * r[:, :, None]).flatten(1, 2)
        for layer in self.layers:
            h = relu_dropout(layer(h, active), self.dropout, self.training)
        return h.reshape(copies, members, -1, self.width).transpose(1, 2)


def first_adapters(
    embedding: NumericEmbedding, feature: Tensor, numeric: int, categorical: int, size: int, members: int, copies: int
) -> Tensor:
    """The first r [copies, members, columns]: one random value for all the columns of a feature, ±1, or normal where numbers are
    embedded. feature: of each column of the numbers' embedding; an indicator a number and `size` columns a category follow."""
    category = torch.arange(categorical).repeat_interleave(size)
    owner = torch.cat((feature.cpu(), torch.arange(numeric), numeric + category))  # of each flat column
    first = torch.randn(copies, members, numeric + categorical)
    first = torch.where(first < 0, -1.0, 1.0) if embedding == "plain" else first
    return first[..., owner]


class TabM(MultiTaskModel):
    """One ensemble for all tasks: the members' perceptrons are shared, every task has k heads on them."""

    def __init__(self, tasks: Sequence[Task], encoder: TabMEncoder | TabMMiniEncoder) -> None:
        heads = MemberHeads(tasks, encoder.width, encoder.members or 1)
        super().__init__(tasks, encoder, SharedBottom(tasks, encoder.width), heads)

    @classmethod
    def of(cls, tasks: Sequence[Task], columns: FittedColumns, **settings: Any) -> TabM:
        """The model for tables that `columns` encodes; settings: those of `TabMEncoder`."""
        return cls(tasks, TabMEncoder.of(columns, **settings))


class TabMMini(TabM):
    """`TabM` on the encoder whose members share all layers."""

    @classmethod
    def of(cls, tasks: Sequence[Task], columns: FittedColumns, **settings: Any) -> TabMMini:
        """The model for tables that `columns` encodes; settings: those of `TabMMiniEncoder`."""
        return cls(tasks, TabMMiniEncoder.of(columns, **settings))
