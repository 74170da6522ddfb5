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
from pluribus.balancing import grouped
from pluribus.balancing.balancer import Balancer
from pluribus.balancing.graph import edge, gradients, leaves, uses, walk
from pluribus.balancing.heads import from_heads, seeds_of, through_heads
from pluribus.balancing.hearing import (
    Features,
    Heard,
    OnNonFinite,
    Step,
    features_of,
    hears_losses,
    held_step,
    listen,
    stack,
    weigh,
)  # fmt: skip
from pluribus.balancing.layers import real
from pluribus.balancing.processes import Processes, sharded
from pluribus.balancing.torchjd import as_balancer
from pluribus.errors import BadInput, unknown


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
    gram: Literal["features", "last"] | None = None,
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
    gram: measure gradients at the "features" (default) or at the parameters of the "last" shared layer (Fuller's default).
    last: that layer, a module or its parameters; default: the first layer with a matrix of weights below the features.
    every: compute weights only every so many calls and hold them in between (a changed set of tasks computes afresh).
    on_nonfinite: a NaN or infinite loss raises `NonFinite` (default), or is skipped: the scalar returned reaches nothing,
        no gradient is written and the balancer's state does not move; "unchecked" spares a GPU the host's look.
    processes: which processes share the batch, default `Processes.running()`: the running group, each rank's losses
        being means over its own rows and gradients averaged over ranks (as DistributedDataParallel does).

    The result can be scaled, accumulated and added to other losses; it cannot be differentiated twice. Under `torch.no_grad`
    (a validation step of the same loop) it is Σ_t ℓ_t + extra, and the balancer hears nothing. In float16 the
    passes through the heads carry a loss scale of their own and the heads are traversed once more, by ``.backward()``.
    """
    judge = as_balancer(balancer)
    _serves(judge, "combine")
    if not torch.is_grad_enabled() and isinstance(losses, Mapping) and losses:
        return _plus(stack(list(losses.values())).sum(), extra)
    first = features if features is None or isinstance(features, Tensor) else next(iter(features), None)
    heard = listen(losses, on_nonfinite, processes or Processes.running(), first if isinstance(first, Tensor) else None)
    if heard.bad:
        judge.last = Step(heard.present, heard.values, skipped=True)
        return torch.full((), torch.nan, device=heard.values.device).requires_grad_()
    z = features_of(features, heard)
    if not z and not hears_losses(judge):
        raise BadInput(
            f"{type(judge).__name__} needs gradients ({judge.signal})", where="combine",
            remedy="pass features=z, the shared features, or use balancing.backward(losses, balancer, shared=…)",
        )  # fmt: skip
    source = gram or getattr(judge, "source", "features")
    if source not in ("features", "last"):
        raise BadInput(f"gram={source!r}", where="combine", remedy="use 'features' or 'last', or balancing.backward(…)")
    held = held_step(judge, heard, every)
    if held is not None or hears_losses(judge):
        step = held or Step(heard.present, heard.values, weigh(judge, heard, None))
        w = heard.mine(cast(Tensor, step.weights))
        judge.last, step.every = step, every
        return _known(heard, z, w, extra)
    loss = _measured(judge, heard, z, extra, source, last)
    judge.last.every = every
    return loss


def _known(heard: Heard, z: tuple[Tensor, ...], w: Tensor, extra: Tensor | None) -> Tensor:
    """L for weights that are known before any gradient: one pass through the heads gives Σ_t (w_t − 1) g_t."""
    if not heard.tensors:
        return _plus(_nothing(heard, z), extra)
    vector = stack(heard.tensors)
    if not z:
        return _plus((w.to(vector.dtype) * vector).sum(), extra)
    total = vector.sum()
    if w.device.type == "cpu" and bool((w == 1).all()):
        return _plus(total, extra)
    c = from_heads(((w - 1).to(vector.dtype) * vector).sum(), z, seeds_of(z))
    return join(_plus(total, extra), {f: real(g) for f, g in zip(z, c) if g is not None})


def _measured(
    judge: Balancer, heard: Heard, z: tuple[Tensor, ...], extra: Tensor | None, source: str, last: Any
) -> Tensor:
    """L for a balancer that hears gradients: one pass a task through its head gives g_t, and the head's own gradient."""
    passes = through_heads(heard.tasks, heard.tensors, z)
    if source == "last":
        parameters = engine.last_layer(z, last)
        _whole(parameters, "last", z)
        top = engine.Top(heard.tasks, list(z), passes.rows, passes.reach)
        full = engine.Full.measure(top, parameters, uses(top.outputs, top.reach, parameters))
        local = full.gram(Processes.alone(), lambda block: block) if heard.tensors else heard.values.new_zeros(0, 0)
    else:
        local = passes.gram() if heard.tensors else heard.values.new_zeros(0, 0)
    G = heard.widen(local)
    step = Step(heard.present, heard.values, gram=G, source=source)
    if judge.signal == "jacobian":
        if hasattr(judge, "on_features"):  # defined on features with their batch dimension (GradDrop)
            rows = passes.rows if heard.tensors else [real(f).new_zeros(0, *f.shape) for f in z]
            total = heard.team.sum
            at_z = [
                judge.on_features(_widen_rows(heard, row), f, tasks=heard.present, total=total) for row, f in zip(rows, z)
            ]
        elif heard.team.size > 1:
            raise BadInput(
                f"{type(judge).__name__} needs the Jacobian of all processes", where="combine",
                remedy="use balancing.backward(losses, balancer, shared=…), which reduces it",
            )  # fmt: skip
        else:
            flat = torch.cat([block.flatten(1) for block in passes.rows], 1)
            d = judge.direction(flat, tasks=heard.present, losses=heard.values)
            at_z = [part.view_as(f) for part, f in zip(torch.split(d, [f.numel() for f in z]), z)]
    else:
        step.weights = weigh(judge, heard, G)
        w = heard.mine(step.weights)
        at_z = passes.mix(w) if heard.tensors else []
    judge.last = step
    if not heard.tensors:
        return _plus(_nothing(heard, z), extra)
    vector = stack(heard.tensors)
    if passes.heads is None:  # the ordinary backward goes through the heads and finds Σ_t g_t at z: add what is missing
        constants = {f: d - row.sum(0).view_as(f) for f, d, row in zip(z, at_z, passes.rows)}
        return join(_plus(vector.sum(), extra), constants)
    return join(_plus(vector.detach().sum(), extra), {**dict(zip(z, at_z)), **passes.heads})


def backward(
    losses: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    balancer: Any,
    *,
    shared: nn.Module | Iterable[Tensor] | None = None,
    features: Features | Sequence[Features] | None = None,
    closure: Any = None,
    gram: Literal["auto", "features", "last", "full", "grouped"] = "auto",
    cells: Mapping[str, Tensor] | None = None,
    last: nn.Module | Iterable[Tensor] | None = None,
    every: int = 1,
    rows: float = 1.0,
    extra: Tensor | None = None,
    scale: float = 1.0,
    on_nonfinite: OnNonFinite = "raise",
    processes: Processes | None = None,
) -> Step:
    """Write balanced gradients into ``.grad`` (added to what is there): shared part balanced, heads plain; say how.

    losses: task → scalar loss; for a balancer with ``batches = 3`` (MoDo, SDMGrad) a sequence of three such mappings, of
        independent batches with the same tasks (`features` is then a sequence of three, too).
    shared: the shared parameters, or the module that holds them; default: every leaf below `features`.
        Each must be reached by every loss present.
    features: the tensor or tuple of tensors that leave the shared part. With them the tasks' passes go through the heads
        one by one and are batched below; without them they are batched from the losses on.
    closure: evaluates losses again, for balancers and options that say so (FlatRegions, AutoLambda, ``rows``).
    gram: where the Gram matrix is measured:
        "features": ∂ℓ_t/∂z (what `combine` does); "last": the last shared layer (`last`, or found below the features);
        "full": all shared parameters, T batched passes, exact; "grouped": all shared parameters, exact, ONE pass, where
        `cells` says which rows belong to which task and no row to two; "auto": grouped with `cells`, else features if
        given, else full. `Step.source` and `.why` tell what was done.
    cells: task → the indices of its labelled rows, or a mask [B]; for "grouped".
    every: compute weights only every so many calls and hold them in between.
    rows: measure the (full) Gram on a share of the rows only: ``closure(rows)`` returns the losses of such a part of the
        batch, or (losses, features). The gradient itself is that of `losses`.
    extra: a scalar added unbalanced. scale: multiplies every gradient written (a loss scale, 1/accumulation).
    on_nonfinite, processes: as in `combine`. Weights are the union batch's and the same on all ranks; the gradients written
        are this rank's part, to be averaged or summed over ranks as after an ordinary backward. "full" and "grouped" write
        past the hooks of DistributedDataParallel: reduce them yourself, or use `combine`.

    Returns the `Step`, which is also in ``balancer.last``.
    """
    judge = as_balancer(balancer)
    _serves(judge, "backward")
    team = processes or Processes.running()
    if "closure" in judge.needs or rows != 1:
        if closure is None:
            what = f"{type(judge).__name__} needs a closure" if rows == 1 else f"rows={rows} needs a closure"
            raise BadInput(what, where="closure", remedy="pass closure=, a function that evaluates the losses again")
        if not 0 < rows <= 1:
            raise BadInput(f"rows is {rows}", where="rows", remedy="give a share from 0 to 1")
    if gram not in ("auto", "features", "last", "full", "grouped"):
        raise unknown("source", gram, ("auto", "features", "last", "full", "grouped"), where="gram")
    if judge.batches > 1:
        return _crossed(judge, losses, shared, features, extra, scale, on_nonfinite, team)
    heard = listen(cast(Mapping[str, Tensor], losses), on_nonfinite, team)
    if heard.bad:
        judge.last = Step(heard.present, heard.values, skipped=True)
        return cast(Step, judge.last)
    z = features_of(cast(Features | None, features), heard)
    names = _names_of(shared)
    if "closure" in judge.needs:
        step: Step = judge.through_closure(Problem(heard, z, shared, names, closure, extra, scale))  # type: ignore[attr-defined]
        judge.last = step
        return step
    held = held_step(judge, heard, every)
    source, why = _choose(judge, gram, z, cells, rows)
    if held is not None or source == "losses" or rows != 1:
        step = held or Step(heard.present, heard.values, source=source, why=why)
        if held is None and source == "losses":
            step.weights = weigh(judge, heard, None)
        elif held is None:
            step.gram = _on_a_part(heard, closure, rows, shared, team)
            step.weights = weigh(judge, heard, step.gram)
            step.source, step.why = "full", f"measured on a share {rows:g} of the rows"
        _write_known(heard, z, shared, cast(Tensor, step.weights), extra, scale)
    elif source in ("features", "last"):
        if not z:
            raise BadInput(f"gram={source!r} needs features", where="features", remedy="pass features=z, or gram='full'")
        loss = _measured(judge, heard, z, extra, source, last)
        step = judge.last
        step.why = why
        propagate(loss, scale)
    else:
        step = _exact(judge, heard, z, _shared(shared, z), names, cells, source, why, scale, shared is not None)
        if extra is not None:
            propagate(_scalar(extra), scale)
    judge.last, step.every = step, every
    return step


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
        self._shared = None if self.given is None and not self.features else _shared(self.given, self.features)

    @property
    def shared(self) -> list[Tensor]:
        """The shared leaves; it is an error if they are not known."""
        return _shared(None, ()) if self._shared is None else self._shared

    def shared_or(self, default: None) -> list[Tensor] | None:
        """The shared leaves, or the default where they are not known."""
        return default if self._shared is None else self._shared

    def losses_again(self) -> dict[str, Tensor]:
        """The closure's losses at the parameters as they are now, for the tasks of this step."""
        found = self.closure()
        if not isinstance(found, Mapping) or any(task not in found for task in self.heard.tasks):
            raise BadInput(
                "the closure does not return the losses of all tasks present", where="closure",
                remedy="return a mapping task: scalar loss on the same batch",
            )  # fmt: skip
        return {task: found[task] for task in self.heard.tasks}

    def write_extra(self) -> None:
        """Add the extra's gradient to ``.grad``."""
        if self.extra is not None:
            propagate(_scalar(self.extra), self.scale, keep=True)

    def write(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Add gradients to ``.grad``."""
        accumulate(gradients, self.scale)


def _choose(
    judge: Balancer, gram: str, z: tuple[Tensor, ...], cells: Mapping[str, Tensor] | None, rows: float
) -> tuple[str, str]:
    if hears_losses(judge):
        return "losses", "the balancer hears losses only"
    if gram != "auto":
        return gram, "as asked"
    if hasattr(judge, "source") and z:
        return cast(str, judge.source), "the balancer is defined there"
    if "features" in judge.needs and z:
        return "features", "the balancer is defined at the features"
    if judge.signal == "jacobian":
        return "full", "the balancer needs the Jacobian"
    if cells is not None:
        return "grouped", "cells say which rows are whose: exact, in one pass"
    if z and rows == 1:
        return "features", "features are given: T passes through the heads only"
    return "full", "neither features nor cells are given: T passes through the shared part"


def _shared(shared: nn.Module | Iterable[Tensor] | None, z: tuple[Tensor, ...]) -> list[Tensor]:
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


def _names_of(shared: nn.Module | Iterable[Tensor] | None) -> dict[Tensor, str]:
    return {p: name for name, p in shared.named_parameters()} if isinstance(shared, nn.Module) else {}


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


def _write_known(
    heard: Heard, z: tuple[Tensor, ...], shared: nn.Module | Iterable[Tensor] | None, weights: Tensor,
    extra: Tensor | None, scale: float,
) -> None:  # fmt: skip
    """Gradients for weights that are known: Σ w_t ℓ_t below, Σ ℓ_t above; without features and shared both are weighted."""
    w = heard.mine(weights)
    if z or shared is None or not heard.tensors:
        loss = _known(heard, z, w, extra)
        propagate(loss, scale)
        return
    own = _shared(shared, z)
    vector = stack(heard.tensors)
    below = gradients((w.to(vector.dtype) * vector).sum(), own)
    heads = [leaf for leaf in leaves(heard.tensors) if leaf not in set(own)]
    above = gradients(vector.sum(), heads) if heads else ()
    accumulate({leaf: g for leaf, g in zip([*own, *heads], [*below, *above]) if g is not None}, scale)
    if extra is not None:
        propagate(_scalar(extra), scale)


def _top(heard: Heard, z: tuple[Tensor, ...]) -> tuple[engine.Top, dict[Tensor, Tensor] | None]:
    """Where the shared part ends, and the heads' plain gradients if they were found on the way.

    A process without a loss takes part with a row of zeros, so that its layers are walked and reduced like the others'."""
    if z and not heard.tensors:
        return engine.Top((), list(z), [real(f).new_zeros(1, *f.shape) for f in z], [0 for _ in z]), {}
    if not z:
        return engine.Top.of_losses(heard.tasks, heard.tensors), None
    passes = through_heads(heard.tasks, heard.tensors, z)
    return engine.Top(heard.tasks, list(z), passes.rows, passes.reach), passes.heads


def _heads_plain(heard: Heard, shared: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    if not heard.tensors:
        return {}
    own = set(shared)
    heads = [leaf for leaf in leaves(heard.tensors) if leaf not in own]
    found = gradients(stack(heard.tensors).sum(), heads) if heads else ()
    return {leaf: g for leaf, g in zip(heads, found) if g is not None}


def _exact(
    judge: Balancer, heard: Heard, z: tuple[Tensor, ...], shared: list[Tensor], names: dict[Tensor, str],
    cells: Mapping[str, Tensor] | None, source: str, why: str, scale: float, shared_given: bool,
) -> Step:  # fmt: skip
    """Gradients over all shared parameters: grouped where that can be, otherwise by T passes."""
    team = heard.team
    _whole(shared, source, z)
    if team.size > 1 and (not z or source == "grouped") and not all(team.gather(bool(heard.tensors))):
        raise BadInput(
            "a process has no loss in this step", where="losses",
            remedy="give every process a labelled row, or pass features= and leave gram to be 'full'",
        )  # fmt: skip
    step = Step(heard.present, heard.values, source=source, why=why)
    measured: grouped.Grouped | engine.Full | None = None
    plain: dict[Tensor, Tensor] = {}
    if source == "grouped" and judge.signal != "jacobian":
        measured, plain, reason = _try_grouped(judge, heard, z, shared, names, cells, shared_given)
        if measured is None:
            engine.once(f"the grouped Gram falls back to T passes: {reason}")
            step.source, step.why = "full", reason
    if isinstance(measured, grouped.Grouped):
        step.gram = measured.gram(team) * team.share**2
    else:
        top, heads = _top(heard, z)
        found = top.find(shared, names)
        plain = _plain_rest(heard, z, shared, heads)
        if judge.signal == "jacobian":
            step.source = "full"
            blocks = engine.pull(top.outputs, top.rows, shared)
            flat = team.sum(_widen_rows(heard, torch.cat([block.flatten(1) for block in blocks], 1))) * team.share
            d = judge.direction(flat, tasks=heard.present, losses=heard.values)
            parts = torch.split(d, [leaf.numel() for leaf in shared])
            d_share = 1 / (team.size * team.share)  # every rank writes the same d: together they must give it once
            accumulate({**plain, **{leaf: d_share * part.view_as(leaf) for leaf, part in zip(shared, parts)}}, scale)
            return step
        measured = engine.Full.measure(top, shared, found)
        step.gram = measured.gram(team, lambda block: _widen_rows(heard, block)) * team.share**2
    step.weights = weigh(judge, heard, step.gram)
    w = step.weights if isinstance(measured, grouped.Grouped) else heard.mine(step.weights)
    accumulate({**plain, **measured.mix(w)}, scale)
    return step


def _widen_rows(heard: Heard, block: Tensor) -> Tensor:
    """Rows [t, …] of this rank's tasks as rows [T, …] of the union's, zeros elsewhere."""
    if heard.index is None:
        return block
    return block.new_zeros(len(heard.present), *block.shape[1:]).index_copy(0, heard.index, block[: len(heard.index)])


def _plain_rest(
    heard: Heard, z: tuple[Tensor, ...], shared: list[Tensor], heads: dict[Tensor, Tensor] | None
) -> dict[Tensor, Tensor]:
    """Plain gradients of all that is not shared; what lies below the features without being shared included."""
    own = set(shared)
    if heads is None or any(leaf not in own for leaf in leaves(z)):
        return _heads_plain(heard, shared)
    return {leaf: g for leaf, g in heads.items() if leaf not in own}


def _try_grouped(
    judge: Balancer, heard: Heard, z: tuple[Tensor, ...], shared: list[Tensor], names: dict[Tensor, str],
    cells: Mapping[str, Tensor] | None, shared_given: bool,
) -> tuple[grouped.Grouped | None, dict[Tensor, Tensor], str]:  # fmt: skip
    """The grouped measurement, or the reason of some process why there is none."""
    if cells is None:
        raise BadInput(
            "gram='grouped' needs to know which rows are whose", where="cells",
            remedy="pass cells={task: row indices}",
        )  # fmt: skip
    memory = vars(judge).setdefault("_grouped_memory", {})
    reason, measured = "", None
    plain: dict[Tensor, Tensor] = {}
    try:
        known = z[0].shape[0] if z and z[0].ndim else None
        at = grouped.cells_of(cells, heard.tasks, heard.present, known)
        top = engine.Top.of_losses(heard.tasks, heard.tensors)
        own = set(shared)
        if z:  # the shared part ends there: walk it once, and each head by itself
            walks = [walk([loss], above=z) for loss in heard.tensors]
            reach = [sum(1 << t for t, found in enumerate(walks) if edge(f) in found.ends) for f in z]
            top = engine.Top(heard.tasks, list(z), [], reach)
            met = dict.fromkeys(leaf for found in walks for leaf in found.leaves)
            heads = [leaf for leaf in (*met, *(leaves(z) if shared_given else ())) if leaf not in own]
        else:
            heads = [leaf for leaf in leaves(heard.tensors) if leaf not in own]
        found = top.find(shared, names)
        index = [heard.present.index(task) for task in heard.tasks]
        measured, plain = grouped.measure(heard.tensors, index, found, at, heads, memory)
    except grouped.NotGrouped as cause:
        reason = str(cause)
    if heard.team.size > 1:
        reason = next((r for r in heard.team.gather(reason) if r), "")
    return (None, {}, reason) if reason else (measured, plain, "")


def _on_a_part(heard: Heard, closure: Any, rows: float, shared: Any, team: Processes) -> Tensor:
    """The full Gram of a part of the batch that the closure evaluates."""
    found = closure(rows)
    losses, features = found if isinstance(found, tuple) else (found, None)
    part = listen(losses, "raise", team)
    if part.present != heard.present:
        raise BadInput(
            f"the part of the batch holds the tasks {list(part.present)}, the batch {list(heard.present)}", where="closure",
            remedy="draw the part so that every task present keeps a row",
        )  # fmt: skip
    z = features_of(features, part)
    own = _shared(shared, z)
    _whole(own, "full", z)
    top, _ = _top(part, z)
    measured = engine.Full.measure(top, own, top.find(own, _names_of(shared)))
    return measured.gram(team, lambda block: _widen_rows(part, block)) * team.share**2


def _crossed(
    judge: Balancer, losses: Any, shared: Any, features: Any, extra: Tensor | None, scale: float,
    on_nonfinite: OnNonFinite, team: Processes,
) -> Step:  # fmt: skip
    """J₁J₂ᵀ of two batches, applied to a third."""
    if isinstance(losses, Mapping) or len(losses) != judge.batches:
        raise BadInput(
            f"{type(judge).__name__} takes {judge.batches} independent batches a step", where="losses",
            remedy=f"pass a sequence of {judge.batches} mappings task: loss",
        )  # fmt: skip
    each = [listen(batch, on_nonfinite, team) for batch in losses]
    if any(heard.bad for heard in each):
        judge.last = Step(each[-1].present, each[-1].values, skipped=True)
        return cast(Step, judge.last)
    if any(heard.present != each[0].present for heard in each):
        raise BadInput("the batches hold different tasks", where="losses", remedy="keep the tasks that all of them hold")
    zs = [features_of(f, heard) for f, heard in zip(features or [None] * len(each), each)]
    blocks = []
    for heard, z in zip(each[:2], zs):
        own = _shared(shared, z)
        _whole(own, "full", z)
        top, _ = _top(heard, z)
        top.find(own, _names_of(shared))
        blocks.append([team.sum(_widen_rows(heard, b)) * team.share for b in engine.pull(top.outputs, top.rows, own)])
    cross = sum(real(a).flatten(1) @ real(b).flatten(1).T for a, b in zip(*blocks))
    step = Step(each[-1].present, each[-1].values, gram=cast(Tensor, cross), source="full", why="two batches, crossed")
    step.weights = weigh(judge, each[-1], step.gram)
    _write_known(each[-1], zs[-1], shared, step.weights, extra, scale)
    judge.last = step
    return step


def _nothing(heard: Heard, z: tuple[Tensor, ...]) -> Tensor:
    """The scalar of a rank without a loss of its own: zero gradients at the features, so that the shared part takes part."""
    zero = heard.values.new_zeros(()).requires_grad_()
    return join(zero, {f: torch.zeros_like(f, requires_grad=False) for f in z}) if z else zero


def _plus(total: Tensor, extra: Tensor | None) -> Tensor:
    if extra is None:
        return total
    return total + _scalar(extra).to(total.device)


def _scalar(extra: Tensor) -> Tensor:
    if not isinstance(extra, Tensor) or extra.numel() != 1:
        raise BadInput("extra is not a scalar", where="extra", remedy="add the penalties up first")
    return extra.reshape(())


def propagate(loss: Tensor, scale: float, keep: bool = False) -> None:
    """An ordinary backward from a scalar that `scale` arrives at; a scalar without a graph has nothing to give."""
    if loss.requires_grad:
        torch.autograd.backward(loss, torch.full_like(loss, scale), retain_graph=keep)


def _serves(judge: Balancer, door: str) -> None:
    if door not in judge.doors:
        other = next(iter(judge.doors))
        raise BadInput(
            f"{type(judge).__name__} cannot be served by {door}()", where=door,
            remedy=f"use balancing.{other}(losses, balancer, …)",
        )  # fmt: skip


def _whole(parameters: Sequence[Tensor], source: str, z: Sequence[Tensor] = ()) -> None:
    if sharded(parameters, z):
        raise BadInput(
            f"the shared parameters are sharded (FSDP or ZeRO), so that gram={source!r} cannot be measured", where="shared",
            remedy="use combine(…, features=z) or a balancer of the losses",
        )  # fmt: skip
