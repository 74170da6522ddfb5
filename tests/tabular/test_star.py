"""STAR: if these fail, a domain's network is not the centre times its own, or one domain's rows move another's moments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.modeling import Features
from pluribus.sharing import Star
from pluribus.tasks import Task

TASKS = [Task(name, "binary", classes=("0", "1")) for name in "abc"]
ALL: dict[str, Tensor | None] = dict.fromkeys("abc")


def made(**settings: Any) -> Star:
    torch.manual_seed(0)
    return Star(TASKS, 5, **{"hidden": (6, 4), "auxiliary": 3, **settings})


def stirred(sharing: Star) -> Star:
    """Away from the start, where own weights are ones and offsets zeros."""
    with torch.no_grad():
        for p in sharing.parameters():
            p.add_(0.3 * torch.randn_like(p))
        sharing.norm.mean.normal_()
        sharing.norm.variance.uniform_(0.5, 2)
    return sharing


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wanted", ["abc", "cb"])
def test_by_hand(training: bool, wanted: str) -> None:
    """Oracle: the paper's equations (2) to (6) domain by domain, over plain tensors, each domain on its rows."""
    sharing, x = stirred(made()).train(training), torch.randn(12, 5)
    rows = {"a": None, "b": torch.tensor([0, 3, 4, 9]), "c": torch.tensor([1, 2, 5])}
    norm = sharing.norm
    expected = {}
    for p, name in enumerate("abc"):
        own = x if rows[name] is None else x[rows[name]]
        mean, variance = (own.mean(0), own.var(0, correction=0)) if training else (norm.mean[p], norm.variance[p])
        z = (own - mean) / (variance + norm.eps).sqrt()
        h = (norm.common_weight * norm.weight[p]) * z + norm.common_bias + norm.bias[p]
        for layer in sharing.layers:
            h = torch.relu(h @ (layer.weight[p] * layer.centre.weight[0]) + layer.bias[p] + layer.centre.bias[0])  # type: ignore
        a = torch.relu(own @ sharing.auxiliary.weight.T + sharing.auxiliary.bias + sharing.indicator[p])  # type: ignore
        expected[name] = torch.cat((h, a), 1)
    found = sharing(Features(x), {name: rows[name] for name in wanted}).tasks
    for name in wanted:
        torch.testing.assert_close(found[name].main, expected[name], rtol=1e-4, atol=1e-5)


def test_the_start_is_the_centre() -> None:
    """Oracle: W_p = 1, b_p = 0 and no auxiliary network: a plain multilayer perceptron behind a plain batch norm."""
    sharing, x = made(auxiliary=0), torch.randn(20, 5)
    plain = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
    with torch.no_grad():
        for mine, theirs in ((sharing.layers[0], plain[1]), (sharing.layers[1], plain[3])):
            theirs.weight.copy_(mine.centre.weight[0].T)  # type: ignore
            theirs.bias.copy_(mine.centre.bias[0])  # type: ignore
    for training in (True, False):
        sharing.train(training)
        plain.train(training)
        expected = plain(x)
        for found in sharing(Features(x), ALL).tasks.values():
            torch.testing.assert_close(found.main, expected, rtol=1e-4, atol=1e-5)


def test_moments_are_a_domains_own() -> None:
    """A domain's rows move its own running moments alone, bit for bit, and so does an absent domain's silence."""
    sharing, x = made(), torch.cat((torch.randn(10, 5), 50 + torch.randn(10, 5)))
    before = sharing.norm.mean.clone()
    sharing(Features(x), {"a": torch.arange(10), "b": torch.arange(10, 20)})
    assert torch.equal(sharing.norm.mean[2], before[2])
    assert float(sharing.norm.mean[0].abs().max()) < 1
    assert float(sharing.norm.mean[1].min()) > 4


def test_centre_and_own_both_learn() -> None:
    """Autograd: a domain's loss reaches the centre and its own part, and no other domain's."""
    sharing, x = stirred(made()), torch.randn(8, 5)
    sharing(Features(x), {"b": None}).tasks["b"].main.square().sum().backward()
    for name, where in sharing.slices("b").items():
        gradient = dict(sharing.named_parameters())[name].grad
        assert gradient is not None
        assert gradient[where].abs().sum() > 0, name
        rest = torch.ones(len(gradient), dtype=torch.bool)
        rest[where] = False
        assert gradient[rest].abs().sum() == 0, name
    centre = sharing.layers[0].centre.weight.grad  # type: ignore
    assert centre.abs().sum() > 0


def test_a_batch_of_one_trains() -> None:
    sharing = made().train()
    found = sharing(Features(torch.randn(1, 5)), ALL).tasks
    torch.stack([value.main.sum() for value in found.values()]).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in sharing.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hidden": 0}, "hidden must be a whole number of at least 1, not 0"), ({"hidden": ()}, "hidden names no layer"),
     ({"auxiliary": -1}, "auxiliary must be")],
)  # fmt: skip
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        made(**settings)
