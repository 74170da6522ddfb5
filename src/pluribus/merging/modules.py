"""The module that a configuration of transformers describes, and the names its tensors have in files.

Architectures are classes of `transformers`, found by name; code beside the weights is never run. Some of them name their tensors
otherwise in files than in memory (transformers converts on loading and saving): what is stored here keeps the files' names, and
is renamed where it meets a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, require, unknown


def skeleton(about: Mapping[str, Any], where: str) -> nn.Module:
    """The classifier that config.json describes, in evaluation mode, its weights still to come."""
    transformers = require("transformers", extra="text", purpose="a transformers checkpoint")
    if not about.get("architectures") or not about.get("model_type"):
        remedy = "serve it from Python with MergeContainer.serve(model), or put the expert's config.json beside it"
        raise BadInput("holds no configuration that names its architecture", where=where, remedy=remedy)
    name = str(next(iter(about["architectures"])))
    made = getattr(transformers, name, None)
    if not isinstance(made, type) or not issubclass(made, transformers.PreTrainedModel) or "For" not in name:
        what = f"its architecture is {name!r}, which is no classifier of transformers {transformers.__version__}"
        raise BadInput(what, where=where, remedy="fine-tune with …ForSequenceClassification or …ForImageClassification")
    if str(about["model_type"]) not in transformers.CONFIG_MAPPING:
        raise unknown("model type", str(about["model_type"]), transformers.CONFIG_MAPPING, where=where)
    held = {k: v for k, v in about.items() if k not in ("model_type", "auto_map", "torch_dtype", "dtype", "transformers_version")}
    try:
        config = transformers.AutoConfig.for_model(about["model_type"], **held)
        model: nn.Module = made(config).eval()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"its configuration cannot be used ({error})", where=where, remedy="restore config.json") from error
    return model


def names_in(model: nn.Module, stored: Iterable[str], where: str) -> dict[str, str]:
    """Name in the file → name in the module, for every stored name."""
    own = list(model.state_dict())
    names = list(stored)
    if set(names) <= set(own):
        return {name: name for name in names}
    try:
        from transformers.core_model_loading import revert_weight_conversion

        marks = {name: torch.full((1, 1), float(i), dtype=torch.float64) for i, name in enumerate(own)}
        back: dict[str, Tensor] = revert_weight_conversion(model, marks)  # type: ignore[arg-type]
        found = {file: own[int(mark.item())] for file, mark in back.items()}
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        found = {}
    lacking = [name for name in names if name not in found]
    if lacking:
        what = f"the module {type(model).__name__} has no tensor {lacking[0]!r}"
        raise BadInput(what, where=where, remedy="give checkpoints that transformers saved with this architecture")
    return {name: found[name] for name in names}


def filled(about: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """The module of a configuration with these weights (by their names in files); every tensor must be there."""
    model = skeleton(about, where)
    names = names_in(model, state, where)
    lacking = set(model.state_dict()) - set(names.values()) - set(getattr(model, "_tied_weights_keys", None) or ())
    if lacking:
        what = f"lacks the tensor {sorted(lacking)[0]!r} of {type(model).__name__}"
        raise BadInput(what, where=where, remedy="merge classifiers, or give the base with its head")
    try:
        model.load_state_dict({names[n]: t for n, t in state.items()}, strict=False)
    except RuntimeError as error:
        raise BadInput(f"does not fit {type(model).__name__} ({str(error).splitlines()[-1].strip()})", where=where) from error
    return model.eval()


def image_shape(about: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of a vision model's inputs."""
    size = about.get("image_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))[:2]
    return int(about.get("num_channels") or 3), int(height), int(width)


def example(about: Mapping[str, Any], rows: int, tokens: int = 8) -> dict[str, Tensor]:
    """Random inputs that fit a configuration: pixels, or token ids."""
    random = torch.Generator().manual_seed(0)
    if about.get("image_size") and not about.get("vocab_size"):
        return {"pixel_values": torch.rand(rows, *image_shape(about), generator=random)}
    longest = int(about.get("max_position_embeddings") or tokens)
    ids = torch.randint(0, int(about.get("vocab_size") or 2), (rows, max(1, min(tokens, longest - 2))), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
