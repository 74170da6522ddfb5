"""RealMLP as a candidate: what "auto" means, a schedule that ends in time, every kind of task, and wrong settings."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pluribus import catalog
from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.tabular.network import build
from pluribus.tabular.realmlp_candidates import DEFAULTS, RealMLPNetwork, RealMLPSingle, epochs_of, resolved, rows_of_a_step
from pluribus.tasks import Task
from pluribus.tasks.forms import Ragged

SHORT: dict[str, Any] = {"width": 16, "epochs": 6}


def _shown(data: Prepared) -> Prepared:
    return data.with_parts(train=data.parts["train"], valid=data.parts["valid"])


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"),
    [(100, 64, 256), (1024, 64, 256), (1025, 128, 256), (5000, 128, 256), (5001, 128, 128), (8193, 256, 128)]
    + [(20_001, 256, 64), (30_001, 512, 64), (50_001, 512, 24), (100_001, 1024, 24)],
)
def test_batches_and_epochs_follow_the_rows(rows: int, batch: int, epochs: int) -> None:
    assert (rows_of_a_step(rows), epochs_of(rows)) == (batch, epochs)


def test_the_recipe_follows_rows_and_kinds() -> None:
    """Below 400 rows the simple one; the rate and the activation by what is predicted."""
    small, large = resolved(DEFAULTS, 399, 0, 2), resolved(DEFAULTS, 400, 0, 2)
    assert (small["recipe"], small["lr"], small["dropout"], small["weight_decay"], small["embedding"]) == (
        "td_s",
        0.07,
        0,
        0,
        "plain",
    )
    assert (large["recipe"], large["lr"], large["dropout"], large["weight_decay"], large["embedding"]) == (
        "td",
        0.2,
        0.15,
        0.02,
        "pbld",
    )
    classes, both = resolved(DEFAULTS, 5000, 2, 2), resolved(DEFAULTS, 5000, 1, 2)
    assert (classes["lr"], classes["activation"]) == (0.04, "selu")
    assert (both["lr"], both["activation"]) == (0.08, "mish")
    assert resolved({**DEFAULTS, "lr": 0.01}, 5000, 1, 2)["lr"] == 0.01


def test_every_parameter_trains_at_the_rate_of_the_recipe(mixed: Prepared) -> None:
    """×6 for the scale layer, ×.1 for biases, α and the embedding of numbers; biases take no decay."""
    candidate = RealMLPNetwork(lr=0.1, recipe="td", width=8)
    model = build(mixed.tasks, mixed.columns, candidate.config(mixed))
    from pluribus.training import Step

    step = Step.of(model, candidate.stage(mixed, model))
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in step.update.optimizer.param_groups for p in g["params"]}
    assert found["encoder.scale"] == (pytest.approx(0.6), 0.02)
    assert found["encoder.layers.0.weight"] == found["heads.weight"] == (0.1, 0.02)
    assert found["encoder.layers.2.bias"] == found["heads.bias"] == (pytest.approx(0.01), 0.0)
    assert found["encoder.alphas.1"] == found["encoder.numeric.frequency"] == (pytest.approx(0.01), 0.02)
    assert found["encoder.numeric.bias"] == (pytest.approx(0.01), 0.0)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert step.update.optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert step.update.clip is None


def test_the_schedule_ends_within_the_budget(mixed: Prepared) -> None:
    """A budget that holds a part of the epochs: the fit is shorter, ends, and is not called undertrained."""
    data = _shown(mixed)
    began = time.process_time()
    fitted = RealMLPNetwork(width=32, epochs=100_000).fit(data, Budget(4.0), 0)
    spent = time.process_time() - began
    assert fitted.record["undertrained"] == []
    assert 8 <= len(fitted.record["rules"]) < 100_000
    assert spent < 4.0 * 1.5
    tail, head = fitted.record["rules"][-1], fitted.record["rules"][0]
    assert tail > head


def test_a_budget_for_a_few_epochs_is_said(mixed: Prepared) -> None:
    """A schedule squeezed into less than eight epochs has ended, and has not trained."""
    fitted = RealMLPNetwork(width=256, epochs=256).fit(_shown(mixed), Budget(0.05), 0)
    assert len(fitted.record["rules"]) < 8
    assert fitted.record["undertrained"] == [task.name for task in mixed.tasks]


def test_quantiles_and_sets_of_classes_train(mixed: Prepared) -> None:
    """The kinds that the shared table does not have, with holes and weights."""
    rng = np.random.default_rng(0)
    x = np.nan_to_num(mixed.numeric)
    rows = np.flatnonzero(rng.random(mixed.n_rows) < 0.7)
    held = [np.flatnonzero(x[row, :3] > 0).astype(np.int32) for row in rows]
    sets = Ragged(np.concatenate(held), np.concatenate(([0], np.cumsum([len(one) for one in held]))))
    tasks = (Task("q", "quantile", levels=(0.1, 0.5, 0.9)), Task("s", "multilabel", classes=("a", "b", "c")))
    weight = rng.integers(0, 3, len(rows)).astype(float)
    cells = {"q": Cells(rows, 100 + 10 * x[rows, 0], weight), "s": Cells(rows, sets)}
    data = _shown(replace(mixed, tasks=tasks, cells=cells))
    fitted = RealMLPNetwork(width=32, epochs=25).fit(data, Budget(60.0), 0)
    found = fitted.scores(data, rows, ["q", "s"])
    assert found["q"].shape == (len(rows), 3)
    assert np.corrcoef(found["q"][:, 1], x[rows, 0])[0, 1] > 0.8
    assert found["q"].min() >= data.labelled("q", "train").counted().numbers.min() - 1e-3
    truth = np.stack([x[rows, c] > 0 for c in range(3)], 1)
    assert ((found["s"] > 0.5) == truth).mean() > 0.8


def test_a_balancer_of_the_catalog_trains_it(mixed: Prepared) -> None:
    candidate = RealMLPNetwork(balancer="pcgrad", **SHORT)
    assert "PCGrad" in candidate.label
    fitted = candidate.fit(_shown(mixed), Budget(60.0), 0)
    assert len(fitted.record["rules"]) == 6
    plain = RealMLPNetwork(**SHORT)
    assert plain.balancer(mixed) is None
    assert candidate.estimate(mixed) > plain.estimate(mixed)


def test_the_deployed_weights_are_those_of_the_best_epoch(mixed: Prepared) -> None:
    data = _shown(mixed)
    fitted = RealMLPNetwork(**SHORT).fit(data, Budget(60.0), 0)
    name = "loss"
    cells = data.labelled(name, "valid")
    found = fitted.scores(data, cells.rows, [name])[name]
    best = int(np.argmax(fitted.record["rules"]))
    rmse = math.sqrt(float(((found - cells.numbers) ** 2).mean()))
    assert rmse == pytest.approx(fitted.record["curves"][name][best], rel=1e-4)


def test_rows_of_far_more_than_the_training_range_are_answered(mixed: Prepared) -> None:
    """A row beyond all bounds gives an ordinary answer: it is clipped on the way in, and on the way out."""
    data = _shown(mixed)
    fitted = RealMLPNetwork(**SHORT).fit(data, Budget(60.0), 0)
    wild = replace(data, numeric=np.full_like(data.numeric, 1e30))
    for task, value in fitted.scores(wild, np.arange(5), [t.name for t in data.tasks]).items():
        assert np.isfinite(value).all(), task


@pytest.mark.parametrize(
    "change",
    [{"recipe": "tds"}, {"activation": "relu"}, {"embedding": "plr"}, {"lr": -1}, {"epochs": 0}, {"smoothing": 1.0}]
    + [{"balancer": "none_such"}, {"patience": 3}, {"depth": "auto"}],
)
def test_wrong_settings(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        RealMLPNetwork(**change)


def test_the_catalog_names_it() -> None:
    assert catalog.get("candidate", "realmlp").resolve() is RealMLPNetwork
    assert catalog.get("candidate", "realmlp").default


def _twins(mixed: Prepared) -> Prepared:
    """Two regression tasks and two classes on the same inputs, with holes."""
    rng = np.random.default_rng(0)
    x = np.nan_to_num(mixed.numeric)
    cells, tasks = {}, []
    for i, kind in enumerate(("regression", "regression", "binary", "binary")):
        rows = np.flatnonzero(rng.random(mixed.n_rows) < 0.9)
        values = 10 * i + x[rows, i] + 0.5 * x[rows, (i + 1) % 4]
        classes = kind == "binary"
        cells[f"y{i}"] = Cells(rows, (values > np.median(values)).astype(float) if classes else values)
        tasks.append(Task(f"y{i}", kind, classes=("0", "1") if classes else ()))
    return _shown(replace(mixed, tasks=tuple(tasks), cells=cells))


def test_a_twin_is_the_joint_network_of_one_task(mixed: Prepared) -> None:
    """Oracle: the joint candidate on one task. Batches and first weights differ; the error (σ is 1.1) hardly."""
    data = _twins(mixed)
    settings: dict[str, Any] = {"width": 64, "epochs": 60}
    single = RealMLPSingle(**settings).fit(data, Budget(100.0), 0)
    for name in ("y0", "y2"):
        joint = RealMLPNetwork(**settings).fit(data.only([name]), Budget(100.0), 0)
        mine, theirs = (f.record["curves"][name] for f in (single, joint))
        sign = 1 if name == "y2" else -1
        assert len(mine) == len(theirs) == 60
        assert max(sign * v for v in mine) == pytest.approx(max(sign * v for v in theirs), abs=0.03)


def test_each_twin_keeps_its_own_best_epoch(mixed: Prepared) -> None:
    """What is deployed scores on validation what the best epoch of its own curve scored, clamped as it will be."""
    data = _twins(mixed)
    fitted = RealMLPSingle(**SHORT).fit(data, Budget(60.0), 0)
    for name in ("y0", "y1"):
        cells = data.labelled(name, "valid")
        found = fitted.scores(data, cells.rows, [name])[name]
        rmse = math.sqrt(float(((found - cells.numbers) ** 2).mean()))
        assert rmse == pytest.approx(min(fitted.record["curves"][name]), rel=1e-4)
        train = data.labelled(name, "train").numbers
        assert train.min() - 1e-4 <= found.min() <= found.max() <= train.max() + 1e-4


def test_the_twins_schedules_end_within_the_budget(mixed: Prepared) -> None:
    data = _twins(mixed)
    began = time.process_time()
    fitted = RealMLPSingle(width=32, epochs=100_000).fit(data, Budget(5.0), 0)
    assert time.process_time() - began < 5.0 * 1.5
    assert fitted.record["undertrained"] == []
    assert all(8 <= len(curve) < 100_000 for curve in fitted.record["curves"].values())
    short = RealMLPSingle(width=256, epochs=256).fit(data, Budget(0.05), 0)
    assert short.record["undertrained"] == [task.name for task in data.tasks]


def test_twins_have_the_shape_of_the_joint_network(mixed: Prepared) -> None:
    """What differs between them is the sharing, not the network."""
    joint = RealMLPNetwork().config(mixed)["architecture"]["settings"]
    alone = RealMLPSingle().config(mixed)["architecture"]["settings"]
    assert {**alone, "smoothing": joint["smoothing"]} == {"encoder": "realmlp", **joint}
    assert RealMLPSingle().resolved(mixed, 900, 1)["lr"] == 0.04
    assert RealMLPSingle().resolved(mixed, 900, 0)["lr"] == 0.2


def test_the_twins_labels_are_smoothed_where_the_joint_networks_are(mixed: Prepared) -> None:
    data = _twins(mixed)
    tasks = tuple(t.with_(metrics=("accuracy",)) if t.kind == "binary" else t for t in data.tasks)
    hard = replace(data, tasks=tasks)
    fits = [RealMLPSingle(smoothing=s, **SHORT).fit(hard, Budget(60.0), 0) for s in (0.0, 0.3)]
    plain, smooth = (f.scores(hard, np.arange(hard.n_rows), ["y0", "y3"]) for f in fits)
    np.testing.assert_allclose(plain["y0"], smooth["y0"])
    assert np.abs(smooth["y3"] - 0.5).mean() < np.abs(plain["y3"] - 0.5).mean()
