"""The specialists as a bank: each one is as alone as if it had been trained alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import BadInput, NonFinite
from pluribus.evaluation import metrics
from pluribus.modeling import Budget
from pluribus.tabular import single_networks
from pluribus.tabular.settings import DEFAULTS, batch_of, encoder_settings, width_of
from pluribus.tabular.single_networks import SingleNetworks, SpecialistBank, _group, _size, stacked
from pluribus.tabular.specialists import Specialists
from pluribus.tasks import Task

BUDGET = Budget(300.0)
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "dropout": 0.0, "epochs": 6, "patience": 2}


@pytest.fixture(scope="module")
def twins(mixed: Prepared) -> Prepared:
    """Four regression tasks on the same inputs, with different labels and holes: one bank."""
    rng = np.random.default_rng(0)
    x = np.nan_to_num(mixed.numeric)
    cells, tasks = {}, []
    for i in range(4):
        rows = np.flatnonzero(rng.random(mixed.n_rows) < 0.9)
        noise = rng.normal(size=len(rows)) * (0.1 if i else 5.0)  # the first has nearly nothing to learn
        cells[f"y{i}"] = Cells(rows, 10 * i + x[rows, i] + 0.5 * x[rows, (i + 1) % 4] + noise)
        tasks.append(Task(f"y{i}"))
    return replace(mixed, tasks=tuple(tasks), cells=cells)


def _bank(data: Prepared, **settings: Any) -> tuple[Specialists, SpecialistBank]:
    made = {**DEFAULTS, **SMALL, **settings}
    encoder = encoder_settings(made, data)
    torch.manual_seed(0)
    model = Specialists.of(data.tasks, data.columns, **encoder)
    return model, SpecialistBank(model, list(data.tasks), data, encoder, made, 0)


def test_the_same_in_any_company(twins: Prepared, mixed: Prepared) -> None:
    """A specialist trained beside others, some of which stop before it, equals the one trained alone (no dropout)."""
    for data, name in ((twins, "y2"), (mixed.only(["loss", "default", "grade"]), "default")):
        rows = np.arange(data.n_rows)
        beside = SingleNetworks(**SMALL).fit(data, BUDGET, 1)
        alone = SingleNetworks(**SMALL).fit(data.only([name]), BUDGET, 1)
        a, b = (fitted.scores(data, rows, [name])[name] for fitted in (beside, alone))
        scale = 1.0 if name == "default" else float(np.std(b))
        np.testing.assert_allclose(a / scale, b / scale, rtol=1e-3, atol=1e-3)


def test_memory_bound_changes_nothing(twins: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into banks of one task each, the same results come out, so that hundreds of tasks fit into bounded memory."""
    whole = SingleNetworks(**SMALL).fit(twins, BUDGET, 1)
    monkeypatch.setattr(single_networks, "BANK_BYTES", 1)
    torch.manual_seed(0)
    assert len(_group(twins, Specialists.of(twins.tasks, twins.columns, width=16))) == 4
    cut = SingleNetworks(**SMALL).fit(twins, BUDGET, 1)
    rows, names = np.arange(twins.n_rows), [task.name for task in twins.tasks]
    a, b = whole.scores(twins, rows, names), cut.scores(twins, rows, names)
    for name in names:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-2)


def test_a_stopped_task_leaves_and_nothing_of_it_or_the_others_moves(twins: Prepared) -> None:
    """Dropping a slice leaves the others' weights and moments bit-identical, the dropped one's result in the model stays
    as it was through later steps, and a step costs fewer FLOPs."""
    model, bank = _bank(twins)
    places = torch.stack([stream.take(32) for stream in bank.streams])
    for _ in range(3):
        bank._step(places)
    bank._judge()
    with FlopCounterMode(display=False) as before_flops:
        bank._step(places)
    kept = [0, 2, 3]
    before = [
        (
            stacked(p.detach(), 4)[kept].clone(),
            *(stacked(bank.optimizer.state[p][k], 4)[kept].clone() for k in ("exp_avg", "exp_avg_sq")),
        )
        for p in bank.parameters
    ]
    left = [(p[where] if where is not None else p).detach().clone() for p, where in model.parameters_of("y1")]
    bank._drop({1})
    assert [bank.tasks[own].name for own in bank.live] == ["y0", "y2", "y3"]
    for p, (weight, m, v) in zip(bank.parameters, before):
        assert torch.equal(stacked(p.detach(), 3), weight)
        assert torch.equal(stacked(bank.optimizer.state[p]["exp_avg"], 3), m)
        assert torch.equal(stacked(bank.optimizer.state[p]["exp_avg_sq"], 3), v)
    with FlopCounterMode(display=False) as after_flops:
        bank._step(places[kept])
    assert after_flops.get_total_flops() <= 0.76 * before_flops.get_total_flops()
    for _ in range(3):
        bank._step(places[kept])
    bank._judge()
    after = [(p[where] if where is not None else p).detach() for p, where in model.parameters_of("y1")]
    assert all(torch.equal(a, b) for a, b in zip(left, after))


