"""Schedules of the share that is done, the pace that ends them in time, and the trainer that follows both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import MultiTaskModel
from pluribus.training import Rate, Stage, Trainer
from pluribus.training.pace import RESERVE, Pace
from pluribus.training.schedules import SCHEDULES, coslog4, flat_cosine
from pluribus.training.trainer import steps_of


@pytest.mark.parametrize("share", [0.0, 1 / 15, 3 / 15, 7 / 15, 1.0])
def test_coslog4_is_zero_where_its_cycles_meet(share: float) -> None:
    """If this fails, the learning rate does not restart from zero, or does not end at it."""
    assert coslog4(share) == pytest.approx(0.0, abs=1e-12)


def test_coslog4_peaks_once_a_cycle() -> None:
    """At (√2 − 1)/15 first, then where log₂(1 + 15t) is 1.5, 2.5, 3.5."""
    for k in (0.5, 1.5, 2.5, 3.5):
        peak = (2**k - 1) / 15
        assert coslog4(peak) == pytest.approx(1.0)
        assert max(coslog4(peak - 1e-3), coslog4(peak + 1e-3)) < 1.0


def test_flat_cosine_is_flat_and_then_falls() -> None:
    assert [flat_cosine(t) for t in (0.0, 0.3, 0.5)] == [1.0, 1.0, 1.0]
    assert flat_cosine(0.75) == pytest.approx(0.5)
    assert flat_cosine(1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_between_0_and_1(name: Any) -> None:
    """Whatever the share, even a little above 1 by rounding."""
    assert all(0.0 <= SCHEDULES[name](i / 200) <= 1.0 for i in range(203))


def test_weight_decay_follows_its_schedule_and_spares_what_does_not_decay(make: Any) -> None:
    """Without gradients of its own size nothing but decay moves a weight that no loss reaches: here lr · decay · κ(t)."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(2, 2)), "own": nn.Parameter(torch.ones(2, 2))})
    from pluribus.training import Update

    update = Update(dict(model.named_parameters()), lr=0.1, weight_decay=0.5, rates={"own": Rate(0.2, True)})
    stage = Stage(weight_decay=0.5, decay_schedule="flat_cosine")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    update(decay=stage.decay(0.75))
    assert model["w"].detach()[0, 0] == pytest.approx(1 - 0.1 * 0.25)
    assert model["own"].detach()[0, 0] == pytest.approx(1 - 0.2 * 0.25)
    update(decay=stage.decay(1.0))
    assert model["w"].detach()[0, 0] == pytest.approx(1 - 0.1 * 0.25)


def test_a_plain_rate_takes_no_decay() -> None:
    from pluribus.training import Update

    p = nn.Parameter(torch.ones(2, 2))
    update = Update({"own": p}, lr=0.1, weight_decay=0.5, rates={"own": 0.3})
    p.grad = torch.zeros_like(p)
    update(decay=0.7)
    assert torch.equal(p.detach(), torch.ones(2, 2))


@pytest.mark.parametrize("change", [{"decay_schedule": "steps"}, {"ties": "last"}, {"rates": {"*": Rate(-1.0)}}])
def test_wrong_settings(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="stage"):
        Stage(**change)


def test_a_pace_without_haste_takes_the_planned_steps() -> None:
    pace = Pace(40)
    for i in range(40):
        pace.hurry(spent=0.01 * i, deadline=100.0)
        assert not pace.done
        pace.step()
    assert pace.share == pytest.approx(1.0)
    assert not pace.hurried


@pytest.mark.parametrize("seconds", [0.5, 2.0, 30.0])
def test_a_pace_ends_just_before_the_deadline(seconds: float) -> None:
    """1,000 steps of 1 s were planned, every tenth evaluated for 2 s more: the share is 1 when the time is up, not before."""
    pace, spent, deadline = Pace(1000), 0.0, 100 * seconds
    while not pace.done:
        pace.hurry(spent, deadline)
        pace.step()
        spent += 1.0
        if pace.taken % 10 == 0:
            spent += 2.0
            pace.evaluated(2.0)
        assert pace.taken < 1000 or seconds >= 12
        if pace.taken == 1000:
            break
    assert spent <= deadline
    if seconds < 12:
        assert spent >= deadline * (1 - RESERVE) - 6  # one evaluation and the steps up to the next


