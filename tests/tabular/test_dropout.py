"""Dropout by sixteen bits a unit: what torch's is, told by counts, values and gradients."""

from __future__ import annotations

import pytest
import torch

from pluribus.tabular.dropout import kept, relu_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_unit_is_dropped_with_probability_p(p: float) -> None:
    """The count of dropped units is binomial, in every place of the four that one draw decides; draws differ."""
    torch.manual_seed(0)
    m = kept(torch.empty(100_003), p)
    assert set(m.unique().tolist()) == {0.0, 1.0}
    for place in range(4):
        own = 1 - m[place::4]
        assert abs(float(own.mean()) - p) < 4 * (p * (1 - p) / len(own)) ** 0.5
    assert not torch.equal(m, kept(m, p))


@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients(transposed: bool) -> None:
    """What is kept is relu(x)/(1 − p), and the gradient passes there and only there; whatever the layout of x."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    x = (x.transpose(0, 2) if transposed else x).detach().requires_grad_()
    found = relu_dropout(x, 0.25, True)
    on = found != 0
    assert 0 < on.sum() < (x > 0).sum()
    torch.testing.assert_close(found[on], x[on] / 0.75)
    slope = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(found, x, slope)
    torch.testing.assert_close(gradient, torch.where(on, slope / 0.75, 0.0))


def test_nothing_is_dropped_outside_training() -> None:
    x = torch.randn(5, 7)
    assert torch.equal(relu_dropout(x, 0.5, False), torch.relu(x))
    assert torch.equal(relu_dropout(x, 0.0, True), torch.relu(x))
