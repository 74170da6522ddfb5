"""Adapters: many tasks on one frozen backbone, trained and served in one pass.

Three things are kept apart: *who* a row belongs to (`route`), *what* a task owns (the storage: an `Adapters` object, a stack of
small parameters over tasks), *where* it acts (sites of the model, found by pattern or by a map of common transformer blocks).

    from pluribus.adapters import LoRA, TaskHeads, load, route

    lora = LoRA(model, ["sst2", "mnli"], where="attention", rank=8)      # hooks; the model is frozen and not subclassed
    heads = TaskHeads({"sst2": 2, "mnli": 3}, width=256)                 # different class counts in one batch
    optimiser = AdamW([*lora.parameters(), *heads.parameters()])         # the trainable parameters; model.parameters() stay out

    with route(["sst2", "mnli", "mnli", "sst2"]):                        # the tasks of the rows, one name per row
        logits = heads(model(**batch).last_hidden_state[:, 0])           # one forward; [rows, 3], -inf where a class is none
    cross_entropy(logits, labels).backward()                             # one backward

    with route("mnli"): model(**batch)                                   # one name: all rows
    with route(ids, names=("sst2", "mnli")): ...                         # int64 [rows] into names

    lora.slices("mnli")          # parameter name -> slice of its first dimension, for SliceAdamW(stacked=…), active=…
    lora.merge("mnli")           # into the weights: no hook, no route; lora.unmerge() gives them back bit for bit
    lora.add("qnli"); lora.evict("sst2")                                 # slots of the bank
    lora.save("folder"); lora = load(model, "folder")                    # all tasks, this project's format (any method)
    write_peft(lora, "qnli", "peft/"); read_peft(lora, "new", "peft/")   # one task, PEFT's folder format
    lora = from_peft(model, {"a": "peft/a", "b": "peft/b"})              # a bank from many folders
    pool = Pool.of_peft(lora, {"a": "peft/a", …}, budget=2**30)          # serving: hundreds, loaded and evicted on demand
    with pool.route(["a", "q7"]): outputs = pool.logits(model(**batch).last_hidden_state[:, 0])
    lora.detach()                # the model is what it was, bit for bit

A task the adapters do not know, or no route at all, is an error (`BadInput`), never silently the base model. Every other method
has the same face; `pluribus catalog` lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pluribus import catalog
from pluribus.adapters.adapter import Adapters, check_base, read_folder
from pluribus.adapters.adapterfusion import AdapterFusion
from pluribus.adapters.bitfit import BitFit
from pluribus.adapters.bottleneck import Bottleneck
from pluribus.adapters.compacter import Compacter
from pluribus.adapters.formats import from_peft, read_peft, write_peft
from pluribus.adapters.heads import TaskHeads
from pluribus.adapters.hyperformer import HyperFormer
from pluribus.adapters.ia3 import IA3
from pluribus.adapters.lora import LoRA
from pluribus.adapters.lorahub import LoRAHub
from pluribus.adapters.mhr import MHR, MHRmu, MHRz
from pluribus.adapters.mixlora import MixLoRA
from pluribus.adapters.mtlora import MTLoRA, MTLoRAPlus
from pluribus.adapters.poly import Poly
from pluribus.adapters.pool import Pool
from pluribus.adapters.prefix import PrefixTuning
from pluribus.adapters.prompt import PromptTuning
from pluribus.adapters.route import Route, fork, route
from pluribus.adapters.scalearn import ScaLearn, ScaLearnPP, ScaLearnUniform, ScaLearnUniformPP
from pluribus.adapters.smora import SMoRA


def load(model: nn.Module, folder: str | Path, **given: Any) -> Any:
    """The adapters that `Adapters.save` wrote, attached to `model`, which has to be the base they were made on.

    given: what a method needs besides its settings (`sources` of a composition, where it does not find them in the folder).
    """
    about, tensors = read_folder(folder)
    made = catalog.get("adapter", str(about["method"])).resolve()(model, about["tasks"], **about["settings"], **given)
    try:
        check_base(made, about, str(folder))
        made.load_tensors(tensors, str(folder))
    except Exception:
        made.detach()
        raise
    return made


__all__ = [
    "IA3",
    "MHR",
    "AdapterFusion",
    "Adapters",
    "BitFit",
    "Bottleneck",
    "Compacter",
    "HyperFormer",
    "LoRA",
    "LoRAHub",
    "MHRmu",
    "MHRz",
    "MTLoRA",
    "MTLoRAPlus",
    "MixLoRA",
    "Poly",
    "Pool",
    "PrefixTuning",
    "PromptTuning",
    "Route",
    "SMoRA",
    "ScaLearn",
    "ScaLearnPP",
    "ScaLearnUniform",
    "ScaLearnUniformPP",
    "TaskHeads",
    "fork",
    "from_peft",
    "load",
    "read_peft",
    "route",
    "write_peft",
]
