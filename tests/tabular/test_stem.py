"""STEM: if these fail, a task moves another's embeddings, or no longer reads them."""

from __future__ import annotations

import pytest
import torch

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.tabular.stem import STEM


def made(data: Prepared, tower: int = 0) -> STEM:
    torch.manual_seed(0)
    model = STEM.of(data.tasks, data.columns, width=8, depth=1, dropout=0.0, tower=tower)
    with torch.no_grad():
        model.heads.weight.uniform_(-1, 1)
    return model


@pytest.mark.parametrize("tower", [0, 16])
def test_own_and_shared_backward_all_forward(mixed: Prepared, tower: int) -> None:
    """Autograd: ∂L_t/∂table_s = 0 for every other task s, not for t and the shared one; yet the value depends on s."""
    model, inputs = made(mixed, tower), mixed.batch(torch.arange(60), tasks=()).inputs
    names = list(model.tasks)
    for t in (0, 3):
        model.zero_grad()
        model(inputs)[names[t]].square().sum().backward()
        for p in model.own.parameters():
            if p.grad is None:
                continue
            each = len(p) // len(names)
            moved = [bool(p.grad[s * each : (s + 1) * each].abs().sum() > 0) for s in range(len(names))]
            assert not any(moved[s] for s in range(len(names)) if s != t)
        table = model.own.categorical.table.grad
        assert table is not None
        assert table[t].abs().sum() > 0
        shared = model.encoder.categorical.table.grad  # type: ignore[union-attr]
        assert shared.abs().sum() > 0  # type: ignore[union-attr, operator]
    before = model(inputs)[names[0]].detach()
    with torch.no_grad():
        model.own.first.bias[3, 0] += 5.0
    assert not torch.allclose(model(inputs)[names[0]], before)


def test_by_hand(mixed: Prepared) -> None:
    """Oracle: the mixture's value, expert by expert, for a subset of the tasks."""
    model, inputs = made(mixed), mixed.batch(torch.arange(20), tasks=()).inputs
    names = list(model.tasks)
    common, own = model.encoder(inputs, {}).main, model.own.run(inputs)
    found = model(inputs, {names[2]: None, names[1]: torch.tensor([4, 2])})
    for t, rows in ((2, slice(None)), (1, [4, 2])):
        g = torch.softmax(own[t] @ model.sharing.gates.weight[t], -1)  # type: ignore[union-attr, index]
        h = g[:, :1] * common + sum(g[:, [1 + s]] * own[s] for s in range(len(names)))
        place = model.heads.place[names[t]]
        expected = h @ model.heads.weight[place].T + model.heads.bias[place]
        torch.testing.assert_close(found[names[t]], expected[rows])


def test_bad_input(mixed: Prepared) -> None:
    with pytest.raises(BadInput, match="tower must be a whole number"):
        made(mixed, tower=-1)
