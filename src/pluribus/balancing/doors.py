"""The two doors of balancing, for anybody's training loop.

`combine(losses, balancer, features=z, extra=e)` returns ONE scalar L; its ordinary ``L.backward()`` leaves balanced
gradients in the shared part and plain, unweighted ones in the heads. The construction: with g_t = ∂ℓ_t/∂z,

    G_ts = <g_t, g_s>,   w = balancer(G),   L = Σ_t ℓ_t + e   with   ∂L/∂z := Σ_t w_t g_t + ∂e/∂z,   ∂L/∂φ_t := ∂ℓ_t/∂φ_t

so whatever scale s arrives at L (loss scaling, division for accumulation) multiplies all of it. The passes that give g_t
also give the heads' gradients ∂ℓ_t/∂φ_t; L hands them on, and no head is traversed twice.

`backward(losses, balancer, shared=…, features=…, closure=…)` writes ``.grad`` itself and serves what one scalar cannot:
full and grouped Grams, Jacobians, closures, several batches.

Every call leaves a `Step` in ``balancer.last``: the tasks, their losses and weights, the Gram matrix and where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pluribus.balancing import gram as engine
from pluribus.balancing.balancer import Balancer
from pluribus.balancing.graph import gradients
from pluribus.balancing.processes import Processes, sharded, union
from pluribus.balancing.torchjd import as_balancer
from pluribus.errors import BadInput, NonFinite, unknown

Features = Tensor | Sequence[Tensor]
OnNonFinite = Literal["raise", "skip", "unchecked"]


@dataclass(eq=False)
class Step:
    """What one call heard and decided; found in ``balancer.last``.

    tasks: the tasks present (on any rank). losses, weights: [T], detached; weights are None where the balancer gives a
    direction and no weights, and in a skipped step. gram: [T, T] or None where none was measured.
    source: where the signal came from ("losses", "features", "last", "full", "grouped", "held" weights, …); why: the reason.
    skipped: some loss was not finite and the balancer was not called. age: calls since the weights were computed.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None = None
    gram: Tensor | None = None
    source: str = "losses"
    why: str = ""
    skipped: bool = False
    age: int = 0


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


def listen(losses: Mapping[str, Tensor], on_nonfinite: OnNonFinite, team: Processes) -> Heard:
    """Check the losses and put them together with those of the other ranks."""
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
                f"it is on {loss.device}, the loss of {tasks[0]!r} on {tensors[0].device}", where=where,
                remedy="move all losses to one device",
            )  # fmt: skip
    values = stack(tensors).detach() if tensors else torch.zeros(0)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    bad: tuple[str, ...] = ()
    if on_nonfinite != "unchecked" and tensors:
        finite = values.isfinite()
        if not bool(finite.all()):
            bad = tuple(task for task, fine in zip(tasks, finite.tolist()) if not fine)
    present, index = tasks, None
    if team.size > 1:
        reports = team.gather((tasks, bad))
        present, bad = union([names for names, _ in reports]), union([names for _, names in reports])
        index = torch.tensor([present.index(task) for task in tasks], dtype=torch.long, device=values.device)
        values = team.sum(values.new_zeros(len(present)).index_put((index,), values * team.share))
    if not present:
        raise BadInput("there is no loss", where="losses", remedy="pass at least one; absent tasks are absent keys")
    if bad and on_nonfinite == "raise":
        at = ", ".join(f"{task!r} ({values[present.index(task)].item()})" for task in bad)
        raise NonFinite(
            f"the loss is not finite: {at}", where="losses",
            remedy="lower the learning rate or look at the batch; on_nonfinite='skip' leaves such steps out",
        )  # fmt: skip
    return Heard(tasks, tensors, present, values, index, team, bad)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Scalars as one vector [T], in their widest type."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.stack([tensor.reshape(()).to(dtype) for tensor in tensors])