def test_ties_go_to_the_latest_epoch_where_asked(make: Any) -> None:
    """All epochs are equally good where nothing trains: the first is kept, or the latest."""
    make_data, make_model = make
    for ties, best in (("first", 0), ("latest", 3)):
        stage: Any = Stage(epochs=4, lr=1e-30, weight_decay=0.0, patience=None, ties=ties)
        assert Trainer(make_model(), [stage]).fit(make_data()).best_epoch == best


def test_rows_that_fill_no_batch_are_left_out_where_asked(make: Any) -> None:
    """600 rows, 360 of them to train on: three batches of 100, and none of 60; a table smaller than a batch is one batch."""
    make_data, make_model = make
    data = make_data()
    rows = len(data.parts["train"])
    sizes: list[int] = []

    class Told(Stage):
        pass

    for size, expected in ((100, [100] * (rows // 100)), (10_000, [rows])):
        stage = Told(epochs=1, batch_size=size, drop_last=True)
        trainer = Trainer(make_model(), [stage])
        seen = trainer._batches

        def count(state: Any, held: Prepared, seen: Any = seen) -> Any:
            for batch in seen(state, held):
                sizes.append(batch.n_rows)
                yield batch

        trainer._batches = count  # type: ignore[method-assign]
        sizes.clear()
        trainer.fit(data)
        assert sizes == expected
        assert steps_of(stage, rows) == len(expected)


class _Clock:
    """Seconds that pass with every look: a machine of a known speed."""

    def __init__(self, each: float) -> None:
        self.each, self.now = each, 0.0

    def __call__(self) -> float:
        self.now += self.each
        return self.now


class _Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def anneal(self, share: float) -> None:
        self.seen.append(share)


def test_parts_of_the_model_are_told_how_much_is_done(make: Any) -> None:
    """Before every step, from 0 up; a snapshot that is taken up goes on with the share that was reached."""
    make_data, make_model = make
    model: MultiTaskModel = make_model()
    part = _Annealed()
    model.add_module("told", part)
    Trainer(model, [Stage(epochs=2, batch_size=100, patience=None)]).fit(make_data())
    steps = len(part.seen)
    assert part.seen == [pytest.approx(i / steps) for i in range(steps)]


@pytest.mark.parametrize("paced", [True, False])
def test_a_paced_stage_ends_its_schedule_at_the_deadline(make: Any, paced: bool) -> None:
    """If this fails, a fit that the budget shortens ends at a high learning rate, or is called undertrained although it ended."""
    make_data, make_model = make
    model: MultiTaskModel = make_model()
    part = _Annealed()
    model.add_module("told", part)
    stage = Stage(epochs=1000, batch_size=60, patience=None, paced=paced, schedule="coslog4", lr=0.01)
    history = Trainer(model, [stage], deadline=300.0, clock=_Clock(1.0)).fit(make_data())
    assert 3 < len(history.rule) < 200
    if paced:
        assert history.reason == "epochs"
        assert history.undertrained() == []
        assert part.seen[-1] > 0.97
    else:
        assert history.reason == "deadline"
        assert part.seen[-1] < 0.5


def test_a_paced_run_goes_on_from_a_snapshot(make: Any, tmp_path: Any) -> None:
    """The share that was reached is kept: the second run does not begin its schedule anew."""
    make_data, make_model = make
    data = make_data()

    class Killed(Exception):
        pass

    from pluribus.training import Callback

    class Kill(Callback):
        def epoch(self, record: dict[str, Any]) -> None:
            if record["epoch"] == 5:
                raise Killed

    stage = Stage(epochs=8, batch_size=100, patience=None, paced=True, schedule="coslog4")
    with pytest.raises(Killed):
        Trainer(make_model(), [stage], folder=tmp_path, callbacks=[Kill()]).fit(data)
    model, part = make_model(), _Annealed()
    model.add_module("told", part)
    Trainer(model, [stage], folder=tmp_path).fit(data)
    assert part.seen[0] == pytest.approx(5 / 8)
