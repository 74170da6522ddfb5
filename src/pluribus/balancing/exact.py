"""Gradients over all shared parameters, exactly: grouped by rows in one pass where that can be, otherwise by T passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pluribus.balancing import gram as engine
from pluribus.balancing import grouped
from pluribus.balancing.balancer import Balancer, once
from pluribus.balancing.decision import Decision
from pluribus.balancing.graph import edge, gradients, leaves, walk
from pluribus.balancing.heads import LinearPasses, Passes, through_heads
from pluribus.balancing.hearing import Heard, OnNonFinite, features_of, listen, stack, weigh
from pluribus.balancing.layers import real
from pluribus.balancing.problem import accumulate, check_whole, names_of, propagate, scalar_of, shared_leaves
from pluribus.balancing.processes import Processes
from pluribus.balancing.scalar import known, widen_rows
from pluribus.errors import BadInput


def exact(
    judge: Balancer,
    heard: Heard,
    z: tuple[Tensor, ...],
    shared: list[Tensor],
    names: dict[Tensor, str],
    cells: Mapping[str, Tensor] | None,
    source: str,
    why: str,
    scale: float,
    shared_given: bool,
    passes: Passes | LinearPasses | None = None,
) -> Decision:
    """Gradients over all shared parameters: grouped where that can be, otherwise by T passes.

    passes: those through the heads, if they were made before (with the shared leaves kept apart).
    """
    team = heard.team
    check_whole(shared, source, z)
    if team.size > 1 and (not z or source == "grouped") and not all(team.gather(bool(heard.tensors))):
        raise BadInput(
            "a process has no loss in this step",
            where="losses",
            remedy="give every process a labelled row, or pass features= and leave gram to be 'full'",
        )
    step = Decision(heard.present, heard.values, source=source, why=why)
    measured: grouped.Grouped | engine.Full | None = None
    plain: dict[Tensor, Tensor] = {}
    if source == "grouped" and judge.signal != "jacobian":
        measured, plain, reason = _try_grouped(judge, heard, z, shared, names, cells, shared_given)
        if measured is None:
            once(f"the grouped Gram falls back to T passes: {reason}")
            step.source, step.why = "full", reason
    if isinstance(measured, grouped.Grouped):
        step.gram = measured.gram(team) * team.share**2
    else:
        top, heads = _top(heard, z, shared, passes)
        found = top.find(shared, names)
        plain = _plain_rest(heard, z, shared, heads)
        if judge.signal == "jacobian":
            step.source = "full"
            blocks = engine.pull(top.outputs, top.rows, shared)
            flat = team.sum(widen_rows(heard, torch.cat([block.flatten(1) for block in blocks], 1))) * team.share
            d = judge.direction(flat, tasks=heard.present, losses=heard.values)
            parts = torch.split(d, [leaf.numel() for leaf in shared])
            d_share = 1 / (team.size * team.share)  # every rank writes the same d: together they must give it once
            accumulate({**plain, **{leaf: d_share * part.view_as(leaf) for leaf, part in zip(shared, parts)}}, scale)
            return step
        measured = engine.Full.measure(top, shared, found)
        step.gram = measured.gram(team, lambda block: widen_rows(heard, block)) * team.share**2
    step.weights = weigh(judge, heard, step.gram)
    w = step.weights if isinstance(measured, grouped.Grouped) else heard.mine(step.weights)
    accumulate({**plain, **measured.mix(w)}, scale)
    return step


def _try_grouped(
    judge: Balancer,
    heard: Heard,
    z: tuple[Tensor, ...],
    shared: list[Tensor],
    names: dict[Tensor, str],
    cells: Mapping[str, Tensor] | None,
    shared_given: bool,
) -> tuple[grouped.Grouped | None, dict[Tensor, Tensor], str]:
    """The grouped measurement, or the reason of some process why there is none."""
    if cells is None:
        raise BadInput(
            "gram='grouped' needs to know which rows are whose", where="cells", remedy="pass cells={task: row indices}"
        )
    memory = vars(judge).setdefault("_grouped_memory", {})
    reason, measured = "", None
    plain: dict[Tensor, Tensor] = {}
    try:
        rows = z[0].shape[0] if z and z[0].ndim else None
        at = grouped.cells_of(cells, heard.tasks, heard.present, rows)
        top = engine.Top.of_losses(heard.tasks, heard.tensors)
        own = set(shared)
        if z:  # the shared part ends there: walk it once, and each head by itself
            walks = [walk([loss], above=z) for loss in heard.tensors]
            reach = [sum(1 << t for t, found in enumerate(walks) if edge(f) in found.ends) for f in z]
            met = dict.fromkeys(leaf for found in walks for leaf in found.leaves)
            heads = [leaf for leaf in (*met, *(leaves(z) if shared_given else ())) if leaf not in own]
            if not any(leaf in own for leaf in met):  # else shared leaves are used beside the features, too: walk everything
                top = engine.Top(heard.tasks, list(z), [], reach)
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


def _top(
    heard: Heard, z: tuple[Tensor, ...], shared: Sequence[Tensor], passes: Passes | LinearPasses | None = None
) -> tuple[engine.Top, dict[Tensor, Tensor] | None]:
    """Where the shared part ends, and the heads' plain gradients if they were found on the way.

    A shared leaf that the heads use beside the features is an end of its own, with the gradients that come from above.
    A process without a loss takes part with a row of zeros, so that its layers are walked and reduced like the others'."""
    if not z:
        return engine.Top.of_losses(heard.tasks, heard.tensors), None
    passes = passes or through_heads(heard.tasks, heard.tensors, z, set(shared))
    blocks = passes.rows if heard.tensors else [real(f).new_zeros(1, *f.shape) for f in z]
    beside = dict(passes.beside)
    if heard.team.size > 1:  # every process must end at the same leaves, since gradients are reduced one after the other
        mine = [i for i, leaf in enumerate(shared) if leaf in beside]
        for i in sorted({i for theirs in heard.team.gather(mine) for i in theirs}):
            zero = real(shared[i]).new_zeros(blocks[0].shape[0], *shared[i].shape)
            beside[shared[i]] = beside.pop(shared[i], (zero, 0))
    rows, bits = [block for block, _ in beside.values()], [bits for _, bits in beside.values()]
    return engine.Top(heard.tasks, [*z, *beside], [*blocks, *rows], [*passes.reach, *bits]), passes.heads