class _Join(torch.autograd.Function):
    """L = total, with given gradients at given tensors: backward(s) hands s to `total` and s·c to each input."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, constants: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.constants = constants
        ctx.types = [x.dtype for x in inputs]
        return total.view_as(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, s: Tensor) -> tuple[Any, ...]:
        return s, None, *((c * s).to(dtype) for c, dtype in zip(ctx.constants, ctx.types))


def join(total: Tensor, constants: dict[Tensor, Tensor]) -> Tensor:
    """The scalar `total` whose backward also gives each key its constant gradient (times the scale that arrives)."""
    return cast(Tensor, _Join.apply(total, list(constants.values()), *constants))  # type: ignore[no-untyped-call]


def combine(
    losses: Mapping[str, Tensor],
    balancer: Any,
    *,
    features: Features | None = None,
    extra: Tensor | None = None,
    gram: Literal["features", "last"] = "features",
    last: nn.Module | Iterable[Tensor] | None = None,
    every: int = 1,
    on_nonfinite: OnNonFinite = "raise",
    processes: Processes | None = None,
) -> Tensor:
    """One scalar whose ``.backward()`` leaves balanced gradients in the shared part and plain ones in the heads.

    losses: task → scalar loss with a graph; a task without labels in the batch is an absent key.
    balancer: a `Balancer`, or any TorchJD weighting, aggregator or scalarizer.
    features: the tensor, or tuple of tensors, that leave the shared part and from which the losses were computed.
        Without them only balancers of the losses can serve, L = Σ_t w_t ℓ_t + extra, and **heads are weighted too**.
        With them the value of L is Σ_t ℓ_t + extra.
    extra: a scalar added unbalanced (a penalty, an auxiliary loss).
    gram: measure gradients at the features (default) or at the parameters of the last shared layer.
    last: that layer, a module or its parameters; default: the first layer with a matrix of weights below the features.
    every: compute weights only every so many calls and hold them in between (a changed set of tasks computes afresh).
    on_nonfinite: a NaN or infinite loss raises `NonFinite` (default), or is skipped: the scalar returned reaches nothing,
        no gradient is written and the balancer's state does not move; "unchecked" spares a GPU the host's look.
    processes: which processes share the batch, default `Processes.running()`: the running group, each rank's losses
        being means over its own rows and gradients averaged over ranks (as DistributedDataParallel does).

    The result can be scaled, accumulated and added to other losses; it cannot be differentiated twice. In float16 the
    passes through the heads carry a loss scale of their own and the heads are traversed once more, by ``.backward()``.
    """
    judge = as_balancer(balancer)
    _serves(judge, "combine")
    heard = listen(losses, on_nonfinite, processes or Processes.running())
    if heard.bad:
        judge.last = Step(heard.present, heard.values, skipped=True)
        return torch.full((), torch.nan, device=heard.values.device).requires_grad_()
    z = _features(features, heard)
    if not z and not _hears_losses(judge):
        raise BadInput(
            f"{type(judge).__name__} needs gradients ({judge.signal})", where="combine",
            remedy="pass features=z, the shared features, or use balancing.backward(losses, balancer, shared=…)",
        )  # fmt: skip
    if gram not in ("features", "last"):
        raise BadInput(f"gram={gram!r}", where="combine", remedy="use 'features' or 'last', or balancing.backward(…)")
    held = _held(judge, heard, every)
    if held is not None or _hears_losses(judge):
        step = held or Step(heard.present, heard.values, _weigh(judge, heard, None))
        w = heard.mine(cast(Tensor, step.weights))
        judge.last = step
        return _known(heard, z, w, extra)
    return _measured(judge, heard, z, extra, gram, last)


def _known(heard: Heard, z: tuple[Tensor, ...], w: Tensor, extra: Tensor | None) -> Tensor:
    """L for weights that are known before any gradient: one pass through the heads gives Σ_t (w_t − 1) g_t."""
    if not heard.tensors:
        return _plus(torch.zeros((), device=w.device, requires_grad=True), extra)
    vector = stack(heard.tensors)
    if not z:
        return _plus((w.to(vector.dtype) * vector).sum(), extra)
    total = vector.sum()
    if w.device.type == "cpu" and bool((w == 1).all()):
        return _plus(total, extra)
    seed = engine.seed_of(z)
    c = gradients(((w - 1).to(vector.dtype) * vector).sum(), z, seed=total.new_tensor(seed))
    return join(_plus(total, extra), {f: engine.real(g) / seed for f, g in zip(z, c) if g is not None})


def _measured(
    judge: Balancer, heard: Heard, z: tuple[Tensor, ...], extra: Tensor | None, source: str, last: Any
) -> Tensor:
    """L for a balancer that hears gradients: one pass a task through its head gives g_t, and the head's own gradient."""
    passes = engine.through_heads(heard.tasks, heard.tensors, z)
    if source == "last":
        parameters = engine.last_layer(z, last)
        _whole(parameters, "last")
        local = engine.gram_of(engine.pull(z, passes.rows, parameters)) if heard.tensors else heard.values.new_zeros(0, 0)
    else:
        local = passes.gram() if heard.tensors else heard.values.new_zeros(0, 0)
    G = heard.widen(local)
    step = Step(heard.present, heard.values, gram=G, source=source)
    if judge.signal == "jacobian":
        if heard.team.size > 1:
            raise BadInput(
                f"{type(judge).__name__} needs the Jacobian of all processes", where="combine",
                remedy="use balancing.backward(losses, balancer, shared=…), which reduces it",
            )  # fmt: skip
        flat = torch.cat(passes.flat(), 1)
        d = judge.direction(flat, tasks=heard.present, losses=heard.values)
        at_z = [part.view_as(f) for part, f in zip(torch.split(d, [f.numel() for f in z]), z)]
    else:
        step.weights = _weigh(judge, heard, G)
        w = heard.mine(step.weights)
        at_z = passes.mix(w) if heard.tensors else []
    judge.last = step
    if not heard.tensors:
        return _plus(torch.zeros((), device=heard.values.device, requires_grad=True), extra)
    vector = stack(heard.tensors)
    if passes.heads is None:  # the ordinary backward goes through the heads and finds Σ_t g_t at z: add what is missing
        constants = {f: d - row.sum(0).view_as(f) for f, d, row in zip(z, at_z, passes.flat())}
        return join(_plus(vector.sum(), extra), constants)
    return join(_plus(vector.detach().sum(), extra), {**dict(zip(z, at_z)), **passes.heads})


