"""MultiTab-Net: a transformer over the columns of a row with one learned token per task.

"MultiTab: A Scalable Foundation for Multitask Learning on Tabular Data" (arXiv 2511.09970, AAAI 2026). Tokens

    z = Drop([task tokens, column tokens]) ∈ R^{(T+F)×e}          column tokens: see `tokens`

go through N blocks of a column layer and, if wished, a row layer, both  y = x + Drop(Attn(Norm x)),  out = y + FF(Norm y):

1. column layer: attention over the T + F tokens of a row, under a mask (rows ask, columns are read):
     "task_to_task"     (T↛T)  a task token does not read another task's token (the paper's best)
     "feature_to_task"  (F↛T)  a feature token does not read a task's token
     "both", "none"
2. row layer: a row's tokens as one vector of (T + F)·e read those of other rows.

Head t: MLP(e; tower) with ReLU, then Linear, on token t. Single-token variant (`tokens="single"`): one token for all heads.

With T↛T and one column layer a task's output does not depend on another's token at all; in two or more layers it may, by way of
the features (task → feature → task), unless F↛T is masked too. F↛T alone changes nothing in the last column layer, whose features
nobody reads; without row layers it tells from the second layer on.

Where paper and public code differ, or leave it open, and what we do:

- the row layer reads fixed *context rows* of the training part, kept in the model, in training and in prediction alike. The code
  lets the rows of a batch read one another, also at test time, so that a prediction depends on who else is asked about; here a
  row's prediction is its own. Rotary positions over the row index have no meaning then, and are left out;
- the last column layer answers for the task tokens alone where no row layer follows: nothing reads the others;
- norms have no scale and shift (see `attention`); numbers have no norm after their projection (so the code; the text has one);
- binary tasks use the cross-entropy of logits, regression the squared error (so the code; the text says RMSE);
- initial weights are N(0, 0.01²), biases 0, the attention's packed projection Xavier-uniform, as in the code; the heads begin at
  the best constant predictor;
- missing numbers and the other embeddings of numbers: see `tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pluribus.data import Rows
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Features, Heads, MultiTaskModel, Shared
from pluribus.modeling.experts import StackedLinear
from pluribus.modeling.model import Slices
from pluribus.sharing.stacked import Stacked, Towers, at_least
from pluribus.tabular.attention import Attention, AttentionBlock, FeedForward
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.embeddings import NumericEmbedding
from pluribus.tabular.tokens import Tokens
from pluribus.tasks import Task

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

Mask = Literal["task_to_task", "feature_to_task", "both", "none"]
MASKS: tuple[Mask, ...] = ("task_to_task", "feature_to_task", "both", "none")
TOKENS = ("multi", "single")


def column_mask(name: Mask, tasks: int, features: int) -> Tensor | None:
    """[T + F, T + F] bool, True where the row's token may read the column's; None where all may."""
    if name not in MASKS:
        raise unknown("mask", name, MASKS, where="multitab_net")
    may = torch.ones(tasks + features, tasks + features, dtype=torch.bool)
    if name in ("task_to_task", "both"):
        may[:tasks, :tasks] = torch.eye(tasks, dtype=torch.bool)
    if name in ("feature_to_task", "both"):
        may[tasks:, :tasks] = False
    return None if bool(may.all()) else may


class MultiTabEncoder(BankEncoder):
    """Features.main [B, tokens, width], or [B, tower] where there is a tower.

    Parameters
    ----------
    edges, cardinalities: as for `TabularMLP`.
    width: e, of a token, a multiple of `heads`. depth: N. hidden: of the feed-forward. dropout: of the tokens at the start, of
        the attention's output and inside the feed-forward; attention_dropout: of attention weights.
    mask: see the module's text. tokens: T. rows: whether row layers follow the column layers; context: how many context rows.
    tower: hidden units of the head's MLP on the token, for a network with one token of its own (0: none).
    embedding, bins, sigma: of the numbers. copies: E networks side by side.

    Parameters: with L = T + F + C tokens and e = width a column layer has 4e² + 2e·hidden + 5e + hidden, a row layer the same
    with L·e in place of e. FLOPs of a row, forward: a column layer 2L·(4e² + 2e·hidden + 2L·e), the last one without row layers
    2(2L·e² + T·(2e² + 2e·hidden + 2L·e)), a row layer 2(4(Le)² + 2Le·hidden + 2·context·Le); a batch bears its context rows too.
    """

    context_numeric: Tensor
    context_missing: Tensor
    context_categorical: Tensor
    may: Tensor | None

    def __init__(
        self,
        edges: Sequence[ArrayLike],
        cardinalities: Sequence[int],
        *,
        width: int = 16,
        depth: int = 1,
        heads: int = 4,
        hidden: int = 256,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        mask: Mask = "task_to_task",
        tokens: int = 1,
        rows: bool = False,
        context: int = 64,
        tower: int = 64,
        embedding: NumericEmbedding = "plain",
        bins: int = 8,
        sigma: float = 0.1,
        copies: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, "multitab_net", width=width, depth=depth, heads=heads, hidden=hidden, tokens=tokens, context=context)
        at_least(0, "multitab_net", tower=tower)
        if tower and tokens > 1:
            raise BadInput("a tower reads one token", where="multitab_net", remedy="set tower=0 with several tokens")
        self.width, self.dropout, self.copies, self.count, self.rows = tower or width, dropout, copies, tokens, rows
        columns = len(edges) + len(cardinalities)
        length = tokens + columns
        self.piece = 2**17 // length
        self.tokens = Tokens(edges, cardinalities, width, embedding=embedding, bins=bins, sigma=sigma, copies=copies)
        self.special = nn.Parameter(torch.empty(copies * tokens, width))

        def layer(size: int) -> AttentionBlock:
            attention = Attention(size, heads, attention_dropout, copies)
            return AttentionBlock(attention, FeedForward(size, hidden, dropout, copies=copies), dropout=dropout)

        self.columns = nn.ModuleList(layer(width) for _ in range(depth))
        self.across = nn.ModuleList(layer(length * width) for _ in range(depth if rows else 0))
        self.tower = StackedLinear(copies, width, tower) if tower else None
        self.register_buffer("may", column_mask(mask, tokens, columns), persistent=False)
        if rows:
            self.register_buffer("context_numeric", torch.zeros(context, len(edges)))
            self.register_buffer("context_missing", torch.ones(context, len(edges), dtype=torch.bool))
            self.register_buffer("context_categorical", torch.zeros(context, len(cardinalities), dtype=torch.int32))
        small(self)

    @torch.no_grad()
    def read_context(self, inputs: Mapping[str, Tensor]) -> None:
        """Keep these rows (as many as `context` says) as those that every row reads."""
        numeric = inputs["numeric"]
        self.context_missing.copy_(numeric.isnan())
        self.context_numeric.copy_(numeric.nan_to_num(0.0))
        self.context_categorical.copy_(inputs["categorical"])

    def features(self, x: Tensor, codes: Tensor, active: Tensor | None) -> Tensor:
        own, several = x.shape[1], len(x)
        if self.rows:
            known = torch.where(self.context_missing, torch.nan, self.context_numeric)
            x = torch.cat((x, known.expand(several, -1, -1)), 1)
            codes = torch.cat((codes, self.context_categorical.to(codes.dtype).expand(several, -1, -1)), 1)
        t = self.tokens(x, codes, active)
        special = self.special.reshape(-1, self.count, self.special.shape[1])
        special = special if active is None else special[active]
        t = torch.cat((special[:, None].expand(-1, t.shape[1], -1, -1), t), 2)
        t = F.dropout(t, self.dropout, self.training)
        last = len(self.columns) - 1
        for i, column in enumerate(self.columns):
            asking = self.count if i == last and not self.rows else None
            t = column(t, active, self.may if asking is None or self.may is None else self.may[:asking], asking)
            if self.rows:
                t = self._across(i, t, active)
        t = t[:, :own, : self.count]
        return t if self.tower is None else F.relu(self.tower(t[:, :, 0], active))

    def _across(self, i: int, t: Tensor, active: Tensor | None) -> Tensor:
        """One row layer: every row, the context rows too, reads the context rows, which stand last."""
        read: Tensor = self.across[i](t.flatten(2)[:, None], active, context=len(self.context_numeric))
        return read[:, 0].reshape(t.shape)


@torch.no_grad()
def small(module: nn.Module) -> None:
    """Weights N(0, 0.01²), biases 0; packed attention projections Xavier-uniform."""
    for name, p in module.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif name.endswith("qkv.weight"):
            bound = (6 / (p.shape[-2] + p.shape[-1])) ** 0.5
            p.uniform_(-bound, bound)
        elif not name.endswith("values.c"):  # frequencies have a spread of their own
            p.normal_(0.0, 0.01)


class _TaskTowers(Stacked):
    """Task t's MLP on its token, or on the only one. width: of a token."""

    def __init__(self, tasks: Sequence[Task], width: int, tower: int) -> None:
        super().__init__(tasks)
        self.towers = Towers(len(self.index), width, tower)
        self.width = self.towers.width
        self.owned = {"towers": 1}
        small(self)

    def forward(self, features: Features, rows: Rows) -> Shared:
        tokens = features.main.transpose(0, 1)
        order, active = self.requested(rows, tokens.device)
        tokens = tokens.expand(len(self.index), -1, -1)
        hidden = tokens if active is None else tokens[active]
        return Shared(self.towers(hidden, order, active, rows, Features(features.main[:, 0])))


