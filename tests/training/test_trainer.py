"""The trainer: what a run promises about absent tasks, stopping, resuming, accumulating and failing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pluribus.balancing import AutoLambda, EqualWeighting, MoDo
from pluribus.data import Batch, Cells
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, NonFinite
from pluribus.modeling import Losses, MultiTaskModel, Supervised
from pluribus.tasks import Task
from pluribus.training import Callback, JsonLog, SliceAdamW, Stage, Trainer, predict
from pluribus.training.trainer import first_labels

FAST = {"epochs": 4, "batch_size": 64, "lr": 0.01, "patience": None}


def test_every_kind_learns(data: Prepared, model: MultiTaskModel) -> None:
    """If this fails, some kind's loss, link or start is wrong: its validation metric does not beat the constant predictor."""
    history = Trainer(model, [Stage(epochs=40, batch_size=64, lr=0.02, patience=None)]).fit(data)
    assert history.reason == "epochs"
    for task in data.tasks:
        scores = history.scores[task.name]
        better = max if task.main_metric.direction == "max" else min
        assert better(scores) == better([scores[0], *scores])
        assert (scores[-1] - scores[0]) * (1 if task.main_metric.direction == "max" else -1) > 0, task.name


def test_absent_task_moves_nothing(make: Any) -> None:
    """A task without labels in a batch: no loss, no gradient, no moment, bit for bit."""
    make_data, make_model = make
    data, model = make_data(holes=0.0), make_model()
    trainer = Trainer(model, [Stage(tasks=("loss", "calls"), **FAST)])
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.start_heads = False
    trainer.fit(data)
    for task in ("default", "grade", "rating"):
        where = model.heads.place[task]
        assert torch.equal(model.heads.weight[where], before["heads.weight"][where]), task
        assert torch.equal(model.heads.bias[where], before["heads.bias"][where]), task
    where = model.heads.place["loss"]
    assert not torch.equal(model.heads.weight[where], before["heads.weight"][where])


@pytest.mark.parametrize("balancer", [None, EqualWeighting()])
def test_accumulated_micro_batches_equal_the_batch(make: Any, balancer: Any) -> None:
    """Sums over counts, not means of means: unequal label counts per micro-batch must not matter."""
    make_data, make_model = make
    data = make_data()
    ends = []
    for size, parts in ((200, 1), (50, 4)):
        model = make_model()
        stage = Stage(epochs=3, batch_size=size, accumulate=parts, lr=0.01, patience=None, clip=None, balancer=balancer)
        trainer = Trainer(model, [stage])
        trainer.fit(data)
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_one_step_equals_plain_autograd(make: Any) -> None:
    """The trainer's step is the textbook step: sum over tasks of mean losses, clipped, AdamW."""
    make_data, make_model = make
    data = make_data()
    ours, plain = make_model(), make_model()
    Trainer(ours, [Stage(epochs=1, batch_size=10_000, lr=0.01, weight_decay=0.0)]).fit(data)
    batch = data.batch(torch.from_numpy(data.parts["train"]))
    plain.heads.start(batch.labels)
    outputs = plain(batch.inputs, batch.rows)
    total = sum(plain.heads.loss(name, outputs[name], labels).mean() for name, labels in batch.labels.items())
    total.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0).step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


class _Kill(Callback):
    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] == self.at:
            raise KeyboardInterrupt


def test_resume_is_bit_for_bit(make: Any, tmp_path: Path) -> None:
    """A run killed after an epoch and started again ends with the very weights of the uninterrupted run."""
    make_data, make_model = make
    data = make_data()
    stages = [Stage(**FAST), Stage(tasks=("loss",), trainable=("heads.",), **FAST)]
    whole = make_model(dropout=0.2)
    expected = Trainer(whole, stages, seed=3).fit(data)
    broken = make_model(dropout=0.2)
    for kill in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            Trainer(broken, stages, seed=3, folder=tmp_path, callbacks=[_Kill(kill)]).fit(data)
        broken = make_model(dropout=0.2, seed=99)
    history = Trainer(broken, stages, seed=3, folder=tmp_path).fit(data)
    for (name, a), b in zip(whole.state_dict().items(), broken.state_dict().values()):
        assert torch.equal(a, b), name
    assert history.scores == expected.scores
    assert history.rule == expected.rule


