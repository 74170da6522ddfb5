"""The model and the default objective: cells in, sums and counts out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pluribus.data import Labels
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Features, MultiTaskModel, Supervised
from pluribus.sharing import SharedBottom
from pluribus.tabular.mlp import TabularMLP


@pytest.fixture
def model(mixed: Prepared) -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = TabularMLP.of(mixed.columns, width=16, depth=1, dropout=0.5)
    return MultiTaskModel(mixed.tasks, encoder, SharedBottom(mixed.tasks, 16, tower=4))


def test_unknown_task_suggests_the_nearest(model: MultiTaskModel, mixed: Prepared) -> None:
    inputs = mixed.batch(torch.arange(4), ()).inputs
    with pytest.raises(BadInput, match="unknown task 'defualt'; did you mean 'default'"):
        model(inputs, {"defualt": None})
    with pytest.raises(BadInput, match="did you mean 'loss'"):
        model.parameters_of("los")


def test_predict_is_in_eval_mode_and_puts_the_mode_back(model: MultiTaskModel, mixed: Prepared) -> None:
    inputs = mixed.batch(torch.arange(20), ()).inputs
    model.train()
    first, second = model.predict(inputs), model.predict(inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert model.training
    assert not any(value.requires_grad for value in first.values())


def test_shared_and_own_parameters_part_the_model(model: MultiTaskModel) -> None:
    """Every parameter is shared, or a task's own; no number belongs to two tasks."""
    shared = {id(p) for p in model.shared_parameters()}
    owned = {id(p): torch.zeros(len(p)) for name in model.tasks for p, _ in model.parameters_of(name)}
    for name in model.tasks:
        for p, where in model.parameters_of(name):
            owned[id(p)][where if where is not None else slice(None)] += 1
    assert shared.isdisjoint(owned)
    assert {id(p) for p in model.parameters()} == shared | set(owned)
    assert all((count == 1).all() for count in owned.values())


def test_losses_by_hand(model: MultiTaskModel, mixed: Prepared) -> None:
    """Σ weight·loss and Σ weight over labelled cells; a task without labels has no key, not a zero."""
    model.eval()
    batch = mixed.batch(torch.arange(64), ["loss", "default"])
    labels = batch.labels["loss"]
    weight = torch.linspace(0.5, 2, len(labels))
    batch = replace(batch, labels={**batch.labels, "loss": Labels(labels.values, labels.rows, None, weight)})
    losses = Supervised().losses(model, batch)
    outputs = model(batch.inputs)
    each = (outputs["loss"][labels.rows, 0] - labels.values).square()
    torch.testing.assert_close(losses.sums["loss"], (weight * each).sum())
    torch.testing.assert_close(losses.counts["loss"], weight.sum())
    torch.testing.assert_close(losses.means()["loss"], (weight * each).sum() / weight.sum())
    assert float(losses.counts["default"]) == len(batch.labels["default"])
    assert set(losses.sums) == {"loss", "default"}
    assert not losses.counts["loss"].requires_grad


def test_micro_batches_add_up_to_the_batch(model: MultiTaskModel, mixed: Prepared) -> None:
    """Sums and counts of two halves give the whole batch's mean, however the labels are spread."""
    model.eval()
    whole = Supervised().losses(model, mixed.batch(torch.arange(60)))
    halves = [Supervised().losses(model, mixed.batch(rows)) for rows in torch.arange(60).split(23)]
    for name, mean in whole.means().items():
        total = sum(half.sums[name] for half in halves if name in half.sums)
        count = sum(half.counts[name] for half in halves if name in half.counts)
        torch.testing.assert_close(total / count, mean)


def test_features_at_selects_everything_once() -> None:
    features = Features(torch.arange(6.0)[:, None], (torch.arange(6.0),), torch.ones(6, 1), {"domain": torch.arange(6)})
    rows = torch.tensor([4, 2])
    found = features.at(rows)
    assert found.main[:, 0].tolist() == [4, 2]
    assert found.levels[0].tolist() == [4, 2]
    assert found.context["domain"].tolist() == [4, 2]
    assert found.mask is not None
    assert len(found.mask) == 2
    assert found.at(torch.tensor([0])) is found
    assert features.at(None) is features
