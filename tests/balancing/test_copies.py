"""A balancer in the middle of a training is a plain value: it can be copied and pickled, and holds no graph alive."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus import catalog
from pluribus.balancing import combine

COMBINED = [entry for entry in catalog.entries(family="balancer") if "combine" in entry.doors]


def _step(balancer: Any, trunk: nn.Module, heads: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    z = trunk(x)
    losses = {name: (head(z) - i).square().mean() for i, (name, head) in enumerate(heads.items())}
    combine(losses, balancer, features=z).backward()
    found = [p.grad.clone() for p in trunk.parameters() if p.grad is not None]
    for p in trunk.parameters():
        p.grad = None
    return found


@pytest.mark.parametrize("deep", [False, True], ids=["linear heads", "deep heads"])
@pytest.mark.parametrize("entry", COMBINED, ids=lambda entry: entry.name)
def test_a_copy_goes_on_as_the_original(entry: Any, deep: bool) -> None:
    """Callbacks, averaged models and checkpoints copy what they are given; `last` held the graph of the heads."""
    torch.manual_seed(0)
    trunk, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), torch.randn(3, 16, 4)
    heads = nn.ModuleDict({name: nn.Sequential(nn.Tanh(), nn.Linear(8, 1)) if deep else nn.Linear(8, 1) for name in "ab"})
    balancer = entry.resolve()()
    _step(balancer, trunk, heads, x[0])
    held = [value for value in vars(balancer.last).values() if isinstance(value, Tensor)]
    assert held
    assert not any(value.requires_grad for value in held)
    copied, pickled = copy.deepcopy(balancer), pickle.loads(pickle.dumps(balancer))
    for rows in x[1:]:
        torch.manual_seed(1)  # some draw from torch's own generator
        expected = _step(balancer, trunk, heads, rows)
        for other in (copied, pickled):
            torch.manual_seed(1)
            for one, two in zip(expected, _step(other, trunk, heads, rows), strict=True):
                torch.testing.assert_close(one, two)
