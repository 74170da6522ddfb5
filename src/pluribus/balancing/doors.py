"""The two doors of balancing, for anybody's training loop.

`combine(losses, balancer, features=z, extra=e)` returns ONE scalar L; its ordinary ``L.backward()`` leaves balanced
gradients in the shared part and plain, unweighted ones in the heads. The construction: with g_t = ∂ℓ_t/∂z,

    G_ts = <g_t, g_s>,   w = balancer(G),   L = Σ_t ℓ_t + e   with   ∂L/∂z := Σ_t w_t g_t + ∂e/∂z,   ∂L/∂φ_t := ∂ℓ_t/∂φ_t

so whatever scale s arrives at L (loss scaling, division for accumulation) multiplies all of it. The passes that give g_t
also give the heads' gradients ∂ℓ_t/∂φ_t; L hands them on, and no head is traversed twice.

`backward(losses, balancer, shared=…, features=…, closure=…)` writes ``.grad`` itself and serves what one scalar cannot:
full and grouped Grams, Jacobians, closures, several batches.

Every call leaves a `Decision` in ``balancer.last``: the tasks, their losses and weights, the Gram matrix and where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.decision import Decision
from pluribus.balancing.exact import crossed, exact, on_a_part, write_known
from pluribus.balancing.hearing import (
    Features,
    OnNonFinite,
    features_of,
    hears_losses,
    held_step,
    listen,
    outside_autocast,
    stack,
    weigh,
)
from pluribus.balancing.problem import Problem, names_of, propagate, scalar_of, shared_leaves
from pluribus.balancing.processes import Processes
from pluribus.balancing.scalar import known, measured, plus
from pluribus.balancing.torchjd import as_balancer
from pluribus.errors import BadInput, unknown


@outside_autocast
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
        return plus(stack(list(losses.values())).sum(), extra)
    first = features if features is None or isinstance(features, Tensor) else next(iter(features), None)
    heard = listen(losses, on_nonfinite, processes or Processes.running(), first if isinstance(first, Tensor) else None)
    if heard.bad:
        judge.last = Decision(heard.present, heard.values, skipped=True)
        return torch.full((), torch.nan, device=heard.values.device).requires_grad_()
    z = features_of(features, heard)
    if not z and not hears_losses(judge):
        raise BadInput(
            f"{type(judge).__name__} needs gradients ({judge.signal})",
            where="combine",
            remedy="pass features=z, the shared features, or use balancing.backward(losses, balancer, shared=…)",
        )
    source = gram or getattr(judge, "source", "features")
    if source not in ("features", "last"):
        raise BadInput(f"gram={source!r}", where="combine", remedy="use 'features' or 'last', or balancing.backward(…)")
    held = held_step(judge, heard, every)
    if held is not None or hears_losses(judge):
        step = held or Decision(heard.present, heard.values, weigh(judge, heard, None))
        w = heard.mine(cast(Tensor, step.weights))
        judge.last, step.every = step, every
        return known(heard, z, w, extra)
    loss = measured(judge, heard, z, extra, source, last)
    judge.last.every = every
    return loss


@outside_autocast
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
) -> Decision:
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
        given, else full. `Decision.source` and `.why` tell what was done.
    cells: task → the indices of its labelled rows, or a mask [B]; for "grouped".
    every: compute weights only every so many calls and hold them in between.
    rows: measure the (full) Gram on a share of the rows only: ``closure(rows)`` returns the losses of such a part of the
        batch, or (losses, features). The gradient itself is that of `losses`.
    extra: a scalar added unbalanced. scale: multiplies every gradient written (a loss scale, 1/accumulation).
    on_nonfinite, processes: as in `combine`. Weights are the union batch's and the same on all ranks; the gradients written
        are this rank's part, to be averaged or summed over ranks as after an ordinary backward. "full" and "grouped" write
        past the hooks of DistributedDataParallel: reduce them yourself, or use `combine`.

    Returns the `Decision`, which is also in ``balancer.last``.
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
        return crossed(judge, losses, shared, features, extra, scale, on_nonfinite, team)
    heard = listen(cast(Mapping[str, Tensor], losses), on_nonfinite, team)
    if heard.bad:
        judge.last = Decision(heard.present, heard.values, skipped=True)
        return cast(Decision, judge.last)
    z = features_of(cast(Features | None, features), heard)
    names = names_of(shared)
    if "closure" in judge.needs:
        step: Decision = judge.through_closure(Problem(heard, z, shared, names, closure, extra, scale))  # type: ignore[attr-defined]
        judge.last = step
        return step
    held = held_step(judge, heard, every)
    source, why = _choose(judge, gram, z, cells, rows)
    if held is not None or source == "losses" or rows != 1:
        step = held or Decision(heard.present, heard.values, source=source, why=why)
        if held is None and source == "losses":
            step.weights = weigh(judge, heard, None)
        elif held is None:
            step.gram = on_a_part(heard, closure, rows, shared, team)
            step.weights = weigh(judge, heard, step.gram)
            step.source, step.why = "full", f"measured on a share {rows:g} of the rows"
        whole = rows != 1 or source in ("full", "grouped")
        write_known(heard, z, shared, cast(Tensor, step.weights), extra, scale, whole=whole)
    elif source in ("features", "last"):
        if not z:
            raise BadInput(f"gram={source!r} needs features", where="features", remedy="pass features=z, or gram='full'")
        loss = measured(judge, heard, z, extra, source, last)
        step = judge.last
        step.why = why
        propagate(loss, scale)
    else:
        step = exact(judge, heard, z, shared_leaves(shared, z), names, cells, source, why, scale, shared is not None)
        if extra is not None:
            propagate(scalar_of(extra), scale)
    judge.last, step.every = step, every
    return step


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


def _serves(judge: Balancer, door: str) -> None:
    if door not in judge.doors:
        other = next(iter(judge.doors))
        raise BadInput(
            f"{type(judge).__name__} cannot be served by {door}()",
            where=door,
            remedy=f"use balancing.{other}(losses, balancer, …)",
        )
