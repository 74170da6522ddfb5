"""One optimiser step, called by hand: what the trainer relies on, and what a loop that owns its data may rely on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import FAMO, AutoLambda, EqualWeighting, MoDo, NashMTL, UncertaintyWeighting
from pluribus.data import Batch, Labels
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, NonFinite
from pluribus.modeling import Losses, MultiTaskModel, Objective
from pluribus.modeling.model import Slices
from pluribus.tasks import Task
from pluribus.training import Stage, Step, Trainer, check_finite


def batches(data: Prepared, size: int, seed: int = 3) -> Iterator[Batch]:
    """The batches of the trainer's first epoch."""
    rows = torch.from_numpy(data.parts["train"])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    for start in range(0, len(rows), size):
        yield data.batch(rows[start : start + size])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("balancer", [None, UncertaintyWeighting, NashMTL, FAMO, MoDo, lambda: AutoLambda(lr=0.02)])
def test_a_loop_by_hand_is_the_trainer(make: Any, balancer: Any) -> None:
    """If this fails, a loop that owns its data trains something else than the trainer would on the same batches."""
    make_data, make_model = make
    data, settings = make_data(), {"lr": 0.02, "rates": {"heads.weight": 0.05}, "clip": 0.5}
    trained, model = make_model(dropout=0.2), make_model(dropout=0.2)
    stage = Stage(epochs=1, batch_size=50, warmup=4, schedule="cosine", balancer=balancer and balancer(), **settings)
    history = Trainer(trained, [stage], seed=3).fit(data)

    torch.manual_seed(3)
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    step = Step(model, balancer=balancer and balancer(), **settings)
    model.train()
    results, given = [], batches(data, 50)
    for i in itertools.count():
        group = list(itertools.islice(given, step.batches))
        if len(group) < step.batches:
            break
        results.append(step(group, rate=stage.rate(i, 8)))
    step.epoch_end()
    assert same(weights(trained), weights(model))
    losses = [float(result.losses["loss"]) for result in results]
    assert history.losses["loss"] == [pytest.approx(sum(losses) / len(losses), rel=1e-5)]
    given_weights = [float(result.weights["loss"]) for result in results if result.weights]
    assert history.weights.get("loss", []) == ([pytest.approx(sum(given_weights) / len(results))] if given_weights else [])
    assert all(result.norm is not None and result.norm > 0 for result in results)


