"""What a door hears before it decides: losses that are checked and put together over the processes, features, held weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.decision import Decision
from pluribus.balancing.processes import Processes, union
from pluribus.errors import BadInput, NonFinite, unknown

P = ParamSpec("P")
R = TypeVar("R")
Features = Tensor | Sequence[Tensor]
OnNonFinite = Literal["raise", "skip", "unchecked"]


@dataclass(eq=False)
class Heard:
    """The losses of one step, checked: this rank's and, by `index`, their places among the union's tasks."""

    tasks: tuple[str, ...]
    tensors: list[Tensor]
    present: tuple[str, ...]
    values: Tensor
    index: Tensor | None
    team: Processes
    bad: tuple[str, ...]

    def widen(self, gram: Tensor) -> Tensor:
        """This rank's Gram matrix [t, t] as the union's [T, T]."""
        gram = gram * self.team.share**2
        if self.index is None:
            return gram
        wide = gram.new_zeros(len(self.present), len(self.present))
        wide[self.index[:, None], self.index[None, :]] = gram
        return self.team.sum(wide)

    def mine(self, weights: Tensor) -> Tensor:
        """This rank's part of the union's weights."""
        return weights if self.index is None else weights[self.index]


def listen(losses: Mapping[str, Tensor], on_nonfinite: OnNonFinite, team: Processes, like: Tensor | None = None) -> Heard:
    """Check the losses and put them together with those of the other ranks; `like` tells the device of a rank without any."""
    if on_nonfinite not in ("raise", "skip", "unchecked"):
        raise unknown("choice", on_nonfinite, ("raise", "skip", "unchecked"), where="on_nonfinite")
    if not isinstance(losses, Mapping):
        raise BadInput(f"losses are a {type(losses).__name__}", where="losses", remedy="pass a mapping task: scalar loss")
    tasks, tensors = tuple(losses), list(losses.values())
    for task, loss in losses.items():
        where = f"loss of task {task!r}"
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise BadInput(f"not a scalar ({shape})", where=where, remedy="reduce it, for instance by .mean()")
        if not loss.requires_grad:
            raise BadInput("it has no graph", where=where, remedy="compute it with gradients on, do not detach it")
        if loss.device != tensors[0].device:
            raise BadInput(
                f"it is on {loss.device}, the loss of {tasks[0]!r} on {tensors[0].device}",
                where=where,
                remedy="move all losses to one device",
            )
    values = stack(tensors).detach() if tensors else torch.zeros(0, device=None if like is None else like.device)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    bad: tuple[str, ...] = ()
    if on_nonfinite != "unchecked" and tensors:
        finite = values.isfinite()
        if not bool(finite.all()):
            bad = tuple(task for task, fine in zip(tasks, finite.tolist()) if not fine)
    present, index = tasks, None
    if team.size > 1:
        reports = team.gather((tasks, bad, values.dtype))
        present, bad = union([names for names, _, _ in reports]), union([names for _, names, _ in reports])
        values = values.to(next((dtype for names, _, dtype in reports if names), values.dtype))
        index = torch.tensor([present.index(task) for task in tasks], dtype=torch.long, device=values.device)
        values = team.sum(values.new_zeros(len(present)).index_put((index,), values * team.share))
    if not present:
        raise BadInput("there is no loss", where="losses", remedy="pass at least one; absent tasks are absent keys")
    if bad and on_nonfinite == "raise":
        at = ", ".join(f"{task!r} ({values[present.index(task)].item()})" for task in bad)
        raise NonFinite(
            f"the loss is not finite: {at}",
            where="losses",
            remedy="lower the learning rate or look at the batch; on_nonfinite='skip' leaves such steps out",
        )
    return Heard(tasks, tensors, present, values, index, team, bad)


def outside_autocast(door: Callable[P, R]) -> Callable[P, R]:
    """A door that measures in the gradients' own types, wherever it is called; a closure still runs as its caller's code does."""

    @wraps(door)
    def measure(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = next((kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)), None)
        if kind is None:
            return door(*args, **kwargs)
        closure = kwargs.get("closure")
        if closure is not None:
            kwargs["closure"] = _inside(closure, kind, torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            return measure(*args, **kwargs)  # again, for the other kind of device

    return measure


def _inside(closure: Any, kind: str, dtype: torch.dtype) -> Any:
    """A closure, or a mapping of closures, that runs under autocast."""
    if isinstance(closure, Mapping):
        return {name: _inside(each, kind, dtype) for name, each in closure.items()}

    @wraps(closure)
    def call(*args: Any) -> Any:
        with torch.autocast(kind, dtype=dtype):
            return closure(*args)

    return call


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Scalars as one vector [T], in their widest type."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.stack([tensor.reshape(()).to(dtype) for tensor in tensors])


def features_of(features: Features | None, heard: Heard) -> tuple[Tensor, ...]:
    if features is None:
        return ()
    z = (features,) if isinstance(features, Tensor) else tuple(dict.fromkeys(features))
    for i, f in enumerate(z):
        where = f"features[{i}]" if len(z) > 1 else "features"
        if not isinstance(f, Tensor):
            raise BadInput(f"a {type(f).__name__}", where=where, remedy="pass a tensor or a tuple of tensors")
        if not f.requires_grad:
            raise BadInput("they have no graph", where=where, remedy="pass what the encoder returned, not a detached copy")
        if heard.tensors and f.device != heard.tensors[0].device:
            raise BadInput(f"they are on {f.device}, the losses on {heard.tensors[0].device}", where=where)
    return z


def hears_losses(judge: Balancer) -> bool:
    return judge.signal == "losses"


def weigh(judge: Balancer, heard: Heard, gram: Tensor | None) -> Tensor:
    """The balancer's weights [T] for the union's tasks, the same on all ranks."""
    if gram is None:
        signal = heard.values
    else:
        signal = gram.diagonal().clone() if judge.signal == "norms" else gram
    return heard.team.same(judge.weights(signal, tasks=heard.present, losses=heard.values))


def held_step(judge: Balancer, heard: Heard, every: int) -> Decision | None:
    """The weights of an earlier call, while they are fresh enough and speak of the same tasks."""
    if every < 1:
        raise BadInput(f"every is {every}", where="every", remedy="give a whole number from 1")
    if every == 1:
        return None
    if judge.signal == "jacobian":
        raise BadInput(f"{type(judge).__name__} gives directions, which cannot be held", where="every", remedy="use every=1")
    step = getattr(judge, "last", None)
    if not isinstance(step, Decision) or step.weights is None or step.tasks != heard.present or step.age + 1 >= every:
        return None
    why = f"weights are computed every {every} calls"
    return Decision(heard.present, heard.values, step.weights, step.gram, "held", why, age=step.age + 1)