def test_snapshot_of_another_run_is_not_used(make: Any, tmp_path: Path) -> None:
    make_data, make_model = make
    Trainer(make_model(), [Stage(**FAST)], seed=3, folder=tmp_path).fit(make_data())
    fresh = Trainer(make_model(), [Stage(**FAST)], seed=4, folder=tmp_path).fit(make_data())
    assert len(fresh.rule) == FAST["epochs"]


def test_damaged_snapshot_is_one_clear_line(make: Any, tmp_path: Path) -> None:
    make_data, make_model = make
    Trainer(make_model(), [Stage(**FAST)], folder=tmp_path).fit(make_data())
    (tmp_path / "snapshot" / "tensors.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match=r"snapshot: is damaged .*delete the folder"):
        Trainer(make_model(), [Stage(**FAST)], folder=tmp_path).fit(make_data())


def test_same_seed_same_weights(make: Any) -> None:
    make_data, make_model = make
    ends = []
    for seed in (5, 5, 6):
        model = make_model(dropout=0.3)
        Trainer(model, [Stage(**FAST)], seed=seed).fit(make_data())
        ends.append(model.encoder.body[0].weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_best_weights_are_restored(make: Any) -> None:
    """After an early stop the model is the one of the best epoch, not the last."""
    make_data, make_model = make
    data = make_data(n=150)
    model = make_model()
    history = Trainer(model, [Stage(epochs=200, batch_size=16, lr=0.05, patience=3, rule="loss")]).fit(data)
    assert history.reason == "patience"
    assert len(history.rule) == history.best_epoch + 4
    cells = data.labelled("loss", "valid")
    found = predict(model, data, {"loss": torch.from_numpy(cells.rows)})["loss"]
    rmse = float(np.sqrt(np.mean((found - cells.values) ** 2)))
    assert rmse == pytest.approx(history.scores["loss"][history.best_epoch], rel=1e-6)


def test_task_patience_freezes_a_task_alone(make: Any) -> None:
    """A task past its patience loses its vote and its head stands still while others go on."""
    make_data, make_model = make
    data = make_data(n=200)
    heads: list[torch.Tensor] = []
    frozen: list[set[str]] = []
    model = make_model()

    class Watch(Callback):
        def epoch(self, record: dict[str, Any]) -> None:
            heads.append(model.heads.weight.detach().clone())
            frozen.append(set(model.tasks) - set(record["losses"]))

    Trainer(model, [Stage(epochs=60, batch_size=32, lr=0.03, patience=None, task_patience=3)], callbacks=[Watch()]).fit(data)
    assert any(0 < len(names) < 5 for names in frozen)
    for i in range(1, len(heads)):
        for name in frozen[i]:
            where = model.heads.place[name]
            assert torch.equal(heads[i][where], heads[i - 1][where])


def test_deadline_ends_the_run_and_says_undertrained(data: Prepared, model: MultiTaskModel) -> None:
    began = time.monotonic()
    history = Trainer(model, [Stage(epochs=100_000, batch_size=16, patience=None)], deadline=0.3).fit(data)
    assert time.monotonic() - began < 5
    assert history.reason == "deadline"
    assert history.undertrained() == list(model.tasks)


def test_nan_names_the_task(make: Any) -> None:
    class Broken(Supervised):
        def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
            found = super().losses(model, batch)
            return replace(found, sums={**found.sums, "loss": found.sums["loss"] * float("inf")})

    make_data, make_model = make
    with pytest.raises(NonFinite, match="task 'loss'"):
        Trainer(make_model(), [Stage(**FAST, objective=Broken())]).fit(make_data())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("los",)}, "unknown task 'los'; did you mean 'loss'"),
        ({"rule": "meen"}, "unknown rule 'meen'; did you mean 'mean'"),
        ({"trainable": ("nothing",)}, "no parameter trains"),
        ({"rates": {"haeds.*": 0.1}}, "'haeds.\\*' matches no parameter that trains"),
    ],
)
def test_wrong_stage(data: Prepared, model: MultiTaskModel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Trainer(model, [Stage(**{**FAST, **change})]).fit(data)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"epochs": 0}, {"lr": 0.0}, {"schedule": "cosin"}, {"rates": {"*": 0.0}}])
def test_wrong_settings(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="stage"):
        Stage(**change)


