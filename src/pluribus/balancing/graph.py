"""What autograd recorded: the leaves a loss reaches, found by walking the graph and not by asking the user for lists.

An *edge* is (node, number of the node's output); `edge(tensor)` is where a tensor sits in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Edge = tuple[Any, int]


def edge(tensor: Tensor) -> Edge:
    """The place of a tensor that requires gradients: its node (AccumulateGrad for a leaf) and output number."""
    place = get_gradient_edge(tensor)
    return place.node, place.output_nr


def leaves(tensors: Iterable[Tensor], *, above: Sequence[Tensor] = ()) -> list[Tensor]:
    """The leaf tensors that `tensors` reach on paths that do not pass through `above`, each once, in the order met."""
    walls = {edge(tensor) for tensor in above}
    stack = [edge(tensor) for tensor in tensors if tensor.requires_grad]
    stack = [place for place in stack if place not in walls]
    seen = {node for node, _ in stack}
    found: list[Tensor] = []
    while stack:
        node, _ = stack.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.append(variable)
            continue
        for place in node.next_functions:
            below = place[0]
            if below is None or below in seen or (walls and place in walls):
                continue
            seen.add(below)
            stack.append(place)
    return found


def gradients(loss: Tensor, inputs: Sequence[Any], *, seed: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """∂loss/∂inputs with the graph kept; None where the loss does not reach an input."""
    return torch.autograd.grad(loss, inputs, grad_outputs=seed, retain_graph=True, allow_unused=True)
