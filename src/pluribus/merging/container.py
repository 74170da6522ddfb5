"""One container for many tasks: shared weights, what each task adds to them, its head, and a router; one forward for all rows.

    shared θ*      the base, or any merged weights
    mask part      θ_t = θ* + s_t · (m_t ⊙ v),  one vector v for all tasks, one bit a parameter (EMR-Merging, TALL-masks)
    factor part    θ_t = θ* + U_t V_t for matrices and kernels, whole tensors where factors would not be smaller (Twin-Merging)

A task is stored by itself and refers only to θ* and v, so adding one changes neither: the others' files, and their outputs when
rows are sent by task id, keep every bit. A soft mixture, θ(x) = θ* + Σ_t w_t(x) v_t, is served in factored form.

On disk: `pluribus.json` and safetensors files, no pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, unknown
from pluribus.files import atomic_folder, read_json, safetensors
from pluribus.merging.checkpoints import config
from pluribus.merging.coefficients import TaskVectors
from pluribus.merging.consensus import masks as localised
from pluribus.merging.emr import unified
from pluribus.merging.folder import copy_texts
from pluribus.merging.parts import FactorPart, MaskPart, Part, check, factor_part, pack, unpack
from pluribus.merging.router import Router
from pluribus.merging.served import Served
from pluribus.merging.source import Source

SCHEMA = 1
KIND = "merge-container"


class MergeContainer:
    """Shared weights, and what each task adds to them.

    Parameters
    ----------
    shared : mapping of str to Tensor
        θ* by name.
    vector : mapping of str to Tensor, optional
        v of the mask parts by name.
    method : str
        What made the container.
    router : Router, optional
        Tells which task a row belongs to.

    Attributes
    ----------
    parts : dict of str to MaskPart or FactorPart
        By task.
    heads : dict of str to dict of str to Tensor
        By task.
    """

    def __init__(
        self,
        shared: Mapping[str, Tensor],
        *,
        vector: Mapping[str, Tensor] | None = None,
        method: str = "container",
        router: Router | None = None,
    ) -> None:
        self.shared = {n: t.detach().contiguous() for n, t in shared.items()}
        self.vector = {n: t.detach() for n, t in (vector or {}).items()}
        self.method, self.router = method, router
        self.parts: dict[str, Part] = {}
        self.heads: dict[str, dict[str, Tensor]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def add(self, task: str, part: Part, head: Mapping[str, Tensor] | None = None) -> MergeContainer:
        """Store a task. The names and shapes of its part must be those of the shared weights."""
        if task in self.parts:
            raise BadInput(f"task {task!r} is already in the container", remedy="use another name")
        if not task:
            raise BadInput("a task has an empty name", remedy="name it")
        check(task, part, self.shared, self.vector)
        self.parts[task], self.heads[task] = part, {n: t.detach().contiguous() for n, t in (head or {}).items()}
        return self

    def add_expert(
        self,
        task: str,
        expert: Mapping[str, Tensor],
        *,
        rank: int | None = 16,
        energy: float | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> MergeContainer:
        """Store a fine-tuned model as what it adds to the shared weights, at `rank` (None: all of it) or by `energy`.

        Tensors of `expert` that the shared weights do not have, or have in another shape, are its head.
        """
        own = {n: t for n, t in expert.items() if n not in self.shared or t.shape != self.shared[n].shape}
        return self.add(task, factor_part(self.shared, expert, rank=rank, energy=energy), {**own, **(head or {})})

    def state(self, task: str) -> dict[str, Tensor]:
        """The task's weights by name, head included: what an ordinary checkpoint of it would hold."""
        part = self._part(task)
        if isinstance(part, MaskPart):
            found = dict(self.shared)
            for name, bits in part.masks.items():
                base, v = self.shared[name], self.vector[name]
                wide = torch.promote_types(base.dtype, torch.float32)
                found[name] = (base.to(wide) + part.scale * (unpack(bits, v.shape) * v.to(wide))).to(base.dtype)
        else:
            found = {**self.shared, **part.whole}
            for name, (u, v) in part.factors.items():
                found[name] = self.shared[name] + (u @ v).view_as(self.shared[name])
        return {**found, **self.heads[task]}

    def mixture(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """θ* + Σ_t w_t (θ_t − θ*) of the trunk. With one weight of 1 and no other: exactly that task's weights."""
        active = {t: w for t, w in weights.items() if w != 0}
        if len(active) == 1 and next(iter(active.values())) == 1:
            task = next(iter(active))
            return {n: t for n, t in self.state(task).items() if n in self.shared and t.shape == self.shared[n].shape}
        total: dict[str, Tensor] = dict(self.shared)
        for task, w in active.items():
            for name, value in self.state(task).items():
                base = self.shared.get(name)
                if base is not None and value is not base and base.is_floating_point() and base.shape == value.shape:
                    total[name] = total[name] + w * (value - base)
        return total

    def renamed(self, names: Mapping[str, str]) -> MergeContainer:
        """The same tensors under other names; a name that `names` lacks stays."""

        def seen(tensors: Mapping[str, Any]) -> dict[str, Any]:
            return {names.get(n, n): t for n, t in tensors.items()}

        found = MergeContainer(seen(self.shared), vector=seen(self.vector), method=self.method, router=self.router)
        for task, part in self.parts.items():
            if isinstance(part, MaskPart):
                mine: Part = MaskPart(seen(part.masks), part.scale)
            else:
                mine = FactorPart(seen(part.factors), seen(part.whole))
            found.add(task, mine, seen(self.heads[task]))
        return found

    def bytes(self) -> dict[str, int]:
        """Bytes of tensor data by part: "shared", "vector", "router", and each task."""
        found = {"shared": _size(self.shared.values()), "vector": _size(self.vector.values())}
        found["router"] = _size(self.router.state_dict().values()) if self.router else 0
        for task in self.tasks:
            found[task] = _size(_tensors(self.parts[task], self.heads[task]).values())
        return found

    def _part(self, task: str) -> Part:
        if task not in self.parts:
            raise unknown("task", task, self.tasks, where="container")
        return self.parts[task]

    @classmethod
    def masked(
        cls,
        base: Any,
        experts: Mapping[str, Any],
        *,
        method: str = "emr",
        threshold: float | Mapping[str, float] = 0.4,
        heads: Mapping[str, Mapping[str, Tensor]] | None = None,
        keep: Sequence[str] = (),
    ) -> MergeContainer:
        """The base, one vector, and a bit a parameter for each expert: "emr", or "tall_masks" at `threshold` (of all or by task).

        Parameters
        ----------
        base
            State dict, module or safetensors folder; read tensor by tensor.
        experts : mapping
            The same by task name.
        method : {"emr", "tall_masks"}
            What made the masks.
        threshold : float or mapping of str to float
            Of "tall_masks", of all tasks or by task.
        heads : mapping of str to mapping of str to Tensor, optional
            By task, tensors that are served with it.
        keep : sequence of str
            Name patterns that are not merged: heads, if the expert has them.
        """
        if method not in ("emr", "tall_masks"):
            raise unknown("method", method, ("emr", "tall_masks"))
        vectors = TaskVectors(base, experts, heads=keep, resident_bytes=0)
        vector: dict[str, Tensor] = {}
        masks: dict[str, dict[str, Tensor]] = {t: {} for t in vectors.tasks}
        sums = torch.zeros(2, len(vectors.tasks), dtype=torch.float64)
        each = [threshold[t] if isinstance(threshold, Mapping) else threshold for t in vectors.tasks]
        for name in vectors.names:
            tau = vectors.compute(name, 0, vectors.numel(name), vectors.dtype)
            if method == "emr":
                merged, chosen = unified(tau)
                sums += torch.stack([tau.double().abs().sum(1), (chosen * merged.double().abs()).sum(1)])
            else:
                merged = tau.sum(0)
                chosen = torch.cat([localised(tau[i : i + 1], merged, by) for i, by in enumerate(each)])
            vector[name] = merged.view(vectors.shape(name))
            for task, mask in zip(vectors.tasks, chosen):
                masks[task][name] = pack(mask)
        shared = {n: vectors.base.tensor(n) for n in vectors.base.names() if n in vector or not is_floating(vectors.base, n)}
        found = cls(shared, vector=vector, method=method)
        for i, (task, source) in enumerate(zip(vectors.tasks, vectors.experts)):
            scale = float(sums[0, i] / sums[1, i]) if sums[1, i] > 0 else 1.0
            own = {n: source.tensor(n) for n in source.names() if n not in shared}
            found.add(task, MaskPart(masks[task], scale), {**own, **(heads or {}).get(task, {})})
        return found

    # Files

    def save(self, folder: str | Path, homes: Mapping[str, Path] | None = None) -> Path:
        """Write the container; the folder appears whole or not at all.

        Parameters
        ----------
        folder : str or Path
            Where to write.
        homes : mapping of str to Path, optional
            The experts' folders by task; their configurations, and the first one's tokenizer, go along, so that the container can
            be served by itself.
        """
        folder = Path(folder)
        with atomic_folder(folder) as aside:
            for home in list((homes or {}).values())[:1]:
                copy_texts(home, aside, {})
            _write(self.shared, aside / "shared.safetensors")
            if self.vector:
                _write(self.vector, aside / "vector.safetensors")
            rows = []
            for i, task in enumerate(self.tasks):
                part, name = self.parts[task], f"task-{i:04d}.safetensors"
                _write(_tensors(part, self.heads[task]), aside / name)
                row: dict[str, Any] = {"name": task, "kind": "mask" if isinstance(part, MaskPart) else "factors", "file": name}
                if isinstance(part, MaskPart):
                    row["scale"] = float(part.scale)
                if task in (homes or {}):
                    row["config"] = config(homes[task])  # type: ignore[index]
                rows.append(row)
            about: dict[str, Any] = {"schema_version": SCHEMA, "kind": KIND, "method": self.method, "tasks": rows, "router": None}
            if self.router is not None:
                _write(self.router.state_dict(), aside / "router.safetensors")
                about["router"] = {"width": self.router.width, "tasks": list(self.router.tasks)}
            (aside / "pluribus.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", "utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> MergeContainer:
        """Read a container; a file that is missing, foreign or does not fit is named."""
        folder = Path(folder)
        where = str(folder / "pluribus.json")
        about = read_json(folder / "pluribus.json", what="description of a merge container")
        if not isinstance(about, dict) or about.get("kind") != KIND:
            raise BadInput("does not describe a merge container", where=where, remedy="check the folder")
        version = about.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA or version < 1:
            raise BadInput(f"has schema version {version}, this release reads {SCHEMA}", where=where, remedy="upgrade pluribus")
        tasks = about.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(r, dict) and isinstance(r.get("name"), str) for r in tasks):
            raise BadInput("its 'tasks' is not a list of named tasks", where=where, remedy="write the container again")
        has_vector = any(row.get("kind") == "mask" for row in tasks)
        found = cls(
            _read(folder, "shared.safetensors"),
            vector=_read(folder, "vector.safetensors") if has_vector else None,
            method=str(about.get("method", "container")),
        )
        for row in tasks:
            part, head = _split(_read(folder, row.get("file"), where), row, where)
            found.add(row["name"], part, head)
        if about.get("router") is not None:
            found.router = _read_router(folder, about["router"], where)
        return found

    def serve(
        self, model: nn.Module, *, features: Callable[[nn.Module, Any], Tensor] | None = None, example: Any = None
    ) -> Served:
        """The container in `model`, which gets the shared weights. See `Served`."""
        return Served(self, model, features, example)


def is_floating(source: Source, name: str) -> bool:
    """Whether a tensor of a source is of a floating dtype."""
    return source.dtype(name).is_floating_point


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _tensors(part: Part, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A part and its head under names of one file: mask:NAME, u:NAME, v:NAME, whole:NAME, head:NAME."""
    found = {f"head:{n}": t for n, t in head.items()}
    if isinstance(part, MaskPart):
        return {**found, **{f"mask:{n}": t for n, t in part.masks.items()}}
    for n, (u, v) in part.factors.items():
        found[f"u:{n}"], found[f"v:{n}"] = u, v
    return {**found, **{f"whole:{n}": t for n, t in part.whole.items()}}


def _split(tensors: Mapping[str, Tensor], row: Mapping[str, Any], where: str) -> tuple[Part, dict[str, Tensor]]:
    by: dict[str, dict[str, Tensor]] = {"mask": {}, "u": {}, "v": {}, "whole": {}, "head": {}}
    for key, tensor in tensors.items():
        role, _, name = key.partition(":")
        if role not in by or not name:
            raise BadInput(f"tensor {key!r} has no known role", where=f"{where}, task {row['name']!r}")
        by[role][name] = tensor
    kind, scale = row.get("kind"), row.get("scale", 1.0)
    if kind == "mask" and isinstance(scale, (int, float)):
        return MaskPart(by["mask"], float(scale)), by["head"]
    if kind == "factors" and by["u"].keys() == by["v"].keys():
        return FactorPart({n: (u, by["v"][n]) for n, u in by["u"].items()}, by["whole"]), by["head"]
    raise BadInput(f"task {row['name']!r} is of unknown kind {kind!r} or incomplete", where=where)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    safetensors.save(path, {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, {"format": "pt"})


def _read(folder: Path, name: Any, where: str | None = None) -> dict[str, Tensor]:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", name):
        raise BadInput(f"names the file {name!r}", where=where, remedy="only plain .safetensors names are read")
    return safetensors.load(folder / name)


def _read_router(folder: Path, about: Any, where: str) -> Router:
    try:
        router = Router(int(about["width"]), [str(t) for t in about["tasks"]])
        router.load_state_dict(_read(folder, "router.safetensors"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"its router does not fit ({error})", where=where, remedy="train the router again") from error
    return router.eval().requires_grad_(False)
