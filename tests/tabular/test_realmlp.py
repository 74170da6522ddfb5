"""RealMLP: its parts by hand, its first weights by their definition, its heads by what they promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data import Labels
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Heads
from pluribus.tabular.parametric import ACTIVATIONS, activated
from pluribus.tabular.realmlp import CORNERS, PBLD, NTPLinear, RangeHeads, RealMLP, RealMLPEncoder
from pluribus.tasks import Task


def _rows(data: Prepared, count: int) -> tuple[Tensor, Tensor]:
    inputs = data.batch(torch.from_numpy(data.parts["train"][:count]), tasks=()).inputs
    return inputs["numeric"][None], inputs["categorical"][None]


def _randomise(encoder: nn.Module) -> None:
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(torch.randn_like(p))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_torchs_with_its_gradient(name: Any) -> None:
    """Oracle: torch's SELU and Mish, mixed with the identity and masked; the derivative against finite differences."""
    torch.manual_seed(0)
    z = (6 * torch.randn(2, 30, 5, dtype=torch.float64)).requires_grad_()
    alpha = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(2, 30, 5) > 0.2).double() / 0.8
    plain = {"selu": F.selu, "mish": F.mish}[name](z)
    expected = mask * (z + alpha[:, None] * (plain - z))
    torch.testing.assert_close(activated(z, name, alpha, mask), expected)
    torch.testing.assert_close(activated(z, name), plain)
    with torch.no_grad():
        torch.testing.assert_close(activated(z, name, alpha, mask), expected)
    assert torch.autograd.gradcheck(lambda z, a: activated(z, name, a, mask), (z, alpha))
    far = torch.tensor([[[-200.0, 200.0, 1e6]]], requires_grad=True)
    value = activated(far, name)
    value.sum().backward()
    assert value.isfinite().all()
    assert far.grad is not None
    assert far.grad.isfinite().all()


def test_pbld_by_hand() -> None:
    """[V^T cos(2πwx + b) + c, x] for each feature with its own weights, of each copy."""
    torch.manual_seed(0)
    layer = PBLD(3, sigma=0.5, copies=2)
    x = torch.randn(1, 7, 3)
    found = layer(x)
    assert found.shape == (2, 7, 12)
    for e in range(2):
        for j in range(3):
            u = torch.cos(2 * math.pi * x[0, :, j, None] * layer.frequency[e, j] + layer.phase[e, j])
            v = u @ layer.weight[e, j] + layer.bias[e, j]
            torch.testing.assert_close(found[e, :, 4 * j : 4 * j + 4], torch.cat((v, x[0, :, j, None]), 1))
    torch.testing.assert_close(layer(x, torch.tensor([1])), found[1:])


def test_ntp_is_a_perceptron_at_another_learning_rate() -> None:
    """Oracle: nn.Linear. With W/√d in its place, Adam's learning rate η/√d moves it exactly as η moves W (ε → 0, no decay)."""
    torch.manual_seed(0)
    d, rate = 12, 0.04
    ours, theirs = NTPLinear(1, d, 3), nn.Linear(d, 3)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight[0].T / math.sqrt(d))
        theirs.bias.copy_(ours.bias[0])
    a = torch.optim.Adam([{"params": [ours.weight]}, {"params": [ours.bias]}], lr=rate, eps=1e-30)
    b = torch.optim.Adam([{"params": [theirs.weight], "lr": rate / math.sqrt(d)}, {"params": [theirs.bias]}], lr=rate, eps=1e-30)
    for _ in range(20):
        x, y = torch.randn(16, d), torch.randn(16, 3)
        for net, optimizer in ((lambda v: ours(v[None] / math.sqrt(d))[0], a), (theirs, b)):
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight[0].T / math.sqrt(d), theirs.weight, rtol=1e-3, atol=1e-5)


def test_a_plain_head_on_the_features_is_an_ntp_head(mixed: Prepared) -> None:
    """Features are divided by √width: outputs are W^T h/√d + b."""
    torch.manual_seed(0)
    encoder = RealMLPEncoder(mixed.columns, width=16, dropout=0.0)
    x, codes = _rows(mixed, 32)
    caught: list[Tensor] = []
    encoder.layers[-1].register_forward_hook(lambda m, i, z: caught.append(z))
    features = encoder.features(x, codes, None)
    h = activated(caught[0].detach(), "mish", encoder.alphas[-1])
    torch.testing.assert_close(features, h / math.sqrt(16))


