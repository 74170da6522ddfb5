"""Every road as one thing to serve: a container in the experts' own names, with their configurations and tokenizer beside it.

    "experts"        θ* = θ0, each task its own weights in full
    a static merger  θ* = the merged weights, no task adds anything
    "emr", "tall_masks", "twin"   as `container` has them
    "lora"           θ* = θ0, each task the rank-r factors of its matrices (what `extract_lora` writes), nothing else

The heads are each task's own in all of them. What differs is what is stored, and what comes out: the same loader, the same
server and the same evaluation serve all, so that their figures can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.files import atomic_folder, safetensors
from pluribus.merging.checkpoints import MergePlan, config
from pluribus.merging.container import MergeContainer
from pluribus.merging.extract_lora import SKIP
from pluribus.merging.folder import KIND, check_vacant, copy_texts, describe_export, own_names, read_about
from pluribus.merging.parts import FactorPart, factored
from pluribus.merging.run import is_static, merge, names_of, prepare
from pluribus.merging.twin import twin

CONTAINERS = ("emr", "tall_masks", "twin")
ROADS = ("experts", "lora", *CONTAINERS)


def bundle(
    base: Any, experts: Any, method: str, *, heads: Sequence[str] = (), keep: Sequence[str] = (), **settings: Any
) -> MergeContainer:
    """The container that serves `experts` by `method`: a name above, or a static merger of the catalog.

    base, experts: folders, files, state dicts or modules; experts by task. heads, keep: name patterns as for `merge`.
    settings: the method's own; "lora" takes rank (16) or energy.

    Everything is held in memory. Raises `BadInput` as `merge` does, and where the experts name the same tensor differently.
    """
    if method not in ROADS and not is_static(method):
        raise unknown("road to a container", method, ROADS, where="method")
    given = names_of(experts)
    plan, _, _ = prepare(base, given, "average", heads=heads, keep=keep)
    spelled = _spelling(plan)
    theirs = {
        task: {own: source.tensor(own) for own in dict.fromkeys(own_names(plan, task, plan.heads[task]).values())}
        for task, source in plan.originals.items()
    }
    lacking = {n for n in plan.copied if any(n not in set(e.names()) for e in plan.experts.values())}

    def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {spelled.get(n, n): t for n, t in state.items() if n not in lacking}

    names = [n for n in plan.base.names() if n in {*plan.merged, *plan.copied, *plan.tied}]
    trunk = renamed({n: plan.base.tensor(n) for n in names})
    if method in ROADS:
        full = {t: renamed({n: e.tensor(n) for n in names if n not in plan.copied}) for t, e in plan.experts.items()}
    if method == "experts":
        found = MergeContainer(trunk, method=method)
        for task, state in full.items():
            moved = {n: t.to(trunk[n].dtype) for n, t in state.items() if not torch.equal(t.to(trunk[n].dtype), trunk[n])}
            found.add(task, FactorPart({}, moved), theirs[task])
    elif method == "lora":
        found = MergeContainer(trunk, method=method)
        for task, state in full.items():
            found.add(task, _adapter(trunk, state, **settings), theirs[task])
    elif method == "twin":
        found = twin(trunk, {t: {**trunk, **state} for t, state in full.items()}, heads=theirs, **settings)
        found.shared = {**trunk, **found.shared}
    elif method in CONTAINERS:
        states = {t: {**trunk, **state} for t, state in full.items()}
        found = MergeContainer.masked(trunk, states, method=method, heads=theirs, **settings)
        found.shared = {**trunk, **found.shared}
    else:
        merged = merge(base, given, method, heads=heads, keep=keep, **settings)
        found = MergeContainer({**trunk, **renamed(merged)}, method=method)
        for task in given:
            found.add(task, FactorPart(), theirs[task])
    return found


def _adapter(
    base: Mapping[str, Tensor], expert: Mapping[str, Tensor], *, rank: int | None = None, energy: float | None = None
) -> FactorPart:
    """What `extract_lora` keeps of an expert: factors of its matrices; embeddings, biases and norms stay the base's."""
    if rank is not None and energy is not None:
        raise BadInput("both rank and energy are given", where="lora", remedy="give one of them")
    part = FactorPart()
    for name, before in base.items():
        if before.dim() != 2 or not name.endswith(".weight") or name not in expert:
            continue
        if any(fnmatch(name, pattern) for pattern in SKIP):
            continue
        wide = torch.promote_types(before.dtype, torch.float32)
        u, v = factored(expert[name].to(wide) - before.to(wide), 16 if rank is None and energy is None else rank, energy)
        if u.shape[1]:
            part.factors[name] = (u.to(before.dtype), v.to(before.dtype))
    return part


