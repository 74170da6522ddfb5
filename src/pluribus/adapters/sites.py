"""Where adapters attach: linear maps by pattern or role, and the blocks of the common transformer families. The *site*.

Nothing of the user's model is subclassed and no class name is looked at: a block is a module that has the linear maps of one of
the `FAMILIES` at their paths. `nn.MultiheadAttention` calls no linear module, so its projections are sites by the names `q`, `k`,
`v` and `out_proj` below it; attaching to them opens it (see `attention.py`).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pluribus.errors import BadInput

ATTENTION, FFN = ("q", "k", "v", "qkv", "o"), ("fc1", "gate", "fc2")
GROUPS = {"attention": ATTENTION, "ffn": FFN, "all": ATTENTION + FFN}


def _roles(q: str = "", k: str = "", v: str = "", o: str = "", **more: str) -> Mapping[str, str]:
    found = {"q": q, "k": k, "v": v, "o": o, **more}
    return {role: path for role, path in found.items() if path}


FAMILIES: Mapping[str, Mapping[str, str]] = {
    "bert": _roles(  # also RoBERTa, MiniLM, ELECTRA
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        fc1="intermediate.dense",
        fc2="output.dense",
        attention="attention.self",
    ),
    "vit (older)": _roles(
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
        fc1="intermediate.dense",
        fc2="output.dense",
        attention="attention.attention",
    ),
    "distilbert": _roles(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        fc1="ffn.lin1",
        fc2="ffn.lin2",
        attention="attention",
    ),
    "vit": _roles(  # also Swin
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        fc1="mlp.fc1",
        fc2="mlp.fc2",
        attention="attention",
    ),
    "gpt2": _roles(qkv="attn.c_attn", o="attn.c_proj", fc1="mlp.c_fc", fc2="mlp.c_proj", attention="attn"),
    "llama": _roles(  # also Mistral, Qwen, Gemma
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        gate="mlp.gate_proj",
        fc1="mlp.up_proj",
        fc2="mlp.down_proj",
        attention="self_attn",
    ),
    "modernbert": _roles(qkv="attn.Wqkv", o="attn.Wo", fc1="mlp.Wi", fc2="mlp.Wo", attention="attn"),
    "t5": _roles(
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        fc1="layer.1.DenseReluDense.wi",
        fc2="layer.1.DenseReluDense.wo",
        attention="layer.0.SelfAttention",
    ),
    "t5 (gated)": _roles(
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        gate="layer.1.DenseReluDense.wi_0",
        fc1="layer.1.DenseReluDense.wi_1",
        fc2="layer.1.DenseReluDense.wo",
        attention="layer.0.SelfAttention",
    ),
    "torch": _roles(
        "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.out_proj", fc1="linear1", fc2="linear2", attention="self_attn"
    ),
}


@dataclass(frozen=True)
class Site:
    """A linear map (or a norm) of the model: its path, its sizes, its role in its block ("" outside), the batch dimension."""

    path: str
    inputs: int
    outputs: int
    role: str = ""
    batch: int = 0


@dataclass(frozen=True)
class Block:
    """A transformer block: its path, family, the paths of its parts by role (with "attention"), the batch dimension."""

    path: str
    family: str
    roles: Mapping[str, str]
    batch: int = 0


def is_linear(module: nn.Module) -> bool:
    """`nn.Linear`, a projection of an opened attention, or transformers' `Conv1D` (a linear map stored [in, out])."""
    return isinstance(module, nn.Linear) or getattr(module, "is_projection", False) or transposed(module)


def transposed(module: nn.Module) -> bool:
    """Whether the weight is stored [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def sizes(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear map."""
    outputs, inputs = module.weight.shape  # type: ignore[misc]
    return (outputs, inputs) if transposed(module) else (inputs, outputs)


def projections(attention: nn.Module) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the projections that `nn.MultiheadAttention` holds."""
    width = attention.embed_dim
    inputs = {"q": width, "k": attention.kdim, "v": attention.vdim, "out_proj": width}
    return {name: (size, width) for name, size in inputs.items()}  # type: ignore[misc]


def every_linear(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every linear map by path, in the model's order."""
    found: dict[str, tuple[int, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found |= {f"{path}.{name}".lstrip("."): size for name, size in projections(module).items()}
        elif is_linear(module):
            found[path] = sizes(module)
    return found


def blocks(model: nn.Module) -> list[Block]:
    """The transformer blocks of known families, in the model's order."""
    linear = every_linear(model)
    found = []
    for path, module in model.named_modules():
        head = f"{path}." if path else ""
        for family, roles in FAMILIES.items():
            if all(head + part in linear for role, part in roles.items() if role != "attention"):
                inner = module.get_submodule(roles["attention"])
                batch = 0 if getattr(inner, "batch_first", True) else 1
                found.append(Block(path, family, {role: head + part for role, part in roles.items()}, batch))
                break
    return found


def some_blocks(model: nn.Module, purpose: str) -> list[Block]:
    """The blocks, of which there must be one."""
    found = blocks(model)
    if not found:
        raise BadInput(
            f"{purpose} needs transformer blocks, the model {type(model).__name__} has none of a known family",
            where="model",
            remedy=f"known are {', '.join(FAMILIES)}; LoRA, IA3 and BitFit attach to any linear map by pattern",
        )
    return found


def matches(path: str, pattern: str) -> bool:
    """A pattern is a whole path, its end after a dot (as in PEFT), or a glob over the whole path."""
    return path == pattern or path.endswith("." + pattern) or fnmatch.fnmatchcase(path, pattern)


def linears(model: nn.Module, where: str | Sequence[str]) -> list[Site]:
    """The linear maps that `where` names: roles ("q", "fc1", …), groups of them ("attention", "ffn", "all") or patterns of paths.

    Roles mean the maps of known blocks; in a model without such blocks "all" means every linear map. A name that matches nothing
    is an error that shows the nearest.
    """
    linear = every_linear(model)
    role_of: dict[str, tuple[str, int]] = {}
    for block in blocks(model):
        for role, path in block.roles.items():  # an opened attention hands rows first to its projections
            role_of[path] = (role, 0 if role in ATTENTION else block.batch)
    chosen: set[str] = set()
    for name in [where] if isinstance(where, str) else where:
        roles = GROUPS.get(name, (name,))
        mine = {path for path, (role, _) in role_of.items() if role in roles and path in linear}
        if name == "all" and not role_of:
            mine = set(linear)
        mine = mine or {path for path in linear if matches(path, name)}
        if not mine:
            near = difflib.get_close_matches(name, linear, n=3, cutoff=0.3) or list(linear)[:3]
            ends = difflib.get_close_matches(name, {path.rpartition(".")[2] for path in linear}, n=2, cutoff=0.5)
            shown = ", ".join([*ends, *near]) or "the model has no linear map"
            raise BadInput(f"{name!r} matches no linear map of the model", where="where", remedy=f"nearest: {shown}")
        chosen |= mine
    return [Site(path, *linear[path], *role_of.get(path, ("", 0))) for path in linear if path in chosen]
