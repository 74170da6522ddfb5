"""DTRN: every task makes its own bottom representation, from behaviour sequences and from the fields of a row.

A reconstruction: of Liu, Zhou, Jiang, Ge, Lian, "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation"
(CIKM 2023) the abstract and summaries were at hand, not the equations, and no public code; the modules and their roles are the
paper's, the parametrisation is ours. Behaviours b = 1 … N (columns of sequences of items: clicked, bought, …), target item e:

1. Task-specific interest: a transformer block that all pairs share, but for its two layer norms, which a small hypernetwork sets,
   (γ_tb, β_tb) = MLP([q_t ; q_b]),  LN_tb(z) = γ_tb ⊙ (z − μ)/σ + β_tb: a pair costs no weights of its own. The hypernetwork's
   last layer starts at zero and gives (1, 0), so that all pairs start equal. i_tb = Σ_l w_l h_l with DIN's weights
   w = MLP([e, h, e ⊙ h, e − h]), not normalised, so that how much was done counts; an empty sequence has a learnt vector.
   The T · N pairs run on one stacked axis. Positions count from the latest element, so that padding says nothing.
2. x_t⁰ = [fields ; e ; i_t1 … i_tN] as F' fields; refined by a squeeze and excitation a task:
   a_t = 2σ(W₂ₜ ReLU(W₁ₜ [mean_d(x_t⁰) ; q_t])),  x_t = a_t ⊙ x_t⁰; W₂ₜ starts at zero: a ≡ 1, the identity.
3. Any sharing architecture of the catalog reads x_t in place of x (`sharing`).

Items are known by an embedding of their own; one that no training row mentions shares that of "unseen". Without a column of
sequences only step 2 is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus import catalog
from pluribus.balancing import Balancer
from pluribus.data import Rows
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Choice, Encoder, Features, Heads, MultiTaskModel, Outputs, SearchSpace, Sharing
from pluribus.modeling.experts import Bank, StackedLinear
from pluribus.modeling.model import Slices
from pluribus.sharing.stacked import at_least
from pluribus.tabular.attention import Attention, FeedForward
from pluribus.tabular.joint_networks import JointNetwork, balancer_of, tower_of
from pluribus.tabular.network import size_of
from pluribus.tabular.settings import DEFAULTS
from pluribus.tabular.tokens import Tokens
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

FIRST = 2  # 0 missing, 1 unseen, then the items
OVERLAP = 0.5  # share of a column's words that sequences hold, from which on it is taken for the target item


def sequences_of_items(columns: FittedColumns) -> list[str]:
    """Input columns that are lists of items or words (not numbers, and not one item a row)."""
    return [name for name in columns.lists if not columns.sequences[name].numeric]


def target_of(columns: FittedColumns, behaviours: Sequence[str]) -> str | None:
    """The column of the target item: one item a row, joined to the table that the sequences are joined to; else the column of
    words most of whose words (at least half) stand in the sequences. None where there is no such column."""
    tables = {columns.sequences[name].items for name in behaviours}
    single = [name for name in columns.keys if columns.sequences[name].items in tables]
    if single:
        return single[0]
    held = {word for name in behaviours if (found := columns.sequences[name].category) for word in found.categories}
    shares = {
        name: sum(word in held for word in each.categories) / max(1, len(each.categories))
        for name, each in columns.categories.items()
    }
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= OVERLAP else None


class Items(nn.Module):
    """One embedding of all items, whatever column they stand in: codes of each column → vectors of `width`."""

    def __init__(self, columns: FittedColumns, target: str, behaviours: Sequence[str], width: int) -> None:
        super().__init__()
        self.target, self.behaviours, self.width = target, tuple(behaviours), width
        tables = {columns.sequences[name].items for name in behaviours}
        self.single = target in columns.sequences  # one item a row, as a list of one
        if self.single:
            tables.add(columns.sequences[target].items)
        if len(tables) > 1 or (not self.single and tables != {None}):
            remedy = "join all of them to one item table, or none"
            raise BadInput("sequences and target item do not share their items", where="dtrn", remedy=remedy)
        table = tables.pop()
        if table is not None:
            seen = torch.from_numpy(columns.items[table].seen)
            places = torch.where(seen, FIRST - 1 + seen.cumsum(0), 1)
            code = torch.cat((torch.arange(FIRST), places))
            maps, size = dict.fromkeys((target, *behaviours), code), FIRST + int(seen.sum())
        else:
            words: dict[str, int] = {}
            maps = {}
            for name in (target, *behaviours):
                held = columns.categories[name] if name == target else columns.sequences[name].category
                assert held is not None
                codes = [words.setdefault(word, FIRST + len(words)) for word in held.categories]
                maps[name] = torch.tensor([0, 1, *codes])
            size = FIRST + len(words)
        for name, code in maps.items():  # the catalogue may grow once the model is fitted: no part of its state
            self.register_buffer(f"code_{(target, *behaviours).index(name)}", code, persistent=False)
        self.column = -1 if self.single else columns.categorical_names.index(target)
        self.table = nn.Parameter(0.1 * torch.randn(size, width))

    def code(self, i: int) -> Tensor:
        return cast(Tensor, getattr(self, f"code_{i}"))

    def one(self, inputs: Mapping[str, Any]) -> Tensor:
        """The target item e [B, d]."""
        codes = inputs[self.target]["values"][:, 0] if self.single else inputs["categorical"][:, self.column]
        return F.embedding(self.code(0)[codes.long()], self.table)

    def lists(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The behaviours' items [N, B, L, d] and where there are any [N, B, L]; L is the longest of all."""
        each = [inputs[name] for name in self.behaviours]
        longest = max(one["mask"].shape[1] for one in each)
        codes = torch.stack(
            [F.pad(self.code(1 + i)[one["values"].long()], (0, longest - one["values"].shape[1])) for i, one in enumerate(each)]
        )
        mask = torch.stack([F.pad(one["mask"], (0, longest - one["mask"].shape[1])) for one in each])
        return F.embedding(codes, self.table), mask


