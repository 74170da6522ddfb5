"""PEPNet: gates adapt a shared network to the domain (EPNet, on the embeddings) and to the person (PPNet, in every task's tower).

Chang, Zhang, Zheng, Leng, Liu, Wang, Song, Gai, "PEPNet: Parameter and Embedding Personalized Network for Infusing with
Personalized Prior Information", KDD 2023 (arXiv 2302.01115). With sg the stop-gradient:

    GateNU(x)  = γ σ(ReLU(x W₁ + b₁) W₂ + b₂),   γ = 2                                          (equations 1 and 2)
    δ_domain   = GateNU([E(domain) ; sg(E)]),    E ← δ_domain ⊗ E                               (EPNet, equations 3 to 5)
    δ_t^l      = GateNU([E(prior) ; sg(E)])_t,   h_t^l = δ_t^l ⊗ f(h_t^{l−1} W_t^l + b_t^l)     (PPNet, equations 6 to 9)

so that gates read the embeddings without training them: domain and prior have tables of the gates' own. Differences: the public
code groups features in files; here `domain` names the domain's column and `prior` those of the person (user, item, author).
Without a domain there is no EPNet; without priors named, the categorical columns are the prior, or all columns where there are
none. W₂ and b₂ start at zero, so that every gate starts open (δ = 1) and the network as the plain one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.modeling import Features, MultiTaskModel, Outputs, Shared
from pluribus.modeling.experts import StackedLinear
from pluribus.sharing.stacked import Stacked, at_least, vectors, widths_of
from pluribus.tabular.flat import Flat
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns


class GateNU(nn.Module):
    """G gates over one hidden layer: x [B, in] → [A, B, out], each between 0 and 2, and 1 at the start."""

    def __init__(self, size: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = StackedLinear(size, hidden, outputs)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        return 2 * torch.sigmoid(self.second(F.relu(self.first(x)), active))


class _PPNet(Stacked):
    """A tower a task on `features.main`, every layer's units times a gate that reads `features.context["prior"]`.

    width, prior: of the embeddings and of the prior. hidden: units of the towers' layers. gate: hidden units of a gate.
    """

    def __init__(
        self, tasks: Sequence[Task], width: int, prior: int, *, hidden: int | Sequence[int] = (128, 64), gate: int = 64
    ) -> None:
        super().__init__(tasks)
        at_least(1, "pepnet", gate=gate)
        count, layers = len(self.index), widths_of(hidden, "pepnet", "hidden")
        self.gates = nn.ModuleList(GateNU(count, width + prior, gate, units) for units in layers)
        self.layers = nn.ModuleList(StackedLinear(count, a, b) for a, b in itertools.pairwise((width, *layers)))
        self.width = layers[-1]
        self.owned = {"layers": 1, **{f"gates.{i}.second": 1 for i in range(len(layers))}}

    def forward(self, features: Features, rows: Rows) -> Shared:
        vectors(features, "pepnet")
        return Shared(self.each(self._run, features, rows))

    def _run(self, features: Features, active: Tensor | None) -> Tensor:
        h = features.main
        seen = torch.cat((features.context["prior"], h.detach()), -1)
        for gate, layer in zip(self.gates, self.layers):
            h = gate(seen, active) * F.relu(layer(h, active))
        return h


class PEPNet(MultiTaskModel):
    """encoder: the shared embeddings E. domain, prior: tables of the gates' own (domain None: no EPNet)."""

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Flat,
        domain: Flat | None,
        prior: Flat,
        *,
        hidden: int | Sequence[int] = (128, 64),
        gate: int = 64,
    ) -> None:
        super().__init__(tasks, encoder, _PPNet(tasks, encoder.width, prior.width, hidden=hidden, gate=gate))
        self.domain, self.prior = domain, prior
        self.epnet = None if domain is None else GateNU(1, domain.width + encoder.width, gate, encoder.width)

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        domain: str | None = None,
        prior: Sequence[str] | None = None,
        hidden: int | Sequence[int] = (128, 64),
        gate: int = 64,
        **settings: Any,
    ) -> PEPNet:
        """The model for tables that `columns` encodes; settings: those of `Flat`."""
        if isinstance(prior, str):
            prior = [prior]
        if prior is None:
            prior = [one.name for one in columns.inputs if one.categorical] or [one.name for one in columns.inputs]
        own = None if domain is None else Flat.of(columns, only=[domain], **settings)
        return cls(tasks, Flat.of(columns, **settings), own, Flat.of(columns, only=prior, **settings), hidden=hidden, gate=gate)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows = self.requested(rows)
        e = self.encoder(inputs, context or {}).main
        if self.epnet is not None:
            e = e * self.epnet(torch.cat((cast(Flat, self.domain).run(inputs)[0], e.detach()), -1))[0]
        shared = self.share(Features(e, context={"prior": self.prior.run(inputs)[0]}), rows)
        return Outputs(self.heads(shared.tasks, rows), shared=(e,))