def test_first_preactivations_have_deviation_one(mixed: Prepared) -> None:
    """On the rows that they are fitted to, in every layer and of every network side by side."""
    torch.manual_seed(0)
    encoder = RealMLPEncoder(mixed.columns, width=24, dropout=0.3, copies=2).train()
    x, codes = _rows(mixed, 300)
    encoder.begin(x.expand(2, -1, -1), codes.expand(2, -1, -1))
    caught: list[Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda m, i, z: caught.append(z))
    encoder.eval()
    encoder.features(x, codes, None)
    assert len(caught) == 3
    for z in caught:
        torch.testing.assert_close(z.std(1, correction=0), torch.ones(2, 24), rtol=1e-4, atol=1e-4)


def test_first_biases_put_every_kink_among_the_data() -> None:
    """−b is a convex combination of five pre-activations: within their range, and not at a corner as single values would be."""
    torch.manual_seed(0)
    layer = NTPLinear(1, 6, 400)
    x = torch.randn(1, 200, 6)
    z = layer.fit(x)
    plain = z[0] - layer.bias[0]
    assert (-layer.bias[0] <= plain.max(0).values + 1e-5).all()
    assert (-layer.bias[0] >= plain.min(0).values - 1e-5).all()
    assert ((plain + layer.bias[0]).abs().min(0).values > 1e-6).float().mean() > 0.99
    assert float(layer.bias.detach().std()) == pytest.approx(math.sqrt(2 / (CORNERS + 1)), rel=0.15)  # Σ w² of Dirichlet(1, …, 1)


def test_constant_preactivations_do_not_divide_by_zero() -> None:
    layer = NTPLinear(1, 3, 4)
    before = layer.weight.detach().clone()
    z = layer.fit(torch.ones(1, 10, 3))
    assert z.isfinite().all()
    assert torch.equal(layer.weight.detach(), before)


