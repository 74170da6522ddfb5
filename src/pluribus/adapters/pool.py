"""A pool of adapters and heads for serving: many tasks on one backbone within a memory budget, several of them in one batch.

After Sheng et al., "S-LoRA: Serving Thousands of Concurrent LoRA Adapters", MLSys 2024, https://arxiv.org/abs/2311.03285:
resident adapters live in one bank; what a batch needs is loaded before it runs and pinned while it runs; where room is missing,
the adapter that was least recently used goes. Differences: slots of one size (smaller ranks are padded) instead of pages, one
process, no generation: that is exported in PEFT's layout, which their kind of server reads.

The bank is allocated once, for as many tasks as the budget holds; the operating system hands out its memory as it is first
written. Adding, switching and evicting cost one adapter's copy, however many there are.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pluribus.adapters.adapter import Adapters
from pluribus.adapters.formats import read_updates, state_from
from pluribus.adapters.lora import LoRA
from pluribus.adapters.route import Route, active, scoped
from pluribus.errors import BadInput, unknown

Head = tuple[Tensor, Tensor]
Loaded = tuple[Mapping[str, Tensor], Head | None]


class Pool:
    """adapters: attached adapters of any method whose tasks have slots; its tasks stay resident as the pool's first.
    budget: bytes for adapters and heads. load: name → (state as of `task_state`, head or None), for names in `known`; adapters
    that it cannot bring back are never evicted. Safe to use from many threads."""

    def __init__(
        self, adapters: Adapters, *, budget: int, load: Callable[[str], Loaded] | None = None, known: Sequence[str] = ()
    ) -> None:
        self.adapters, self.budget, self._load, self.known = adapters, int(budget), load, set(known)
        self.each = sum(tensor[0].nbytes for tensor in adapters.stacked().values())
        if not self.each:
            raise BadInput(f"{adapters.name} has nothing that is a task's own", where="pool", remedy="serve it without a pool")
        room = self.budget // self.each
        if room < len(adapters.slots):
            raise BadInput(
                f"holds {room} adapters of {self.each} bytes, {len(adapters.slots)} are there", where="budget", remedy="raise it"
            )
        if adapters.capacity < room:
            adapters.reserve(room)
        self.room = room
        self.heads: dict[str, Head] = {}
        self.used = self.each * len(adapters.slots)
        self.loads = self.evictions = 0
        self._recent: OrderedDict[str, None] = OrderedDict.fromkeys(adapters.slots)
        self._pins: dict[str, int] = {}
        self._lock = threading.RLock()

    @classmethod
    def of_peft(cls, lora: LoRA, folders: Mapping[str, str | Path], *, budget: int) -> Pool:
        """A pool whose adapters are read from PEFT folders on demand, with a folder's head where that is one linear map."""

        def load(name: str) -> Loaded:
            updates, heads = read_updates(folders[name], lora.model)
            weights = [n for n, t in heads.items() if t.ndim == 2]
            head: Head | None = None
            if len(weights) == 1:
                weight = heads[weights[0]]
                head = weight, heads.get(weights[0].removesuffix("weight") + "bias", weight.new_zeros(len(weight)))
            return state_from(lora, updates, str(folders[name])), head

        return cls(lora, budget=budget, load=load, known=list(folders))

    @property
    def resident(self) -> tuple[str, ...]:
        """The resident tasks, least recently used first."""
        with self._lock:
            return tuple(self._recent)

    def put(self, name: str, state: Mapping[str, Tensor], head: Head | None = None) -> None:
        """Make an adapter resident (and its head), replacing one of that name; pinned by no batch, it may be evicted if `load`
        knows it."""
        with self._lock:
            if name in self._recent:
                if self._pins.get(name):
                    raise BadInput(f"{name!r} is in use by a running batch", where="pool", remedy="put it under a new name")
                self._drop(name)
            need = self.each + _bytes(head)
            self._make_room(need, name)
            self.adapters.add(name, state)
            if head is not None:
                device = self.adapters.device
                self.heads[name] = (head[0].to(device), head[1].to(device))
            self._recent[name] = None
            self.used += need

    def evict(self, name: str) -> None:
        """Take an adapter out now."""
        with self._lock:
            if name not in self._recent:
                raise unknown("resident task", name, self._recent, where="pool")
            if self._pins.get(name):
                raise BadInput(f"{name!r} is in use by a running batch", where="pool", remedy="wait until it is done")
            self._drop(name)

    def _drop(self, name: str) -> None:
        self.adapters.evict(name)
        self.used -= self.each + _bytes(self.heads.pop(name, None))
        del self._recent[name]
        self.evictions += 1

    def _make_room(self, need: int, name: str) -> None:
        """Evict what was least recently used until `need` bytes and a slot are free."""
        if need > self.budget:
            raise BadInput(f"{name!r} needs {need} bytes, the budget is {self.budget}", where="pool", remedy="raise the budget")
        while self.used + need > self.budget or len(self._recent) >= self.room:
            old = next((n for n in self._recent if not self._pins.get(n) and n in self.known), None)
            if old is None:
                raise BadInput(
                    f"no room for {name!r}: all {len(self._recent)} resident adapters are in use or cannot be loaded again",
                    where="pool",
                    remedy="raise the budget, or put fewer tasks into a batch",
                )
            self._drop(old)

    def _pin(self, name: str) -> None:
        """Make an adapter resident and hold it there."""
        while True:
            with self._lock:
                if name in self._recent:
                    self._recent.move_to_end(name)
                    self._pins[name] = self._pins.get(name, 0) + 1
                    return
                if self._load is None or name not in self.known:
                    raise unknown("task", name, sorted({*self._recent, *self.known}), where="pool")
            state, head = self._load(name)  # outside the lock: other batches go on while a file is read
            with self._lock:
                if name not in self._recent:
                    self.put(name, state, head)
                    self.loads += 1

    @contextlib.contextmanager
    def route(self, tasks: str | Sequence[str] | Tensor, names: Sequence[str] | None = None) -> Iterator[Route]:
        """As `pluribus.adapters.route`, with the tasks' adapters loaded and pinned while the block runs."""
        made = Route(tasks, names)
        held: list[str] = []
        try:
            for name in made.names:
                self._pin(name)
                held.append(name)
            with scoped(made):
                yield made
        finally:
            with self._lock:
                for name in held:
                    self._pins[name] -= 1
                    if not self._pins[name]:
                        del self._pins[name]

    def logits(self, features: Tensor, route: Route | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Task → (its rows int64 [m], its head's outputs [m, …, classes]); inside the `with` block."""
        route = route or active()
        found = {}
        for i, name in enumerate(route.names):
            if name not in self.heads:
                raise BadInput(f"task {name!r} has no head", where="pool", remedy="put it with one")
            weight, bias = self.heads[name]
            rows = torch.arange(len(features)) if route.index is None else (route.index == i).nonzero()[:, 0]
            rows = rows.to(features.device)
            found[name] = (rows, torch.nn.functional.linear(features[rows], weight, bias))
        return found


def _bytes(head: Head | None) -> int:
    return 0 if head is None else head[0].nbytes + head[1].nbytes
