"""A task's low-rank update and head as a PEFT folder, which other servers and `peft` itself read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pluribus.adapters import write_peft
from pluribus.adapters.lora import LoRA
from pluribus.errors import BadInput
from pluribus.modeling import Fitted
from pluribus.text.adapted import EVERYBODY, AdaptedText
from pluribus.text.hub import TextHub
from pluribus.text.network import TextNetwork


def export_peft(fitted: Fitted, task: str | None, folder: str | Path, *, where: str = "model", overwrite: bool = False) -> Path:
    """Write one task's LoRA, with its head as the module `classifier` saved whole. The base model is named by what it was made of
    (`record["backbone"]`); PEFT loads the folder onto the same weights.

    Raises
    ------
    BadInput: a model without a LoRA, no task or an unknown one, a folder that exists.
    """
    if task is None:
        raise BadInput("holds several tasks and none is named", where=where, remedy="add --task TASK")
    fitted.requested([task])
    lora, slot, weight, bias = _parts(fitted, task, where)
    if Path(folder).exists() and not overwrite:
        raise BadInput("exists already", where=str(folder), remedy="choose another folder, or add --force")
    heads = {"classifier.weight": weight.detach().cpu().contiguous(), "classifier.bias": bias.detach().cpu().contiguous()}
    base = str(fitted.record.get("backbone", ""))
    write_peft(lora, slot, folder, base=base, heads=heads, overwrite=overwrite)
    return Path(folder)


def _parts(fitted: Fitted, task: str, where: str) -> tuple[LoRA, str, Any, Any]:
    """The bank, the task's slot in it, and its head."""
    if isinstance(fitted, TextHub):
        with fitted.pool.route(task):
            weight, bias = fitted.pool.heads[task]
        lora = fitted.pool.adapters
        assert isinstance(lora, LoRA)
        return lora, task, weight, bias
    for model in fitted.models if isinstance(fitted, TextNetwork) else ():
        if isinstance(model, AdaptedText) and task in model.tasks and isinstance(model.adapters, LoRA):
            place = model.heads.place[task]
            return model.adapters, task if model.routed else EVERYBODY, model.heads.weight[place], model.heads.bias[place]
    raise BadInput(f"task {task!r} has no LoRA", where=where, remedy="train text_lora_per_task or text_lora_shared")
