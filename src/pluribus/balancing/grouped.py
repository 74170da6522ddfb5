"""The exact grouped Gram: every row of the batch is labelled for one task, so ONE pass back gives every task's gradient.

With δ_r = ∂(Σ_t ℓ_t)/∂y_r at the output of each shared layer, row r contributing to task t(r) only (the 1/n_t of its mean
included):

    δ^(l) = autograd.grad(Σ_t ℓ_t, [y^(l) …])                     gradients at outputs only, no weight gradient is formed
    K = Σ_l (a^(l) a^(l)ᵀ + 1) ∘ (δ^(l) δ^(l)ᵀ)                   [B, B]; the 1 is the bias
    G = S K Sᵀ,  S[t, r] = 1 where t(r) = t                       exact
    w = balancer(G)
    ∂W = Σ_r w_{t(r)} δ_r a_rᵀ                                    exact, from the same δ: no second backward

whatever T is. Layers with several places a row (tokens, patches) take the cheaper of this and one weight gradient a task.
Where rows are coupled (batch statistics) the δ of a row is no longer its own task's: a second pass with the losses scaled
differently tells, in the first call and whenever the graph changes. That case, parameters used twice and unknown layers
fall back to T passes; the reason is said once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pluribus.balancing.gram import Found
from pluribus.balancing.layers import Layer, RowTasks, by_task, known_layers
from pluribus.balancing.processes import Processes
from pluribus.errors import BadInput, unknown


class NotGrouped(Exception):
    """Why this batch or network has no grouped Gram."""


def cells_of(cells: Mapping[str, Tensor], tasks: Sequence[str], present: Sequence[str], n_rows: int | None) -> RowTasks:
    """The rows of each of the union's tasks (`present`) from a mapping of this rank's: task → row indices, or a mask [B].

    n_rows: B where it is known; masks give it too; otherwise the largest index does.
    """
    for name in cells:
        if name not in tasks:
            raise unknown("task", name, list(tasks), where="cells")
    missing = [task for task in tasks if task not in cells]
    if missing:
        raise BadInput(f"no rows are given for task {missing[0]!r}", where="cells", remedy="name the rows of every task present")
    rows = {task: c.nonzero().flatten() if c.dtype == torch.bool else c.flatten().long() for task, c in cells.items()}
    masks = [c.shape[0] for c in cells.values() if c.dtype == torch.bool]
    B = n_rows or (masks[0] if masks else 1 + max((int(r.max()) for r in rows.values() if r.numel()), default=0))
    one = next(iter(rows.values()))
    every = torch.cat(list(rows.values()))
    places = {task: t for t, task in enumerate(present)}
    owners = [place for task, r in rows.items() for place in [places[task]] * r.shape[0]]
    task_of = torch.full((B,), len(present), dtype=torch.long, device=one.device)
    task_of[every] = torch.tensor(owners, dtype=torch.long, device=one.device)
    if one.device.type == "cpu":
        twice = int((torch.bincount(every, minlength=B) > 1).sum())
        if twice:
            raise NotGrouped(f"{twice} rows are labelled for several tasks: split them into (row, task) pairs")
    return RowTasks([rows.get(task, one[:0]) for task in present], task_of)


@dataclass(eq=False)
class Grouped:
    """One pass: the gradients at the outputs of the shared layers, and how each layer's places belong to the rows."""

    layers: list[Layer]
    deltas: list[Tensor]
    across: list[bool]
    cells: RowTasks

    @torch.no_grad()
    def gram(self, team: Processes) -> Tensor:
        """G [T, T] of the union batch (each rank's δ as they are)."""
        T, total = len(self.cells.rows), None
        kernels: dict[tuple[int, bool], Tensor] = {}  # layers with the same places share one sum over them
        for layer, delta, across in zip(self.layers, self.deltas, self.across):
            K = layer.kernel(delta, T, team)
            if K is None:
                part = layer.grouped(delta, self.cells, across, team)
                total = part if total is None else total + part
            else:
                at = (layer.places(delta).shape[0], across)
                kernels[at] = kernels[at].add_(K) if at in kernels else K
        for (n, across), K in kernels.items():
            part = by_task(K, team.cat(self.cells.tasks(n, across)), T)
            total = part if total is None else total + part
        assert total is not None
        return total

    @torch.no_grad()
    def mix(self, w: Tensor) -> dict[Tensor, Tensor]:
        """Σ_t w_t ∂ℓ_t/∂leaf of each shared leaf: the layers' gradients for δ_r w_{t(r)}."""
        w = torch.cat([w, w.new_zeros(1)])
        found: dict[Tensor, Tensor] = {}
        columns: dict[tuple[int, bool, torch.dtype], Tensor] = {}  # layers with the same places share their places' weights
        for layer, delta, across in zip(self.layers, self.deltas, self.across):
            at = (layer.places(delta).shape[0], across, delta.dtype)
            if at not in columns:
                columns[at] = _of_places(delta, w, self.cells, at[0], across)
            found.update(zip(layer.leaves, layer.gradients(_times(delta, columns[at]))))
        return found


