"""TabM: against the authors' package, against one perceptron, and its losses and predictions by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data import Labels
from pluribus.data.prepared import Prepared
from pluribus.modeling import Heads, Supervised
from pluribus.tabular import TabM, TabMEncoder
from pluribus.tabular.embeddings import EMBEDDINGS
from pluribus.tabular.tabm import BatchEnsemble, TabMMini, TabMMiniEncoder
from pluribus.tasks import Task

EDGES = [np.linspace(-2, 2, 6), np.array([-1.0, 0.0, 1.0])]


def _inputs(rows: int) -> dict[str, Tensor]:
    x = torch.randn(rows, 2)
    x[0, 1] = torch.nan
    return {"numeric": x, "categorical": torch.randint(0, 4, (rows, 1))}


@pytest.mark.peer
def test_equals_the_authors() -> None:
    """Oracle: the package `tabm`, its weights put in, its heads too; numbers without holes, no categories."""
    tabm = pytest.importorskip("tabm")
    torch.manual_seed(0)
    k, d = 5, 12
    theirs = tabm.TabM.make(n_num_features=3, d_out=2, k=k, n_blocks=2, d_block=d, dropout=0.0).eval()
    edges = [np.linspace(-2, 2, 4)] * 3
    ours = TabMEncoder(edges, [], width=d, depth=2, members=k, embedding="plain").eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) / 3)
        for i, (block, layer) in enumerate(zip(theirs.backbone.blocks, ours.layers)):
            own: Any = layer
            seen = 3 if i == 0 else d  # the first layer also reads the indicators of "missing", zeros here
            own.weight[0, :seen], own.r[0, :, :seen] = block[0].weight.T, block[0].r
            own.s[0], own.bias[0] = block[0].s, block[0].bias
    tasks = [Task("a"), Task("b")]
    model = TabM(tasks, ours)
    with torch.no_grad():
        model.heads.weight.copy_(theirs.output.weight.permute(2, 0, 1))
        model.heads.bias.copy_(theirs.output.bias.T)
    for rows in (7, 40):  # both ways of computing a layer
        x = torch.randn(rows, 3)
        expected = theirs(x)
        outputs = model({"numeric": x, "categorical": torch.zeros(rows, 0, dtype=torch.int32)})
        for i, name in enumerate("ab"):
            torch.testing.assert_close(outputs[name][..., 0], expected[..., i], rtol=1e-4, atol=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("embedded", [False, True])
def test_starts_as_the_authors(embedded: bool) -> None:
    """The first r: signs, or normal where numbers are embedded, one value for all columns of a feature; else ones; one bias."""
    tabm, rtdl = pytest.importorskip("tabm"), pytest.importorskip("rtdl_num_embeddings")
    torch.manual_seed(0)
    numbers = rtdl.PeriodicEmbeddings(2, 8, lite=True) if embedded else None
    theirs = tabm.TabM.make(n_num_features=2, d_out=1, k=2000, d_block=8, num_embeddings=numbers).backbone.blocks[0][0]
    net = TabMEncoder(EDGES, [4], width=8, depth=3, members=2000, embedding="plr_lite" if embedded else "plain")
    first: Any = net.layers[0]
    for r in (theirs.r.detach(), first.r.detach()[0]):
        assert float(r.mean()) == pytest.approx(0, abs=0.07)
        assert float(r.std()) == pytest.approx(1, rel=0.05)
        assert bool((r.abs() == 1).all()) is not embedded
        if embedded:
            assert torch.equal(r[:, :8], r[:, :1].expand(-1, 8))
            assert not torch.equal(r[:, 8], r[:, 0])
    width = net.numeric.embedding.width
    assert torch.equal(first.r[0, :, width], first.r[0, :, 0])  # a feature's indicator belongs to the feature
    assert torch.equal(first.r[0, :, -8:], first.r[0, :, -1:].expand(-1, 8))  # one category column
    later: Any = net.layers[1]
    for p in (first.s, later.r, later.s):
        assert bool((p == 1).all())
    for layer in (first, later):
        assert torch.equal(layer.bias, layer.bias[:, :1].expand_as(layer.bias))


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_equal_adapters_are_one_perceptron(embedding: Any) -> None:
    """Oracle: with r = s = 1 and one bias every member is the plain MLP of these weights."""
    torch.manual_seed(0)
    net = TabMEncoder(EDGES, [4], width=8, depth=2, members=3, embedding=embedding).eval()
    first: Any = net.layers[0]
    with torch.no_grad():
        first.r.fill_(1.0)
    for rows in (5, 30):
        inputs = _inputs(rows)
        numeric = net.numeric(inputs["numeric"][None])[0]
        h = torch.cat((numeric, net.categorical(inputs["categorical"][None])[0]), 1)
        for layer in net.layers:
            own: Any = layer
            h = F.relu(h @ own.weight[0] + own.bias[0, 0])
        found = net(inputs, {}).main
        assert found.shape == (rows, 3, 8)
        torch.testing.assert_close(found, h[:, None].expand(-1, 3, -1))


def test_both_ways_of_a_layer_agree() -> None:
    """Few rows and many rows are computed differently: the same numbers and gradients."""
    torch.manual_seed(0)
    layer = BatchEnsemble(4, 6, 3, copies=2)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    h = torch.randn(2, 3, 20, 4)
    many = layer(h)
    few = torch.cat([layer(h[:, :, i : i + 5]) for i in range(0, 20, 5)], 2)
    torch.testing.assert_close(many, few)
    weight = torch.randn_like(many)
    found = [torch.autograd.grad((y * weight).sum(), list(layer.parameters()), retain_graph=True) for y in (many, few)]
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_members_are_apart(mixed: Prepared) -> None:
    """A member's adapters and heads move no other member's output."""
    torch.manual_seed(0)
    model = TabM.of(mixed.tasks, mixed.columns, width=16, members=4).eval()
    inputs = mixed.batch(torch.arange(6), tasks=()).inputs
    before = {name: value.detach().clone() for name, value in model(inputs).items()}
    encoder: Any = model.encoder
    with torch.no_grad():
        for layer in encoder.layers:
            for p in (layer.r, layer.s, layer.bias):
                p[:, 2] += 1.0
        model.heads.weight[:, 2] += 1.0
    for name, value in model(inputs).items():
        torch.testing.assert_close(value[:, [0, 1, 3]], before[name][:, [0, 1, 3]])
        assert not torch.allclose(value[:, 2], before[name][:, 2])


def test_loss_is_the_mean_of_the_members_losses(mixed: Prepared) -> None:
    """Not the loss of the mean: by hand for each kind of task, through the objective that trains."""
    torch.manual_seed(0)
    model = TabM.of(mixed.tasks, mixed.columns, width=16, members=4)
    batch = mixed.batch(torch.from_numpy(mixed.parts["train"][:40]))
    model.heads.start(batch.labels)
    model.eval()
    losses = Supervised().losses(model, batch).means()
    outputs = model(batch.inputs, batch.rows)
    for i, task in enumerate(mixed.tasks):
        labels = batch.labels[task.name]
        values = labels.values
        if task.record.standardise:
            values = (values - model.heads.mean[i]) / model.heads.scale[i]
        each = [task.record.loss(outputs[task.name][:, m], values).mean() for m in range(4)]
        torch.testing.assert_close(losses[task.name], torch.stack(each).mean())


def test_prediction_is_the_mean_of_the_members_predictions(mixed: Prepared) -> None:
    """Probabilities and means are averaged, not logits; in the task's own units."""
    torch.manual_seed(0)
    model = TabM.of(mixed.tasks, mixed.columns, width=16, members=4)
    batch = mixed.batch(torch.from_numpy(mixed.parts["train"][:40]))
    model.heads.start(batch.labels)
    found = model.predict(batch.inputs)
    outputs = model.eval()(batch.inputs)
    for i, task in enumerate(mixed.tasks):
        each = torch.stack([task.record.link(outputs[task.name][:, m]) for m in range(4)]).mean(0)
        if task.record.standardise:
            each = each * model.heads.scale[i] + model.heads.mean[i]
        torch.testing.assert_close(found[task.name], each)