class Interest(nn.Module):
    """Step 1: interests [T, B, N, d] of the tasks asked for. hyper: False gives all tasks the plain shared extractor."""

    def __init__(
        self,
        behaviours: int,
        width: int,
        *,
        longest: int,
        layers: int = 1,
        heads: int = 2,
        dropout: float = 0.1,
        hyper: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.place = nn.Parameter(0.1 * torch.randn(longest, width))  # from the latest element backwards
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.feed_forward = nn.ModuleList(FeedForward(width, 2 * width, dropout) for _ in range(layers))
        self.dropout = dropout
        self.plain = nn.Parameter(torch.stack((torch.ones(2 * layers, width), torch.zeros(2 * layers, width))))
        self.kind = nn.Parameter(torch.randn(behaviours, width)) if hyper else None  # q_b
        self.hyper: nn.Sequential | None = None
        if hyper:
            last = nn.Linear(width, self.plain.numel())
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.hyper = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), last)
        self.score = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.empty = nn.Parameter(0.1 * torch.randn(behaviours, width))

    def norms(self, q: Tensor) -> Tensor:
        """γ and β of every norm: [2, 2 · layers, T, N, d] for task vectors q [T, d]; T = 1 without a hypernetwork."""
        plain = self.plain[:, :, None, None]
        if self.hyper is None or self.kind is None:
            return plain.expand(-1, -1, 1, len(self.empty), -1)
        pairs = torch.cat((q[:, None].expand(-1, len(self.kind), -1), self.kind.expand(len(q), -1, -1)), -1)
        change: Tensor = self.hyper(pairs)
        return plain + change.reshape(*change.shape[:2], 2, 2 * self.layers, self.width).movedim((2, 3), (0, 1))

    def forward(self, e: Tensor, s: Tensor, mask: Tensor, q: Tensor) -> Tensor:
        """e [B, d], s [N, B, L, d], mask [N, B, L], q [T, d]."""
        longest, d = s.shape[2:]
        norms = self.norms(q)
        tasks = norms.shape[2]
        back = (mask.sum(-1, keepdim=True) - 1 - torch.arange(longest, device=s.device)).clamp_min(0)
        h = (s + F.embedding(back, self.place)).expand(tasks, -1, -1, -1, -1)
        any_ = mask.any(-1)
        readable = mask.clone()
        readable[..., 0] |= ~any_  # softmax needs something; what comes of it is replaced below
        keys = readable.expand(tasks, -1, -1, -1).reshape(-1, 1, 1, longest)
        for i in range(self.layers):
            z = self._norm(h, norms[:, 2 * i])
            read = self.attention[i](z.reshape(1, -1, longest, d), mask=keys).reshape(h.shape)
            h = h + F.dropout(read, self.dropout, self.training)
            z = self._norm(h, norms[:, 2 * i + 1])
            h = h + self.feed_forward[i](z.reshape(1, -1, longest, d)).reshape(h.shape)
        at = e[:, None].expand_as(h)
        scores = self.score(torch.cat((at, h, at * h, at - h), -1))[..., 0]
        interest = torch.einsum("tnbl,tnbld->tbnd", scores.masked_fill(~readable, 0.0), h)
        found = torch.where(any_.T[None, :, :, None], interest, self.empty)
        return found.expand(len(q), -1, -1, -1)

    def _norm(self, h: Tensor, norm: Tensor) -> Tensor:
        gamma, beta = norm[:, :, :, None, None]  # [T, N, 1, 1, d]
        return torch.addcmul(beta, gamma, F.layer_norm(h, h.shape[-1:]))


