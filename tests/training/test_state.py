"""The state of a stage: when it ends, what it keeps, and that a saved one goes on as if nothing had happened."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from pluribus.balancing import Diagnostics, UncertaintyWeighting
from pluribus.data.prepared import Prepared
from pluribus.modeling import MultiTaskModel
from pluribus.training import History, Stage
from pluribus.training.snapshot import read_snapshot, write_snapshot
from pluribus.training.state import StageState


def begin(model: MultiTaskModel, **settings: Any) -> StageState:
    return StageState.begin(0, Stage(**settings), model, seed=0, history=History(), diagnostics=Diagnostics(window=4))


def train(state: StageState, data: Prepared, epochs: int, value: itertools.count[Any]) -> None:
    state.model.train()
    for _ in range(epochs):
        order = torch.randperm(data.n_rows, generator=state.generator)
        for rows in order.split(100):
            state.stepper(data.batch(rows, state.live), compare=state.diagnostics)
            state.step += 1
        state.judge(next(value), dict.fromkeys(state.tasks, -1.0 * state.epoch))


def test_a_saved_state_goes_on_bit_for_bit(make: Any, tmp_path: Path) -> None:
    """If this fails, a resumed run has other moments, another order of rows, other dropout, counters or history."""
    make_data, make_model = make
    data = make_data()
    settings: dict[str, Any] = {"balancer": UncertaintyWeighting(), "lr": 0.02, "task_patience": 3, "patience": None}
    torch.manual_seed(1)
    whole = begin(make_model(dropout=0.3), **settings)
    train(whole, data, 2, itertools.count())
    write_snapshot(tmp_path, whole.state_dict())
    train(whole, data, 2, itertools.count(-9))

    saved = read_snapshot(tmp_path)
    assert saved is not None
    again = begin(make_model(dropout=0.3, seed=7), **{**settings, "balancer": UncertaintyWeighting()})
    again.load_state_dict(saved)
    assert (again.epoch, again.step, again.best, again.since) == (2, 12, 1, 0)
    train(again, data, 2, itertools.count(-9))
    one, two = whole.state_dict(), again.state_dict()
    assert {name: one[name] for name in ("stage", "progress")} == {name: two[name] for name in ("stage", "progress")}
    assert whole.frozen == sorted(whole.tasks)
    assert vars(whole.history) == vars(again.history)
    for part in ("model", "best"):
        assert all(torch.equal(value, two[part][name]) for name, value in one[part].items()), part
    for place, held in one["optimizer"].items():
        assert all(torch.equal(value, two["optimizer"][place][name]) for name, value in held.items())
    assert torch.equal(one["generator"], two["generator"])
    assert torch.equal(one["torch"], two["torch"])
    assert whole.diagnostics.record() == again.diagnostics.record()


def test_the_best_weights_and_the_patience(model: MultiTaskModel) -> None:
    """If this fails, a stage keeps other weights than those of its best epoch, or ends too early or too late."""
    state = begin(model, patience=2, epochs=5)
    kept = {}
    for epoch, value in enumerate((0.1, 0.3, 0.3, 0.2)):
        assert state.stopped() is None
        with torch.no_grad():
            model.heads.bias.fill_(float(epoch))
        kept[epoch] = model.heads.bias.detach().clone()
        state.judge(value, {})
    assert state.stopped() == "patience"
    assert state.history.best_epoch == 1
    state.end("patience")
    assert torch.equal(model.heads.bias, kept[1])
    assert state.history.stopped == dict.fromkeys(model.tasks, True)


def test_why_a_stage_ends(model: MultiTaskModel) -> None:
    """If this fails, a record says that a task stopped by itself where the last epoch, or the deadline, stopped it."""
    state = begin(model, epochs=2, patience=None, task_patience=1)
    names = list(model.tasks)
    state.judge(0.0, dict.fromkeys(names, 0.5))
    state.judge(0.1, {**dict.fromkeys(names, 0.6), names[0]: 0.5})
    assert state.frozen == [names[0]]
    assert state.live == tuple(names[1:])
    assert state.stopped() == "epochs"
    state.end("deadline")
    assert [name for name, stopped in state.history.stopped.items() if stopped] == [names[0]]
    assert state.history.undertrained() == names[1:]


def test_what_a_stage_does_not_train_is_put_back(model: MultiTaskModel) -> None:
    """If this fails, the parameters that one stage left alone never train again."""
    state = begin(model, trainable=("heads.",))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"heads.weight", "heads.bias"}
    assert {id(p) for p in state.stepper.update.parameters} == {id(model.heads.weight), id(model.heads.bias)}
    state.end("epochs")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_without_a_value_the_first_weights_are_kept(model: MultiTaskModel, value: float) -> None:
    """If this fails, a run whose rule is not defined returns weights that it never had."""
    state = begin(model, patience=1)
    state.judge(value, {})
    assert state.stopped() is None
    state.judge(value, {})
    assert state.stopped() == "patience"
    assert state.history.best_epoch == 0