def test_heads_start_at_the_best_constant(mixed: Prepared) -> None:
    """Every member's bias, mean and scale are those of a single head."""
    model = TabM.of(mixed.tasks, mixed.columns, width=16, members=4)
    labels: dict[str, Labels] = dict(mixed.batch(torch.from_numpy(mixed.parts["train"])).labels)
    one = Heads(mixed.tasks, 16)
    one.start(labels)
    model.heads.start(labels)
    assert torch.equal(model.heads.bias, one.bias[:, None].expand(-1, 4))
    assert torch.equal(model.heads.mean, one.mean)
    assert torch.equal(model.heads.scale, one.scale)


def test_parameters(mixed: Prepared) -> None:
    """One perceptron, and for every member 2·in + … of adapters: far less than members perceptrons."""
    net = TabMEncoder(EDGES, [4], width=64, depth=3, members=32, embedding="plain")
    flat = 2 + 2 + 8
    perceptron = flat * 64 + 2 * 64 * 64
    adapters = 32 * (flat + 64 + 64 + 2 * (3 * 64))
    assert sum(p.numel() for p in net.parameters()) == perceptron + adapters + 4 * 8


def test_mini_is_tabm_whose_other_adapters_are_one() -> None:
    """Oracle: `TabMEncoder` with r = s = 1 and one bias a layer, but for the first r."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 12, "depth": 2, "members": 5, "embedding": "piecewise_linear", "dropout": 0.0, "bins": 4}
    mini, whole = TabMMiniEncoder(EDGES, [4], **settings), TabMEncoder(EDGES, [4], **settings)
    with torch.no_grad():
        whole.categorical.table.copy_(mini.categorical.table)
        for i, (small, large) in enumerate(zip(mini.layers, whole.layers)):
            own: Any = large
            own.weight.copy_(small.weight)
            own.bias.copy_(small.bias[:, None].expand_as(own.bias))
            own.s.fill_(1.0)
            own.r.copy_(mini.r) if i == 0 else own.r.fill_(1.0)
    inputs = _inputs(30)
    torch.testing.assert_close(mini(inputs, {}).main, whole(inputs, {}).main, rtol=1e-4, atol=1e-5)


@pytest.mark.peer
def test_mini_equals_the_authors() -> None:
    """Oracle: the package `tabm`, architecture "tabm-mini", its weights put in, its heads too."""
    tabm = pytest.importorskip("tabm")
    torch.manual_seed(0)
    k, d = 5, 12
    made = {"n_num_features": 3, "d_out": 2, "k": k, "n_blocks": 2, "d_block": d, "dropout": 0.0}
    theirs = tabm.TabM.make(arch_type="tabm-mini", **made).eval()
    ours = TabMMiniEncoder([np.linspace(-2, 2, 4)] * 3, [], width=d, depth=2, members=k, embedding="plain").eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) / 3)
        ours.r[0, :, :3] = theirs.backbone.affine.weight
        for i, (block, layer) in enumerate(zip(theirs.backbone.blocks, ours.layers)):
            own: Any = layer
            own.weight[0, : 3 if i == 0 else d], own.bias[0] = block[0].weight.T, block[0].bias
    model = TabMMini([Task("a"), Task("b")], ours)
    with torch.no_grad():
        model.heads.weight.copy_(theirs.output.weight.permute(2, 0, 1))
        model.heads.bias.copy_(theirs.output.bias.T)
    x = torch.randn(7, 3)
    expected = theirs(x)
    outputs = model({"numeric": x, "categorical": torch.zeros(7, 0, dtype=torch.int32)})
    for i, name in enumerate("ab"):
        torch.testing.assert_close(outputs[name][..., 0], expected[..., i], rtol=1e-4, atol=1e-5)
