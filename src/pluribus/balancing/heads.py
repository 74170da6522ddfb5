"""The passes through the heads: every task's gradient at the features, g_t = ∂ℓ_t/∂z, and the heads' own on the way.

In general a pass a task. Where each head takes z [n, d] into linear layers of its own, y_t = z V_t + b_t, ONE pass for the
sum of the losses gives every δ_t = ∂ℓ_t/∂y_t, whatever T is, and

    g_t = δ_t V_tᵀ,   <g_t, g_s> = Σ_{i,j} (δ_tᵀ δ_s)_{ij} (V_tᵀ V_s)_{ij},   Σ_t w_t g_t = [w_t δ_t …] [V_t …]ᵀ

so that no g_t need be formed.

Every pass ends at the features: a leaf that lies above and below them (tied weights, a skip connection beside z, a penalty on
weights of the trunk) gives here what it gets from above alone, and of nested features each gets what does not pass through
another. What goes through z is added where the features' own gradients are sent down.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pluribus.balancing.graph import Walk, edge, gradients, places, stopped, walk
from pluribus.balancing.layers import by_task, gram_of, real
from pluribus.balancing.processes import sharded
from pluribus.errors import BadInput


def seeds_of(z: Sequence[Tensor]) -> tuple[float, ...]:
    """The scales that passes through the heads start from, the next one tried where the result overflows.

    float16 would lose the gradients of a mean loss without a scale; other types need none.
    """
    return (1024.0, 1.0) if any(f.dtype == torch.float16 for f in z) else (1.0,)


def from_heads(loss: Tensor, inputs: Sequence[Tensor], seeds: tuple[float, ...]) -> list[Tensor | None]:
    """∂loss/∂inputs in float32 at least (the inputs' own type if no scale was needed), None where it does not reach."""
    for seed in seeds:
        found = gradients(loss, inputs, seed=None if len(seeds) == 1 else torch.full_like(loss, seed))
        if seed == seeds[-1] or all(bool(g.isfinite().all()) for g in found if g is not None):
            break
    return [g if g is None or len(seeds) == 1 else real(g) / seed for g in found]


@dataclass(eq=False)
class Passes:
    """What the passes gave: g_t of each task at each feature tensor, [T, *z], in float32 at least.

    heads: leaf → its gradient Σ_t ∂ℓ_t/∂φ, or None where the heads are left to the ordinary backward.
    reach: which tasks reach each feature tensor, as bits.
    beside: the leaves that were to be kept apart, their gradients [T, *leaf] a task, and the tasks that reach each.
    """

    rows: list[Tensor]
    heads: dict[Tensor, Tensor] | None
    reach: list[int]
    beside: dict[Tensor, tuple[Tensor, int]] = field(default_factory=dict)

    def gram(self) -> Tensor:
        """G [T, T] of the g_t."""
        return gram_of(self.rows)

    def mix(self, w: Tensor) -> list[Tensor]:
        """Σ_t w_t g_t, one tensor a feature tensor."""
        return [torch.tensordot(w.to(block.dtype), block, 1) for block in self.rows]


class LinearPasses:
    """The same from one pass, for heads that begin with linear layers. deltas: δ [n, Σ O]; weights: V [d, Σ O]; task: [Σ O]."""

    def __init__(
        self, deltas: list[Tensor], weights: list[Tensor], owner: list[int], z: Tensor, heads: dict[Tensor, Tensor]
    ) -> None:
        self.deltas = torch.cat([real(delta) for delta in deltas], 1)
        self.weights = torch.cat([real(weight) for weight in weights], 1)
        widths = [weight.shape[1] for weight in weights]
        self.T, self.z, self.heads = max(owner) + 1, z, heads
        columns = [t for t, width in zip(owner, widths) for _ in range(width)]
        self.plain = columns == list(range(self.T))  # one column a task, in order
        self.beside: dict[Tensor, tuple[Tensor, int]] = {}
        self.task = torch.tensor(columns, device=z.device)
        self.reach = [(1 << self.T) - 1]

    @cached_property
    def rows(self) -> list[Tensor]:
        each = [self.task == t for t in range(self.T)]
        return [torch.stack([self.deltas[:, own] @ self.weights[:, own].T for own in each])]

    def gram(self) -> Tensor:
        (n, O), d = self.deltas.shape, self.weights.shape[0]
        if O * O * (n + d) > n * d * (O + self.T**2):
            return gram_of(self.rows)
        K = (self.deltas.T @ self.deltas) * (self.weights.T @ self.weights)
        return K if self.plain else by_task(K, self.task, self.T)

    def mix(self, w: Tensor) -> list[Tensor]:
        return [(self.deltas * w.to(self.deltas.dtype)[self.task]) @ self.weights.T]


def through_heads(
    tasks: Sequence[str], losses: Sequence[Tensor], z: Sequence[Tensor], keep: Collection[Tensor] = ()
) -> Passes | LinearPasses:
    """g_t of each task, and the heads' gradients; those of leaves in `keep` task by task (``beside``)."""
    if not losses:
        return Passes([], {}, [0 for _ in z])
    seeds = seeds_of(z)
    if len(seeds) > 1 and not keep:
        return _each(tasks, losses, z, [[] for _ in losses], seeds, (), False)
    walks = [walk([loss], above=z) for loss in losses]
    for task, found in zip(tasks, walks):
        if not found.entries:
            raise _apart(task, found, z)
    own = [found.leaves for found in walks]
    if len(seeds) > 1 or any(sharded(found.leaves) for found in walks):
        return _each(tasks, losses, z, [[leaf for leaf in part if leaf in keep] for part in own], seeds, keep, False)
    if not any(leaf in keep for part in own for leaf in part):
        at_once = _at_once(losses, z, walks)
        if at_once is not None:
            return at_once
    return _each(tasks, losses, z, own, seeds, keep, True)


def _apart(task: str, found: Walk, z: Sequence[Tensor]) -> BadInput:
    """Why a loss does not reach the features."""
    fused = next((edge(f)[0] for f in z if edge(f)[0] in found.nodes), None)
    if fused is not None:
        return BadInput(
            f"the loss of task {task!r} and they leave one node of the graph, {fused.name()}, and are not told apart inside it",
            where="features",
            remedy="compile the trunk and the heads as two functions (or the trunk alone), so that losses are computed from them",
        )
    return BadInput(
        f"the loss of task {task!r} does not depend on them",
        where="features",
        remedy="pass the tensor from which this loss was computed",
    )


def _at_once(losses: Sequence[Tensor], z: Sequence[Tensor], walks: Sequence[Walk]) -> LinearPasses | None:
    """One pass for all heads; None where some head does not begin with linear layers of its own."""
    if len(z) != 1 or z[0].ndim != 2:
        return None
    met: dict[Any, int] = {}
    owner: list[int] = []
    nodes: list[Any] = []
    for t, found in enumerate(walks):
        for node, slot in found.entries:
            if (node.name(), slot) not in (("AddmmBackward0", 1), ("MmBackward0", 0)):
                return None
            if node.name() == "AddmmBackward0" and node._saved_alpha != 1:
                return None
            met[node] = t
            owner.append(t)
            nodes.append(node)
    if len(met) != len(nodes) or any(met.get(node, t) != t for t, found in enumerate(walks) for node in found.nodes & met.keys()):
        return None  # a layer above z that two tasks share: its δ would be a sum
    own = list(dict.fromkeys(leaf for found in walks for leaf in found.leaves))
    total = torch.stack([loss.reshape(()).to(losses[0].dtype) for loss in losses]).sum()
    with stopped(z):
        pulled = gradients(total, [*(GradientEdge(node, 0) for node in nodes), *own])
    deltas, plain = pulled[: len(nodes)], pulled[len(nodes) :]
    if any(delta is None for delta in deltas):
        return None
    heads = {leaf: g for leaf, g in zip(own, plain) if g is not None}
    weights = [node._saved_mat2.detach() for node in nodes]  # what is measured on them is no part of a graph
    return LinearPasses([delta for delta in deltas if delta is not None], weights, owner, z[0], heads)


def _each(
    tasks: Sequence[str],
    losses: Sequence[Tensor],
    z: Sequence[Tensor],
    own: Sequence[Sequence[Tensor]],
    seeds: tuple[float, ...],
    keep: Collection[Tensor],
    handed: bool,
) -> Passes:
    """A pass a task. own: the leaves of each task that it also gives, beyond `keep` only where `handed`."""
    heads: dict[Tensor, Tensor] | None = {} if handed else None
    kept: list[list[Tensor | None]] = []
    apart: dict[Tensor, dict[int, Tensor]] = {}
    at = places(z)
    with stopped(z):
        for t, (task, loss) in enumerate(zip(tasks, losses)):
            found = from_heads(loss, [*at, *own[t]], seeds)
            if all(g is None for g in found[: len(z)]):
                raise _apart(task, walk([loss], above=z), z)
            kept.append(found[: len(z)])
            for leaf, g in zip(own[t], found[len(z) :]):
                if g is None:
                    continue
                if leaf in keep:
                    apart.setdefault(leaf, {})[t] = g
                elif heads is not None:
                    heads[leaf] = heads[leaf] + g if leaf in heads else g
    rows = []
    for k, f in enumerate(z):
        each = [torch.zeros_like(f, requires_grad=False) if (g := found[k]) is None else g for found in kept]
        rows.append(real(torch.stack(each)))
    reach = [sum(1 << t for t, found in enumerate(kept) if found[k] is not None) for k in range(len(z))]
    beside = {}
    for leaf, parts in apart.items():
        zero = torch.zeros_like(leaf, requires_grad=False)
        block = torch.stack([real(parts.get(t, zero)) for t in range(len(losses))])
        beside[leaf] = (block, sum(1 << t for t in parts))
    return Passes(rows, heads, reach, beside)
