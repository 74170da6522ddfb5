"""LoRA adapters from and to PEFT's folders, one folder a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.adapters.lora import LoRA
from pluribus.adapters.sites import every_linear, transposed
from pluribus.errors import BadInput
from pluribus.files.peft_folder import RESIDUAL, Factors, over_base, read_adapter, refuse_variants, residual_of, write_adapter
from pluribus.merging.checkpoints import HeadNames


def read_updates(folder: str | Path, model: nn.Module) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """What a PEFT folder holds for a model.

    Parameters
    ----------
    folder : str or Path
        The adapter's folder.
    model : nn.Module
        The base model. Of PiSSA and OLoRA its weights are read: their updates are written over them.

    Returns
    -------
    updates : dict of str to Factors
        By the model's own paths, as [out, r] and [r, in].
    heads : dict of str to Tensor
        The tensors of heads that the folder holds whole.

    Raises
    ------
    BadInput
        A variant of LoRA that is not plain; another base; a tensor held whole that is no head and has other values than the
        model's: a bank has no slot for it.
    """
    about, found, whole = read_adapter(folder)
    refuse_variants(about, str(folder), known=RESIDUAL)
    start = residual_of(about)
    if about.get("fan_in_fan_out"):
        found = {m: Factors(f.right.T.contiguous(), f.left.T.contiguous(), f.scale, f.magnitude) for m, f in found.items()}
    linear = every_linear(model)
    rename = _shift(list(found), set(linear), str(folder))
    heads = _heads(model, found, whole, rename, str(folder))
    updates = {rename(module): factors for module, factors in found.items()}
    for path, f in updates.items():
        got, wanted = (f.right.shape[1], f.left.shape[0]), linear[path]
        if f.magnitude is not None:
            raise BadInput("uses DoRA (it holds magnitudes)", where=str(folder), remedy="merge it with PEFT")
        if got != wanted:
            what = f"adapts {path!r} as {got[0]} → {got[1]}, the model has {wanted[0]} → {wanted[1]}"
            raise BadInput(what, where=str(folder), remedy="it was made for another base model")
    if start is not None:
        for path, f in updates.items():
            module = model.get_submodule(path)
            weight: Tensor = module.weight.detach().cpu()  # type: ignore[operator]
            updates[path] = over_base(f, weight.T if transposed(module) else weight, start)
    return updates, heads


def _heads(
    model: nn.Module, updates: Mapping[str, Factors], whole: Mapping[str, Tensor], rename: Any, where: str
) -> dict[str, Tensor]:
    """Of the tensors held whole, those of heads. What else is the model's own may stay away; other values are refused."""
    own = model.state_dict()
    is_head = HeadNames({*own, *whole})
    heads: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        path = next((n for n in (rename(name), name) if n in own), None)
        if name.rpartition(".")[0] not in updates and (path is None or is_head(name)):
            heads[name] = tensor
        elif path is None or own[path].shape != tensor.shape or not torch.equal(own[path].cpu(), tensor.to(own[path].dtype)):
            what = f"holds {name!r} whole, which is no head and differs from the model's"
            remedy = "merge the adapter in full (`merge`, task_arithmetic), or train it without modules_to_save"
            raise BadInput(what, where=where, remedy=remedy)
    return heads


def _shift(modules: Sequence[str], names: set[str], where: str) -> Any:
    """How the folder's names become the model's: as they are, or without or with one beginning (a head around the encoder)."""
    parts = modules[0].split(".")
    tries = [("", "")] + [(".".join(parts[:i]) + ".", "") for i in range(1, len(parts))]
    tries += [("", name[: -len(modules[0])]) for name in names if name.endswith("." + modules[0])]
    for off, on in tries:
        if all(m.startswith(off) and on + m.removeprefix(off) in names for m in modules):
            return lambda m: on + m.removeprefix(off)
    missing = next((m for m in modules if m not in names), modules[0])
    what = f"adapts {missing!r}, which is no linear map of the model"
    raise BadInput(what, where=where, remedy="it was made for another base model, or adapts embeddings or convolutions")


