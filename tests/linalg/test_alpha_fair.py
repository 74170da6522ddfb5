"""α-fair weights: the stated equation holds, at any length of the rows. If it fails, Nash-MTL and FairGrad are other methods."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.linalg.alpha_fair import alpha_fair


def rows(size, dimensions, seed, spread=0.0):
    source = torch.Generator().manual_seed(seed)
    j = torch.randn(size, dimensions, generator=source, dtype=torch.float64)
    return j * 10 ** (spread * (2 * torch.rand(size, 1, generator=source, dtype=torch.float64) - 1))


def residual(gram, w, alpha, preference=1.0):
    """|G w − p w^{−1/α}| relative to the size of the sums in G w."""
    return ((gram @ w - preference * w ** (-1 / alpha)).abs() / (gram.abs() @ w)).max()


@given(
    st.sampled_from([1, 2, 3, 10, 40]),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1.0, 3.0, 6.0]),
    st.sampled_from([0.5, 1.0, 2.0, 5.0, 10.0]),
)
def test_equation(size, seed, spread, alpha):
    j = rows(size, 60, seed, spread)
    gram = j @ j.T
    w = alpha_fair(gram, alpha)
    assert (w > 0).all()
    assert residual(gram, w, alpha) < 1e-9


@given(st.sampled_from([2, 3, 10, 40]), st.integers(0, 10**6), st.sampled_from([1.0, 2.0]))
def test_stationary_rows_stay_finite(size, seed, alpha):
    """With fewer dimensions than tasks some w ≥ 0 may have Jᵀw = 0: the weights grow, but stay numbers, and d stays small."""
    j = rows(size, max(1, size // 3), seed)
    w = alpha_fair(j @ j.T, alpha)
    assert torch.isfinite(w).all()
    assert (w > 0).all()


@pytest.mark.parametrize("alpha", [0.05, 100.0])
def test_the_ends_of_the_range(alpha):
    j = rows(4, 20, 3)
    gram = j @ j.T
    assert residual(gram, alpha_fair(gram, alpha), alpha) < 1e-8


def test_preference_is_bargaining_power():
    j = rows(4, 20, 1)
    gram, p = j @ j.T, torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    assert residual(gram, alpha_fair(gram, 1.0, p), 1.0, p) < 1e-8
    none = alpha_fair(gram, 1.0, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    assert none[1] == 0
    keep = torch.tensor([0, 2, 3])
    torch.testing.assert_close(none[keep], alpha_fair(gram[keep][:, keep]))


def test_orthogonal_rows_have_a_closed_form():
    """G = diag(a): a w = w^{−1/α}, so that w = a^{−α/(1+α)}."""
    a = torch.tensor([1.0, 100.0, 1e-6], dtype=torch.float64)
    for alpha in (0.5, 1.0, 2.0):
        torch.testing.assert_close(alpha_fair(a.diag(), alpha), a ** (-alpha / (1 + alpha)), rtol=1e-9, atol=0)


def test_zero_rows_and_nothing_at_all():
    w = alpha_fair(torch.diag(torch.tensor([4.0, 0.0])))
    torch.testing.assert_close(w, torch.tensor([0.5, 0.0]))
    assert torch.equal(alpha_fair(torch.zeros(3, 3)), torch.zeros(3))


def test_single_precision_and_batches():
    j = torch.stack([rows(5, 30, seed) for seed in range(4)])
    gram = j @ j.mT
    torch.testing.assert_close(alpha_fair(gram), torch.stack([alpha_fair(g) for g in gram]), rtol=1e-9, atol=0)
    w = alpha_fair(gram.float())
    assert w.dtype == torch.float32
    torch.testing.assert_close(w.double(), alpha_fair(gram), rtol=1e-3, atol=0)


def test_going_on_after_the_solution_does_no_harm(monkeypatch):
    """An accelerator is never asked whether it has arrived: the rounds that follow must stay where they are."""
    j = rows(10, 60, 5, 1.0)
    gram = j @ j.T
    expected = [alpha_fair(gram, alpha) for alpha in (0.5, 1.0, 2.0)]
    monkeypatch.setattr(sys.modules["pluribus.linalg.alpha_fair"], "settled", lambda open_: False)
    for alpha, w in zip((0.5, 1.0, 2.0), expected):
        torch.testing.assert_close(alpha_fair(gram, alpha), w, rtol=1e-9, atol=0)
    assert torch.isfinite(alpha_fair(torch.zeros(3, 3))).all()
    assert torch.isfinite(alpha_fair(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))).all()
