"""The route: which task every row of a forward belongs to. The *router* of the three things an adapter is made of.

A route lives in a context variable: it is scoped to its `with` block and its thread, and a thread that sets none has none. The
recomputation of gradient checkpointing happens in the backward pass, often after the block was left: the model's outputs carry
their route there, so that a recomputed layer sees the tasks of the forward it repeats.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown
from pluribus.linalg.low_rank import Pick


class Slots(Protocol):
    """What a route asks of adapters: which slot holds which task."""

    @property
    def name(self) -> str: ...

    @property
    def slots(self) -> Mapping[str, int]: ...

    @property
    def version(self) -> int:
        """Changes whenever a slot holds something else."""
        ...

    @property
    def device(self) -> torch.device: ...


_ROUTE: contextvars.ContextVar[Route | None] = contextvars.ContextVar("pluribus_route", default=None)
_BACKWARD: contextvars.ContextVar[Route | None] = contextvars.ContextVar("pluribus_backward_route", default=None)
_ATTACHED: weakref.WeakSet[Slots] = weakref.WeakSet()
_LOCK = threading.Lock()


class Route:
    """The rows' tasks of one forward.

    Parameters
    ----------
    tasks : str, sequence of str, Tensor or None
        One name for all rows; or a name per row; or, with `names`, an int64 tensor [rows] of places in `names`.
    names : sequence of str, optional
        What the places in `tasks` stand for.
    forks : sequence of str
        Tasks whose streams leave every forking block (see `MTLoRA`); rows then belong to no task.

    Attributes
    ----------
    penalties : dict
        Auxiliary losses by site (MixLoRA's load balance); `penalty()` is their sum.
    streams : dict of str to list of Tensor
        The forked features by task.

    Raises
    ------
    BadInput
        No row is named, or a place lies outside `names`.
    """

    def __init__(
        self, tasks: str | Sequence[str] | Tensor | None, names: Sequence[str] | None = None, forks: Sequence[str] = ()
    ) -> None:
        self.index: Tensor | None = None
        if tasks is None:
            self.names: tuple[str, ...] = ()
        elif isinstance(tasks, str):
            self.names = (tasks,)
        elif isinstance(tasks, Tensor):
            if names is None or tasks.ndim != 1 or tasks.dtype not in (torch.int64, torch.int32):
                raise BadInput("needs integers [rows] and the names they stand for", where="route", remedy="route(ids, names)")
            if len(tasks) and not 0 <= int(tasks.min()) <= int(tasks.max()) < len(names):
                raise BadInput(f"has a task outside 0 to {len(names) - 1}", where="route", remedy="check ids against names")
            present, self.index = torch.unique(tasks, return_inverse=True)
            self.names = tuple(names[i] for i in present.tolist())
        else:
            place = {name: i for i, name in enumerate(dict.fromkeys(tasks))}
            self.names = tuple(place)
            self.index = torch.tensor([place[name] for name in tasks], dtype=torch.int64)
        if tasks is not None and not self.names:
            raise BadInput("names no row", where="route", remedy="name one task per row")
        self.forks = tuple(forks)
        self.picks: dict[int, tuple[int, Pick]] = {}
        self.memo: dict[Any, Any] = {}
        self.penalties: dict[Any, Tensor] = {}
        self.streams: dict[str, list[Tensor]] = {name: [] for name in self.forks}

    @property
    def rows(self) -> int | None:
        """How many rows the route names; None where one task serves all rows."""
        return None if self.index is None else len(self.index)

    def penalty(self) -> Tensor | float:
        """The sum of the auxiliary losses that the forward left, 0.0 where there are none."""
        return sum(self.penalties.values()) if self.penalties else 0.0

    def pick(self, adapters: Slots, device: torch.device) -> Pick:
        """The slots of `adapters` that the rows use; an unknown task is an error."""
        found = self.picks.get(id(adapters))
        if found is None or found[0] != adapters.version or found[1].ids.device != device:
            found = (adapters.version, self._resolve(adapters.slots, adapters.name).to(device))
            self.picks[id(adapters)] = found
        return found[1]

    def _resolve(self, slots: Mapping[str, int], what: str) -> Pick:
        for name in self.names:
            if name not in slots:
                raise unknown("task", name, slots, where=f"{what} adapters")
        return Pick([slots[name] for name in self.names], self.index)

    def prepare(self) -> None:
        """Look the slots up beforehand, so that a compiled forward finds them."""
        with _LOCK:
            attached = list(_ATTACHED)
        for adapters in attached:
            if all(name in adapters.slots for name in self.names):
                self.pick(adapters, adapters.device)

    def follow(self, outputs: Any) -> None:
        """Let the backward pass of `outputs` know this route, for layers that are computed again."""
        for tensor in torch.utils._pytree.tree_leaves(outputs):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self._recompute)  # type: ignore[no-untyped-call]

    def _recompute(self, gradient: Tensor) -> None:
        _BACKWARD.set(self)
        torch.autograd.Variable._execution_engine.queue_callback(_forget)


def _forget() -> None:
    _BACKWARD.set(None)


def register(adapters: Slots) -> None:
    """Adapters that were attached to a model: every route from now on looks their slots up beforehand."""
    with _LOCK:
        _ATTACHED.add(adapters)


def unregister(adapters: Slots) -> None:
    """Adapters that were detached."""
    with _LOCK:
        _ATTACHED.discard(adapters)


def current() -> Route | None:
    """The route of the `with` block around, if there is one."""
    return _ROUTE.get()


def repeated() -> Route | None:
    """The route of the forward that the backward pass is computing again, if it is."""
    return _BACKWARD.get()


def active() -> Route:
    """The route of the forward that is running (or being repeated); having none is an error."""
    found = repeated() or current()
    if found is None:
        raise BadInput(
            "no route is set: the adapters do not know the rows' tasks",
            where="forward",
            remedy="call the model inside `with route(tasks_of_rows):`",
        )
    return found


@contextlib.contextmanager
def scoped(made: Route) -> Iterator[Route]:
    """A route for the forwards inside."""
    made.prepare()
    token = _ROUTE.set(made)
    try:
        yield made
    finally:
        _ROUTE.reset(token)


def route(tasks: str | Sequence[str] | Tensor, names: Sequence[str] | None = None) -> contextlib.AbstractContextManager[Route]:
    """`with route(tasks): model(x)`: the rows' tasks.

    Parameters
    ----------
    tasks : str, sequence of str or Tensor
        One name for all rows, a name per row, or an int64 tensor [rows] of places in `names`.
    names : sequence of str, optional
        What the places stand for.
    """
    return scoped(Route(tasks, names))


def fork(tasks: Sequence[str]) -> contextlib.AbstractContextManager[Route]:
    """`with fork(tasks) as streams: model(x)`: every row for all of `tasks`, whose features leave the forking blocks."""
    return scoped(Route(None, forks=tasks))