class Refinement(nn.Module):
    """Step 2: x⁰ [A, B, F', d] → x [A, B, F', d] for the active of T tasks."""

    def __init__(self, tasks: int, fields: int, width: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(4, fields // reduction)
        self.bank = Bank(tasks, (fields + width, hidden, fields))
        last = cast(StackedLinear, self.bank.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, q: Tensor, active: Tensor | None) -> Tensor:
        squeezed = torch.cat((x.mean(-1), q[:, None].expand(-1, x.shape[1], -1)), -1)
        return x * (2 * torch.sigmoid(self.bank(squeezed, active)))[..., None]


class _TokenEncoder(Encoder):
    """The part that all tasks share: columns → tokens, the target item and the behaviours' items. `Features.main`: the tokens and
    the target item [B, F, d]; levels: the behaviours' items [B, N, L, d] where there are any, mask [B, N, L]."""

    def __init__(self, tokens: Tokens, items: Items | None, kept: Sequence[int]) -> None:
        super().__init__()
        self.tokens, self.items, self.width = tokens, items, tokens.width
        self.count = tokens.count + (items is not None)
        self.kept: Tensor
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.int64), persistent=False)

    def forward(self, inputs: Mapping[str, Any], context: Mapping[str, Tensor]) -> Features:
        codes = inputs["categorical"].index_select(1, self.kept)
        x = self.tokens(inputs["numeric"][None], codes[None])[0]
        if self.items is None:
            return Features(x, context=context)
        e = self.items.one(inputs)
        s, mask = self.items.lists(inputs)
        return Features(torch.cat((x, e[:, None]), 1), (s.transpose(0, 1),), mask.transpose(0, 1), context)


class DTRN(MultiTaskModel):
    """fields: the shared part. interest: step 1, None without behaviours. refinement: step 2 or None. sharing: on x_t."""

    def __init__(
        self,
        tasks: Sequence[Task],
        fields: _TokenEncoder,
        interest: Interest | None,
        refinement: Refinement | None,
        sharing: Sharing,
    ) -> None:
        super().__init__(tasks, fields, sharing, Heads(tasks, sharing.width))
        self.interest, self.refinement = interest, refinement
        self.reads_sequences = interest is not None
        self.index = {task.name: i for i, task in enumerate(tasks)}
        self.q = nn.Parameter(torch.randn(len(tasks), fields.width))

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        columns: FittedColumns,
        *,
        width: int = 16,
        depth: int = 1,
        heads: int = 2,
        dropout: float = 0.1,
        embedding: Any = "piecewise_linear",
        bins: int = 8,
        sigma: float = 0.1,
        target: str | None = None,
        behaviours: Sequence[str] | None = None,
        hyper: bool = True,
        refine: bool = True,
        sharing: str = "ple",
        tower: int = 32,
    ) -> DTRN:
        """The model for tables that `columns` encodes.

        target: column of the target item (default: found, see `target_of`). behaviours: columns of sequences (default: all).
        hyper, refine: steps 1 and 2, or the plain shared extractor and x_t⁰ as it is. sharing: a name of the catalog.
        """
        at_least(1, "dtrn", width=width, depth=depth)
        found = sequences_of_items(columns)
        for name in behaviours or ():
            if name not in found:
                raise unknown("column of sequences", name, found, where="dtrn, behaviours")
        chosen = found if behaviours is None else list(behaviours)
        items, dropped = None, ""
        if chosen:
            dropped = _target(columns, chosen, target)
            items = Items(columns, dropped, chosen, width)
        names = columns.categorical_names
        kept = [i for i, name in enumerate(names) if name != dropped]
        cardinalities = [columns.cardinalities[i] for i in kept]
        tokens = Tokens(columns.bin_edges, cardinalities, width, embedding=embedding, bins=bins, sigma=sigma)
        fields = _TokenEncoder(tokens, items, kept)
        count = fields.count + len(chosen)
        longest = max((columns.sequences[name].limit for name in chosen), default=1)
        interest = None
        if chosen:
            interest = Interest(len(chosen), width, longest=longest, layers=depth, heads=heads, dropout=dropout, hyper=hyper)
        refinement = Refinement(len(tasks), count, width) if refine else None
        made = catalog.get("sharing", sharing).resolve()(tasks, count * width, **tower_of(sharing, tower))
        return cls(tasks, fields, interest, refinement, made)

    def bottoms(self, features: Features, order: Sequence[str]) -> Tensor:
        """x_t [A, B, F', d] of these tasks, in the tasks' order."""
        places = [self.index[name] for name in order]
        active = None if len(places) == len(self.index) else torch.tensor(places, device=self.q.device)
        q = self.q if active is None else self.q[active]
        x = features.main.expand(len(order), -1, -1, -1)
        if self.interest is not None and features.mask is not None:
            s, mask = features.levels[0].transpose(0, 1), features.mask.transpose(0, 1)
            x = torch.cat((x, self.interest(features.main[:, -1], s, mask, q)), 2)
        return x if self.refinement is None else self.refinement(x, q, active)

    def forward(self, inputs: Any, rows: Rows | None = None, context: Mapping[str, Tensor] | None = None) -> Outputs:
        rows = self.requested(rows)
        features = self.encoder(inputs, context or {})
        order = [name for name in self.index if name in rows]
        high: dict[str, Features] = {}
        penalties: dict[str, Tensor] = {}
        extra: dict[str, Any] = {}
        bottoms = self.bottoms(features, order).flatten(2).unbind() if order else ()
        for name, x in zip(order, bottoms):  # each reads its own bottom
            shared = self.sharing(Features(x, context=features.context), {name: rows[name]})
            high |= shared.tasks
            penalties |= {f"{key} of {name}": value for key, value in shared.penalties.items()}
            extra |= {name: shared.extra} if shared.extra else {}
        outputs = self.heads(high, rows)
        return Outputs(outputs, shared=(features.main, *features.levels), penalties=penalties, extra=extra)

    def shared_parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *(self.interest.parameters() if self.interest is not None else ())]

    def parameters_of(self, task: str) -> Slices:
        found = super().parameters_of(task)
        here = slice(self.index[task], self.index[task] + 1)
        found.append((self.q, here))
        return found + [(p, here) for p in (self.refinement.parameters() if self.refinement is not None else ())]


