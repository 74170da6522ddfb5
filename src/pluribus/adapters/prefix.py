"""Prefix tuning: per task, M keys and values in front of those of every attention.

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, eqs. 2 and 3: https://arxiv.org/abs/2101.00190

    attention(Q, [P_k; K], [P_v; V]),   [P_k; P_v]_l = MLP_l(P')  while training (`hidden`), folded away afterwards (`fold`)

Models of transformers are reached through its attention interface (their sdpa or eager function runs inside); the padding mask is
extended. Rotary positions are left out of the prefix, as with cached keys, and so are T5's position biases. In
`nn.MultiheadAttention` the opened attention adds the prefix. A prefix is never nothing: at the start it is small, not silent
(std 0.02; values zero).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.adapters.adapter import Adapters, key_of
from pluribus.adapters.attention import OpenAttention
from pluribus.adapters.route import active
from pluribus.adapters.sites import every_linear, some_blocks
from pluribus.errors import BadInput

_INSIDE: weakref.WeakKeyDictionary[nn.Module, list[_Prefix]] = weakref.WeakKeyDictionary()
NAME = "pluribus_prefix"


class Prefix(nn.Module):
    """P [E, M, 2 d] of one attention; or, while reparametrised, P' [E, M, d'] and an MLP per task."""

    def __init__(self, size: int, length: int, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        if not hidden:
            self.P = nn.Parameter(torch.empty(size, length, 2 * width))
        else:
            self.P = nn.Parameter(torch.empty(size, length, hidden))
            self.W_1 = nn.Parameter(torch.empty(size, hidden, hidden))
            self.W_2 = nn.Parameter(torch.empty(size, hidden, 2 * width))
            self.b_1 = nn.Parameter(torch.empty(size, hidden))
            self.b_2 = nn.Parameter(torch.empty(size, 2 * width))
        for slot in range(size):
            self.reset(slot)

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        if not self.hidden:
            half = self.P.shape[2] // 2
            self.P[slot, :, :half].normal_(0, 0.02)
            self.P[slot, :, half:].zero_()
            return
        self.P[slot].normal_()
        self.W_1[slot].normal_(0, self.hidden**-0.5)
        self.W_2[slot].normal_(0, 0.02 * self.hidden**-0.5)
        for p in (self.b_1, self.b_2):
            p[slot].zero_()

    def whole(self, slots: Tensor) -> Tensor:
        """[P_k, P_v] of some tasks, [U, M, 2 d]."""
        if not self.hidden:
            return self.P[slots]
        h = torch.tanh(torch.baddbmm(self.b_1[slots][:, None], self.P[slots], self.W_1[slots]))
        return torch.baddbmm(self.b_2[slots][:, None], h, self.W_2[slots])


class PrefixTuning(Adapters):
    """length: M. hidden: width of the MLP that emits the prefixes while training, 0 for none."""

    name = "prefix"

    def __init__(self, model: nn.Module, tasks: Sequence[Any], *, length: int = 8, hidden: int = 0, freeze: bool = True) -> None:
        super().__init__(model, tasks, {"length": length, "hidden": hidden}, freeze=freeze)
        if length < 1:
            raise BadInput(f"is {length}", where="length", remedy="choose at least 1")
        linear = every_linear(model)
        self.places: dict[str, bool] = {}
        for block in some_blocks(model, self.name):
            roles = block.roles
            width = linear[roles["k"]][1] if "k" in roles else linear[roles["qkv"]][1] // 3
            self.places[roles["attention"]] = block.family == "torch"
            self.sites[key_of(roles["attention"])] = Prefix(self.capacity, length, width, hidden)
        self._implementation: Any = None
        self.start()

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        for path, plain in self.places.items():  # naming a projection opens the attention; nothing is changed there
            yield (f"{path}.q", "after", path) if plain else (path, "leave", path)

    def after(self, at: Any, module: nn.Module, x: Tensor, y: Tensor, route: Any) -> Tensor:
        return y

    def leave(self, at: Any, module: nn.Module, output: Any, route: Any) -> Any:
        if not route.memo.pop((id(self), at), False):
            raise BadInput(
                f"the attention {at!r} does not call transformers' attention interface",
                where="prefix",
                remedy="use another attn_implementation, or another method",
            )
        return output

    def attach(self) -> PrefixTuning:
        if self.attached:
            return self
        super().attach()
        ours = []
        for path, plain in self.places.items():
            made, module = _Prefix(self, path), self.model.get_submodule(path)
            if plain:
                assert isinstance(module, OpenAttention)
                module.extras.append(made.flat)
            else:
                _INSIDE.setdefault(module, []).append(made)
                ours.append(module)
        self._extended = {id(m.config): m.config for m in ours}
        for config in self._extended.values():
            _extend(config)
        return self

    def detach(self) -> None:
        if self.attached:
            for path, plain in self.places.items():
                module: Any = self.model.get_submodule(path)
                if plain:
                    module.extras[:] = [e for e in module.extras if getattr(e, "__self__", e).adapters is not self]
                else:
                    _INSIDE[module] = [p for p in _INSIDE.get(module, []) if p.adapters is not self]
            for config in self._extended.values():
                _restore(config)
        super().detach()

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the MLPs by the prefixes they emit (the parameters are then new objects)."""
        for key, site in [*self.sites.items()]:
            assert isinstance(site, Prefix)
            if site.hidden:
                made = Prefix(self.capacity, site.P.shape[1], site.b_2.shape[1] // 2, 0).to(site.P)
                made.P.copy_(site.whole(torch.arange(self.capacity, device=self.device)))
                self.sites[key] = made
        self.settings["hidden"] = 0
        self.touched()


class _Prefix:
    """The prefix of one attention, for whoever computes the attention."""

    def __init__(self, adapters: PrefixTuning, path: str) -> None:
        self.adapters, self.path = adapters, path

    def flat(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, M, d]."""
        route = active()
        pick = route.pick(self.adapters, key.device)
        if pick.rows is not None and pick.rows != len(key):
            raise BadInput(f"the route names {pick.rows} rows, attention got {len(key)}", where="route")
        site: Any = self.adapters.sites[key_of(self.path)]
        whole = site.whole(pick.unique)[pick.local().counted(len(key))]
        k, v = whole.chunk(2, -1)
        return k, v


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """transformers' attention function of the model, over keys and values with the prefixes in front."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = module.config
    name = config._pluribus_attention[0]
    for prefix in _INSIDE.get(module, ()):
        k, v = (t.view(*t.shape[:2], key.shape[1], key.shape[3]).transpose(1, 2) for t in prefix.flat(key))
        length = k.shape[2]
        if attention_mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
            shape = (query.shape[2], key.shape[2])
            attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril(shape[1] - shape[0])[None, None]
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (length, 0), value=attention_mask.dtype == torch.bool)
        if kwargs.get("position_bias") is not None:  # T5's; to the prefix all positions are equally far
            kwargs["position_bias"] = F.pad(kwargs["position_bias"], (length, 0))
        key, value = torch.cat((k.to(key.dtype), key), 2), torch.cat((v.to(value.dtype), value), 2)
        active().memo[id(prefix.adapters), prefix.path] = True
    if name == "eager":
        return _eager(module, query, key, value, attention_mask, **kwargs)
    return ALL_ATTENTION_FUNCTIONS[name](module, query, key, value, attention_mask, **kwargs)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _extend(config: Any) -> None:
    """Let the models of this configuration call `_attention`, which calls what they called."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    kept = getattr(config, "_pluribus_attention", None)
    if kept is None:
        inner = config._attn_implementation or "eager"
        if inner not in ("eager", "sdpa"):
            raise BadInput(f"attention implementation {inner!r} takes no prefix", where="prefix", remedy="load it with sdpa")
        name = f"{NAME}_{inner}"
        AttentionInterface.register(name, _attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
        config.__dict__["_pluribus_attention"] = [inner, 1]
        config._attn_implementation_internal = name
    else:
        kept[1] += 1


def _restore(config: Any) -> None:
    kept = config._pluribus_attention
    kept[1] -= 1
    if not kept[1]:
        config._attn_implementation_internal = kept[0]
        del config.__dict__["_pluribus_attention"]
