"""The scalar that `combine` returns: an ordinary sum of losses that carries other gradients to the features."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pluribus.balancing import gram as engine
from pluribus.balancing.balancer import Balancer
from pluribus.balancing.decision import Decision
from pluribus.balancing.graph import places, stopped, uses
from pluribus.balancing.heads import LinearPasses, Passes, from_heads, seeds_of, through_heads
from pluribus.balancing.hearing import Heard, stack, weigh
from pluribus.balancing.layers import real
from pluribus.balancing.problem import check_whole, scalar_of
from pluribus.balancing.processes import Processes
from pluribus.errors import BadInput


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


def known(heard: Heard, z: tuple[Tensor, ...], w: Tensor, extra: Tensor | None) -> Tensor:
    """L for weights that are known before any gradient: one pass through the heads gives Σ_t (w_t − 1) g_t."""
    if not heard.tensors:
        return plus(nothing(heard, z), extra)
    vector = stack(heard.tensors)
    if not z:
        return plus((w.to(vector.dtype) * vector).sum(), extra)
    total = vector.sum()
    if w.device.type == "cpu" and bool((w == 1).all()):
        return plus(total, extra)
    with stopped(z if len(z) > 1 else ()):  # of nested features each gets what does not pass through another
        c = from_heads(((w - 1).to(vector.dtype) * vector).sum(), places(z), seeds_of(z))
    return join(plus(total, extra), {f: real(g) for f, g in zip(z, c) if g is not None})


def measured(
    judge: Balancer,
    heard: Heard,
    z: tuple[Tensor, ...],
    extra: Tensor | None,
    source: str,
    last: Any,
    passes: Passes | LinearPasses | None = None,
) -> Tensor:
    """L for a balancer that hears gradients: one pass a task through its head gives g_t, and the head's own gradient."""
    passes = passes or through_heads(heard.tasks, heard.tensors, z)
    if source == "last":
        parameters = engine.last_layer(z, last)
        check_whole(parameters, "last", z)
        top = engine.Top(heard.tasks, list(z), passes.rows, passes.reach)
        full = engine.Full.measure(top, parameters, uses(top.outputs, top.reach, parameters))
        local = full.gram(Processes.alone(), lambda block: block) if heard.tensors else heard.values.new_zeros(0, 0)
    else:
        local = passes.gram() if heard.tensors else heard.values.new_zeros(0, 0)
    G = heard.widen(local)
    step = Decision(heard.present, heard.values, gram=G, source=source)
    if judge.signal == "jacobian":
        if hasattr(judge, "on_features"):  # defined on features with their batch dimension (GradDrop)
            rows = passes.rows if heard.tensors else [real(f).new_zeros(0, *f.shape) for f in z]
            total = heard.team.sum
            at_z = [judge.on_features(widen_rows(heard, row), f, tasks=heard.present, total=total) for row, f in zip(rows, z)]
        elif heard.team.size > 1:
            raise BadInput(
                f"{type(judge).__name__} needs the Jacobian of all processes",
                where="combine",
                remedy="use balancing.backward(losses, balancer, shared=…), which reduces it",
            )
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
        return plus(nothing(heard, z), extra)
    vector = stack(heard.tensors)
    if passes.heads is None:  # the ordinary backward goes through the heads and finds Σ_t g_t at z: add what is missing
        constants = {f: d - row.sum(0).view_as(f) for f, d, row in zip(z, at_z, passes.rows)}
        return join(plus(vector.sum(), extra), constants)
    beside = {leaf: block.sum(0) for leaf, (block, _) in passes.beside.items()}
    return join(plus(vector.detach().sum(), extra), {**dict(zip(z, at_z)), **passes.heads, **beside})


def widen_rows(heard: Heard, block: Tensor) -> Tensor:
    """Rows [t, …] of this rank's tasks as rows [T, …] of the union's, zeros elsewhere."""
    if heard.index is None:
        return block
    return block.new_zeros(len(heard.present), *block.shape[1:]).index_copy(0, heard.index, block[: len(heard.index)])


def nothing(heard: Heard, z: tuple[Tensor, ...]) -> Tensor:
    """The scalar of a rank without a loss of its own: zero gradients at the features, so that the shared part takes part."""
    zero = heard.values.new_zeros(()).requires_grad_()
    return join(zero, {f: torch.zeros_like(f, requires_grad=False) for f in z}) if z else zero


def plus(total: Tensor, extra: Tensor | None) -> Tensor:
    if extra is None:
        return total
    return total + scalar_of(extra).to(total.device)