def test_each_stops_by_itself_and_keeps_its_best(twins: Prepared) -> None:
    """Curves have lengths of their own; what is kept scores, on validation, the best value of its curve."""
    fitted = SingleNetworks(**{**SMALL, "epochs": 40}).fit(twins, BUDGET, 0)
    curves = fitted.record["curves"]
    assert len({len(curve) for curve in curves.values()}) > 1
    for name, curve in curves.items():
        cells = twins.labelled(name, "valid")
        value = metrics.compute("rmse", fitted.scores(twins, cells.rows, [name])[name], cells.values)
        assert value == pytest.approx(min(curve), rel=1e-4)
        assert len(curve) == 40 or len(curve) == int(np.argmin(curve)) + 1 + SMALL["patience"]


def test_learns(mixed: Prepared) -> None:
    """Well above the constant predictor on a table with a planted signal, every kind of task but the counts: of these the
    truth itself explains a tenth here, and 279 labels do not teach that."""
    fitted = SingleNetworks(**{**SMALL, "width": 32, "dropout": 0.2, "epochs": 30}).fit(mixed, BUDGET, 0)
    for task in (task for task in mixed.tasks if task.kind != "count"):
        train, cells = mixed.labelled(task.name, "train"), mixed.labelled(task.name, "valid")
        name = "logloss" if task.classes else "rmse"
        classes = len(task.classes) if task.classes and task.kind != "binary" else 0
        constant = metrics.of_constant(name, metrics.constant(name, train.values, classes=classes), cells.values)
        value = metrics.compute(name, fitted.scores(mixed, cells.rows, [task.name])[task.name], cells.values)
        assert value < 0.96 * constant, task.name


def test_weighted_loss_by_hand(twins: Prepared) -> None:
    """Σ w (ŷ − y)² / Σ w on the standardised scale, per task."""
    weighted = {name: Cells(c.rows, c.values, np.linspace(0, 2, len(c))) for name, c in twins.cells.items()}
    _, bank = _bank(replace(twins, cells=weighted))
    places = torch.stack([stream.take(8) for stream in bank.streams])
    outputs = torch.randn(4, 8, 1)
    found = bank._losses(outputs, bank.train, places)
    for i, task in enumerate(bank.tasks):
        train = replace(twins, cells=weighted).labelled(task.name, "train")
        here = places[i].numpy() - bank.train.starts[i]
        assert (np.sort(here) >= 0).all()
        y = (train.values[here] - train.values.mean()) / train.values.std()
        assert train.weight is not None
        w = train.weight[here]
        expected = (w * (outputs[i, :, 0].numpy() - y) ** 2).sum() / w.sum()
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)


def test_streams_are_epochs_of_ones_own_rows(twins: Prepared) -> None:
    """Each task sees each of its cells once before any twice, and nobody else's."""
    _, bank = _bank(twins)
    for i, stream in enumerate(bank.streams):
        taken = stream.take(2 * stream.count)
        for epoch in (taken[: stream.count], taken[stream.count :]):
            assert sorted(epoch.tolist()) == list(range(bank.train.starts[i], bank.train.starts[i + 1]))


def test_without_validation_labels_it_still_ends(twins: Prepared) -> None:
    cells = dict(twins.cells)
    cells["y1"] = twins.labelled("y1", "train")
    fitted = SingleNetworks(**SMALL).fit(replace(twins, cells=cells), BUDGET, 0)
    assert fitted.record["curves"]["y1"] == []
    assert np.isfinite(fitted.scores(twins, np.arange(30), ["y1"])["y1"]).all()


def test_one_class_in_validation_stops_by_the_loss(mixed: Prepared) -> None:
    cells = mixed.cells["default"]
    values = cells.values.copy()
    values[np.isin(cells.rows, mixed.parts["valid"])] = 1
    data = replace(mixed.only(["default"]), cells={"default": Cells(cells.rows, values)})
    fitted = SingleNetworks(**SMALL).fit(data, BUDGET, 0)
    assert set(fitted.record["curves"]["default"]) == {None}
    assert np.isfinite(fitted.scores(data, np.arange(30), ["default"])["default"]).all()


def test_overflow_names_the_task(twins: Prepared) -> None:
    cells = dict(twins.cells)
    cells["y3"] = Cells(cells["y3"].rows, np.where(np.arange(len(cells["y3"])) % 7, 1.0, np.nan))
    with pytest.raises(NonFinite, match="task 'y3': its loss became NaN"):
        SingleNetworks(**SMALL).fit(replace(twins, cells=cells), BUDGET, 0)


def test_settings_are_checked(twins: Prepared) -> None:
    for wrong in ({"width": 0}, {"epochs": 1.5}, {"patience": -1}, {"batch_size": "many"}):
        with pytest.raises(BadInput, match=f"{next(iter(wrong))} must be a whole number"):
            SingleNetworks(**wrong).fit(twins, BUDGET, 0)


def test_automatic_sizes(twins: Prepared) -> None:
    """Width from the labels a task has, batches from the rows: both within their bounds."""
    assert width_of(twins) == 32  # √(0.6 · 0.9 · 900) ≈ 22, raised to the least
    assert [batch_of(DEFAULTS, n) for n in (1, 1000, 5000, 10**6)] == [16, 16, 128, 1024]
    assert [_size(n) for n in (1, 7, 8, 9)] == [1, 4, 8, 8]