def _spelling(plan: MergePlan) -> dict[str, str]:
    """The base's name → the experts' own, where they differ; the experts must agree."""
    found: dict[str, str] = {}
    for i, (task, source) in enumerate(plan.experts.items()):
        mine = {n: own for n, own in getattr(source, "map", {}).items() if n != own and n in {*plan.merged, *plan.copied}}
        if i and mine != found:
            remedy = "save them with one class, or serve them apart"
            raise BadInput("names its tensors in another way than the first expert", where=f"expert {task!r}", remedy=remedy)
        found = mine
    return found


def homes_of(experts: Any) -> dict[str, Path]:
    """The folders of experts that have a configuration, by task."""
    paths = {task: Path(e) for task, e in names_of(experts).items() if isinstance(e, (str, Path))}
    return {task: path for task, path in paths.items() if path.is_dir() and (path / "config.json").is_file()}


def open_bundle(folder: str | Path) -> tuple[MergeContainer, dict[str, dict[str, Any]]]:
    """A container folder, or what `merge` wrote, as a container; and each task's configuration ({} where there is none)."""
    folder = Path(folder)
    about = read_about(folder)
    if about.get("kind") != KIND:
        container = MergeContainer.load(folder)
        held = {row["name"]: row.get("config") for row in about["tasks"]}
        return container, {task: row if isinstance(row, dict) else config(folder) for task, row in held.items()}
    rows = about.get("tasks")
    where = str(folder / "pluribus.json")
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise BadInput("names no tasks", where=where, remedy="merge again")
    first = next(iter(rows.values()))
    rename, without = dict(first.get("rename") or {}), set(first.get("without") or [])
    with safetensors.Reader(folder) as trunk:
        shared = {rename.get(n, n): trunk.tensor(n) for n in trunk.names() if n not in without}
    found = MergeContainer(shared, method=str(about.get("method", "merge")))
    configs = {}
    for task, row in rows.items():
        if dict(row.get("rename") or {}) != rename or set(row.get("without") or []) != without:
            raise BadInput(f"task {task!r} names its tensors in another way", where=where, remedy="export each task and serve it")
        head = {}
        if row.get("head"):
            if row["head"] != f"heads/{task}.safetensors" or "/" in task or task.startswith("."):
                raise BadInput(f"names the head {row['head']!r}", where=where, remedy="do not trust it")
            head = safetensors.load(folder / row["head"])
        found.add(task, FactorPart(), head)
        configs[task] = row["config"] if isinstance(row.get("config"), dict) else config(folder)
    return found, configs


def export_container(folder: str | Path, task: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """One task of a container as an ordinary Hugging Face folder: weights and head in one file, the expert's configuration."""
    folder, out = Path(folder), Path(out)
    container, configs = open_bundle(folder)
    if task not in container.tasks:
        raise unknown("task", task, container.tasks, where=str(folder))
    check_vacant(out, overwrite)
    state = container.state(task)
    dtype = next((state[n].dtype for n in container.shared if state[n].is_floating_point()), None)
    with atomic_folder(out) as aside:
        safetensors.save(aside / "model.safetensors", {n: t.contiguous() for n, t in state.items()}, {"format": "pt"})
        copy_texts(folder, aside, {})
        describe_export(aside, configs[task], dtype, task, container.method)
    return out
