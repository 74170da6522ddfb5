"""`nn.MultiheadAttention` with its projections as modules, so that they can be adapted; taken out again on detaching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.errors import BadInput

Extra = Callable[[Tensor], tuple[Tensor, Tensor]]  # what sees the keys [B, S, d] → further keys and values [B, M, d]


class Projection(nn.Module):
    """One of the maps inside `in_proj_weight`, or a weight of its own; the parameters stay where they are."""

    is_projection = True
    owner: Any  # the attention; not a submodule of its own part

    def __init__(self, owner: OpenAttention, name: str, start: int) -> None:
        super().__init__()
        self.__dict__["owner"] = owner
        self.name, self.start = name, start

    @property
    def weight(self) -> Tensor:
        whole = self.owner.in_proj_weight
        own: Tensor = getattr(self.owner, f"{self.name}_proj_weight") if whole is None else whole[self._rows]
        return own

    @property
    def bias(self) -> Tensor | None:
        whole = self.owner.in_proj_bias
        own: Tensor | None = None if whole is None else whole[self._rows]
        return own

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.start + self.owner.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class OpenAttention(nn.Module):
    """Computes what the `nn.MultiheadAttention` it stands for computes, with the same parameters under the same names.

    `extras` add keys and values in front (prefix tuning). Layers see a module without the fused path and take their plain one.
    """

    _qkv_same_embed_dim = False
    q: Projection
    k: Projection
    v: Projection

    def __init__(self, inside: nn.MultiheadAttention) -> None:
        super().__init__()
        if inside.bias_k is not None or inside.add_zero_attn:
            raise BadInput("attention with add_bias_kv or add_zero_attn cannot be adapted", where="site", remedy="leave it out")
        self.__dict__["inside"] = inside
        self.embed_dim, self.num_heads, self.batch_first = inside.embed_dim, inside.num_heads, inside.batch_first
        self.kdim, self.vdim, self.head_dim, self.dropout = inside.kdim, inside.vdim, inside.head_dim, inside.dropout
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(name, getattr(inside, name))
        self.out_proj = inside.out_proj
        for i, name in enumerate("qkv"):
            setattr(self, name, Projection(self, name, i * inside.embed_dim))
        self.train(inside.training)
        self.users = 0
        self.extras: list[Extra] = []

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`: [B, L, d] (or [L, B, d]) → outputs and, where asked for, weights over the given keys."""
        if query.ndim != 3:
            raise BadInput("adapted attention needs a batch dimension", where="query", remedy="add one")
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        (rows, length, width), heads = query.shape, self.num_heads
        q, k, v = self.q(query), self.k(key), self.v(value)
        mask = _bias(attn_mask, key_padding_mask, rows, heads, q.dtype)
        for extra in self.extras:
            more_k, more_v = extra(key)
            k, v = torch.cat((more_k, k), 1), torch.cat((more_v, v), 1)
            mask = None if mask is None else F.pad(mask, (more_k.shape[1], 0))
        q, k, v = (part.view(rows, part.shape[1], heads, -1).transpose(1, 2) for part in (q, k, v))
        drop = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = F.dropout(weights, drop) @ v
            weights = weights[..., -key.shape[1] :]
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, drop)
        out = self.out_proj(out.transpose(1, 2).reshape(rows, length, width))
        return (out if self.batch_first else out.transpose(0, 1)), weights


def _bias(mask: Tensor | None, padding: Tensor | None, rows: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Both masks as one number to add: [rows or 1, heads or 1, L or 1, S]."""

    def added(part: Tensor) -> Tensor:
        return part.new_zeros(part.shape, dtype=dtype).masked_fill_(part, -torch.inf) if part.dtype == torch.bool else part

    found: Tensor | None = None
    if mask is not None:
        found = added(mask)
        found = found[None, None] if mask.ndim == 2 else found.view(rows, heads, *mask.shape[1:])
    if padding is not None:
        each = added(padding)[:, None, None]
        found = each if found is None else found + each
    return found


def open_attention(model: nn.Module, path: str) -> OpenAttention:
    """The opened attention at `path`, opening it where it is not yet."""
    parent, _, name = path.rpartition(".")
    holder, module = model.get_submodule(parent), model.get_submodule(path)
    if isinstance(module, nn.MultiheadAttention):
        module = OpenAttention(module)
        setattr(holder, name, module)
    assert isinstance(module, OpenAttention)
    module.users += 1
    return module


def close_attention(model: nn.Module, path: str) -> None:
    """Put the original back when nobody uses the opened one any more."""
    parent, _, name = path.rpartition(".")
    module: Any = model.get_submodule(path)
    module.users -= 1
    if not module.users:
        module.inside.training = module.training
        setattr(model.get_submodule(parent), name, module.inside)
