"""TorchJD's objects as balancers: any of its weightings, aggregators and scalarizers, recognised by what they are.

Nothing of TorchJD is imported: its classes are told by the names in their ancestry (TorchJD 0.8 to 0.18), so a user's own
subclass works too.

- a Gramian weighting, or an aggregator that holds one, hears G (and any source of G serves it);
- MoDo's and SDMGrad's weightings hear J₁J₂ᵀ of two batches;
- every other aggregator or matrix weighting hears J itself and gives a direction;
- weightings that look at the number of rows only (mean, sum, random, constant) hear no gradient at all;
- a scalarizer S hears the losses; its weights are ∂S/∂ℓ, and the gradient of its own parameters is added to their ``.grad``.

TorchJD keeps state by position, not by name: an object with state refuses a changed set of tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pluribus.balancing.balancer import Balancer
from pluribus.errors import BadInput


class TorchJD(Balancer):
    """A TorchJD object at our doors; made by `as_balancer`; its state is the object's own."""

    def __init__(self, peer: Any) -> None:
        if type(self) is TorchJD:
            remedy = "pass TorchJD's object itself to combine or backward, or make it a balancer with as_balancer"
            raise BadInput("what an object hears is not known here", where="TorchJD", remedy=remedy)
        self.peer = peer
        self.seen: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"TorchJD({self.peer!r})"

    def reset(self) -> None:
        self.seen = None
        if hasattr(self.peer, "reset"):
            self.peer.reset()

    def same_tasks(self, tasks: tuple[str, ...]) -> None:
        if "Stateful" not in _ancestry(self.peer):
            return
        if self.seen is not None and self.seen != tasks:
            raise BadInput(
                f"{type(self.peer).__name__} keeps state by position and saw the tasks {list(self.seen)}, now {list(tasks)}",
                remedy="pass the same tasks in each step, or use the balancer of this name in pluribus.balancing",
            )
        self.seen = tasks

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": self.seen, "peer": _state(self.peer), **self.held()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.hold(state)
        seen = state["tasks"]
        self.seen = None if seen is None else tuple(seen)
        _restore(self.peer, state["peer"])


class GramWeighting(TorchJD):
    """Weights from G."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        self.same_tasks(tasks)
        found: Tensor = getattr(self.peer, "gramian_weighting", self.peer)(signal)
        return found


class CrossGramWeighting(GramWeighting):
    """Weights from J₁J₂ᵀ of two independent batches, applied to a third."""

    needs: ClassVar[frozenset[str]] = frozenset({"cross_gram"})
    doors: ClassVar[tuple[str, ...]] = ("backward",)
    batches: ClassVar[int] = 3


class RowWeighting(TorchJD):
    """Weights from nothing but the number of tasks."""

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        found: Tensor = getattr(self.peer, "weighting", self.peer)(signal[:, None])
        return found


class Aggregation(TorchJD):
    """A direction from J."""

    needs: ClassVar[frozenset[str]] = frozenset({"jacobian"})

    @torch.no_grad()
    def direction(self, jacobian: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        self.same_tasks(self._names(jacobian, tasks))
        found: Tensor = self.peer(jacobian)
        return found if "Aggregator" in _ancestry(self.peer) else found @ jacobian


class Scalarisation(TorchJD):
    """Weights ∂S/∂ℓ of a scalarizer S(ℓ)."""

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        self.same_tasks(tasks)
        own = [p for p in self.peer.parameters() if p.requires_grad]
        with torch.enable_grad():
            values = signal.clone().requires_grad_()
            w, *inner = torch.autograd.grad(self.peer(values), [values, *own], allow_unused=True)
        for p, g in zip(own, inner):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g
        return torch.zeros_like(signal) if w is None else w

    @property
    def wants_after_step(self) -> bool:
        return hasattr(self.peer, "update")

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        if self.wants_after_step:
            tasks = self.seen or tuple(losses)
            self.peer.update(torch.stack([losses[task].detach().reshape(()) for task in tasks]))

    def epoch_end(self) -> None:
        if hasattr(self.peer, "step"):
            self.peer.step()


def as_balancer(balancer: Any) -> Balancer:
    """The balancer itself, or a TorchJD object at our doors (the same wrapper at each call)."""
    if isinstance(balancer, Balancer):
        return balancer
    wrapped: TorchJD | None = vars(balancer).get("_at_pluribus") if hasattr(balancer, "__dict__") else None
    if wrapped is None:
        wrapped = _kind(balancer)(balancer)
        object.__setattr__(balancer, "_at_pluribus", wrapped)
    return wrapped


def _kind(peer: Any) -> type[TorchJD]:
    names = _ancestry(peer)
    if "Scalarizer" in names:
        return Scalarisation
    inner = getattr(peer, "gramian_weighting", peer)
    if names & {"MoDoWeighting", "SDMGradWeighting"}:
        return CrossGramWeighting
    if names & {f"{rule}{kind}" for rule in ("Mean", "Sum", "Random", "Constant") for kind in ("", "Weighting")}:
        return RowWeighting
    if inner is not peer or "_GramianWeighting" in names:
        return GramWeighting
    if "CRMOGMWeighting" in names:
        return _kind(peer.weighting)
    if names & {"Aggregator", "Weighting"}:
        return Aggregation
    raise BadInput(
        f"a {type(peer).__name__} is not a balancer",
        where="balancer",
        remedy="pass one of pluribus.balancing, or a TorchJD weighting, aggregator or scalarizer",
    )


def _ancestry(peer: Any) -> set[str]:
    return {kind.__name__ for kind in type(peer).__mro__}


def _state(peer: Any) -> dict[str, Any]:
    """What moves in a module and below it: parameters, buffers, plain attributes, inner optimisers, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in {**vars(peer), **peer._parameters, **peer._buffers, **peer._modules}.items():
        if name in ("training", "_at_pluribus"):
            continue
        if isinstance(value, nn.Module):
            found[name] = _state(value)
        elif isinstance(value, torch.optim.Optimizer):
            found[name] = value.state_dict()
        elif isinstance(value, Tensor):
            found[name] = value.detach().clone()
        elif value is None or isinstance(value, (bool, int, float, str)):
            found[name] = value
    return copy.deepcopy(found)


def _restore(peer: Any, state: Mapping[str, Any]) -> None:
    for name, value in copy.deepcopy(dict(state)).items():
        current = getattr(peer, name, None)
        if isinstance(current, nn.Module):
            _restore(current, value)
        elif isinstance(current, nn.Parameter):
            with torch.no_grad():
                current.copy_(value)
        elif isinstance(value, dict) and set(value) == {"state", "param_groups"}:
            if current is None:  # FAMO makes its optimiser at the first update
                current = torch.optim.Adam([p for p in peer.parameters() if p.requires_grad] or [peer._w])
                object.__setattr__(peer, name, current)
            current.load_state_dict(value)
        else:
            object.__setattr__(peer, name, value)