def test_parameters_at_a_rate_of_their_own(make: Any) -> None:
    """In Adam's first step an entry with a gradient moves by its rate: the heads by theirs, warmed up alike, others by `lr`."""
    make_data, make_model = make
    data, model = make_data(holes=0.0), make_model()
    moved: dict[str, float] = {}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    size = len(data.parts["train"])
    stage = Stage(epochs=1, batch_size=size, lr=1e-3, warmup=2, weight_decay=0.0, clip=None, rates={"heads.weight": 0.1})
    trainer = Trainer(model, [stage])
    trainer.start_heads = False
    trainer.fit(data)
    for name, p in model.named_parameters():
        moved[name] = float((p.detach() - before[name]).abs().max())
    assert moved["heads.weight"] == pytest.approx(0.05, rel=1e-3)
    assert max(value for name, value in moved.items() if name != "heads.weight") == pytest.approx(5e-4, rel=1e-3)


def test_coupled_rows_refuse_accumulation() -> None:
    class Contrastive(Supervised):
        couples_rows = True

    with pytest.raises(BadInput, match="couples the rows"):
        Stage(objective=Contrastive(), accumulate=2)


def test_heterogeneous_batches_equal_accumulated_homogeneous_ones(make: Any) -> None:
    """Mixed rows in one batch, or one task per micro-batch, accumulated: the same step on the same cells."""
    make_data, make_model = make
    data = make_data()
    rows = torch.from_numpy(data.parts["train"])
    mixed = Stage(sampler=lambda d, g: [d.batch(rows)], epochs=2, patience=None, clip=None, lr=0.01)
    names = [task.name for task in data.tasks]
    apart = Stage(
        sampler=lambda d, g: [d.batch(rows, [name]) for name in names],
        accumulate=len(names),
        epochs=2,
        patience=None,
        clip=None,
        lr=0.01,
    )
    ends = []
    for stage in (mixed, apart):
        model = make_model()
        Trainer(model, [stage]).fit(data)
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_json_log_has_a_line_per_epoch(data: Prepared, model: MultiTaskModel, tmp_path: Path) -> None:
    import json

    Trainer(model, [Stage(**FAST)], callbacks=[JsonLog(tmp_path / "log.jsonl")]).fit(data)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start"] + ["epoch"] * 4 + ["end"]
    assert set(lines[1]["scores"]) == set(model.tasks)


def test_schedule_ends_at_zero() -> None:
    stage = Stage(lr=0.1, schedule="cosine", warmup=10)
    assert stage.rate(0, 100) == pytest.approx(0.01)
    assert stage.rate(100, 100) == pytest.approx(0.0)
    assert SliceAdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1).param_groups[0]["lr"] == 0.1


def _balancers() -> list[Any]:
    from pluribus import catalog

    return catalog.entries(family="balancer")


@pytest.mark.parametrize("entry", _balancers(), ids=lambda entry: entry.name)
def test_every_balancer_of_the_catalog_trains(make: Any, entry: Any) -> None:
    """By name, through whichever door serves it, with holes: finite, learning, and the same weights for the same seed."""
    make_data, make_model = make
    data = make_data(n=300)
    ends = []
    for _ in range(2):
        model = make_model()
        settings = {**FAST, "epochs": 6, "lr": 0.02}
        balancer = AutoLambda(lr=0.02) if entry.name == "auto_lambda" else entry.resolve()()
        history = Trainer(model, [Stage(balancer=balancer, **settings)], seed=1).fit(data)
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.isfinite(ends[0]).all()
    assert torch.equal(ends[0], ends[1])
    assert max(history.rule) > 0.02, "no task is better than its constant predictor"


@pytest.mark.parametrize("balancer", [None, EqualWeighting])
def test_listening_changes_nothing(make: Any, tmp_path: Path, balancer: Any) -> None:
    """If this fails, a study whose report shows cosines trains something else than one without, or a resumed run forgets."""
    make_data, make_model = make
    data, fast = make_data(n=900), {**FAST, "batch_size": 16}
    deaf, heard, broken = make_model(dropout=0.2), make_model(dropout=0.2), make_model(dropout=0.2)

    def stage(listen: bool) -> Stage:
        return Stage(**fast, listen=listen, balancer=None if balancer is None else balancer())

    silent = Trainer(deaf, [stage(False)], seed=3).fit(data)
    history = Trainer(heard, [stage(True)], seed=3).fit(data)
    for a, b in zip(deaf.parameters(), heard.parameters()):
        assert torch.equal(a, b)
    assert silent.diagnostics == {}
    assert history.diagnostics["measured"] == 4 * 38 // 25
    assert 0 <= history.diagnostics["conflict_ratio"] <= 1
    assert history.times == sorted(history.times)
    with pytest.raises(KeyboardInterrupt):
        Trainer(broken, [stage(True)], seed=3, folder=tmp_path, callbacks=[_Kill(2)]).fit(data)
    again = Trainer(make_model(dropout=0.2), [stage(True)], seed=3, folder=tmp_path).fit(data)
    assert again.diagnostics == history.diagnostics


