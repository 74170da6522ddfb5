"""Every sharing architecture of the catalog keeps the protocol: what is not asked for does not run, and does not move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conformance.entries import entries_for
from torch import nn

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel, Supervised
from pluribus.training import SliceAdamW

CASES: list[tuple[str, dict[str, Any]]] = [(entry.name, {}) for entry in entries_for(__name__, "sharing", "table")]
CASES.append(("shared_bottom", {"tower": 8}))


@pytest.fixture(params=CASES, ids=lambda case: "-".join((case[0], *map(str, case[1].values()))))
def model(request: pytest.FixtureRequest, sharing_of: Callable[..., MultiTaskModel]) -> MultiTaskModel:
    name, settings = request.param
    return sharing_of(name, **settings)


def _inputs(data: Prepared) -> Any:
    return data.batch(torch.arange(48), tasks=()).inputs


def test_only_what_a_task_reads_runs(model: MultiTaskModel, mixed: Prepared) -> None:
    """Children of the sharing that `reads(task)` does not name are not called when only that task is asked for."""
    called: set[str] = set()
    children = dict(model.sharing.named_children())
    for name, child in children.items():
        for part in child.modules():
            part.register_forward_hook(lambda *_, name=name: called.add(name))  # type: ignore[misc]
    for task in model.tasks:
        called.clear()
        model(_inputs(mixed), {task: None})
        reads = set(model.sharing.reads(task))
        assert reads <= set(children)
        assert called <= reads, f"{task} ran {called - reads}"


def test_requested_tasks_only(model: MultiTaskModel, mixed: Prepared) -> None:
    """A subset answers what the whole answers, at the rows asked for, in their order."""
    model.eval()
    everything = model(_inputs(mixed))
    names = list(model.tasks)
    rows = {names[2]: torch.tensor([5, 1, 40]), names[0]: None}
    some = model(_inputs(mixed), rows)
    assert set(some) == set(rows)
    torch.testing.assert_close(some[names[0]], everything[names[0]])
    torch.testing.assert_close(some[names[2]], everything[names[2]][[5, 1, 40]])


def test_absent_tasks_stay_bit_identical(model: MultiTaskModel, mixed: Prepared) -> None:
    """A task without labels in a batch: no loss, no gradient, and its parameters, moments and statistics do not move,
    although it trained before and weight decay and momentum are on."""
    model.train()
    names = list(model.tasks)
    absent, present = names[1], [name for name in names if name != names[1]]
    stacked = [p for name in names for p, where in model.parameters_of(name) if where is not None]
    optimizer = SliceAdamW(model.parameters(), stacked=stacked, lr=0.05, weight_decay=0.1)

    def step(tasks: list[str]) -> None:
        batch = mixed.batch(torch.arange(256), tasks)
        losses = Supervised().losses(model, batch)
        assert set(losses.sums) == set(tasks)
        optimizer.zero_grad()
        torch.stack(list(losses.means().values())).sum().backward()
        active: dict[nn.Parameter, Any] = {}
        for name in names:
            for p, where in model.parameters_of(name):
                if where is not None:
                    own = torch.arange(len(p))[where]
                    active[p] = torch.cat((active.get(p, own[:0]), own if name in tasks else own[:0]))
        optimizer.step(active=active)

    step(names)
    owned = model.parameters_of(absent)
    assert owned
    before = [(p if where is None else p[where]).detach().clone() for p, where in owned]
    moments = [
        {key: (value if where is None else value[where]).clone() for key, value in optimizer.state[p].items()}
        for p, where in owned
    ]
    read = set().union(*(set(model.sharing.reads(name)) for name in present))
    unread = {name: buffer.clone() for name, buffer in model.sharing.named_buffers() if name.split(".")[0] not in read}
    for _ in range(2):
        step(present)
    for (p, where), old, old_moments in zip(owned, before, moments):
        assert torch.equal(p if where is None else p[where], old)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value if where is None else value[where], old_moments[key]), key
    for name, buffer in model.sharing.named_buffers():
        if name in unread:
            assert torch.equal(buffer, unread[name]), name


def test_own_parameters_serve_one_task(model: MultiTaskModel, mixed: Prepared) -> None:
    """`parameters_of(task)`: other tasks' losses have no gradient there, its own has."""
    names = list(model.tasks)
    for name in names[:2]:
        for tasks, moves in (([name], True), ([n for n in names if n != name], False)):
            model.zero_grad()
            losses = Supervised().losses(model, mixed.batch(torch.arange(256), tasks))
            torch.stack(list(losses.means().values())).sum().backward()
            found = []
            for p, where in model.parameters_of(name):
                g = None if p.grad is None else p.grad if where is None else p.grad[where]
                found.append(g is not None and bool(g.abs().sum() > 0))
            assert any(found) if moves else not any(found)


def test_rebuilt_from_state(model: MultiTaskModel, mixed: Prepared, request: pytest.FixtureRequest) -> None:
    name, settings = request.node.callspec.params["model"]
    encoder = catalog.get("encoder", "tabular_mlp").resolve().of(mixed.columns, width=16, depth=1, dropout=0.0)
    again = MultiTaskModel(mixed.tasks, encoder, catalog.get("sharing", name).resolve()(mixed.tasks, encoder.width, **settings))
    again.load_state_dict(model.state_dict())
    before, after = model.predict(_inputs(mixed)), again.predict(_inputs(mixed))
    assert all(torch.equal(before[task], after[task]) for task in before)
