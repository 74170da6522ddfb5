"""LoRA folders of PEFT: `adapter_config.json` beside `adapter_model.safetensors`, read tolerantly and written minimally.

    W_t = W_0 + s_t B_t A_t,    s = α/r, or α/√r where rank-stabilised; rank and α may differ by module (`rank_pattern`, …)

Tensors are called `base_model.model.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r]; modules that are saved whole
(heads) go by their own names behind the same beginning. An adapted embedding's own weight may be saved too, as
`<module>.base_layer.weight`: it stands in the place of W_0, and the update is added to it.

PiSSA (https://arxiv.org/abs/2404.02948) and OLoRA (https://arxiv.org/abs/2406.01775) train over a residual that is not saved:

    W_0 ← W_0 − B_0 A_0,    B_0 A_0 = U_r S_r V_r of W_0 = U S V (PiSSA), or s Q_r R_r of W_0 = Q R (OLoRA)
`over_base` writes their update over the W_0 that everybody has: s B A − B_0 A_0, of rank 2 r.

Written is no field that readers know a default for and that has it,
since older readers refuse fields they do not know.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.files import safetensors
from pluribus.files.atomic import atomic_folder
from pluribus.files.hostile import read_json

PREFIX = "base_model.model."
HALF = re.compile(r"(.*)\.lora_(?:(A|B)(?:\.default)?\.weight|embedding_(A|B)(?:\.default)?|(magnitude_vector).*)")


@dataclass
class Factors:
    """The update of one tensor: scale · left [out, r] @ right [r, in]. magnitude [out]: of DoRA, where it is used.

    embedding: of an embedding. kernel: (height, width) of a convolution, whose right factor is [r, in · height · width].
    """

    left: Tensor
    right: Tensor
    scale: float
    magnitude: Tensor | None = None
    embedding: bool = False
    kernel: tuple[int, ...] = ()

    def product(self) -> Tensor:
        """The whole update, [out, in]."""
        return self.scale * (self.left @ self.right)


def read_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Factors], dict[str, Tensor]]:
    """An adapter folder: its configuration, the updates by module name, and the tensors it holds whole, by name.

    The updates are laid out as the weights are: transposed for embeddings and for maps stored [in, out] (`fan_in_fan_out`).
    """
    folder = Path(folder)
    about = read_json(folder / "adapter_config.json", what="adapter configuration")
    if not isinstance(about, dict) or about.get("peft_type") != "LORA":
        kind = about.get("peft_type") if isinstance(about, dict) else None
        raise BadInput(f"is a {kind} adapter, only LORA is read", where=str(folder), remedy="merge it with PEFT first")
    _check_numbers(about, str(folder / "adapter_config.json"))
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in _tensors(folder).items():
        plain = name.removeprefix(PREFIX)
        found = HALF.fullmatch(plain)
        if found:
            part = found[2] or (f"embedding_{found[3]}" if found[3] else "magnitude")
            halves.setdefault(found[1], {})[part] = tensor.double() if tensor.dtype == torch.float64 else tensor.float()
        else:
            whole[re.sub(r"\.(modules_to_save(\.default)?|original_module|base_layer)\.", ".", plain)] = tensor
    updates: dict[str, Factors] = {}
    for module, parts in halves.items():
        embedding = "embedding_A" in parts
        a, b = parts.get("embedding_A" if embedding else "A"), parts.get("embedding_B" if embedding else "B")
        if a is None or b is None or min(a.ndim, b.ndim) < 2 or a.shape[0] != b.shape[1] or not len(a):
            raise BadInput(f"module {module!r} has no matching A and B", where=str(folder), remedy="save the adapter again")
        rank = a.shape[0]
        alpha = float(_by_pattern(about.get("alpha_pattern"), module, about.get("lora_alpha", rank)))
        stated = int(_by_pattern(about.get("rank_pattern"), module, about.get("r", rank)))
        if stated != rank:
            what = f"module {module!r} has rank {rank}, its configuration says {stated}"
            raise BadInput(what, where=str(folder), remedy="mend r or rank_pattern")
        scale = alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)
        left, right = b.flatten(1), a.flatten(1)
        if embedding or about.get("fan_in_fan_out"):
            left, right = right.T.contiguous(), left.T.contiguous()
        updates[module] = Factors(left, right, scale, parts.get("magnitude"), embedding, tuple(a.shape[2:]))
    if not updates:
        raise BadInput("holds no LoRA matrices", where=str(folder), remedy="save the adapter again")
    return about, updates, whole


REFUSED = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "aLoRA",
    "lora_bias": "a bias on B",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "arrow_config": "Arrow routing",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA, which cuts the base's singular values",
    "monteclora_config": "Monte Carlo LoRA",
}
# How A and B may begin: over the base as it is, and over a residual that can be made again. Others change the base by what was
# drawn or seen (pissa_niter, CorDA, LoRA-GA) or quantise it (LoftQ).
PLAIN = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
RESIDUAL = ("pissa", "olora")


def refuse_variants(about: Mapping[str, Any], where: str, *, known: Collection[str] = ()) -> None:
    """An error for a variant of LoRA that is not plain B A, named by its field; `known` fields and residual starts pass."""
    for field, what in REFUSED.items():
        if about.get(field) and field not in known:
            raise BadInput(f"uses {what} ({field})", where=where, remedy="merge it with PEFT, or train it as plain LoRA")
    start = about.get("init_lora_weights")
    residual = residual_of(about)
    if start not in PLAIN and (residual is None or residual not in known):
        what = f"stands over a base that its start changed (init_lora_weights={start!r})"
        remedy = "save it with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA, or merge it with PEFT"
        raise BadInput(what, where=where, remedy=remedy)
    if residual == "olora" and about.get("fan_in_fan_out"):
        raise BadInput("uses OLoRA on maps stored [in, out]", where=where, remedy="merge it with PEFT")
    if about.get("bias") not in (None, "none") and "bias" not in known:
        raise BadInput(f"trains biases (bias={about['bias']!r})", where=where, remedy="merge it with PEFT")
    for field, value in about.items():
        if field.startswith("use_") and field not in ("use_rslora", *known) and value:
            raise BadInput(f"uses a variant of LoRA unknown here ({field}={value!r})", where=where, remedy="merge it with PEFT")


def residual_of(about: Mapping[str, Any]) -> str | None:
    """ "pissa" or "olora" where the adapter stands over a residual base, else None. (OLoRA on maps [in, out] is refused.)"""
    start = about.get("init_lora_weights")
    start = start.lower() if isinstance(start, str) else None
    return start if start in RESIDUAL else None


def over_base(f: Factors, weight: Tensor, start: str) -> Factors:
    """The update that stands over a residual, written over the base's own weight.

    Parameters
    ----------
    f : Factors
        What the folder holds, laid out as the weight is.
    weight : Tensor
        The base's weight, [out, in].
    start : {"pissa", "olora"}
        How A and B began.
    """
    weight, rank = weight.to(f.left.dtype), f.left.shape[1]
    if start == "pissa":
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        left, right = u[:, :rank] * s[:rank], v[:rank]
    else:
        q, r = torch.linalg.qr(weight)
        left, right = f.scale * q[:, :rank], r[:rank]
    return Factors(torch.cat([f.scale * f.left, -left], 1), torch.cat([f.right, right]), 1.0, f.magnitude)


def _tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "adapter_model.safetensors").is_file():
        return safetensors.load(folder / "adapter_model.safetensors")
    path = folder / "adapter_model.bin"
    if not path.is_file():
        raise BadInput("holds no adapter_model.safetensors", where=str(folder), remedy="save the adapter again")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises a zoo of types for what is not a plain checkpoint
        what = "cannot be opened by the weights-only loader (it may hold code)"
        raise BadInput(what, where=str(path), remedy="convert it to safetensors where you trust it") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise BadInput("is not a state dict", where=str(path), remedy="save the adapter again")
    return dict(loaded)


def _check_numbers(about: Mapping[str, Any], where: str) -> None:
    """Ranks and alphas are numbers, and patterns what a regular expression may be: the file is a stranger's."""
    patterns = {field: about.get(field) or {} for field in ("rank_pattern", "alpha_pattern")}
    for field, given in patterns.items():
        if not isinstance(given, Mapping):
            raise BadInput(f"{field} is {given!r:.60}", where=where, remedy="give a table of modules and numbers")
        for pattern in given:
            try:
                re.compile(pattern)
            except re.error as error:
                raise BadInput(f"{field} has {pattern!r:.60} ({error})", where=where, remedy="mend the pattern") from error
    numbers = [(field, about[field]) for field in ("r", "lora_alpha") if field in about]
    for field, value in [*numbers, *((f, v) for f, given in patterns.items() for v in given.values())]:
        ranked = field in ("r", "rank_pattern")
        if isinstance(value, bool) or not isinstance(value, int if ranked else (int, float)) or not math.isfinite(value):
            raise BadInput(f"{field} has {value!r:.60}", where=where, remedy=f"give a {'whole ' * ranked}number")


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that is the whole name or its end after a dot, as a regular expression."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def write_adapter(
    out: str | Path,
    factors: Mapping[str, Factors],
    *,
    base: str = "",
    whole: Mapping[str, Tensor] | None = None,
    task_type: str | None = None,
    overwrite: bool = False,
    card: str = "",
    transposed: bool = False,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """A PEFT folder of updates by module name; ranks and scales may differ. whole: tensors of modules that are saved as they are;
    the weight of an adapted module is the one its update is added to.
    transposed: the adapted weights are stored [in, out]; the factors are given as [out, r] and [r, in] all the same.
    heads: by task, tensors kept beside the adapter as heads/TASK.safetensors."""
    out = Path(out)
    if out.exists() and not overwrite and any(out.iterdir() if out.is_dir() else [out]):
        raise BadInput("exists already", where=str(out), remedy="choose another place or overwrite")
    ranks = {module: f.left.shape[1] for module, f in factors.items()}
    alphas = {module: _number(f.scale * ranks[module]) for module, f in factors.items()}
    usual = max(set(ranks.values()), key=list(ranks.values()).count) if ranks else 1
    alpha = max(set(alphas.values()), key=list(alphas.values()).count) if alphas else 1
    whole = dict(whole or {})
    about = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(module): r for module, r in ranks.items() if r != usual},
        "alpha_pattern": {re.escape(module): a for module, a in alphas.items() if a != alpha},
        "target_modules": sorted(factors),
        "fan_in_fan_out": transposed,
        "modules_to_save": sorted({n.rpartition(".")[0] for n in whole} - set(factors)),
    }
    tensors: dict[str, Tensor] = {}
    for module, f in factors.items():
        if f.embedding:
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = f.left.T.contiguous()
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = f.right.T.contiguous()
            continue
        rank, ones = f.left.shape[1], [1] * len(f.kernel)
        right = f.right.reshape(rank, -1, *f.kernel) if f.kernel else f.right
        tensors[f"{PREFIX}{module}.lora_A.weight"] = right.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = f.left.reshape(-1, rank, *ones).contiguous()
    for name, tensor in whole.items():
        module, _, end = name.rpartition(".")
        tensors[f"{PREFIX}{module}.base_layer.{end}" if module in factors else PREFIX + name] = tensor.contiguous()
    with atomic_folder(out) as aside:
        said = {name: value for name, value in about.items() if value not in (None, False, {}, [])}
        (aside / "adapter_config.json").write_text(json.dumps(said, indent=1), "utf-8")
        safetensors.save(aside / "adapter_model.safetensors", tensors, {"format": "pt"})
        for task, mine in (heads or {}).items():
            (aside / "heads").mkdir(exist_ok=True)
            safetensors.save(aside / "heads" / f"{task}.safetensors", dict(mine), {"format": "pt", "task": task})
        if card:
            (aside / "README.md").write_text(card, "utf-8")