def test_heads_begin_from_a_bounded_sample(make: Any) -> None:
    """If this fails, a long table is loaded whole before its training begins, or heads of a usual one begin elsewhere."""
    make_data, make_model = make
    data = make_data()
    whole = data.batch(torch.from_numpy(data.parts["train"])).labels
    for name in ("loss", "grade"):
        assert torch.equal(first_labels(data, name).values, whole[name].values)
        few = first_labels(data, name, most=50)
        assert len(few) == len(few.values) == 50
        assert torch.equal(few.values[[0, -1]], whole[name].values[[0, -1]])
    some, all_of_it = make_model(), make_model()
    some.heads.start({task.name: first_labels(data, task.name, most=150) for task in data.tasks})
    all_of_it.heads.start(whole)
    torch.testing.assert_close(some.heads.mean, all_of_it.heads.mean, rtol=0.02, atol=0)
    weighted = replace(data, cells={**data.cells, "loss": replace(data.cells["loss"], weight=np.zeros(len(data.cells["loss"])))})
    assert len(first_labels(weighted, "loss")) == 0


def test_losses_of_an_epoch_are_means_whatever_is_accumulated(make: Any) -> None:
    """If this fails, a curve of the training loss changes its height with the number of micro-batches a step."""
    make_data, make_model = make
    found = []
    for size, parts in ((400, 1), (50, 8)):
        stage = Stage(epochs=1, batch_size=size, accumulate=parts, lr=0.01, patience=None)
        found.append(Trainer(make_model(), [stage]).fit(make_data()).losses)
    for name, losses in found[0].items():
        assert found[1][name] == [pytest.approx(losses[0], rel=1e-4)]


def test_a_table_smaller_than_the_batches_of_a_step_trains(make: Any) -> None:
    """If this fails, MoDo and SDMGrad, which take three batches a step, cannot train where an epoch has one."""
    make_data, make_model = make
    model = make_model()
    before = model.heads.weight.detach().clone()
    Trainer(model, [Stage(epochs=1, batch_size=1000, balancer=MoDo())]).fit(make_data())
    assert not torch.equal(model.heads.weight, before)


class Points:
    """A data set that is no table: points drawn from a seed, and what two functions say of them."""

    n_rows = 400
    tasks = (Task("loss"), Task("default", "binary", classes=("0", "1")))

    def __init__(self) -> None:
        self.x = torch.randn(self.n_rows, 6, generator=torch.Generator().manual_seed(0))
        self.parts = {"train": np.arange(300), "valid": np.arange(300, 400)}
        self.units = np.arange(self.n_rows)
        values = {"loss": self.x[:, 0] + 3, "default": (self.x[:, 1] > 0).float()}
        self.cells = {name: Cells(np.arange(0, 400, 2), value[::2].double().numpy()) for name, value in values.items()}

    def labelled(self, task: str, part: str) -> Cells:
        return self.cells[task].within(self.parts[part])

    def batch(self, rows: torch.Tensor, tasks: Any = None) -> Batch:
        found = {}
        for name in ("loss", "default") if tasks is None else tasks:
            at = np.flatnonzero(rows.numpy() % 2 == 0)
            if len(at):
                found[name] = self.cells[name].labels(rows.numpy()[at] // 2, torch.from_numpy(at))
        return Batch({"numeric": self.x[rows]}, len(rows), found)


def test_a_data_set_that_is_no_table_trains(make: Any) -> None:
    """If this fails, the trainer reads what `Dataset` does not promise: pictures and streams cannot train."""
    _, make_model = make
    points: Any = Points()
    stage = Stage(epochs=20, batch_size=32, lr=0.02, patience=None, balancer=EqualWeighting())
    history = Trainer(make_model(points.tasks), [stage]).fit(points)
    assert history.scores["loss"][-1] < 0.5 * history.scores["loss"][0]
    assert max(history.scores["default"]) > 0.9
