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

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.balancing.graph import edge, gradients, leaves
from pluribus.balancing.processes import sharded
from pluribus.errors import BadInput


def real(x: Tensor) -> Tensor:
    """In float32 at least: half precision cannot hold a squared norm."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def seed_of(z: Sequence[Tensor]) -> float:
    """The scale that the passes through the heads start from: float16 would lose gradients of a mean loss."""
    return 1024.0 if any(f.dtype == torch.float16 for f in z) else 1.0


def gram_of(blocks: Sequence[Tensor]) -> Tensor:
    """G [T, T] of a Jacobian given in blocks [T, …]."""
    flat = [real(block).flatten(1) for block in blocks]
    total = flat[0] @ flat[0].T
    for block in flat[1:]:
        total = total.addmm(block, block.T)
    return total


@dataclass(eq=False)
class Passes:
    """What the passes through the heads gave. rows: a block [T, *shape] a feature tensor; heads: leaf → its gradient
    Σ_t ∂ℓ_t/∂φ, or None where the heads are left to the ordinary backward."""

    rows: list[Tensor]
    heads: dict[Tensor, Tensor] | None

    def flat(self) -> list[Tensor]:
        return [block.flatten(1) for block in self.rows]

    def gram(self) -> Tensor:
        return gram_of(self.rows)

    def mix(self, w: Tensor) -> list[Tensor]:
        """Σ_t w_t g_t, one tensor a feature tensor."""
        return [torch.tensordot(w.to(block.dtype), block, 1) for block in self.rows]


def through_heads(tasks: Sequence[str], losses: Sequence[Tensor], z: Sequence[Tensor]) -> Passes:
    """g_t = ∂ℓ_t/∂z of each task, and the heads' gradients on the way."""
    if not losses:
        return Passes([], {})
    seed = seed_of(z)
    below = [[] if seed != 1 else leaves([loss], above=z) for loss in losses]
    heads: dict[Tensor, Tensor] | None = {}
    if seed != 1 or any(sharded(own) for own in below):
        below, heads = [[] for _ in losses], None
    kept: list[tuple[Tensor | None, ...]] = []
    for task, loss, own in zip(tasks, losses, below):
        found = gradients(loss, [*z, *own], seed=None if seed == 1 else torch.full_like(loss, seed))
        if all(g is None for g in found[: len(z)]):
            raise BadInput(
                f"the loss of task {task!r} does not depend on them", where="features",
                remedy="pass the tensor from which this loss was computed",
            )  # fmt: skip
        kept.append(found[: len(z)])
        for leaf, g in zip(own, found[len(z) :]):
            if heads is not None and g is not None:
                heads[leaf] = heads[leaf] + g if leaf in heads else g
    rows = []
    for k, f in enumerate(z):
        block = torch.stack([torch.zeros_like(f) if found[k] is None else found[k] for found in kept])  # type: ignore[misc]
        rows.append(real(block) if seed == 1 else real(block) / seed)
    return Passes(rows, heads)


def pull(outputs: Sequence[Tensor], rows: Sequence[Tensor], inputs: Sequence[Any]) -> list[Tensor]:
    """The rows [T, *output] as rows [T, *input]: T vector–Jacobian products, batched; one by one where that is refused."""
    seeds = [row.to(out.dtype) for row, out in zip(rows, outputs)]
    try:
        found = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError as error:
        if rows[0].shape[0] > 1:
            once(f"tasks are differentiated one by one, since a batched pass is refused: {str(error).splitlines()[0][:120]}")
        each = [
            torch.autograd.grad(outputs, inputs, [seed[t] for seed in seeds], retain_graph=True, allow_unused=True)
            for t in range(rows[0].shape[0])
        ]
        found = tuple(None if column[0] is None else torch.stack(column) for column in zip(*each))  # type: ignore[misc]
    T = rows[0].shape[0]
    return [x.new_zeros(T, *x.shape) if g is None else g for g, x in zip(found, inputs)]


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
        own = [leaf for leaf in map(_leaf, (n for n, _ in node.next_functions)) if leaf is not None]
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


def _leaf(node: Any) -> Tensor | None:
    """The leaf at the end of a chain of transpositions and casts, if the chain is nothing else."""
    while node is not None and node.name() in ("TBackward0", "ToCopyBackward0", "TransposeBackward0"):
        node = node.next_functions[0][0]
    variable: Tensor | None = getattr(node, "variable", None)
    return variable


_SAID: set[str] = set()


def once(message: str) -> None:
    """A warning that is given once in a process."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(message, stacklevel=2)