def _target(columns: FittedColumns, behaviours: Sequence[str], target: str | None) -> str:
    known = [*columns.categories, *columns.keys]
    if target is not None and target not in known:
        raise unknown("column", target, known, where="dtrn, target")
    found = target or target_of(columns, behaviours)
    if found is None:
        remedy = "name it: target=COLUMN, or join it and the sequences to one item table"
        raise BadInput("no column holds the target item of the sequences", where="dtrn", remedy=remedy)
    return found


class DTRNNetwork(JointNetwork):
    """DTRN. width: of a field and an item. depth: transformer blocks. sharing: what reads the tasks' bottoms."""

    name = "dtrn"
    label = "DTRN"
    encoder = "behaviours"
    speed = 5e9  # small products
    defaults: ClassVar[Mapping[str, Any]] = {
        "width": 16,
        "depth": 1,
        "heads": 2,
        "dropout": 0.1,
        "embedding": "piecewise_linear",
        "bins": 8,
        "sigma": 0.1,
        "target": None,
        "behaviours": None,
        "hyper": True,
        "refine": True,
        "sharing": "ple",
        "tower": 32,
        "balancer": "equal",
        **{name: DEFAULTS[name] for name in ("lr", "weight_decay", "batch_size", "epochs", "patience")},
    }
    space = SearchSpace(
        {
            "width": Choice((8, 16, 32)),
            "dropout": Choice((0.0, 0.1, 0.3)),
            "sharing": Choice(("shared_bottom", "mmoe", "ple")),
            "tower": Choice((0, 32, 64)),
            "lr": Choice((5e-4, 1e-3, 2e-3, 4e-3)),
        }
    )

    def balancer(self, data: Prepared) -> Balancer:
        return balancer_of(self.settings, data)

    def unfit(self, data: Prepared) -> str | None:
        found = sequences_of_items(data.columns)
        if not found:
            return "no column of sequences of items"
        if self.settings["target"] is None and target_of(data.columns, self.settings["behaviours"] or found) is None:
            return "no column holds the target item of the sequences; name it with the setting target"
        return super().unfit(data)

    def config(self, data: Prepared) -> dict[str, Any]:
        kept = ("width", "depth", "heads", "dropout", "embedding", "bins", "sigma", "hyper", "refine", "sharing", "tower")
        behaviours = list(self.settings["behaviours"] or sequences_of_items(data.columns))
        target = _target(data.columns, behaviours, self.settings["target"])
        settings = {name: self.settings[name] for name in kept} | {"behaviours": behaviours, "target": target}
        return {"architecture": {"name": "dtrn", "settings": settings}}

    def size(self, data: Prepared) -> tuple[float, int]:
        return size_of(data.tasks, data.columns, self.config(data))