def from_peft(model: nn.Module, folders: Mapping[str, str | Path]) -> LoRA:
    """One bank from several PEFT folders, task → folder; ranks, scales and the maps they adapt may differ."""
    read = {task: read_updates(folder, model)[0] for task, folder in folders.items()}
    paths = [path for path in every_linear(model) if any(path in updates for updates in read.values())]
    rank = max(f.left.shape[1] for updates in read.values() for f in updates.values())
    lora = LoRA(model, list(folders), where=paths, rank=rank, alpha=rank)
    try:
        for task, updates in read.items():
            lora.load_task(task, state_from(lora, updates, str(folders[task])))
    except Exception:
        lora.detach()
        raise
    return lora


def read_peft(lora: LoRA, task: str, folder: str | Path) -> dict[str, Tensor]:
    """Add the task of a PEFT folder to a bank; returns the tensors the folder holds whole (heads), by name."""
    updates, whole = read_updates(folder, lora.model)
    lora.add(task, state_from(lora, updates, str(folder)))
    return whole


def state_from(lora: LoRA, updates: Mapping[str, Factors], where: str) -> dict[str, Tensor]:
    """One slot's tensors: smaller ranks padded with zeros, maps that the folder leaves alone zero."""
    for path, f in updates.items():
        if path not in lora.places:
            raise BadInput(f"adapts {path!r}, the bank does not", where=where, remedy="make the bank with from_peft")
        if f.left.shape[1] > lora.rank:
            what = f"has rank {f.left.shape[1]} at {path!r}, the bank {lora.rank}"
            raise BadInput(what, where=where, remedy=f"make the bank with rank={f.left.shape[1]}")
    scales = {f.scale for f in updates.values()}
    common = next(iter(scales)) if len(scales) == 1 else 1.0  # several scales in one adapter go into its B
    state: dict[str, Tensor] = {"scale": torch.tensor(common)}
    for path in lora.places:
        bank, name = lora.site(path), f"sites.{path.replace('.', '/')}"
        A, B = bank.A.new_zeros(bank.A.shape[1:]), bank.B.new_zeros(bank.B.shape[1:])
        if path in updates:
            f = updates[path]
            rank = f.left.shape[1]
            A[:rank], B[:, :rank] = f.right.to(A), (f.left if f.scale == common else f.scale / common * f.left).to(B)
        state |= {f"{name}.A": A, f"{name}.B": B}
    return state


def write_peft(
    lora: LoRA,
    task: str,
    folder: str | Path,
    *,
    base: str = "",
    heads: Mapping[str, Tensor] | None = None,
    task_type: str | None = None,
    overwrite: bool = False,
) -> None:
    """One task as a PEFT folder. base: name or path of the base model. heads: tensors of modules saved whole, by their names.

    Ranks that padding filled up are cut off again; a map whose update is zero throughout is left out.
    """
    slot = lora.slot(task)
    scale = float(lora.scale[slot])
    factors: dict[str, Factors] = {}
    stored = set()
    for path in lora.places:
        module = lora.model.get_submodule(path)
        if getattr(module, "is_projection", False):
            what = f"adapts {path!r}, which inside nn.MultiheadAttention has no module of its own"
            raise BadInput(what, where="write_peft", remedy="merge it, or save it with `save`")
        A, B = lora.site(path).A[slot].detach().cpu(), lora.site(path).B[slot].detach().cpu()
        used = ((A != 0).any(1) | (B != 0).any(0)).nonzero()[:, 0]
        if len(used):
            factors[path] = Factors(B[:, : int(used[-1]) + 1].clone(), A[: int(used[-1]) + 1].clone(), scale)
            stored.add(transposed(module))
    if not factors:
        raise BadInput(f"the adapter of {task!r} is zero everywhere", where="write_peft", remedy="train it first")
    if len(stored) > 1:
        raise BadInput("adapts maps stored both ways", where="write_peft", remedy="adapt nn.Linear or Conv1D, not both")
    write_adapter(folder, factors, base=base, whole=heads, task_type=task_type, overwrite=overwrite, transposed=stored.pop())
