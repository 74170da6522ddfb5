"""STAR on tables: the star topology from the columns' embeddings on (see `pluribus.sharing.star`). Every task is a domain, or a
column says which domain a row belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pluribus.data import Rows
from pluribus.errors import BadInput, unknown
from pluribus.modeling import MultiTaskModel, Outputs
from pluribus.sharing.star import DomainStar, Star
from pluribus.tabular.flat import Flat
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class STAR(MultiTaskModel):
    """encoder: the columns' embeddings. sharing: the star. place: of the domain's column among the categorical features (None:
    every task is a domain)."""

    def __init__(self, tasks: Sequence[Task], encoder: Flat, sharing: Star, place: int | None = None) -> None:
        super().__init__(tasks, encoder, sharing)
        self.place = place

    @classmethod
    def of(
        cls, tasks: Sequence[Task], columns: FittedColumns, *, domain: str | None = None,
        hidden: int | Sequence[int] = (128, 64), auxiliary: int = 16, **settings: Any,
    ) -> STAR:  # fmt: skip
        """The model for tables that `columns` encodes. domain: the categorical column whose categories are the domains; rows
        where it is empty are a domain too, and so are its rare categories together. settings: those of `Flat`."""
        encoder = Flat.of(columns, **settings)
        if domain is None:
            return cls(tasks, encoder, Star(tasks, encoder.width, hidden=hidden, auxiliary=auxiliary))
        if domain not in columns.categorical_names:
            if any(one.name == domain for one in columns.inputs):
                raise BadInput(f"column {domain!r} holds no categories", where="star, domain", remedy="name one that does")
            raise unknown("column of categories", domain, columns.categorical_names, where="star, domain")
        place = columns.categorical_names.index(domain)
        count = columns.cardinalities[place]
        return cls(tasks, encoder, DomainStar(tasks, encoder.width, count, hidden=hidden, auxiliary=auxiliary), place)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        if self.place is not None:
            context = {**(context or {}), "domain": inputs["categorical"][:, self.place].long()}
        return super().forward(inputs, rows, context)
