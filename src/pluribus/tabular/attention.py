"""A transformer block over the tokens of a row, for E networks side by side.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, in the form with the norms first:

    y = x + Drop(Attn(Norm(x)))          Attn: softmax(q kᵀ / √(d / heads) + M) v in each head, then Linear
    out = y + FF(Norm(y))

The norms have no scale and shift of their own: a Linear follows each of them and can express both. Where later parts read only
the first tokens of the result, only these ask, and the others' outputs are not computed (`queries`); it changes no number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.modeling.experts import StackedLinear


def norm(x: Tensor) -> Tensor:
    """Layer norm of the last dimension, without scale and shift."""
    return F.layer_norm(x, x.shape[-1:])


def each_token(layer: StackedLinear, x: Tensor, active: Tensor | None) -> Tensor:
    """A stacked linear layer on every token: [A, B, L, in] → [A, B, L, out]."""
    y: Tensor = layer(x.flatten(1, 2), active)
    return y.reshape(*x.shape[:3], layer.outputs)


class Attention(nn.Module):
    """Multi-head attention of E copies. width: a multiple of `heads`. dropout: share of attention weights dropped."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, copies: int = 1) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise BadInput(
                f"{heads} heads cannot share a width of {width}", where="attention", remedy="let width be a multiple of heads"
            )
        self.heads, self.dropout = heads, dropout
        self.qkv = StackedLinear(copies, width, 3 * width)
        self.out = StackedLinear(copies, width, width)

    def forward(
        self,
        x: Tensor,
        active: Tensor | None = None,
        mask: Tensor | None = None,
        queries: int | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """x [A, B, L, d] → [A, B, Q, d]. mask [Q, L] bool, True where a query may read (None: everywhere).
        queries: only the first so many tokens ask. memory: what is read, [A, B, M, d], where that is not x itself."""
        copies, rows, length, width = x.shape
        if queries is None and memory is None:
            q, k, v = each_token(self.qkv, x, active).chunk(3, -1)
        else:
            q = self._part(x[:, :, :queries], 0, width, active)
            k, v = self._part(x if memory is None else memory, width, 3 * width, active).chunk(2, -1)
        split = (self.heads, width // self.heads)
        q, k, v = (t.reshape(copies * rows, t.shape[2], *split).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        if torch.compiler.is_exporting():  # the fused kernel's layout is not the one of the operators that replace it
            y = y.clone(memory_format=torch.contiguous_format)
        return each_token(self.out, y.transpose(1, 2).reshape(copies, rows, queries or length, width), active)

    def _part(self, x: Tensor, begin: int, end: int, active: Tensor | None) -> Tensor:
        """Columns [begin, end) of the projection to queries, keys and values."""
        weight, bias = (p if active is None else p[active] for p in (self.qkv.weight, self.qkv.bias))
        y = torch.baddbmm(bias[:, None, begin:end], x.flatten(1, 2), weight[..., begin:end])
        return y.reshape(*x.shape[:3], end - begin)


class FeedForward(nn.Module):
    """Linear → GELU → dropout → Linear; `gated`: ReGLU, a ⊙ ReLU(b) of a Linear twice as wide, in place of GELU."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, *, gated: bool = False, copies: int = 1) -> None:
        super().__init__()
        self.dropout, self.gated = dropout, gated
        self.first = StackedLinear(copies, width, hidden * (2 if gated else 1))
        self.second = StackedLinear(copies, hidden, width)

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        h = each_token(self.first, x, active)
        if self.gated:
            a, b = h.chunk(2, -1)
            h = a * F.relu(b)
        else:
            h = F.gelu(h)
        return each_token(self.second, F.dropout(h, self.dropout, self.training), active)


class AttentionBlock(nn.Module):
    """Attention, then feed-forward, each beside a residual. normed: whether the attention reads Norm(x) or x itself.
    dropout: share of the attention's output dropped."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, *, normed: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.feed_forward, self.normed, self.dropout = attention, feed_forward, normed, dropout

    def forward(
        self,
        x: Tensor,
        active: Tensor | None = None,
        mask: Tensor | None = None,
        queries: int | None = None,
        context: int | None = None,
    ) -> Tensor:
        """x [A, B, L, d] → [A, B, Q, d]; mask, queries: as in `Attention`. context: all read the last so many tokens only."""
        z = norm(x) if self.normed else x
        read = self.attention(z, active, mask, queries, None if context is None else z[:, :, -context:])
        y = (x if queries is None else x[:, :, :queries]) + F.dropout(read, self.dropout, self.training)
        out: Tensor = y + self.feed_forward(norm(y), active)
        return out
