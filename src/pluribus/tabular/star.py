"""STAR on tables: the star topology from the columns' embeddings on (see `pluribus.sharing.star`), every task a domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pluribus.modeling import MultiTaskModel
from pluribus.sharing.star import Star
from pluribus.tabular.flat import Flat
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class STAR(MultiTaskModel):
    """encoder: the columns' embeddings. sharing: the star."""

    @classmethod
    def of(
        cls, tasks: Sequence[Task], columns: FittedColumns, *, hidden: int | Sequence[int] = (128, 64), auxiliary: int = 16,
        **settings: Any,
    ) -> STAR:  # fmt: skip
        """The model for tables that `columns` encodes; settings: those of `Flat`."""
        encoder = Flat.of(columns, **settings)
        return cls(tasks, encoder, Star(tasks, encoder.width, hidden=hidden, auxiliary=auxiliary))
