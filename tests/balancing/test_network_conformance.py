"""What the catalog lists for a network's losses and gradients, beside plain balancers: each takes part in a step of one.

Balancers that evaluate losses elsewhere, wrappers of balancers, regularisers and hooks on gradients: a step leaves finite
gradients everywhere, the losses' values are what they were, and a step is the same when it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conformance.entries import entries_for
from torch import Tensor

from pluribus.balancing import EqualWeighting, backward, combine
from pluribus.catalog import Entry

CELLS = {"a": torch.arange(0, 9), "b": torch.arange(5, 12), "c": torch.tensor([1, 3, 12])}
LISTED = [
    *entries_for(__name__, "balancer", "closures"),
    *entries_for(__name__, "balancer_wrapper", "network"),
    *entries_for(__name__, "regulariser", "network"),
    *entries_for(__name__, "gradient_hook", "network"),
]


def _step(entry: Entry, net: Any, x: Tensor) -> dict[str, Tensor]:
    """One step through the entry, by its family; the losses as they were."""
    losses, z = net.losses(x, CELLS)
    before = {name: loss.detach().clone() for name, loss in losses.items()}

    def again() -> dict[str, Tensor]:
        found: dict[str, Tensor] = net.losses(x, CELLS)[0]
        return found

    made = entry.resolve()
    if entry.family == "balancer":
        backward(losses, made(lr=0.1), shared=net.shared, closure={"train": again, "validation": again})
    elif entry.family == "balancer_wrapper":
        backward(losses, made(EqualWeighting()), shared=net.shared, closure=again)
    elif entry.family == "regulariser":
        combine(losses, EqualWeighting(), features=z, extra=made()(losses, features=z)).backward()
    else:
        one, other = made(z, 2 * z)
        sum((net.heads[t](one[r] + other[r]) - 1).square().mean() for t, r in CELLS.items()).backward()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], losses[name].detach()) for name in before)
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("entry", LISTED, ids=lambda e: e.name)
def test_a_step_moves_everything_and_repeats_itself(entry: Entry, build: Callable[..., Any]) -> None:
    """Broken: a listed method cannot train a network, or its step depends on what ran before."""
    net = build("mlp")
    x = net.make(15)
    first = _step(entry, net, x)
    assert set(first) == {name for name, _ in net.named_parameters()}
    assert all(bool(gradient.isfinite().all()) for gradient in first.values())
    net.zero_grad()
    second = _step(entry, net, x)
    assert all(torch.equal(first[name], second[name]) for name in first)
