"""The columns' embeddings side by side, and nothing on them: x₀ ∈ R^{B×D} of the recommendation papers, for architectures woven
from the input on (STAR, PEPNet, cross-stitch). With `copies` each network has its own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.modeling import Encoder, Features
from pluribus.tabular.embeddings import Categorical, Numeric, NumericEmbedding, numbers

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns
    from pluribus.data.inputs import FittedInput


class Flat(Encoder):
    """Inputs {"numeric": [B, F] float, "categorical": [B, C] int} → Features.main [B, D], row by row.

    edges: quantile edges of each numeric column. cardinalities: codes of each categorical one. embedding, bins, sigma: of the
    numbers. category_size: width of a category's embedding. copies: E sets of tables side by side.
    numeric, categorical: which of the columns it reads, by place (None: all).
    """

    def __init__(
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        *,
        embedding: NumericEmbedding = "piecewise_linear",
        bins: int = 8,
        sigma: float = 0.1,
        category_size: int = 8,
        copies: int = 1,
        numeric: Sequence[int] | None = None,
        categorical: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.columns = numeric, categorical
        edges = edges if numeric is None else [edges[i] for i in numeric]
        cardinalities = cardinalities if categorical is None else [cardinalities[i] for i in categorical]
        self.numeric = Numeric(numbers(embedding, edges, bins=bins, sigma=sigma, copies=copies), len(edges))
        self.categorical = Categorical(cardinalities, category_size, copies)
        self.copies, self.width = copies, self.numeric.width + self.categorical.width

    @classmethod
    def of(cls, columns: FittedColumns, *, only: Sequence[str] | None = None, **settings: Any) -> Flat:
        """The encoder for tables that `columns` encodes; `only`: of these input columns."""
        if only is None:
            return cls(columns.bin_edges, columns.cardinalities, **settings)
        inputs: dict[str, FittedInput | None] = {one.name: one for one in columns.inputs}
        inputs |= {name: None for name in columns.categorical_names if name not in inputs}  # the long layout's task
        numeric: list[int] = []
        categorical: list[int] = []
        for name in only:
            if name not in inputs:
                raise unknown("input column", name, inputs)
            one = inputs[name]
            numeric += [columns.numeric_names.index(n) for n in (one.numeric if one else ())]
            categorical += [columns.categorical_names.index(n) for n in (one.categorical if one else (name,))]
        if not numeric and not categorical:
            raise BadInput(f"no feature comes from the columns {', '.join(only)}", where="the columns of a gate")
        return cls(columns.bin_edges, columns.cardinalities, numeric=numeric, categorical=categorical, **settings)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """x₀ of every copy [E, B, D]."""
        numeric, categorical = self.columns
        x, codes = inputs["numeric"], inputs["categorical"]
        x = (x if numeric is None else x[:, numeric])[None]
        codes = (codes if categorical is None else codes[:, categorical])[None]
        values, words = self.numeric(x), self.categorical(codes)
        return torch.cat((values.expand(len(words), -1, -1), words), -1)

    def forward(self, inputs: Mapping[str, Tensor], context: Mapping[str, Tensor]) -> Features:
        return Features(self.run(inputs)[0], context=context)
