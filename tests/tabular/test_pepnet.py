"""PEPNet: if these fail, a gate trains what it only may read, or is not closed over the columns that it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.tabular.pepnet import PEPNet


def made(data: Prepared, **settings: Any) -> PEPNet:
    torch.manual_seed(0)
    chosen = {"domain": "word", "prior": ["x0", "word"], "hidden": (6, 4), "gate": 5, **settings}
    model = PEPNet.of(data.tasks, data.columns, **chosen)
    with torch.no_grad():
        model.heads.weight.uniform_(-1, 1)
    return model


def opened(model: PEPNet) -> PEPNet:
    """Gates away from 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".second." in name:
                p.normal_()
    return model


def test_by_hand(mixed: Prepared) -> None:
    """Oracle: the gates and towers in the paper's order, task by task, for a subset of tasks at some of the rows."""
    model = opened(made(mixed)).eval()
    inputs = mixed.batch(torch.arange(20), tasks=()).inputs
    names = list(model.tasks)

    def gate(part: Any, x: torch.Tensor, i: int) -> torch.Tensor:
        hidden = torch.relu(x @ part.first.weight.T + part.first.bias)
        return 2 * torch.sigmoid(hidden @ part.second.weight[i] + part.second.bias[i])

    e = model.encoder(inputs, {}).main
    e = e * gate(model.epnet, torch.cat((model.domain(inputs, {}).main, e), 1), 0)  # type: ignore[misc]
    seen = torch.cat((model.prior(inputs, {}).main, e), 1)
    found = model(inputs, {names[2]: None, names[0]: torch.tensor([4, 2])})
    for t, rows in ((2, slice(None)), (0, [4, 2])):
        h: Any = e
        for part, layer in zip(model.sharing.gates, model.sharing.layers):  # type: ignore
            h = gate(part, seen, t) * torch.relu(h @ layer.weight[t] + layer.bias[t])
        place = model.heads.place[names[t]]
        expected = h @ model.heads.weight[place].T + model.heads.bias[place]
        torch.testing.assert_close(found[names[t]], expected[rows], rtol=1e-4, atol=1e-5)


def test_closed_gates_are_the_plain_network(mixed: Prepared) -> None:
    """Oracle: at the start (last layer zero) every gate is 1: embeddings straight into a tower a task."""
    model = made(mixed).eval()
    inputs = mixed.batch(torch.arange(20), tasks=()).inputs
    found = model(inputs)
    for t, name in enumerate(model.tasks):
        h = model.encoder(inputs, {}).main
        for layer in model.sharing.layers:  # type: ignore[union-attr]
            h = torch.relu(h @ layer.weight[t] + layer.bias[t])
        place = model.heads.place[name]
        torch.testing.assert_close(found[name], h @ model.heads.weight[place].T + model.heads.bias[place])


def test_gates_do_not_train_the_embeddings(mixed: Prepared) -> None:
    """Autograd: with the towers' own path cut (their weights zero behind the gates' product, biases one), nothing is left that
    could reach E; yet the gates' tables learn."""
    model = opened(made(mixed))
    with torch.no_grad():
        for layer in model.sharing.layers:  # type: ignore[union-attr]
            layer.weight.zero_()
            layer.bias.fill_(1.0)
    inputs = mixed.batch(torch.arange(40), tasks=()).inputs
    out = model(inputs)
    torch.stack([value.square().sum() for value in out.values()]).sum().backward()
    for p in model.encoder.parameters():
        assert p.grad is None or p.grad.abs().sum() == 0
    assert model.prior.categorical.table.grad.abs().sum() > 0  # type: ignore[union-attr]
    open_again = opened(made(mixed))
    torch.stack([value.square().sum() for value in open_again(inputs).values()]).sum().backward()
    assert open_again.encoder.categorical.table.grad.abs().sum() > 0  # type: ignore
    assert open_again.domain.categorical.table.grad.abs().sum() > 0  # type: ignore


def test_the_domains_gate_reads_embeddings_and_trains_none(mixed: Prepared) -> None:
    """What EPNet's gate is given has a gradient to the domain's own table and none to E."""
    model, read = opened(made(mixed)), []
    assert model.epnet is not None
    model.epnet.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(mixed.batch(torch.arange(40), tasks=()).inputs)
    read[0].square().sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.domain.categorical.table.grad.abs().sum() > 0  # type: ignore


def test_without_a_domain_there_is_no_epnet(mixed: Prepared) -> None:
    model = made(mixed, domain=None, prior=None)
    assert model.epnet is None
    assert model.prior.width == 8  # the one categorical column


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "wrod"}, "did you mean 'word'"),
        ({"prior": ["nothing"]}, "unknown input column"),
        ({"gate": 0}, "gate must be a whole number of at least 1"),
        ({"hidden": (4, 0)}, "hidden must be"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str, mixed: Prepared) -> None:
    with pytest.raises(BadInput, match=message):
        made(mixed, **settings)
