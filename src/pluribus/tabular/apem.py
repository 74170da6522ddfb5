"""APEM: a transformer over groups of fields, and per task a choice of the fields that matter, for the steps of a funnel.

A reconstruction: of "Adaptive Pattern Extraction Multi-Task Learning for Multi-Step Conversion Estimations" (2023) only the
abstract and summaries were at hand, not the equations, and no public code; names and roles of the parts are the paper's, shapes
and formulas below are ours. Fields X [B, F, d] (one token a column), A [F, G] which field belongs to which group:

1. DeepAuto group transformer, linear in F: m learned inducing vectors I_g a group;
   H = MHA(Q = I, K = V = X),  Y = MHA(Q = X, K = V = H), a field and a group hearing each other as log A says;
   X' = LN(X + Y),  X'' = LN(X' + FFN(X')).
2. Squeeze and excitation: s = X'' v / √d ∈ R^F,  a = σ(W₂ ReLU(W₁ s)),  X‴ = X'' ⊙ a. (v is learnt: the usual mean over d
   says nothing here, it is 0 for every field after a layer norm.)
3. Pattern selector: u_t(x) = u_t + W_t mean_F(X‴),  r_tf = σ(⟨W_k X‴_f, u_t(x)⟩ / √d),  p_t = concat_f(r_tf X‴_f) → tower_t.
   r is soft; with `top_k` the k most relevant fields weigh 1 and the others 0, and the gradient passes straight through to r.
4. Steps over the entire exposure space: heads give P(step | step before), the objective is ESMM's on their products, which fall
   along the funnel by construction. With `calibrator` heads give P(whole way) instead, which AITM's calibrator holds falling.

A is learned (a softmax a field) where `groups` is a number, given where it maps a group's name to its columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.balancing import Balancer
from pluribus.data import Rows
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Choice, Encoder, Features, MultiTaskModel, Objective, Outputs, SearchSpace, Shared
from pluribus.modeling.experts import StackedLinear
from pluribus.modeling.funnels import ESMM, Calibrated, WholeWay
from pluribus.sharing.stacked import Stacked, Towers, at_least
from pluribus.tabular.attention import Attention, FeedForward, each_token
from pluribus.tabular.funnel_candidates import no_funnel
from pluribus.tabular.joint_networks import JointNetwork, balancer_of
from pluribus.tabular.network import size_of
from pluribus.tabular.settings import DEFAULTS
from pluribus.tabular.tokens import Tokens
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

Groups = int | Mapping[str, Sequence[str]]


class GroupLayer(nn.Module):
    """Step 1: X [B, F, d], log A [F, G] → X'' [B, F, d]."""

    def __init__(self, width: int, groups: int, inducing: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.inducing = nn.Parameter(torch.randn(groups * inducing, width) / math.sqrt(width))
        self.gather, self.scatter = Attention(width, heads), Attention(width, heads)
        self.feed_forward = FeedForward(width, 2 * width, dropout)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.each = dropout, inducing

    def forward(self, x: Tensor, membership: Tensor) -> Tensor:
        heard = membership.repeat_interleave(self.each, 1)  # [F, G m]
        asked = self.inducing.repeat(1, x.shape[0], 1, 1)
        h = self.gather(asked, mask=heard.T, memory=x[None])
        y = self.scatter(x[None], mask=heard, memory=h)[0]
        x = self.first(x + F.dropout(y, self.dropout, self.training))
        z: Tensor = self.second(x + F.dropout(self.feed_forward(x[None])[0], self.dropout, self.training))
        return z


class SqueezeExcitation(nn.Module):
    """Step 2: X'' [B, F, d] → X‴ [B, F, d]."""

    def __init__(self, fields: int, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Parameter(torch.randn(width))
        self.down = nn.Linear(fields, max(4, fields // reduction))
        self.up = nn.Linear(self.down.out_features, fields)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x @ self.squeeze / math.sqrt(x.shape[-1])))))[..., None]


class GroupTransformer(Encoder):
    """Columns → Features.main [B, F, width], fields mixed within their groups.

    tokens: columns → fields. assignment: group of each field [F] int64, or None: learned. groups: their number G.
    inducing: vectors a group, m. layers: of step 1, one squeeze and excitation after the last.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        assignment: Tensor | None = None,
        groups: int = 3,
        inducing: int = 4,
        heads: int = 2,
        layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        at_least(1, "apem", groups=groups, inducing=inducing, heads=heads, layers=layers)
        self.tokens, self.width, self.fields = tokens, tokens.width, tokens.count
        self.assignment: Tensor | None
        self.register_buffer("assignment", assignment)
        self.affinity = nn.Parameter(0.1 * torch.randn(self.fields, groups)) if assignment is None else None
        self.groups = groups
        self.layers = nn.ModuleList(GroupLayer(self.width, groups, inducing, heads, dropout) for _ in range(layers))
        self.excite = SqueezeExcitation(self.fields, self.width)

    @classmethod
    def of(
        cls,
        columns: FittedColumns,
        *,
        groups: Groups = 3,
        width: int = 16,
        embedding: Any = "piecewise_linear",
        bins: int = 8,
        sigma: float = 0.1,
        **settings: Any,
    ) -> GroupTransformer:
        """The encoder for tables that `columns` encodes. groups: how many to learn, or name → columns (the rest is one more)."""
        tokens = Tokens(columns.bin_edges, columns.cardinalities, width, embedding=embedding, bins=bins, sigma=sigma)
        if isinstance(groups, int):
            return cls(tokens, groups=groups, **settings)
        given = assigned(groups, columns)
        return cls(tokens, assignment=given, groups=int(given.max()) + 1, **settings)

    @property
    def membership(self) -> Tensor:
        """log A [F, G]."""
        if self.affinity is not None:
            return F.log_softmax(self.affinity, -1)
        assert self.assignment is not None
        one = F.one_hot(self.assignment, self.groups)
        return torch.where(one == 1, 0.0, -1e9).to(self.excite.up.bias.dtype)

    def forward(self, inputs: Mapping[str, Tensor], context: Mapping[str, Tensor]) -> Features:
        x = self.tokens(inputs["numeric"][None], inputs["categorical"][None])[0]
        membership = self.membership
        for layer in self.layers:
            x = layer(x, membership)
        return Features(self.excite(x), context=context)


