"""Every whole architecture of the catalog (its sharing woven in) keeps the model's protocol."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conformance.entries import entries_for
from torch import nn

from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel, Supervised
from pluribus.training import SliceAdamW

TABULAR = entries_for(__name__, "architecture", "table")


@pytest.fixture(params=TABULAR, ids=lambda entry: entry.name)
def model(request: pytest.FixtureRequest, mixed: Prepared) -> MultiTaskModel:
    torch.manual_seed(0)
    made: MultiTaskModel = request.param.resolve().of(mixed.tasks, mixed.columns)
    return made.eval()


def _inputs(data: Prepared) -> Any:
    return data.batch(torch.arange(48), tasks=()).inputs


def test_requested_cells_only(model: MultiTaskModel, mixed: Prepared) -> None:
    everything = model(_inputs(mixed))
    assert set(everything) == set(model.tasks)
    names = list(model.tasks)
    rows = {names[3]: torch.tensor([5, 1, 40]), names[0]: None}
    some = model(_inputs(mixed), rows)
    assert set(some) == set(rows)
    torch.testing.assert_close(some[names[0]], everything[names[0]])
    torch.testing.assert_close(some[names[3]], everything[names[3]][[5, 1, 40]])


def test_absent_tasks_stay_bit_identical(model: MultiTaskModel, mixed: Prepared) -> None:
    """Own parameters and moments of a task without labels do not move in a step of the others."""
    names = list(model.tasks)
    stacked = {p for name in names for p, where in model.parameters_of(name) if where is not None}
    optimizer = SliceAdamW(model.parameters(), stacked=stacked, lr=0.05, weight_decay=0.1)

    def step(tasks: list[str]) -> None:
        losses = Supervised().losses(model, mixed.batch(torch.arange(256), tasks))
        optimizer.zero_grad()
        torch.stack(list(losses.means().values())).sum().backward()
        active: dict[nn.Parameter, Any] = {p: torch.zeros(0, dtype=torch.int64) for p in stacked}
        for name in tasks:
            for p, where in model.parameters_of(name):
                if where is not None:
                    active[p] = torch.cat((active[p], torch.arange(len(p))[where]))
        optimizer.step(active=active)

    step(names)
    owned = model.parameters_of(names[1])
    assert owned
    before = [(p if where is None else p[where]).detach().clone() for p, where in owned]
    moments = [{k: (v if where is None else v[where]).clone() for k, v in optimizer.state[p].items()} for p, where in owned]
    step([name for name in names if name != names[1]])
    for (p, where), old, old_moments in zip(owned, before, moments):
        assert torch.equal(p if where is None else p[where], old)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value if where is None else value[where], old_moments[key])
