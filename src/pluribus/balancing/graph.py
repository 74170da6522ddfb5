"""What autograd recorded: the leaves a loss reaches, found by walking the graph and not by asking the user for lists.

An *edge* is (node, number of the node's output); `edge(tensor)` is where a tensor sits in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.parallel import distributed

from pluribus.errors import BadInput

Edge = tuple[Any, int]

SINK = getattr(getattr(distributed, "_DDPSink", None), "_backward_cls", None)
"""The node that DistributedDataParallel puts around all outputs of a model when it looks for unused parameters."""


def edge(tensor: Tensor) -> Edge:
    """The place of a tensor that requires gradients: its node (AccumulateGrad for a leaf) and output number.

    A node that hands every output on as it came (`SINK`) is looked through: what was computed from one of its outputs does not
    come from the others.
    """
    if tensor.grad_fn is not None:
        return _through(tensor.grad_fn, tensor.output_nr)
    place = get_gradient_edge(tensor)
    return place.node, place.output_nr


def _through(node: Any, number: int) -> Edge:
    while type(node) is SINK:
        node, number = node.next_functions[number]
    return node, number


def places(tensors: Sequence[Tensor]) -> list[Any]:
    """The tensors as `torch.autograd.grad` takes its inputs: by their edge where `edge` looks through something."""
    return [f if type(f.grad_fn) is not SINK else GradientEdge(*edge(f)) for f in tensors]


@contextmanager
def stopped(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, a pass back ends at `tensors`: it gives their gradients, and nothing below hears of them.

    So a leaf that is used above and below gets the part from above alone, and of two tensors of which one is made from the
    other, each gets what does not go through the other.
    """
    walls: dict[Any, set[int]] = {}
    for tensor in tensors:
        if tensor.grad_fn is not None:
            node, number = edge(tensor)
            walls.setdefault(node, set()).add(number)
    hooks = [
        node.register_prehook(lambda found, at=at: tuple(None if i in at else g for i, g in enumerate(found)))
        for node, at in walls.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def leaves(tensors: Iterable[Tensor], *, above: Sequence[Tensor] = ()) -> list[Tensor]:
    """The leaf tensors that `tensors` reach on paths that do not pass through `above`, each once, in the order met."""
    return walk(tensors, above=above).leaves


@dataclass
class Walk:
    """What lies between some tensors and the tensors `above` which a walk stops.

    leaves: met on the way. entries: (node, slot) where a node takes in a tensor of `above`. nodes: all that were met.
    """

    leaves: list[Tensor]
    entries: list[Edge]
    nodes: set[Any]

    @property
    def ends(self) -> set[Edge]:
        """Which of the tensors `above` were met."""
        return {node.next_functions[slot] for node, slot in self.entries}


def walk(tensors: Iterable[Tensor], *, above: Sequence[Tensor] = ()) -> Walk:
    """Walk down from `tensors`, not through `above`."""
    walls = {edge(tensor) for tensor in above}
    fences = {node for node, _ in walls}  # a look at the node alone decides most steps
    starts = [edge(tensor) for tensor in tensors if tensor.requires_grad]
    stack = [node for node, number in starts if (node, number) not in walls]
    found = Walk([], [], set(stack))
    seen = found.nodes
    while stack:
        node = stack.pop()
        below_it = node.next_functions
        if not below_it:
            variable = getattr(node, "variable", None)
            if variable is not None:
                found.leaves.append(variable)
            continue
        for slot, place in enumerate(below_it):
            below = place[0]
            if below is None:
                continue
            if type(below) is SINK:
                place = _through(*place)
                below = place[0]
            if below in fences and place in walls:
                found.entries.append((node, slot))
            elif below not in seen:
                seen.add(below)
                stack.append(below)
    return found


@dataclass(frozen=True)
class Use:
    """One use of a leaf: it enters `node` at next_functions[slot], after an odd number of transpositions or none."""

    node: Any
    slot: int
    transposed: bool


def uses(outputs: Sequence[Tensor], tasks: Sequence[int], wanted: Iterable[Tensor]) -> dict[Tensor, tuple[list[Use], int]]:
    """Where each wanted leaf enters the graph of `outputs`, and which tasks reach it.

    tasks: for each output a set of tasks as the bits of an integer; a leaf's set is the union over the outputs that reach it.
    """
    found: dict[Tensor, tuple[list[Use], int]] = {leaf: ([], 0) for leaf in wanted}
    reach: dict[Any, int] = {}
    for output, bits in zip(outputs, tasks):
        if output.requires_grad:
            node = edge(output)[0]
            reach[node] = reach.get(node, 0) | bits
    for node in _from_the_top(list(reach)):
        for slot, place in enumerate(node.next_functions):
            below, _ = _through(*place)
            if below is None:
                continue
            reach[below] = reach.get(below, 0) | reach[node]
            leaf, transposed = leaf_of(below)
            if leaf is not None and leaf in found and leaf_of(node)[0] is None:
                own, bits = found[leaf]
                own.append(Use(node, slot, transposed))
                found[leaf] = (own, bits | reach[node])
    for output, bits in zip(outputs, tasks):
        if output in found:  # a leaf that is itself an output
            own, known = found[output]
            found[output] = ([*own, Use(edge(output)[0], 0, False)], known | bits)
    return found


def _from_the_top(roots: list[Any]) -> list[Any]:
    """All nodes below `roots`, each after every node that leads to it."""
    order: list[Any] = []
    state: set[Any] = set()
    for root in roots:
        if root in state:
            continue
        state.add(root)
        stack = [(root, iter(root.next_functions))]
        while stack:
            node, rest = stack[-1]
            for place in rest:
                below = _through(*place)[0]
                if below is not None and below not in state:
                    state.add(below)
                    stack.append((below, iter(below.next_functions)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order[::-1]


def leaf_of(node: Any) -> tuple[Tensor | None, bool]:
    """The leaf at the end of a chain of transpositions and casts, if the chain is nothing else; and whether it is flipped."""
    flips = False
    while node is not None and node.name() in ("TBackward0", "ToCopyBackward0", "TransposeBackward0"):
        flips ^= node.name() != "ToCopyBackward0"
        node = node.next_functions[0][0]
    return getattr(node, "variable", None), flips


def gradients(
    loss: Tensor | Sequence[Tensor], inputs: Sequence[Any], *, seed: Tensor | Sequence[Tensor] | None = None
) -> tuple[Tensor | None, ...]:
    """∂loss/∂inputs with the graph kept; None where the loss does not reach an input."""
    try:
        return torch.autograd.grad(loss, inputs, grad_outputs=seed, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if not freed(error):
            raise
        raise BadInput(
            "a part of the model is compiled so that its graph serves one pass, and more are needed",
            where="losses",
            remedy="set torch._functorch.config.donated_buffer = False before it is compiled",
        ) from None


def freed(error: RuntimeError) -> bool:
    """Whether a compiled function refuses a pass because the graph is to be kept."""
    return "donated buffers" in str(error)