def test_alpha_zero_is_linear(mixed: Prepared) -> None:
    """With α = 0 the units are their pre-activations: the network is linear in h₀, hence in what the first layer reads."""
    torch.manual_seed(0)
    encoder = RealMLPEncoder(mixed.columns, width=8, embedding="plain").eval()
    with torch.no_grad():
        for alpha in encoder.alphas:
            alpha.zero_()
    a, b, c = torch.randn(3, 1, 5, encoder.scale.shape[1]).unbind()

    def through(h: Tensor) -> Tensor:
        for i, layer in enumerate(encoder.layers):
            h = activated(layer(h), "mish", encoder.alphas[i])
        return h

    torch.testing.assert_close(through(a + b - c), through(a) + through(b) - through(c), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for alpha in encoder.alphas:
            alpha.fill_(1.0)
    assert not torch.allclose(through(a + b - c), through(a) + through(b) - through(c), rtol=1e-2, atol=1e-2)


def test_a_scale_of_one_is_no_layer(mixed: Prepared) -> None:
    """And another scale is the same network on scaled columns."""
    torch.manual_seed(0)
    encoder = RealMLPEncoder(mixed.columns, width=8).eval()
    x, codes = _rows(mixed, 20)
    first, last = encoder.layers[0], encoder.features(x, codes, None)
    with torch.no_grad():
        scale = torch.rand_like(encoder.scale) + 0.5
        encoder.scale.mul_(scale)
        first.weight.div_(scale[..., None])
    torch.testing.assert_close(encoder.features(x, codes, None), last, rtol=1e-4, atol=1e-5)


def test_networks_side_by_side_are_apart(mixed: Prepared) -> None:
    """Each copy answers as it does alone, with active copies in any order."""
    torch.manual_seed(0)
    encoder = RealMLPEncoder(mixed.columns, width=8, copies=3).eval()
    _randomise(encoder)
    x, codes = _rows(mixed, 20)
    whole = encoder.features(x, codes, None)
    some = encoder.features(x, codes, torch.tensor([2, 0]))
    torch.testing.assert_close(some, whole[[2, 0]], rtol=1e-4, atol=1e-5)


def test_dropout_falls_to_nothing(mixed: Prepared) -> None:
    """At the end of the training a step sees the network that predicts."""
    torch.manual_seed(0)
    encoder = RealMLPEncoder(mixed.columns, width=64, dropout=0.5)
    x, codes = _rows(mixed, 50)
    plain = encoder.eval().features(x, codes, None)
    encoder.train()
    zeros = []
    for share in (0.0, 0.75, 1.0):
        encoder.anneal(share)
        zeros.append(float((encoder.features(x, codes, None) == 0).float().mean()))
    assert zeros[0] == pytest.approx(0.5, abs=0.03)
    assert zeros[1] == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(encoder.features(x, codes, None), plain)


def test_heads_begin_at_the_best_constant_prediction(mixed: Prepared) -> None:
    torch.manual_seed(0)
    model = RealMLP.of(mixed.tasks, mixed.columns, width=8)
    task = mixed.tasks[1]
    labels = mixed.labelled(task.name, "train")
    model.heads.start({task.name: labels.labels(np.arange(len(labels)), torch.arange(len(labels)))})
    inputs = mixed.batch(torch.arange(30), tasks=()).inputs
    found = model.predict(inputs)[task.name]
    torch.testing.assert_close(found, torch.full((30,), float(labels.numbers.mean())), rtol=1e-4, atol=1e-4)


def test_predictions_stay_within_the_range_of_the_labels(mixed: Prepared) -> None:
    """However large the outputs; classes are not touched, and without a range nothing is."""
    torch.manual_seed(0)
    model = RealMLP.of(mixed.tasks, mixed.columns, width=8)
    inputs = mixed.batch(torch.arange(200), tasks=()).inputs
    _randomise(model.encoder)
    with torch.no_grad():
        model.heads.weight.normal_(0, 100)
    free = model.predict(inputs)
    assert isinstance(model.heads, RangeHeads)
    model.heads.ranged(mixed)
    held = model.predict(inputs)
    for task in mixed.tasks:
        values = mixed.labelled(task.name, "train").numbers
        if task.record.quantity:
            low, high = float(values.min()), float(values.max())
            torch.testing.assert_close(held[task.name], free[task.name].clamp(low, high))
            assert not torch.equal(held[task.name], free[task.name])
        else:
            assert torch.equal(held[task.name], free[task.name])


@pytest.mark.parametrize(("kind", "width", "classes"), [("binary", 1, 2), ("multiclass", 4, 4), ("ordinal", 3, 4)])
def test_smoothing_mixes_the_losses(kind: str, width: int, classes: int) -> None:
    """Oracle: cross-entropy with smoothed targets, from the probabilities themselves."""
    torch.manual_seed(0)
    task = Task("t", kind, classes=tuple("abcd"[:classes]), metrics=("accuracy",))
    heads = RangeHeads([task], 5, smoothing=0.1)
    outputs = torch.randn(20, width)
    values = torch.randint(classes, (20,)).float()
    found = heads.loss("t", outputs, Labels(values, torch.arange(20)))
    p = task.record.link(outputs)
    p = torch.stack((1 - p, p), 1) if kind == "binary" else p
    target = 0.9 * F.one_hot(values.long(), classes) + 0.1 / classes
    torch.testing.assert_close(found, -(target * p.log()).sum(1), rtol=1e-4, atol=1e-5)


def test_smoothing_is_for_metrics_of_labels_alone() -> None:
    """Where probabilities are judged, the loss is the kind's own."""
    tasks = [
        Task("auc", "binary", classes=("0", "1")),
        Task("hit", "binary", classes=("0", "1"), metrics=("accuracy",)),
        Task("y"),
    ]
    heads, plain = RangeHeads(tasks, 5, smoothing=0.1), Heads(tasks, 5)
    labels = Labels(torch.ones(6), torch.arange(6))
    outputs = torch.randn(6, 1)
    assert torch.equal(heads.loss("auc", outputs, labels), plain.loss("auc", outputs, labels))
    assert torch.equal(heads.loss("y", outputs, labels), plain.loss("y", outputs, labels))
    assert not torch.equal(heads.loss("hit", outputs, labels), plain.loss("hit", outputs, labels))


@pytest.mark.parametrize("change", [{"activation": "relu"}, {"embedding": "plr"}, {"start": "zero"}, {"width": 0}])
def test_wrong_settings(mixed: Prepared, change: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="realmlp"):
        RealMLPEncoder(mixed.columns, **change)


def test_a_table_of_categories_alone(mixed: Prepared) -> None:
    columns = mixed.columns.only(["word"])
    encoder = RealMLPEncoder(columns, width=8)
    codes = torch.from_numpy(mixed.categorical[:10])[None]
    encoder.begin(torch.zeros(1, 10, 0), codes)
    assert encoder.features(torch.zeros(1, 10, 0), codes, None).isfinite().all()
