"""MMoE: every task mixes the same experts with a gate of its own.

Ma, Zhao, Yi, Chen, Hong, Chi, "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018:

    e_j = Expert_j(x),   g_t = softmax(W_t x) ∈ R^E   (5),   h_t = Σ_j g_tj e_j   (6),   y_t = tower_t(h_t)   (7)

Where public code differs, we follow the paper: gates have no bias and no batch norm (torch-rechub's gates pass one). Ours:
`top_k` leaves a row only its k best experts, and the others then really do not run for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pluribus.data import Rows
from pluribus.errors import BadInput
from pluribus.modeling import Features, Shared
from pluribus.sharing.stacked import Experts, Gates, Level, Stacked, Towers, at_least, mix, towered, vectors, widths_of
from pluribus.tasks import Task


class MMoE(Stacked):
    """tasks: in order. width: of the incoming features. experts: E. expert: units of an expert's layer, or of its layers. tower:
    hidden units a task, 0 for none. norm: batch norms in the experts. top_k: experts a row and task keeps (None: all).
    gate_dropout: see `Gates`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        width: int,
        *,
        experts: int = 8,
        expert: int | Sequence[int] = 64,
        tower: int = 32,
        norm: bool = False,
        top_k: int | None = None,
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__(tasks)
        at_least(1, "mmoe", experts=experts)
        layers = widths_of(expert, "mmoe")
        at_least(0, "mmoe", tower=tower)
        if top_k is not None:
            at_least(1, "mmoe", top_k=top_k)
        if top_k is not None and top_k > experts:
            raise BadInput(f"top_k must lie between 1 and experts = {experts}, not {top_k}", where="mmoe")
        self.experts = Experts(experts, (width, *layers), norm=norm)
        self.gates = Gates(len(self.index), width, experts, top_k=top_k, dropout=gate_dropout)
        self.towers = Towers(len(self.index), layers[-1], tower)
        self.width = self.towers.width
        self.owned = {"gates": 1, "towers": 1}

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = vectors(features, "mmoe")
        if self.everything(rows):
            level, towers = self.kept
            return self.handed(towered(level(x), *towers), features)
        order, active = self.requested(rows, x.device)
        weights = self.gates(x, active)
        dense = self.gates.top_k is None
        hidden = mix(weights, self.experts(x)) if dense else mix_sparse(self.experts, x, weights)
        extra = {"gates": dict(zip(order, weights)), "shared": slice(None)}
        return Shared(self.towers(hidden, order, active, rows, features), extra=extra)

    def joined(self) -> tuple[Level, tuple[Tensor, ...]] | None:
        if self.gates.top_k is not None or self.normed:
            return None
        return Level.of([self.experts], (self.gates.weight, None)), self.towers.joined()


def mix_sparse(experts: Experts, x: Tensor, weights: Tensor) -> Tensor:
    """`mix(weights, experts(x))` where an expert runs only on the rows that some gate gives it weight: [A, B, d]."""
    used = (weights > 0).any(0)  # [B, E]
    running = used.any(0).nonzero()[:, 0]
    if len(x) * len(running) <= 2 * int(used.sum()):  # the rows agree, or nearly so: these experts on all rows
        return mix(weights[..., running], experts(x, running))
    hidden = x.new_zeros(len(weights), len(x), experts.widths[-1])
    for e in running.tolist():  # as many calls as experts in use: their row sets differ in size
        places = used[:, e].nonzero()[:, 0]
        hidden = hidden.index_add(1, places, weights[:, places, e, None] * experts.alone(e, x[places]))
    return hidden