def assigned(groups: Mapping[str, Sequence[str]], columns: FittedColumns) -> Tensor:
    """Group of every field, numbers first; columns that no group names form one more."""
    fields = [*columns.numeric_names, *columns.categorical_names]
    found: dict[str, int] = {}
    for i, (name, members) in enumerate(groups.items()):
        if not members:
            raise BadInput("names no column", where=f"groups, {name!r}", remedy="name some, or leave the group out")
        for member in members:
            if member not in fields:
                raise unknown("column", member, fields, where=f"groups, {name!r}")
            if member in found:
                raise BadInput(f"column {member!r} is in two groups", where=f"groups, {name!r}", remedy="leave one out")
            found[member] = i
    return torch.tensor([found.get(field, len(groups)) for field in fields])


class _PatternSelector(Stacked):
    """Step 3, [B, F, d] → per task what its tower makes of the fields it picks; `Shared.extra["relevance"]`: task → r [B, F].

    fields: F. width: d. tower: hidden units a task, 0 for none. top_k: fields kept, None: soft. adaptive: whether u_t hears the
    row. selector: False leaves it out, r ≡ 1.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        fields: int,
        width: int,
        *,
        tower: int = 32,
        top_k: int | None = None,
        adaptive: bool = True,
        selector: bool = True,
    ) -> None:
        super().__init__(tasks)
        at_least(0, "apem", tower=tower)
        at_least(1, "apem", **({} if top_k is None else {"top_k": top_k}))
        count = len(self.index)
        self.top_k = None if top_k is None or top_k >= fields else top_k
        self.u = nn.Parameter(torch.randn(count, width)) if selector else None
        self.key = StackedLinear(1, width, width) if selector else None
        self.adapt = StackedLinear(count, width, width) if selector and adaptive else None
        self.towers = Towers(count, fields * width, tower)
        self.width = self.towers.width
        self.owned = {"u": 1, "adapt": 1, "towers": 1}

    def relevance(self, x: Tensor, active: Tensor | None) -> Tensor:
        """r [A, B, F]"""
        if self.u is None or self.key is None:
            count = len(self.index) if active is None else len(active)
            return x.new_ones(count, *x.shape[:2])
        u = (self.u if active is None else self.u[active])[:, None]
        if self.adapt is not None:
            u = u + self.adapt(x.mean(1), active)
        keys = each_token(self.key, x[None], None)[0]
        logits = torch.einsum("bfd,abd->abf", keys, u.expand(-1, x.shape[0], -1))
        return torch.sigmoid(logits / math.sqrt(x.shape[-1]))

    def forward(self, features: Features, rows: Rows) -> Shared:
        x = features.main
        order, active = self.requested(rows, x.device)
        r = self.relevance(x, active)
        mask = r
        if self.top_k is not None:
            kept = torch.zeros_like(r).scatter(-1, r.topk(self.top_k, -1).indices, 1.0)
            mask = kept + r - r.detach()
        patterns = (mask[..., None] * x).flatten(2)
        found = self.towers(patterns, order, active, rows, features)
        relevance = {name: one if rows[name] is None else one[rows[name]] for name, one in zip(order, r.unbind())}
        return Shared(found, extra={"relevance": relevance})

    def reads(self, task: str) -> tuple[str, ...]:
        return tuple(name for name, part in self.named_children() if part is not None)


class APEM(WholeWay):
    """Encoder, selector and heads. whole: heads give P(whole way), else P(step | step before)."""

    def __init__(self, tasks: Sequence[Task], encoder: GroupTransformer, selector: _PatternSelector, *, whole: bool) -> None:
        super().__init__(tasks, encoder, selector)
        self.whole = whole

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        tower: int = 32,
        top_k: int | None = None,
        adaptive: bool = True,
        selector: bool = True,
        whole: bool = False,
        **settings: Any,
    ) -> APEM:
        """The model for tables that `columns` encodes; settings: those of `GroupTransformer.of`."""
        encoder = GroupTransformer.of(columns, **settings)
        chosen = _PatternSelector(
            tasks, encoder.fields, encoder.width, tower=tower, top_k=top_k, adaptive=adaptive, selector=selector
        )
        return cls(tasks, encoder, chosen, whole=whole)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        return (WholeWay if self.whole else MultiTaskModel).forward(self, inputs, rows, context)


class APEMNetwork(JointNetwork):
    """APEM. width: of a field. depth: group layers. groups: how many to learn, or name → columns. calibrator: None for heads of
    P(step | step before), or the weight of AITM's calibrator on heads of P(whole way)."""

    name = "apem"
    label = "APEM"
    encoder = "group_transformer"
    speed = 5e9  # small products
    defaults: ClassVar[Mapping[str, Any]] = {
        "width": 16,
        "depth": 1,
        "groups": 3,
        "inducing": 4,
        "heads": 2,
        "dropout": 0.1,
        "embedding": "piecewise_linear",
        "bins": 8,
        "sigma": 0.1,
        "tower": 32,
        "top_k": None,
        "adaptive": True,
        "selector": True,
        "calibrator": None,
        "balancer": "equal",
        **{name: DEFAULTS[name] for name in ("lr", "weight_decay", "batch_size", "epochs", "patience")},
    }
    space = SearchSpace(
        {
            "width": Choice((8, 16, 32)),
            "depth": Choice((1, 2)),
            "groups": Choice((1, 3, 5)),
            "inducing": Choice((2, 4, 8)),
            "tower": Choice((0, 32, 64)),
            "top_k": Choice((None, 4, 8)),
            "calibrator": Choice((None, 0.6)),
            "lr": Choice((5e-4, 1e-3, 2e-3, 4e-3)),
        }
    )

    def balancer(self, data: Prepared) -> Balancer:
        return balancer_of(self.settings, data)

    def unfit(self, data: Prepared) -> str | None:
        return super().unfit(data) or no_funnel(data.tasks)

    def config(self, data: Prepared) -> dict[str, Any]:
        kept = (
            "width",
            "groups",
            "inducing",
            "heads",
            "dropout",
            "embedding",
            "bins",
            "sigma",
            "tower",
            "top_k",
            "adaptive",
            "selector",
        )
        settings = {name: self.settings[name] for name in kept}
        settings |= {"layers": self.settings["depth"], "whole": self.settings["calibrator"] is not None}
        return {"architecture": {"name": "apem", "settings": settings}}

    def objective(self, data: Prepared) -> Objective:
        alpha = self.settings["calibrator"]
        return ESMM(data.tasks) if alpha is None else Calibrated(data.tasks, alpha=alpha)

    def size(self, data: Prepared) -> tuple[float, int]:
        return size_of(data.tasks, data.columns, self.config(data))
