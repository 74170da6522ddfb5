"""What all adapters share: slots for tasks, hooks on a frozen model, merging into its weights, saving. The *storage*.

A method is a subclass that says which parameters it has (`sites`, a module per site whose parameters are stacked over slots, the
first dimension), where it acts (`hooks`) and what it does there (`before`, `after`, `enter`, `leave`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pluribus.adapters.attention import OpenAttention, close_attention, open_attention
from pluribus.adapters.route import Route, active, current, register, repeated, unregister
from pluribus.adapters.sites import Site, linears, transposed
from pluribus.errors import BadInput, unknown
from pluribus.files import atomic_folder, read_json, safetensors
from pluribus.linalg.low_rank import Pick

SCHEMA = 1
_FROZEN: weakref.WeakKeyDictionary[nn.Module, tuple[set[int], dict[nn.Parameter, bool]]] = weakref.WeakKeyDictionary()


def key_of(path: str) -> str:
    """A path as the name of a submodule, which may hold no dot."""
    return path.replace(".", "/") or "model"


class Adapters(nn.Module):
    """Small modules for many tasks on one frozen model.

    Parameters
    ----------
    model : nn.Module
        Any module. It is changed by hooks only (and opened attentions), keeps its own parameters and state dict, and is put
        back bit for bit by `detach`.
    tasks : sequence
        Names, or objects with a `name`. Each has a slot: a place in the first dimension of every stacked parameter.
    settings : mapping, optional
        What the constructor needs to make the same again (plain JSON values).
    freeze : bool
        Whether the model's own parameters stop taking gradients until `detach`.

    Raises
    ------
    BadInput
        There is no task, or two have one name.
    """

    name: ClassVar[str] = ""
    common: ClassVar[tuple[str, ...]] = ()
    """Globs over the names of parameters and buffers that belong to all tasks; the others are stacked over slots."""

    model: nn.Module
    sites: nn.ModuleDict

    def __init__(
        self, model: nn.Module, tasks: Sequence[Any], settings: Mapping[str, Any] | None = None, *, freeze: bool = True
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule: the adapters' parameters are the adapters' alone
        names = [str(getattr(task, "name", task)) for task in tasks]
        if isinstance(tasks, str) or len(set(names)) < len(names) or not names:
            raise BadInput("needs different names of at least one task", where="tasks", remedy="give a list of names")
        self.slots = {name: i for i, name in enumerate(names)}
        self.capacity = len(names)
        self.free: list[int] = []
        self.version = 0
        self.settings = dict(settings or {})
        self.frozen = freeze
        self.sites = nn.ModuleDict()
        self._handles: list[Any] = []
        self._opened: list[str] = []
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._plain: list[tuple[nn.Module, str, Any]] = []
        self._lock = threading.RLock()
        self.merged: str | None = None

    # -- what a method writes ----------------------------------------------------------------------------------------------

    def hooks(self) -> Iterable[tuple[str, str, Any]]:
        """(path of a module, which of `before`, `after`, `enter` and `leave` to call there, what to hand to it)."""
        raise NotImplementedError

    def before(self, at: Any, module: nn.Module, x: Tensor, route: Route) -> Tensor:
        """The input that the module at a site gets instead of x."""
        raise NotImplementedError

    def after(self, at: Any, module: nn.Module, x: Tensor, y: Tensor, route: Route) -> Tensor:
        """The output of a site instead of y; x is what the module got."""
        raise NotImplementedError

    def enter(self, at: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], route: Route) -> Any:
        """(args, kwargs) that the module gets instead; for blocks, whose masks change with their input."""
        raise NotImplementedError

    def leave(self, at: Any, module: nn.Module, output: Any, route: Route) -> Any:
        """What the module returns instead of `output`; for blocks, which may return tuples."""
        raise NotImplementedError

    def merged_parameters(self, task: str) -> dict[str, Tensor]:
        """Path of a parameter → its value with the task's adapter inside; a method without such values cannot merge."""
        raise BadInput(f"{self.name} is no change of weights", where="merge", remedy="serve it attached")

    # -- tasks -------------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in the order of their slots."""
        return tuple(sorted(self.slots, key=self.slots.__getitem__))

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters())).device

    def slot(self, task: str) -> int:
        """The slot of a task; an unknown one is an error."""
        if task not in self.slots:
            raise unknown("task", task, self.slots, where=f"{self.name} adapters")
        return self.slots[task]

    def stacked(self) -> dict[str, Tensor]:
        """Parameters and buffers whose first dimension is the slots, by name."""
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: t for name, t in named.items() if not any(fnmatch.fnmatchcase(name, glob) for glob in self.common)}

    def slices(self, task: str) -> dict[str, slice]:
        """Parameter name → the slice of its first dimension that belongs to `task` (for `SliceAdamW`)."""
        slot, mine = self.slot(task), self.stacked()
        return {name: slice(slot, slot + 1) for name, _ in self.named_parameters() if name in mine}

    def add(self, task: str, state: Mapping[str, Tensor] | None = None) -> int:
        """A slot for a new task, as at the start or from `state`; in place while slots are free, otherwise the stacks double
        (their parameters are then new objects, which an optimiser has to be told)."""
        with self._lock:
            if task in self.slots:
                raise BadInput(f"task {task!r} is there already", where=f"{self.name} adapters", remedy="choose another name")
            if not self.free:
                self.reserve(2 * self.capacity)
            slot = self.free.pop()
            self.slots[task] = slot
            try:
                if state is None:
                    self.reset(slot)
                else:
                    self.load_task(task, state)
            except BaseException:
                self.free.append(self.slots.pop(task))
                raise
            self.touched(slot)
            return slot

    def evict(self, task: str) -> None:
        """Forget a task; its slot is free for another."""
        with self._lock:
            self.free.append(self.slot(task))
            del self.slots[task]
            self.version += 1

    @torch.no_grad()
    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tasks in all; no more is allocated until they exceed it."""
        with self._lock:
            for name, old in self.stacked().items() if capacity > self.capacity else ():
                holder_path, _, leaf = name.rpartition(".")
                holder = self.get_submodule(holder_path)
                new = old.new_zeros(capacity, *old.shape[1:])  # pages of zeros take no memory before they are written
                new[: self.capacity] = old
                setattr(holder, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
            self.free += range(max(capacity, self.capacity) - 1, self.capacity - 1, -1)
            self.capacity = max(capacity, self.capacity)
            self.version += 1

    def touched(self, slot: int | None = None) -> None:
        """A slot (None: any) holds something else: routes look it up anew."""
        self.version += 1

    @torch.no_grad()
    def reset(self, slot: int) -> None:
        """Put one slot to where training starts."""
        for site in self.sites.values():
            site.reset(slot)  # type: ignore[operator]

    def task_state(self, task: str) -> dict[str, Tensor]:
        """A copy of one task's share of every stacked tensor, by name."""
        slot = self.slot(task)
        return {name: tensor[slot].detach().clone() for name, tensor in self.stacked().items()}

    @torch.no_grad()
    def load_task(self, task: str, state: Mapping[str, Tensor]) -> None:
        """Write one task's share of every stacked tensor; names and shapes have to fit."""
        slot, mine = self.slot(task), self.stacked()
        _fit(mine, state, f"the adapter of {task!r}", lambda tensor: tensor.shape[1:])
        for name, tensor in mine.items():
            tensor[slot].copy_(state[name])
        self.touched(slot)

    # -- the model ---------------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def start(self) -> None:
        """The end of a constructor: take the model's device and precision, and attach."""
        own = next(iter(self.model.parameters()), None)
        if own is not None:
            self.to(own.device, own.dtype if own.is_floating_point() else None)
        self.attach()

    def attach(self) -> Self:
        """Put the hooks on the model; the constructor did so already."""
        if self.attached:
            return self
        if self.merged is not None:
            raise BadInput(f"task {self.merged!r} is merged", where="attach", remedy="call unmerge() first")
        for path in dict.fromkeys(path.rpartition(".")[0] for path, *_ in self.hooks()):
            with contextlib.suppress(AttributeError):
                if isinstance(self.model.get_submodule(path), nn.MultiheadAttention | OpenAttention):
                    open_attention(self.model, path)
                    self._opened.append(path)
        for path, kind, at in self.hooks():
            module = self.model.get_submodule(path)
            if kind in ("before", "enter"):
                hook = (_Before if kind == "before" else _Enter)(self, at)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook((_After if kind == "after" else _Leave)(self, at)))
        self._handles.append(self.model.register_forward_pre_hook(_Counted(self), with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(_Followed(self)))
        self._leave_fast_paths()
        if self.frozen:
            _freeze(self.model, self)
        register(self)
        return self

    def detach(self) -> None:
        """Take every hook out again: the model is what it was, bit for bit."""
        if self.merged is not None:
            self.unmerge()
        for handle in self._handles:
            handle.remove()
        for path in reversed(self._opened):
            close_attention(self.model, path)
        for module, name, value in reversed(self._plain):
            setattr(module, name, value)
        self._handles, self._opened, self._plain = [], [], []
        _thaw(self.model, self)
        unregister(self)

    def _leave_fast_paths(self) -> None:
        """torch's encoder layers have fused paths, and the encoder one for nested tensors, that skip every hook."""
        for module in self.model.modules():
            for kind, name, value in (
                (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
                (nn.TransformerEncoder, "use_nested_tensor", False),
            ):
                if isinstance(module, kind) and getattr(module, name, value) != value:
                    self._plain.append((module, name, getattr(module, name)))
                    setattr(module, name, value)

    @torch.no_grad()
    def merge(self, task: str) -> None:
        """Write a task's adapter into the model's weights: it then answers as that task without hooks or routes."""
        if self.merged is not None:
            raise BadInput(f"task {self.merged!r} is merged already", where="merge", remedy="call unmerge() first")
        for path, value in self.merged_parameters(task).items():
            holder, _, leaf = path.rpartition(".")
            parameter = getattr(self.model.get_submodule(holder), leaf)
            self._kept.append((parameter, parameter.detach().clone()))
            parameter.copy_(value)
        self.detach()
        self.merged = task

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the model its own weights back, bit for bit, and attach again."""
        for parameter, value in self._kept:
            parameter.copy_(value)
        self._kept, self.merged = [], None
        self.attach()

    # -- files -------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Everything but the model: `adapters.json` and `adapters.safetensors`; `pluribus.adapters.load` reads them."""
        if self.merged is not None:
            raise BadInput(f"task {self.merged!r} is merged into the model", where="save", remedy="call unmerge() first")
        about = {
            "schema": SCHEMA,
            "method": self.name,
            "tasks": self.tasks,
            "settings": self.settings,
            "base": fingerprint(self.model, [path for path, *_ in self.hooks()]),
        }
        order = torch.tensor([self.slots[task] for task in self.tasks], device=self.device)
        mine = self.stacked()
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        tensors = {name: (t[order] if name in mine else t).detach().cpu().contiguous() for name, t in named.items()}
        with atomic_folder(folder) as aside:
            (aside / "adapters.json").write_text(json.dumps(about, indent=1), "utf-8")
            safetensors.save(aside / "adapters.safetensors", tensors, {"format": "pt"})

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Write every tensor of a saved folder."""
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        _fit(named, tensors, where, lambda tensor: tensor.shape)
        for name, tensor in named.items():
            tensor.copy_(tensors[name])
        self.touched()

    def extra_repr(self) -> str:
        return f"{self.name}: {len(self.slots)} tasks, {len(self.sites)} sites"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.RLock()


class LinearAdapters(Adapters):
    """Adapters on linear maps: `places` are their sites by path; `updated` is the output of one of them."""

    def __init__(
        self, model: nn.Module, tasks: Sequence[Any], where: str | Sequence[str], settings: Mapping[str, Any], *, freeze: bool
    ) -> None:
        where = where if isinstance(where, str) else list(where)
        super().__init__(model, tasks, {"where": where, **settings}, freeze=freeze)
        self.places = {site.path: site for site in linears(model, where)}

    def hooks(self) -> Iterator[tuple[str, str, Any]]:
        for path in self.places:
            yield path, "after", path

    def after(self, at: Any, module: nn.Module, x: Tensor, y: Tensor, route: Route) -> Tensor:
        site, pick = self.places[at], route.pick(self, y.device)
        found = self.updated(at, module, rows_first(x, pick, site.batch), rows_first(y, pick, site.batch), pick, route)
        return back(found, y, site.batch)

    def updated(self, path: str, module: nn.Module, x: Tensor, y: Tensor, pick: Pick, route: Route) -> Tensor:
        """The adapted output [rows, tokens, out] from the input x [rows, tokens, in] and the frozen output y."""
        raise NotImplementedError

    def site(self, path: str) -> Any:
        """The parameters of one site."""
        return self.sites[key_of(path)]

    def weight(self, path: str) -> Tensor:
        """The weight at `path` as [out, in] (a view)."""
        module: Any = self.model.get_submodule(path)
        found: Tensor = module.weight.T if transposed(module) else module.weight
        return found.detach()

    def with_change(self, path: str, change: Tensor) -> Tensor:
        """The weight at `path` plus a change [out, in], as the module stores it."""
        module: Any = self.model.get_submodule(path)
        weight: Tensor = module.weight
        return weight + (change.T if transposed(module) else change).to(weight)


def rows_first(x: Tensor, pick: Pick, batch: int = 0) -> Tensor:
    """x as [rows, tokens, d]. Leading dimensions may be flattened, rows outermost (tokens, windows of an image)."""
    if batch and x.ndim == 3:
        x = x.transpose(0, 1)
    rows = len(x) if pick.index is None else len(pick.index)
    if x.ndim == 3 and len(x) == rows:
        return x
    if not rows or len(x) % rows:
        raise BadInput(
            f"the route names {rows} rows, a layer got an input of shape {tuple(x.shape)}",
            where="route",
            remedy="name one task per row of the batch",
        )
    return x.reshape(rows, -1, x.shape[-1])


def back(y: Tensor, like: Tensor, batch: int = 0) -> Tensor:
    """The inverse of `rows_first` for an output of the shape of `like`."""
    if batch and like.ndim == 3:
        return y.reshape(like.shape[1], like.shape[0], -1).transpose(0, 1)
    return y if y.shape == like.shape else y.reshape(like.shape)


class _Hook:
    """A hook that pickles and copies with what it belongs to (a closure would still point at the original)."""

    def __init__(self, adapters: Adapters, at: Any = None) -> None:
        self.adapters, self.at = adapters, at


class _Before(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self.adapters.before(self.at, module, args[0], active()), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: self.adapters.before(self.at, module, kwargs[name], active())}


class _After(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.adapters.after(self.at, module, args[0] if args else None, output, active())  # type: ignore[arg-type]


class _Enter(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.adapters.enter(self.at, module, args, kwargs, active())


class _Leave(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.adapters.leave(self.at, module, output, active())


class _Counted(_Hook):
    """On the whole model: a route of fewer rows than the batch would, where it divides them, be dealt out in silence."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        route = current()
        if route is None or route.rows is None:
            return
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
        counts = [tuple(t.shape[: 2 if t.ndim > 2 or not t.is_floating_point() else 1]) for t in given]  # batch first or second
        if given and not any(route.rows in each for each in counts):
            raise BadInput(
                f"the route names {route.rows} rows, the model got an input of shape {tuple(given[0].shape)}",
                where="route",
                remedy="name one task per row of the batch",
            )


class _Followed(_Hook):
    """On the whole model: its outputs carry the route into the backward pass, and have to be reached by gradients."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        route = repeated() or current()
        if route is None:
            return
        route.follow(output)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        trains = module.training and any(p.requires_grad for p in self.adapters.parameters())
        if trains and leaves and not any(leaf.requires_grad for leaf in leaves):
            raise BadInput(
                "no gradient reaches the adapters: the layers are checkpointed over inputs without gradients",
                where="forward",
                remedy="checkpoint with use_reentrant=False, or let the embeddings' output require gradients",
            )


def _freeze(model: nn.Module, who: Adapters) -> None:
    users, flags = _FROZEN.setdefault(model, (set(), {}))
    users.add(id(who))
    for p in model.parameters():
        flags.setdefault(p, p.requires_grad)
        p.requires_grad_(False)


def _thaw(model: nn.Module, who: Adapters) -> None:
    users, flags = _FROZEN.get(model, (set(), {}))
    users.discard(id(who))
    if not users:
        for p, flag in flags.items():
            p.requires_grad_(flag)
        _FROZEN.pop(model, None)


def _fit(mine: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str, shape: Callable[[Tensor], Any]) -> None:
    for name, tensor in mine.items():
        if name not in given:
            raise BadInput(f"lacks the tensor {name!r}", where=where, remedy="it belongs to other sites or another method")
        if tuple(given[name].shape) != tuple(shape(tensor)):
            what = f"has {name!r} of shape {tuple(given[name].shape)}, the model needs {tuple(shape(tensor))}"
            raise BadInput(what, where=where, remedy="it was made for another base model or with other settings")
    for name in given:
        if name not in mine:
            raise BadInput(f"holds {name!r}, which these adapters do not have", where=where, remedy="make them as it was made")


def fingerprint(model: nn.Module, paths: Sequence[str]) -> dict[str, str]:
    """Path of a site → a hash of its shapes, precision and some weights: enough to tell another base model."""
    found: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        try:
            module: Any = model.get_submodule(path)
        except AttributeError:  # a projection of an attention that is not open: the attention stands for it
            module = model.get_submodule(path.rpartition(".")[0])
        module = getattr(module, "owner", module)
        digest = hashlib.sha256()
        for name, p in sorted(module.named_parameters()):
            digest.update(f"{name} {tuple(p.shape)} {p.dtype}".encode())
            values = p.detach().reshape(-1)
            digest.update(values[:: max(1, values.numel() // 64)].float().cpu().numpy().tobytes())
        found[path] = digest.hexdigest()[:32]
    return found


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `Adapters.save` wrote: the description and the tensors."""
    folder = Path(folder)
    about = read_json(folder / "adapters.json", what="description of adapters")
    wanted = {"schema", "method", "tasks", "settings", "base"}
    if not isinstance(about, dict) or not wanted <= set(about):
        raise BadInput("does not describe adapters", where=str(folder / "adapters.json"), remedy="save them again")
    if about["schema"] != SCHEMA:
        raise BadInput(f"has schema {about['schema']}, this version reads {SCHEMA}", where=str(folder), remedy="save them again")
    return about, safetensors.load(folder / "adapters.safetensors")


def check_base(adapters: Adapters, about: Mapping[str, Any], where: str) -> None:
    """Raise where a folder was made on another base model."""
    mine = fingerprint(adapters.model, [path for path, *_ in adapters.hooks()])
    for path, mark in about["base"].items():
        if mine.get(path) != mark:
            what = (
                f"was made on another base model: {path!r} is not in this one"
                if path not in mine
                else (f"was made on another base model: the weights at {path!r} differ")
            )
            raise BadInput(what, where=where, remedy="attach it to the model it was trained on")


__all__ = ["Adapters", "LinearAdapters", "Site", "back", "check_base", "key_of", "read_folder", "rows_first"]