def _plain_rest(
    heard: Heard, z: tuple[Tensor, ...], shared: list[Tensor], heads: dict[Tensor, Tensor] | None
) -> dict[Tensor, Tensor]:
    """Plain gradients of all that is not shared; what lies below the features without being shared included."""
    own = set(shared)
    if heads is None or any(leaf not in own for leaf in leaves(z)):
        return _heads_plain(heard, shared)
    return {leaf: g for leaf, g in heads.items() if leaf not in own}


def _heads_plain(heard: Heard, shared: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    if not heard.tensors:
        return {}
    own = set(shared)
    heads = [leaf for leaf in leaves(heard.tensors) if leaf not in own]
    found = gradients(stack(heard.tensors).sum(), heads) if heads else ()
    return {leaf: g for leaf, g in zip(heads, found) if g is not None}


def on_a_part(heard: Heard, closure: Any, rows: float, shared: Any, team: Processes) -> Tensor:
    """The full Gram of a part of the batch that the closure evaluates."""
    found = closure(rows)
    losses, features = found if isinstance(found, tuple) else (found, None)
    part = listen(losses, "raise", team)
    if part.present != heard.present:
        raise BadInput(
            f"the part of the batch holds the tasks {list(part.present)}, the batch {list(heard.present)}",
            where="closure",
            remedy="draw the part so that every task present keeps a row",
        )
    z = features_of(features, part)
    own = shared_leaves(shared, z)
    check_whole(own, "full", z)
    top, _ = _top(part, z, own)
    measured = engine.Full.measure(top, own, top.find(own, names_of(shared)))
    return measured.gram(team, lambda block: widen_rows(part, block)) * team.share**2


def crossed(
    judge: Balancer,
    losses: Any,
    shared: Any,
    features: Any,
    extra: Tensor | None,
    scale: float,
    on_nonfinite: OnNonFinite,
    team: Processes,
) -> Decision:
    """J₁J₂ᵀ of two batches, applied to a third."""
    if isinstance(losses, Mapping) or len(losses) != judge.batches:
        raise BadInput(
            f"{type(judge).__name__} takes {judge.batches} independent batches a step",
            where="losses",
            remedy=f"pass a sequence of {judge.batches} mappings task: loss",
        )
    each = [listen(batch, on_nonfinite, team) for batch in losses]
    if any(heard.bad for heard in each):
        judge.last = Decision(each[-1].present, each[-1].values, skipped=True)
        return cast(Decision, judge.last)
    if any(heard.present != each[0].present for heard in each):
        raise BadInput("the batches hold different tasks", where="losses", remedy="keep the tasks that all of them hold")
    zs = [features_of(f, heard) for f, heard in zip(features or [None] * len(each), each)]
    blocks = []
    for heard, z in zip(each[:2], zs):
        own = shared_leaves(shared, z)
        check_whole(own, "full", z)
        top, _ = _top(heard, z, own)
        top.find(own, names_of(shared))
        blocks.append([team.sum(widen_rows(heard, b)) * team.share for b in engine.pull(top.outputs, top.rows, own)])
    cross = sum(real(a).flatten(1) @ real(b).flatten(1).T for a, b in zip(*blocks))
    step = Decision(each[-1].present, each[-1].values, gram=cast(Tensor, cross), source="full", why="two batches, crossed")
    step.weights = weigh(judge, each[-1], step.gram)
    write_known(each[-1], zs[-1], shared, step.weights, extra, scale, whole=True)
    judge.last = step
    return step


def write_known(
    heard: Heard,
    z: tuple[Tensor, ...],
    shared: nn.Module | Iterable[Tensor] | None,
    weights: Tensor,
    extra: Tensor | None,
    scale: float,
    *,
    whole: bool,
) -> None:
    """Gradients for weights that are known: Σ w_t ℓ_t below, Σ ℓ_t above; without features and shared both are weighted.

    whole: the shared leaves' gradients are weighted as a whole, as "full" and "grouped" measure them, not only what comes
    through the features.
    """
    w = heard.mine(weights)
    if (z and not whole) or (shared is None and not z) or not heard.tensors:
        loss = known(heard, z, w, extra)
        propagate(loss, scale)
        return
    own = shared_leaves(shared, z)
    vector = stack(heard.tensors)
    below = gradients((w.to(vector.dtype) * vector).sum(), own)
    heads = [leaf for leaf in leaves(heard.tensors) if leaf not in set(own)]
    above = gradients(vector.sum(), heads) if heads else ()
    accumulate({leaf: g for leaf, g in zip([*own, *heads], [*below, *above]) if g is not None}, scale)
    if extra is not None:
        propagate(scalar_of(extra), scale)
