"""Banks: if these fail, parallel networks are not the networks they claim to be, or an absent one moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pluribus.modeling import experts
from pluribus.modeling.experts import PLANS, Bank, StackedLinear, beside, plan
from pluribus.training import SliceAdamW


@given(size=st.integers(1, 4), rows=st.integers(1, 5), shared=st.booleans(), seed=st.integers(0, 99))
def test_equals_separate_linears(size: int, rows: int, shared: bool, seed: int) -> None:
    """Oracle: E torch.nn.Linear with the same weights, on one input or on one each."""
    torch.manual_seed(seed)
    bank = StackedLinear(size, 3, 2)
    x = torch.randn(rows, 3) if shared else torch.randn(size, rows, 3)
    expected = torch.stack([nn.functional.linear(x if shared else x[i], bank.weight[i].T, bank.bias[i]) for i in range(size)])
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


@given(size=st.integers(1, 6), rows=st.integers(1, 7), biased=st.booleans(), shared=st.booleans(), seed=st.integers(0, 99))
def test_plans_agree(size: int, rows: int, biased: bool, shared: bool, seed: int) -> None:
    """Every plan answers and differentiates alike, to 1e-6 in float64, with and without biases."""
    torch.manual_seed(seed)
    found: dict[str, list[torch.Tensor]] = {}
    weight, bias = torch.randn(size, 3, 2, dtype=torch.float64), torch.randn(size, 2, dtype=torch.float64)
    x = torch.randn(rows, 3, dtype=torch.float64) if shared else torch.randn(size, rows, 3, dtype=torch.float64)
    for name, run in PLANS.items():
        if (name == "single" and size > 1) or (name == "wide" and not shared):
            continue
        inputs = [t.clone().requires_grad_() for t in (x, weight, *([bias] if biased else []))]
        h = run(inputs[0], inputs[1], inputs[2] if biased else None)
        found[name] = [h, *torch.autograd.grad(h.square().sum(), inputs)]
    for values in found.values():
        for value, expected in zip(values, found["stacked"]):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_the_plan_follows_the_shape() -> None:
    """The stated rule: one slice alone; wide on a CPU where many rows are common to several slices; else stacked."""
    assert plan(1, 10_000, common=True, cpu=True) == "single"
    assert plan(8, 512, common=True, cpu=True) == "wide"
    assert plan(32, 128, common=True, cpu=True) == "wide"
    assert plan(8, 511, common=True, cpu=True) == "stacked"
    assert plan(3, 10_000, common=True, cpu=True) == "stacked"
    assert plan(8, 4096, common=False, cpu=True) == "stacked"
    assert plan(8, 4096, common=True, cpu=False) == "stacked"


def test_the_rule_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that goes wide answers what the stacked one does, absent slices included."""
    torch.manual_seed(0)
    bank, x, active = StackedLinear(6, 5, 3), torch.randn(9, 5), torch.tensor([4, 0, 1, 5])
    before = bank(x), bank(x, active)
    monkeypatch.setattr(experts, "WIDE_ROWS", 1)
    for old, new in zip(before, (bank(x), bank(x, active))):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 700])
def test_absent_slices_do_not_move_in_any_plan(rows: int) -> None:
    """With few rows (stacked) and many (wide): weights and moments of absent slices stay bit-identical."""
    torch.manual_seed(0)
    bank, active = StackedLinear(7, 3, 2), torch.tensor([0, 2, 3, 4, 5, 6])
    assert plan(6, rows, common=True, cpu=True) == ("wide" if rows == 700 else "stacked")
    optimizer = SliceAdamW(bank.parameters(), stacked=list(bank.parameters()), lr=0.1, weight_decay=0.1)
    bank(torch.randn(rows, 3)).square().sum().backward()
    optimizer.step()
    before = {p: (p.detach()[1].clone(), {k: v[1].clone() for k, v in optimizer.state[p].items()}) for p in bank.parameters()}
    optimizer.zero_grad()
    bank(torch.randn(rows, 3), active).square().sum().backward()
    optimizer.step(active=dict.fromkeys(bank.parameters(), active))
    for p, (weight, moments) in before.items():
        assert torch.equal(p[1], weight)
        assert all(torch.equal(value[1], moments[name]) for name, value in optimizer.state[p].items())


@given(groups=st.integers(1, 3), each=st.tuples(st.integers(1, 3), st.integers(1, 3)), seed=st.integers(0, 99))
def test_layers_beside_each_other(groups: int, each: tuple[int, int], seed: int) -> None:
    """Oracle: the joint product, cut again, is each layer's own product on its group's rows."""
    torch.manual_seed(seed)
    layers = [StackedLinear(groups * n, 4, 2 + n) for n in each]
    x = torch.randn(groups, 5, 4)
    weight, bias = beside(*((layer.weight, layer.bias) for layer in layers), groups=groups)
    h = torch.baddbmm(bias, x, weight).split([n * (2 + n) for n in each], 2)
    for layer, part, n in zip(layers, h, each):
        cut = part.reshape(groups, 5, n, 2 + n).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(cut, layer(x.repeat_interleave(n, 0)))
