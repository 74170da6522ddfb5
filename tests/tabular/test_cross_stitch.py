"""Cross-stitch through whole networks: if these fail, the networks are not the single ones, or their stitches combine nothing."""

from __future__ import annotations

import pytest
import torch

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.tabular.cross_stitch import CrossStitchNetworks
from pluribus.tabular.mlp import TabularMLP


def made(data: Prepared, own: float = 0.9) -> CrossStitchNetworks:
    torch.manual_seed(0)
    model = CrossStitchNetworks.of(data.tasks, data.columns, width=8, depth=2, dropout=0.0, own=own)
    with torch.no_grad():
        model.heads.weight.uniform_(-1, 1)
    return model


def test_identity_is_the_single_networks(mixed: Prepared) -> None:
    """Oracle: α = I: the bank of single networks with the same weights, task by task."""
    model, inputs = made(mixed, own=1.0), mixed.batch(torch.arange(30), tasks=()).inputs
    bank = TabularMLP.of(mixed.columns, width=8, depth=2, dropout=0.0, copies=len(mixed.tasks))
    state = {name.removeprefix("encoder."): v for name, v in model.state_dict().items() if name.startswith("encoder.")}
    state |= {
        name.removeprefix("sharing."): v
        for name, v in model.state_dict().items()
        if name.startswith(("sharing.first", "sharing.blocks"))
    }
    bank.load_state_dict(state)
    h, found = bank.run(inputs), model(inputs)
    for t, name in enumerate(model.tasks):
        place = model.heads.place[name]
        torch.testing.assert_close(found[name], h[t] @ model.heads.weight[place].T + model.heads.bias[place])


def test_every_network_reaches_every_task(mixed: Prepared) -> None:
    """Autograd: with α ≠ I a task's loss reaches all networks and their embeddings; with α = I its own alone."""
    inputs = mixed.batch(torch.arange(30), tasks=()).inputs
    name = list(mixed.tasks)[1].name
    for own, reached in ((0.9, [True] * 5), (1.0, [False, True, False, False, False])):
        model = made(mixed, own)
        model(inputs, {name: None})[name].square().sum().backward()
        table = model.encoder.categorical.table.grad  # type: ignore[union-attr]
        assert [bool(t.abs().sum() > 0) for t in table] == reached  # type: ignore


def test_bad_input(mixed: Prepared) -> None:
    with pytest.raises(BadInput, match="own must lie between 0 and 1, not 2"):
        made(mixed, own=2)