class MultiTabNet(MultiTaskModel):
    """Columns and task tokens, one head a task. encoder: with as many tokens as tasks, or one."""

    def __init__(self, tasks: Sequence[Task], encoder: MultiTabEncoder, tower: int = 64) -> None:
        sharing = _TaskTowers(tasks, encoder.width, tower)
        super().__init__(tasks, encoder, sharing, Heads(tasks, sharing.width))
        self.index = {task.name: i for i, task in enumerate(tasks)}

    @classmethod
    def of(
        cls, tasks: Sequence[Task], columns: FittedColumns, *, tokens: str = "multi", tower: int = 64, **settings: Any
    ) -> MultiTabNet:
        """The model for tables that `columns` encodes; tokens: "multi" or "single"; settings: those of `MultiTabEncoder`."""
        if tokens not in TOKENS:
            raise unknown("kind of tokens", tokens, TOKENS, where="multitab_net")
        count = len(tasks) if tokens == "multi" else 1
        return cls(tasks, MultiTabEncoder.of(columns, tokens=count, tower=0, **settings), tower)

    def parameters_of(self, task: str) -> Slices:
        found = super().parameters_of(task)
        encoder = cast(MultiTabEncoder, self.encoder)
        if encoder.count > 1:
            found.append((encoder.special, slice(self.index[task], self.index[task] + 1)))
        return found
