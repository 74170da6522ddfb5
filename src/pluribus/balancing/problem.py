"""One step's shared parameters, and writing gradients to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.balancing.graph import leaves
from pluribus.balancing.hearing import Heard
from pluribus.balancing.processes import sharded
from pluribus.errors import BadInput


@dataclass(eq=False)
class Problem:
    """What a balancer with a closure is handed: one checked step of `backward`."""

    heard: Heard
    features: tuple[Tensor, ...]
    given: nn.Module | Iterable[Tensor] | None
    names: dict[Tensor, str]
    closure: Any
    extra: Tensor | None
    scale: float

    def __post_init__(self) -> None:
        self.module = self.given if isinstance(self.given, nn.Module) else None
        self._shared = None if self.given is None and not self.features else shared_leaves(self.given, self.features)

    @property
    def shared(self) -> list[Tensor]:
        """The shared leaves; it is an error if they are not known."""
        return shared_leaves(None, ()) if self._shared is None else self._shared

    def shared_or(self, default: None) -> list[Tensor] | None:
        """The shared leaves, or the default where they are not known."""
        return default if self._shared is None else self._shared

    def losses_again(self) -> dict[str, Tensor]:
        """The closure's losses at the parameters as they are now, for the tasks of this step."""
        found = self.closure()
        if not isinstance(found, Mapping) or any(task not in found for task in self.heard.tasks):
            raise BadInput(
                "the closure does not return the losses of all tasks present",
                where="closure",
                remedy="return a mapping task: scalar loss on the same batch",
            )
        return {task: found[task] for task in self.heard.tasks}

    def write_extra(self) -> None:
        """Add the extra's gradient to ``.grad``."""
        if self.extra is not None:
            propagate(scalar_of(self.extra), self.scale, keep=True)

    def write(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Add gradients to ``.grad``."""
        accumulate(gradients, self.scale)


def shared_leaves(shared: nn.Module | Iterable[Tensor] | None, z: tuple[Tensor, ...]) -> list[Tensor]:
    if shared is None:
        if not z:
            raise BadInput("it is not known which parameters are shared", where="shared", remedy="pass shared= or features=")
        return leaves(z)
    given: list[Tensor] = list(shared.parameters() if isinstance(shared, nn.Module) else shared)
    if not given:
        raise BadInput("there are no shared parameters", where="shared", remedy="pass those of the encoder")
    for i, p in enumerate(given):
        if not (isinstance(p, Tensor) and p.is_leaf):
            raise BadInput(f"item {i} is not a parameter", where="shared", remedy="pass leaf tensors or a module")
    return list(dict.fromkeys(p for p in given if p.requires_grad))


def names_of(shared: nn.Module | Iterable[Tensor] | None) -> dict[Tensor, str]:
    return {p: name for name, p in shared.named_parameters()} if isinstance(shared, nn.Module) else {}


def check_whole(parameters: Sequence[Tensor], source: str, z: Sequence[Tensor] = ()) -> None:
    if sharded(parameters, z):
        raise BadInput(
            f"the shared parameters are sharded (FSDP or ZeRO), so that gram={source!r} cannot be measured",
            where="shared",
            remedy="use combine(…, features=z) or a balancer of the losses",
        )


def accumulate(gradients: Mapping[Tensor, Tensor], scale: float = 1.0) -> None:
    """Add scale·gradient to each leaf's ``.grad``, taking fresh tensors over without a copy."""
    taken: set[int] = set()
    with torch.no_grad():
        for leaf, g in gradients.items():
            if scale != 1:
                g = g * scale
            if g.dtype != leaf.dtype:
                g = g.to(leaf.dtype)
            if leaf.grad is not None:
                leaf.grad += g
            elif not g.is_contiguous() or g.data_ptr() in taken:  # autograd may hand one tensor to two leaves
                leaf.grad = g.contiguous().clone()
            else:
                taken.add(g.data_ptr())
                leaf.grad = g


def propagate(loss: Tensor, scale: float, keep: bool = False) -> None:
    """An ordinary backward from a scalar that `scale` arrives at; a scalar without a graph has nothing to give."""
    if loss.requires_grad:
        torch.autograd.backward(loss, torch.full_like(loss, scale), retain_graph=keep)


def scalar_of(extra: Tensor) -> Tensor:
    if not isinstance(extra, Tensor) or extra.numel() != 1:
        raise BadInput("extra is not a scalar", where="extra", remedy="add the penalties up first")
    return extra.reshape(())
