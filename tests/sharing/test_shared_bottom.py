"""Shared bottom: what is shared is shared, what is not is not."""

from __future__ import annotations

import pytest
import torch

from pluribus.modeling import Features
from pluribus.sharing import SharedBottom
from pluribus.tasks import Task

TASKS = [Task("a"), Task("b", "binary", classes=("0", "1")), Task("c")]


def test_without_towers_every_task_gets_the_same_tensor() -> None:
    """Caruana's form: the heads can then run as one product."""
    features = Features(torch.randn(4, 5))
    shared = SharedBottom(TASKS, 5)(features, dict.fromkeys("abc"))
    assert all(found.main is features.main for found in shared.tasks.values())
    assert SharedBottom(TASKS, 5).slices("a") == {}


@pytest.mark.parametrize("names", ["abc", "cab", "ca", "b"])
def test_towers_by_hand(names: str) -> None:
    """Oracle: ReLU(x W_t + b_t) for each task, whatever is requested in whatever order."""
    torch.manual_seed(0)
    sharing, x = SharedBottom(TASKS, 5, tower=3), torch.randn(4, 5)
    layer = sharing.towers.layers[0]  # type: ignore[union-attr]
    shared = sharing(Features(x), dict.fromkeys(names))
    assert list(shared.tasks) == list(names) or set(shared.tasks) == set(names)
    for name in names:
        i = "abc".index(name)
        torch.testing.assert_close(shared.tasks[name].main, torch.relu(x @ layer.weight[i] + layer.bias[i]))
    assert sharing.width == 3


def test_a_task_trains_its_own_tower_only() -> None:
    torch.manual_seed(0)
    sharing, x = SharedBottom(TASKS, 5, tower=3), torch.randn(4, 5)
    sharing(Features(x), dict.fromkeys("abc")).tasks["b"].main.sum().backward()
    for name, p in sharing.named_parameters():
        own = sharing.slices("b")[name]
        assert p.grad is not None
        assert p.grad[own].abs().sum() > 0
        assert p.grad[[0, 2]].abs().sum() == 0
