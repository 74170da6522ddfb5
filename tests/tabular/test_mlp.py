"""The residual MLP: by hand, in copies, and row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pluribus.errors import BadInput
from pluribus.tabular.mlp import EMBEDDINGS, TabularMLP

EDGES = [np.linspace(-2, 2, 6), np.array([-1.0, 0.0, 1.0])]


def _inputs(*shape: int) -> dict[str, torch.Tensor]:
    x = torch.randn(*shape, 2)
    x[..., 0, 1] = torch.nan
    return {"numeric": x, "categorical": torch.randint(0, 4, (*shape, 1))}


def test_by_hand() -> None:
    """Oracle: the docstring's equations with plain functions."""
    torch.manual_seed(0)
    net = TabularMLP(EDGES, [4], width=8, depth=2, embedding="plain").eval()
    inputs = _inputs(5)
    x, missing = inputs["numeric"].nan_to_num(0.0), inputs["numeric"].isnan().float()
    h = torch.cat((x, missing, net.categorical.table[0][inputs["categorical"][:, 0]]), 1)
    h = h @ net.first.weight[0] + net.first.bias[0]
    for block in net.blocks:
        h = h + F.relu(F.layer_norm(h, (8,)) @ block.weight[0] + block.bias[0])
    torch.testing.assert_close(net(inputs, {}).main, F.layer_norm(h, (8,)))


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_copies_are_separate_networks(embedding: Any) -> None:
    """Slice i of a bank is the network with slice i's weights, on shared rows, on own rows, and among a selection."""
    torch.manual_seed(0)
    bank = TabularMLP(EDGES, [4], width=8, embedding=embedding, copies=3).eval()
    one = TabularMLP(EDGES, [4], width=8, embedding=embedding).eval()
    same, own = _inputs(5), _inputs(3, 5)
    with torch.no_grad():
        for i in range(3):
            for whole, part in zip(bank.parameters(), one.parameters()):
                each = len(whole) // 3
                part.copy_(whole[i * each : (i + 1) * each])
            torch.testing.assert_close(bank.run(same)[i], one(same, {}).main)
            torch.testing.assert_close(bank.run(own)[i], one({k: v[i] for k, v in own.items()}, {}).main)
            torch.testing.assert_close(bank.run(same, torch.tensor([2, i]))[1], one(same, {}).main)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_row_depends_on_itself_alone(embedding: Any) -> None:
    """No statistics of the batch: predictions do not depend on who is served beside."""
    torch.manual_seed(0)
    net, inputs = TabularMLP(EDGES, [4], width=8, embedding=embedding).train(), _inputs(6)
    net.dropout = 0.0
    alone = torch.cat([net({k: v[i : i + 1] for k, v in inputs.items()}, {}).main for i in range(6)])
    torch.testing.assert_close(net(inputs, {}).main, alone)


def test_unknown_embedding_suggests_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'plr_lite'"):
        TabularMLP(EDGES, [4], embedding="plrlite")  # type: ignore[arg-type]
