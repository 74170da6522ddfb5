"""STAR: if these fail, a domain's network is not the centre times its own, or one domain's rows move another's moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Features
from pluribus.sharing import Star
from pluribus.tabular.export import export_onnx
from pluribus.tabular.sharing_candidates import STARNetwork
from pluribus.tabular.star import STAR, _DomainStar
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
    [
        ({"hidden": 0}, "hidden must be a whole number of at least 1, not 0"),
        ({"hidden": ()}, "hidden names no layer"),
        ({"auxiliary": -1}, "auxiliary must be"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        made(**settings)


# Domains as parts of the rows


def by_rows(**settings: Any) -> _DomainStar:
    torch.manual_seed(0)
    sharing = _DomainStar(TASKS, 5, 3, **{"hidden": (6, 4), "auxiliary": 3, **settings})
    stirred(sharing)
    with torch.no_grad():
        sharing.known[:2] = True
        sharing.mean.normal_()
        sharing.variance.uniform_(0.5, 2)
    return sharing


@pytest.mark.parametrize("training", [False, True])
def test_rows_get_their_domains_network(training: bool) -> None:
    """Oracle: the star of tasks, each task asking for one domain's rows; all tasks read the same, whoever is asked for."""
    sharing, x, domain = by_rows().train(training), torch.randn(12, 5), torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
    of_tasks = made().train(training)
    of_tasks.load_state_dict({k: v for k, v in sharing.state_dict().items() if k in of_tasks.state_dict()})
    expected = of_tasks(Features(x), {"a": (domain == 0).nonzero()[:, 0], "b": (domain == 1).nonzero()[:, 0]}).tasks
    found = sharing(Features(x, context={"domain": domain}), {"a": None, "c": torch.tensor([1])}).tasks
    assert list(found) == ["a", "c"]
    for p, name in enumerate("ab"):
        torch.testing.assert_close(found["a"].main[domain == p], expected[name].main, rtol=1e-4, atol=1e-5)
        assert torch.equal(sharing.norm.mean[p], of_tasks.norm.mean[p])
    assert found["c"].main is found["a"].main


def test_an_unknown_domain_is_the_centre() -> None:
    """Oracle: a star of the same centre, own layers at their start, with the moments of all rows; training makes known."""
    sharing, x = by_rows().eval(), torch.randn(4, 5)
    plain = made().eval()
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if "centre" in name or "common" in name or "auxiliary" in name:
                p.copy_(dict(sharing.named_parameters())[name])
        plain.indicator.zero_()  # type: ignore[union-attr]
        plain.norm.mean.copy_(sharing.mean.expand(3, -1))
        plain.norm.variance.copy_(sharing.variance.expand(3, -1))
    unknown = {"domain": torch.full((4,), 2)}
    expected = plain(Features(x), ALL).tasks["b"].main
    torch.testing.assert_close(sharing(Features(x, context=unknown), ALL).tasks["b"].main, expected, rtol=1e-4, atol=1e-5)
    before = sharing.mean.clone()
    sharing.train()(Features(x, context=unknown), ALL)
    assert bool(sharing.known[2])
    torch.testing.assert_close(sharing.mean, 0.9 * before + 0.1 * x.mean(0))
    after = sharing.eval()(Features(x, context=unknown), ALL).tasks["b"].main
    assert not torch.allclose(after, expected)


def test_a_column_names_the_domain(mixed: Prepared, tmp_path: Path) -> None:
    """Fitted, saved and exported: rows are answered by their category's network; a category never seen has an answer too."""
    fitted = STARNetwork(domain="word", width=8, epochs=2).fit(mixed, Budget(60.0), 0)
    star = fitted.model.sharing
    assert isinstance(star, _DomainStar)
    assert bool(star.known.any())
    batch = mixed.batch(torch.arange(30), tasks=()).inputs
    with torch.no_grad():
        star.layers[0].weight[int(batch["categorical"][0, fitted.model.place])].zero_()
    names = [task.name for task in mixed.tasks]
    changed = fitted.model.predict({k: v.clone() for k, v in batch.items()})
    strange = {**batch, "categorical": torch.ones_like(batch["categorical"])}
    assert all(bool(torch.isfinite(value).all()) for value in fitted.model.predict(strange).values())
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(export_onnx(fitted, tmp_path / "onnx") / "model.onnx"))
    found = session.run(None, {"numeric": batch["numeric"].numpy(), "categorical": batch["categorical"].long().numpy()})
    for name, value in zip(names, found):
        np.testing.assert_allclose(value.reshape(changed[name].shape), changed[name].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("domain", "message"),
    [("wrod", "unknown column of categories 'wrod'.*did you mean 'word'"), ("x0", "'x0' holds no categories")],
)
def test_a_bad_domain(domain: str, message: str, mixed: Prepared) -> None:
    with pytest.raises(BadInput, match=message):
        STAR.of(mixed.tasks, mixed.columns, domain=domain)