@pytest.mark.parametrize("balancer", [None, EqualWeighting])
def test_micro_batches_add_up_to_the_batch(make: Any, balancer: Any) -> None:
    """If this fails, parts of a batch with unequal numbers of labels do not make the step, or the losses, of the whole."""
    make_data, make_model = make
    data, ends, losses = make_data(), [], []
    whole = data.batch(torch.arange(200))
    for group in ([whole], [data.batch(torch.arange(start, stop)) for start, stop in ((0, 10), (10, 120), (120, 200))]):
        model = make_model()
        result = Step(model, lr=0.01, clip=None, balancer=balancer and balancer())(group)
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        losses.append(torch.stack([result.losses[name] for name in model.tasks]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("balancer", [None, UncertaintyWeighting, NashMTL])
def test_an_absent_task_rests(make: Any, balancer: Any) -> None:
    """If this fails, a task without a label in a step is moved by its momentum, its decay, or the balancer."""
    make_data, make_model = make
    data, model = make_data(), make_model()
    step = Step(model, lr=0.02, balancer=balancer and balancer())
    step(data.batch(torch.arange(100)))
    where, before, head = model.heads.place["grade"], weights(model), model.heads.weight
    moments = {name: value.clone() for name, value in step.update.optimizer.state[head].items()}
    result = step(data.batch(torch.arange(100, 200), ["default", "loss"]))
    assert set(result.losses) == {"default", "loss"}
    assert torch.equal(head[where], before["heads.weight"][where])
    for name, value in step.update.optimizer.state[head].items():
        assert torch.equal(value[where], moments[name][where]), name
    assert not torch.equal(head[model.heads.place["loss"]], before["heads.weight"][model.heads.place["loss"]])


def test_without_a_label_nothing_moves(data: Prepared, model: MultiTaskModel) -> None:
    """If this fails, a batch of unlabelled rows lets weights decay and moments fade."""
    step = Step(model, lr=0.02)
    step(data.batch(torch.arange(100)))
    before = weights(model)
    result = step(data.batch(torch.arange(100), ()))
    assert (result.losses, result.weights, result.norm) == ({}, {}, None)
    assert same(before, weights(model))


class Broken(Objective):
    """The loss of one task has no finite value."""

    def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
        outputs = model(batch.inputs, batch.rows, batch.context)
        sums = {name: model.heads.loss(name, outputs[name], labels).sum() for name, labels in batch.labels.items()}
        return Losses({**sums, "grade": sums["grade"] / 0}, self.counts(batch), shared=outputs.shared)


def test_a_step_that_is_not_finite_moves_nothing_and_names_the_task(data: Prepared, model: MultiTaskModel) -> None:
    """If this fails, one overflow destroys the weights, or nobody learns which task it came from."""
    before = weights(model)
    with pytest.raises(NonFinite, match="task 'grade': its loss"):
        Step(model, objective=Broken())(data.batch(torch.arange(100)))
    assert same(before, weights(model))
    with pytest.raises(NonFinite, match="the gradient became"):
        check_finite({"a": torch.ones(())}, torch.tensor(float("nan")))
    check_finite({"a": torch.ones(())}, torch.ones(()))
    check_finite({})


def test_what_it_cannot_use_is_one_clear_line(data: Prepared, model: MultiTaskModel) -> None:
    """If this fails, a misspelt prefix trains nothing, or a loss under a wrong name ends in a KeyError."""
    with pytest.raises(BadInput, match="no parameter trains"):
        Step(model, trainable=("encodr.",))
    with pytest.raises(BadInput, match="matches no parameter"):
        Step(model, rates={"haeds.*": 0.1})

    class Misnamed(Objective):
        def losses(self, model: MultiTaskModel, batch: Batch) -> Losses:
            outputs = model(batch.inputs, {"loss": None})
            return Losses({"los": outputs["loss"].sum()}, {"los": torch.ones(())}, shared=outputs.shared)

        def counts(self, batch: Batch) -> dict[str, Tensor]:
            return {"los": torch.ones(())}

    with pytest.raises(BadInput, match="did you mean 'loss'"):
        Step(model, objective=Misnamed())(data.batch(torch.arange(10)))


@pytest.mark.parametrize("balancer", [None, NashMTL, UncertaintyWeighting, FAMO])
def test_steps_go_on_from_a_state(make: Any, balancer: Any) -> None:
    """If this fails, a loop that saved its step goes on with other moments, step counts or balancer weights."""
    make_data, make_model = make
    data, whole = make_data(), make_model()
    given = list(batches(data, 40))
    step = Step(whole, lr=0.02, balancer=balancer and balancer())
    for batch in given[:4]:
        step(batch)
    again = make_model(seed=9)
    again.load_state_dict(whole.state_dict())
    further = Step(again, lr=0.02, balancer=balancer and balancer())
    further.load_state_dict(step.state_dict())
    for batch in given[4:]:
        step(batch)
        further(batch)
    assert same(weights(whole), weights(again))


class Agent(nn.Module):
    """An actor and a critic, as in reinforcement learning; a model of nobody's base class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tasks = {"reach": Task("reach"), "push": Task("push", weight=2.0)}
        self.actor, self.critic = nn.Linear(3, 2), nn.Linear(5, 1)

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def parameters_of(self, task: str) -> Slices:
        return []


class Acting(Objective):
    """−Q(s, π(s)) of each task's states."""

    def losses(self, model: Any, batch: Batch) -> Losses:
        sums = {}
        for name, labels in batch.labels.items():
            states = batch.inputs[labels.rows]
            sums[name] = -model.critic(torch.cat((states, model.actor(states)), 1)).sum()
        return Losses(sums, self.counts(batch))


class Judging(Objective):
    """(Q(s, π(s)) − return)²."""

    def losses(self, model: Any, batch: Batch) -> Losses:
        sums = {}
        for name, labels in batch.labels.items():
            states = batch.inputs[labels.rows]
            found = model.critic(torch.cat((states, model.actor(states).detach()), 1))[:, 0]
            sums[name] = (found - labels.values).square().sum()
        return Losses(sums, self.counts(batch))


def test_two_steps_share_a_model_that_is_no_multi_task_model() -> None:
    """If this fails, an actor and a critic cannot each have a step: what one passes through moves with the other's gradients."""
    model, plain = Agent(), Agent()
    states, returns = torch.randn(8, 3), torch.randn(8)
    labels = {"reach": Labels(returns[:3], torch.arange(3)), "push": Labels(returns[3:], torch.arange(3, 8))}
    batch = Batch(states, 8, labels)
    settings = {"lr": 0.01, "weight_decay": 0.0, "clip": None}
    act = Step(model, objective=Acting(), trainable=("actor.",), **settings)
    judge = Step(model, objective=Judging(), trainable=("critic.",), **settings)
    optimizers = [torch.optim.AdamW(part.parameters(), lr=0.01, weight_decay=0.0) for part in (plain.actor, plain.critic)]
    for _ in range(3):
        act(batch)
        judge(batch)
        for objective, optimizer in zip((Acting(), Judging()), optimizers):
            plain.zero_grad()
            means = objective.losses(plain, batch).means()
            (means["reach"] + 2 * means["push"]).backward()
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, msg=name)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_compared_on_demand(make: Any) -> None:
    """If this fails, comparing the tasks' gradients moves what is trained, or compares nothing."""
    from pluribus.balancing import Diagnostics

    make_data, make_model = make
    data, ends = make_data(), []
    for compare in (None, Diagnostics(window=4)):
        model = make_model()
        Step(model, lr=0.02)(data.batch(torch.arange(100)), compare=compare)
        ends.append(weights(model))
        assert compare is None or compare.record()["measured"] == 1
    assert same(*ends)
