"""Banks: if these fail, parallel networks are not the networks they claim to be, or an absent one moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pluribus.modeling.experts import Bank, StackedLinear
from pluribus.training import SliceAdamW


@given(size=st.integers(1, 4), rows=st.integers(1, 5), shared=st.booleans(), seed=st.integers(0, 99))
def test_equals_separate_linears(size: int, rows: int, shared: bool, seed: int) -> None:
    """Oracle: E torch.nn.Linear with the same weights, on one input or on one each."""
    torch.manual_seed(seed)
    bank = StackedLinear(size, 3, 2)
    x = torch.randn(rows, 3) if shared else torch.randn(size, rows, 3)
    expected = torch.stack([
        nn.functional.linear(x if shared else x[i], bank.weight[i].T, bank.bias[i]) for i in range(size)
    ])
    torch.testing.assert_close(bank(x), expected)


@given(size=st.integers(2, 5), seed=st.integers(0, 99))
def test_active_is_a_selection(size: int, seed: int) -> None:
    torch.manual_seed(seed)
    bank = Bank(size, (3, 4, 2))
    active = torch.randperm(size)[: 1 + seed % size]
    x = torch.randn(6, 3)
    torch.testing.assert_close(bank(x, active), bank(x)[active])
    each = torch.randn(len(active), 6, 3)
    whole = torch.zeros(size, 6, 3).index_copy(0, active, each)
    torch.testing.assert_close(bank(each, active), bank(whole)[active])


def test_bank_equals_a_loop_of_mlps() -> None:
    """Oracle: nn.Sequential(Linear, ReLU, Linear) per slice."""
    torch.manual_seed(0)
    bank, x = Bank(3, (5, 7, 2)), torch.randn(3, 4, 5)
    for i in range(3):
        one = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
        with torch.no_grad():
            for mine, theirs in ((bank.layers[0], one[0]), (bank.layers[1], one[2])):
                theirs.weight.copy_(mine.weight[i].T)
                theirs.bias.copy_(mine.bias[i])
        torch.testing.assert_close(bank(x)[i], one(x[i]))


def test_drawn_as_linear_draws() -> None:
    """Each slice has the distribution of a Linear of its own size: uniform within ±1/√in, whatever E is."""
    torch.manual_seed(0)
    bank, one = StackedLinear(200, 16, 8), nn.Linear(16, 8)
    bound = 16**-0.5
    for values in (bank.weight.detach(), bank.bias.detach()):
        assert values.abs().max() <= bound
        assert abs(float(values.mean())) < 0.05 * bound
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert one.weight.abs().max() <= bound


def test_absent_slices_do_not_move() -> None:
    """Weights and moments of slices that took no part in a step stay bit-identical, also under weight decay and momentum."""
    torch.manual_seed(0)
    bank = Bank(4, (3, 5, 2))
    parameters = list(bank.parameters())
    optimizer = SliceAdamW(parameters, stacked=parameters, lr=0.1, weight_decay=0.1)
    bank(torch.randn(6, 3)).square().sum().backward()
    optimizer.step()  # all have moments now
    frozen = [0, 2]
    before = {p: p.detach().clone() for p in parameters}
    moments = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in parameters}
    for _ in range(3):
        optimizer.zero_grad()
        active = torch.tensor([1, 3])
        bank(torch.randn(6, 3), active).square().sum().backward()
        optimizer.step(active=dict.fromkeys(parameters, active))
    for p in parameters:
        assert torch.equal(p[frozen], before[p][frozen])
        assert not torch.equal(p[[1, 3]], before[p][[1, 3]])
        for name, value in optimizer.state[p].items():
            assert torch.equal(value[frozen], moments[p][name][frozen]), name