def _plus(total: Tensor, extra: Tensor | None) -> Tensor:
    if extra is None:
        return total
    if not isinstance(extra, Tensor) or extra.numel() != 1:
        raise BadInput("extra is not a scalar", where="extra", remedy="add the penalties up first")
    return total + extra.reshape(()).to(total.device)


def _serves(judge: Balancer, door: str) -> None:
    if door not in judge.doors:
        other = next(iter(judge.doors))
        raise BadInput(
            f"{type(judge).__name__} cannot be served by {door}()", where=door,
            remedy=f"use balancing.{other}(losses, balancer, …)",
        )  # fmt: skip


def _hears_losses(judge: Balancer) -> bool:
    return judge.signal == "losses"


def _whole(parameters: Sequence[Tensor], source: str) -> None:
    if sharded(parameters):
        raise BadInput(
            f"the shared parameters are sharded (FSDP or ZeRO), so that gram={source!r} cannot be measured", where="shared",
            remedy="use combine(…, features=z) or a balancer of the losses",
        )  # fmt: skip


def _features(features: Features | None, heard: Heard) -> tuple[Tensor, ...]:
    if features is None:
        return ()
    z = (features,) if isinstance(features, Tensor) else tuple(features)
    for i, f in enumerate(z):
        where = f"features[{i}]" if len(z) > 1 else "features"
        if not isinstance(f, Tensor):
            raise BadInput(f"a {type(f).__name__}", where=where, remedy="pass a tensor or a tuple of tensors")
        if not f.requires_grad:
            raise BadInput("they have no graph", where=where, remedy="pass what the encoder returned, not a detached copy")
        if heard.tensors and f.device != heard.tensors[0].device:
            raise BadInput(f"they are on {f.device}, the losses on {heard.tensors[0].device}", where=where)
    return z


def _weigh(judge: Balancer, heard: Heard, gram: Tensor | None) -> Tensor:
    """The balancer's weights [T] for the union's tasks, the same on all ranks."""
    if gram is None:
        signal = heard.values
    else:
        signal = gram.diagonal().clone() if judge.signal == "norms" else gram
    return heard.team.same(judge.weights(signal, tasks=heard.present, losses=heard.values))


def _held(judge: Balancer, heard: Heard, every: int) -> Step | None:
    """The weights of an earlier call, while they are fresh enough and speak of the same tasks."""
    if every < 1:
        raise BadInput(f"every is {every}", where="every", remedy="give a whole number from 1")
    if every == 1:
        return None
    if judge.signal == "jacobian":
        raise BadInput(f"{type(judge).__name__} gives directions, which cannot be held", where="every", remedy="use every=1")
    step = getattr(judge, "last", None)
    if not isinstance(step, Step) or step.weights is None or step.tasks != heard.present or step.age + 1 >= every:
        return None
    why = f"weights are computed every {every} calls"
    return Step(heard.present, heard.values, step.weights, step.gram, "held", why, age=step.age + 1)
