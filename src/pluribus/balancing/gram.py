"""Where the Gram matrix comes from: at the features, at the last shared layer, over all shared parameters, or by groups.

The source is independent of the method. Costs, for T tasks:

    features   T passes through the heads only; G of ∂ℓ_t/∂z. The bound of MGDA-UB, not the parameters' own Gram.
    last       the same, and one batched step down to the last shared layer's parameters.
    full       T batched passes through the whole shared part; exact. Where a layer is known (`layers`), only the gradients
               at its output are propagated and G is summed layer by layer: no [T, P] is ever held.
    grouped    every row labelled for one task: exact, from one pass (see `grouped`).

Half precision: G is measured in float32; float16 passes carry a loss scale of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.balancing.balancer import once
from pluribus.balancing.graph import Use, edge, freed, gradients, leaf_of, uses
from pluribus.balancing.layers import Layer, gram_of, known_layers, real
from pluribus.balancing.processes import Processes
from pluribus.errors import BadInput

Found = dict[Tensor, tuple[list[Use], int]]  # shared leaf → its uses, and the tasks that reach it (bits)


def pull(outputs: Sequence[Tensor], rows: Sequence[Tensor], inputs: Sequence[Any]) -> list[Tensor]:
    """The rows [T, *output] as rows [T, *input]: T vector–Jacobian products, batched; one by one where that is refused."""
    T, size = rows[0].shape[0], None
    if any(out.dtype == torch.float16 for out in outputs):  # each task's rows to size 1, and back: small ones would vanish
        size = torch.stack([real(row).reshape(T, -1).abs().amax(1) for row in rows]).amax(0).clamp_min(1e-30)
        rows = [real(row) / size.view(T, *[1] * (row.ndim - 1)) for row in rows]
    seeds = [row.to(out.dtype) for row, out in zip(rows, outputs)]
    try:
        found = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError as error:
        if T > 1 and not freed(error):
            once(f"tasks are differentiated one by one, since a batched pass is refused: {str(error).splitlines()[0][:120]}")
        each = [gradients(outputs, inputs, seed=[seed[t] for seed in seeds]) for t in range(T)]
        found = tuple(None if column[0] is None else torch.stack(column) for column in zip(*each))  # type: ignore[misc]
    pulled = [inputs[i].new_zeros(T, *inputs[i].shape) if g is None else g for i, g in enumerate(found)]
    return pulled if size is None else [real(g) * size.view(T, *[1] * (g.ndim - 1)) for g in pulled]


@dataclass(eq=False)
class Top:
    """Where the shared part ends: its outputs (features, or the losses themselves) and the tasks' gradients there.

    outputs: K tensors; rows: the gradients [T, *output] of the tasks at each; reach: which tasks reach each, as bits.
    """

    tasks: tuple[str, ...]
    outputs: list[Tensor]
    rows: list[Tensor]
    reach: list[int]

    @classmethod
    def of_losses(cls, tasks: tuple[str, ...], losses: Sequence[Tensor]) -> Top:
        """The losses themselves: the identity as rows, a column an output."""
        columns = [loss.new_zeros(len(losses), *loss.shape) for loss in losses]
        for t, column in enumerate(columns):
            column[t] = 1
        return cls(tasks, list(losses), columns, [1 << t for t in range(len(losses))])

    def find(self, shared: Sequence[Tensor], names: dict[Tensor, str]) -> Found:
        """Where the shared leaves are used; a leaf that some task does not reach is an error."""
        found = uses(self.outputs, self.reach, shared)
        for leaf, (_, bits) in found.items():
            for t, task in enumerate(self.tasks):
                if not bits >> t & 1:
                    missing = sum(not other >> t & 1 for _, other in found.values())
                    raise BadInput(
                        f"the loss of task {task!r} does not reach {missing} of the {len(found)} shared parameters "
                        f"(first: {names.get(leaf, f'one of shape {tuple(leaf.shape)}')})",
                        where="shared",
                        remedy="list only the parameters that all tasks present share",
                    )
        return found


@dataclass(eq=False)
class Full:
    """The exact per-task gradients of the shared leaves, held as gradients at the layers' outputs."""

    shared: list[Tensor]
    layers: list[Layer]
    deltas: list[Tensor]
    left: list[Tensor]
    rows: list[Tensor]

    @classmethod
    def measure(cls, top: Top, shared: Sequence[Tensor], found: Found) -> Full:
        layers, left = known_layers(found)
        pulled = pull(top.outputs, top.rows, [*(layer.edge for layer in layers), *left])
        return cls(list(shared), layers, pulled[: len(layers)], list(left), pulled[len(layers) :])

    @torch.no_grad()
    def gram(self, team: Processes, widen: Callable[[Tensor], Tensor]) -> Tensor:
        """G [T, T]; over several processes the rows are reduced layer by layer, `widen` puts them at the union's tasks."""
        total: Tensor | None = None
        for layer, delta in zip(self.layers, self.deltas):
            if team.size == 1:
                part = layer.gram(delta)
            else:
                part = gram_of([team.sum(widen(block)) for block in layer.jacobian(delta)])
            total = part if total is None else total + part
        for block in self.rows:
            part = gram_of([block if team.size == 1 else team.sum(widen(block))])
            total = part if total is None else total + part
        assert total is not None
        return total

    @torch.no_grad()
    def mix(self, w: Tensor) -> dict[Tensor, Tensor]:
        """Σ_t w_t ∂ℓ_t/∂leaf of each shared leaf."""
        found: dict[Tensor, Tensor] = {}
        for layer, delta in zip(self.layers, self.deltas):
            found.update(zip(layer.leaves, layer.gradients(torch.tensordot(w.to(delta.dtype), delta, 1))))
        for leaf, block in zip(self.left, self.rows):
            found[leaf] = torch.tensordot(w.to(block.dtype), block, 1)
        return found


def last_layer(z: Sequence[Tensor], last: nn.Module | Iterable[Tensor] | None) -> list[Tensor]:
    """The parameters of the last shared layer: as given, or those of the first node below z that holds a weight matrix."""
    if last is not None:
        given: list[Tensor] = list(last.parameters() if isinstance(last, nn.Module) else last)
        if not given:
            raise BadInput("the last layer has no parameters", where="last", remedy="pass a layer with weights")
        return given
    first: list[Tensor] = []
    queue = [edge(f)[0] for f in z]
    seen = set(queue)
    for node in queue:  # the queue grows while it is read: breadth first
        own = [leaf for leaf, _ in map(leaf_of, (n for n, _ in node.next_functions)) if leaf is not None]
        if any(leaf.ndim > 1 for leaf in own):
            return own
        first = first or own
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                queue.append(below)
    if not first:
        raise BadInput("no parameters lie below them", where="features", remedy="pass features that a trainable layer made")
    return first
