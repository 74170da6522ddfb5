"""Every merger of the catalog that is more than a function of the weights: those that learn from data, route or steer.

The laws of the others are in `test_laws.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conformance.entries import entries_for
from torch import Tensor, nn

from pluribus.catalog import Entry
from pluribus.merging import merge

State = dict[str, Tensor]
TASKS = "ab"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


@pytest.fixture
def bed() -> tuple[Net, State, dict[str, State]]:
    torch.manual_seed(0)
    model = Net()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    return model, base, {task: {n: v + 0.3 * torch.randn_like(v) for n, v in base.items()} for task in TASKS}


def _batches() -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return {task: [torch.randn(8, 4, generator=generator) for _ in range(3)] for task in TASKS}


def _pairs() -> dict[str, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(6)
    return {t: [(x, torch.randint(3, (8,), generator=generator)) for x in each] for t, each in _batches().items()}


def _cross_entropy(model: nn.Module, task: str, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


RUN: dict[str, Callable[[Any, Net, State, dict[str, State]], Any]] = {
    "adamerging": lambda made, model, base, experts: made(base, experts, model, _batches(), steps=4),
    "concrete": lambda made, model, base, experts: made(base, experts, model, _batches(), mask_steps=3),
    "atlas": lambda made, model, base, experts: made(base, experts, model, _pairs(), steps=4),
    "self_positioning": lambda made, model, base, experts: made(base, experts, model, _pairs(), _cross_entropy, steps=4),
}
LEARNED = entries_for(__name__, "merger", "batches")


def test_the_table_covers_them() -> None:
    """A merger that is listed but not tested here would escape the suite."""
    assert set(RUN) == {entry.name for entry in LEARNED}


@pytest.mark.parametrize("entry", LEARNED, ids=lambda e: e.name)
def test_a_learned_merge(entry: Entry, bed: tuple[Net, State, dict[str, State]]) -> None:
    """The merge has the base's tensors, is the same each time, is in the model, and leaves the checkpoints as they were."""
    model, base, experts = bed
    held = {task: {name: value.clone() for name, value in state.items()} for task, state in experts.items()}
    found = RUN[entry.name](entry.resolve(), model, base, experts).state()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in base.items()}
    assert all(bool(value.isfinite().all()) for value in found.values())
    torch.testing.assert_close(dict(model.state_dict()), found)
    assert all(torch.equal(value, held[task][name]) for task in experts for name, value in experts[task].items())
    again = RUN[entry.name](entry.resolve(), model, base, experts).state()
    assert all(torch.equal(again[name], value) for name, value in found.items())


@pytest.mark.parametrize("entry", LEARNED, ids=lambda e: e.name)
def test_experts_equal_to_the_base_give_the_base(entry: Entry, bed: tuple[Net, State, dict[str, State]]) -> None:
    model, base, experts = bed
    found = RUN[entry.name](entry.resolve(), model, base, dict.fromkeys(experts, base)).state()
    assert all(torch.equal(found[name], value) for name, value in base.items())


@pytest.mark.parametrize("entry", entries_for(__name__, "merger", "container"), ids=lambda e: e.name)
def test_a_container_of_equal_experts_is_the_base(entry: Entry, bed: tuple[Net, State, dict[str, State]]) -> None:
    _, base, experts = bed
    container = entry.resolve()(base, dict.fromkeys(experts, base))
    assert set(container.tasks) == set(experts)
    for task in experts:
        assert all(torch.equal(value, base[name]) for name, value in container.state(task).items())


@pytest.mark.parametrize("entry", entries_for(__name__, "merger", "logits"), ids=lambda e: e.name)
def test_an_expert_equal_to_its_base_steers_nowhere(entry: Entry) -> None:
    generator = torch.Generator().manual_seed(0)
    large, small = torch.randn(4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    assert torch.equal(entry.resolve()()(large, small, [small]), large)


@pytest.mark.parametrize("entry", entries_for(__name__, "merger", "scores"), ids=lambda e: e.name)
def test_a_soup_is_no_worse_than_its_best_expert(entry: Entry, bed: tuple[Net, State, dict[str, State]]) -> None:
    """By the score that it is given; what it takes in is named."""
    _, base, experts = bed

    def score(tensors: State) -> float:
        return -sum(float((value - experts["a"][name]).square().sum()) for name, value in tensors.items())

    found = merge(base, experts, entry.name, score=score)
    assert score(found) >= max(score(state) for state in experts.values())