def _of_places(delta: Tensor, w: Tensor, cells: RowTasks, n: int, across: bool) -> Tensor:
    """Each place's task's number [n, 1]; w is [T + 1], the last for places of no task."""
    return w.to(delta.dtype)[cells.tasks(n, across)][:, None]


def _times(delta: Tensor, column: Tensor) -> Tensor:
    """δ with each place multiplied by its number."""
    flat = delta.ndim == 2 and delta.shape[0] == len(column)
    return delta * column if flat else (delta.reshape(len(column), -1) * column).view_as(delta)


def measure(
    losses: Sequence[Tensor], index: Sequence[int], found: Found, cells: RowTasks, heads: Sequence[Tensor], memory: dict[Any, Any]
) -> tuple[Grouped, dict[Tensor, Tensor]]:
    """The pass back, and the heads' plain gradients on the way. index: the union's number of each loss's task.

    memory: what earlier calls learnt of this graph (how layers lay out their rows); kept by the caller.
    """
    layers, left = known_layers(found)
    if left:
        raise NotGrouped(next(iter(left.values())))
    if not layers:
        raise NotGrouped("there is no shared layer")
    edges: list[Any] = [layer.edge for layer in layers]
    total = torch.stack([loss.reshape(()) for loss in losses]).sum()
    pulled = torch.autograd.grad(total, [*edges, *heads], retain_graph=True, allow_unused=True)
    deltas = [delta for delta in pulled[: len(edges)] if delta is not None]
    plain = {leaf: g for leaf, g in zip(heads, pulled[len(edges) :]) if g is not None}
    B = cells.task_of.shape[0]
    for layer, delta in zip(layers, deltas):
        if not layer.separable(delta, B):
            name = type(layer).__name__
            raise NotGrouped(f"the output of a {name} {tuple(delta.shape)} cannot be told apart into {B} rows")
    shapes = tuple((layer.node.name(), tuple(delta.shape[1:])) for layer, delta in zip(layers, deltas))
    signature = (len(losses) > 1, shapes)  # one task alone says nothing about the layout
    if signature not in memory:
        memory[signature] = _layout(losses, index, layers, edges, deltas, cells)
    across = memory[signature]
    if isinstance(across, str):
        raise NotGrouped(across)
    return Grouped(layers, deltas, across, cells), plain


def _layout(
    losses: Sequence[Tensor],
    index: Sequence[int],
    layers: Sequence[Layer],
    edges: Sequence[Any],
    deltas: Sequence[Tensor],
    cells: RowTasks,
) -> list[bool] | str:
    """How each layer lays out its rows, found by scaling every task's loss differently: δ must scale place by place."""
    T = len(cells.rows)
    factors = torch.linspace(0.5, 1.5, T + 1, dtype=deltas[0].dtype, device=deltas[0].device)
    factors[T] = 0  # a place of no task must have no gradient at all
    total = torch.stack([factors[t].to(loss.dtype) * loss.reshape(()) for t, loss in zip(index, losses)]).sum()
    scaled = torch.autograd.grad(total, edges, retain_graph=True)
    found = []
    with torch.no_grad():
        for layer, delta, other in zip(layers, deltas, scaled):
            for across in (False, True):
                column = _of_places(delta, factors, cells, layer.places(delta).shape[0], across)
                error = (_times(delta, column) - other).norm()
                if error <= 1e-3 * other.norm():
                    found.append(across)
                    break
            else:
                return (
                    f"a row's gradient at a {type(layer).__name__} {tuple(delta.shape)} is not its own task's alone: "
                    "rows are coupled (batch statistics?) or cells are wrong"
                )
    return found
