"""STAR on tables: the star topology from the columns' embeddings on (see `pluribus.sharing.star`). Every task is a domain, or a
column says which domain a row belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data import Rows
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Features, MultiTaskModel, Outputs, Shared
from pluribus.sharing.stacked import at_least, vectors
from pluribus.sharing.star import Star
from pluribus.tabular.flat import Flat
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class _DomainStar(Star):
    """A star whose domains are parts of the rows: `features.context["domain"]` (int64 [B], 0 … domains − 1) names each row's.

    domains: how many. One that no training batch held (not `known`) is answered from the centre. All tasks read one feature."""

    known: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self, tasks: Sequence[Task], width: int, domains: int, *, hidden: int | Sequence[int] = (128, 64), auxiliary: int = 16
    ) -> None:
        at_least(1, "star", domains=domains)
        super().__init__(tasks, width, hidden=hidden, auxiliary=auxiliary, domains=domains)
        self.owned = {}
        self.register_buffer("known", torch.zeros(domains, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, features: Features, rows: Rows) -> Shared:
        x, domain = vectors(features, "star"), features.context["domain"]
        if self.training:
            self._look(x, domain)
        run = self._everywhere if torch.compiler.is_exporting() else self._by_domain
        found = Features(run(x, torch.where(self.known[domain], domain, len(self.known))), context=features.context)
        return Shared(dict.fromkeys([name for name in self.index if name in rows], found))

    @torch.no_grad()
    def _look(self, x: Tensor, domain: Tensor) -> None:
        """Which domains there are, and the moments of all rows."""
        self.known[domain] = True
        if len(x) > 1:
            self.mean.lerp_(x.mean(0), self.norm.momentum)
            self.variance.lerp_(x.var(0), self.norm.momentum)

    def _by_domain(self, x: Tensor, domain: Tensor) -> Tensor:
        """Rows [B, d] with their domains, unknown ones numbered behind the last → [B, width], every domain's rows together."""
        order = domain.argsort(stable=True)
        counts = domain.bincount(minlength=len(self.known) + 1).tolist()
        parts = []
        for p, part in enumerate(torch.split(x[order], counts)):
            if p == len(self.known):
                parts.append(self._centre(part))
            elif len(part):
                parts.append(self._run(Features(part), torch.tensor([p], device=x.device))[0])
        return torch.cat(parts)[order.argsort()]

    def _everywhere(self, x: Tensor, domain: Tensor) -> Tensor:
        """The same in an exported graph, which has no loop over what is there: all domains on all rows, then each row's own."""
        each = torch.cat((self._run(Features(x), None), self._centre(x)[None]))
        return each.gather(0, domain[None, :, None].expand(1, -1, self.width))[0]

    def _centre(self, x: Tensor) -> Tensor:
        """What every domain starts as."""
        h = self.norm.centre(x, self.mean, self.variance)
        for layer in self.layers:
            h = F.relu(torch.addmm(layer.centre.bias[0], h, layer.centre.weight[0]))  # type: ignore[union-attr, index]
        return h if self.auxiliary is None else torch.cat((h, F.relu(self.auxiliary(x))), -1)


class STAR(MultiTaskModel):
    """encoder: the columns' embeddings. sharing: the star. place: of the domain's column among the categorical features (None:
    every task is a domain)."""

    def __init__(self, tasks: Sequence[Task], encoder: Flat, sharing: Star, place: int | None = None) -> None:
        super().__init__(tasks, encoder, sharing)
        self.place = place

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        domain: str | None = None,
        hidden: int | Sequence[int] = (128, 64),
        auxiliary: int = 16,
        **settings: Any,
    ) -> STAR:
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
        return cls(tasks, encoder, _DomainStar(tasks, encoder.width, count, hidden=hidden, auxiliary=auxiliary), place)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        if self.place is not None:
            context = {**(context or {}), "domain": inputs["categorical"][:, self.place].long()}
        return super().forward(inputs, rows, context)
