"""The min-norm point: optimality over all the matrices that a training run can produce. If it fails, MGDA climbs some loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.linalg.min_norm import min_norm


def rows(size, dimensions, seed, spread=0.0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    j = torch.randn(size, dimensions, generator=source, dtype=torch.float64)
    return (j * 10 ** (spread * (2 * torch.rand(size, 1, generator=source, dtype=torch.float64) - 1))).to(dtype)


def assert_optimal(j, w, tolerance):
    """(G w)_t ≥ wᵀ G w for all t: the KKT conditions on the simplex, relative to the product of the lengths involved."""
    assert torch.isfinite(w).all()
    assert (w >= 0).all()
    assert abs(float(w.sum()) - 1) < 10 * len(w) * torch.finfo(w.dtype).eps
    d = j.T @ w
    reach = float((w * j.norm(dim=1)).sum())  # ‖d‖ before cancellation
    assert (j @ d >= d @ d - tolerance * (j.norm(dim=1) * reach + reach**2)).all()


@given(st.sampled_from([1, 2, 3, 10, 40]), st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 3.0, 6.0]))
def test_optimal(size, dimensions, seed, spread):
    j = rows(size, dimensions, seed, spread)
    assert_optimal(j, min_norm(j @ j.T), 1e-7)


@given(st.sampled_from([2, 3, 10, 40]), st.integers(1, 60), st.integers(0, 10**6))
def test_optimal_in_single_precision(size, dimensions, seed):
    j = rows(size, dimensions, seed, 1.0, torch.float32)
    w = min_norm(j @ j.T)
    assert w.dtype == torch.float32
    assert_optimal(j, w, 3e-3)


@pytest.mark.parametrize("gram", [torch.zeros(3, 3), torch.zeros(1, 1), torch.ones(4, 4), torch.tensor([[1.0, -1], [-1, 1]])])
def test_degenerate_matrices(gram):
    w = min_norm(gram)
    torch.testing.assert_close(w, torch.full((len(gram),), 1 / len(gram)))


def test_a_zero_row_is_the_optimum():
    assert torch.equal(min_norm(torch.diag(torch.tensor([4.0, 0.0, 9.0]))), torch.tensor([0.0, 1.0, 0.0]))


def test_two_tasks_closed_form():
    """γ = clip((g₂ − g₁)·g₂ / ‖g₁ − g₂‖², 0, 1) on task 1."""
    for seed in range(50):
        j = rows(2, 3, seed)
        gamma = ((j[1] - j[0]) @ j[1] / (j[0] - j[1]).square().sum()).clamp(0, 1)
        torch.testing.assert_close(min_norm(j @ j.T), torch.stack((gamma, 1 - gamma)), atol=1e-8, rtol=0)


def test_batched():
    j = torch.stack([rows(5, 4, seed) for seed in range(6)])
    gram = j @ j.mT
    torch.testing.assert_close(min_norm(gram), torch.stack([min_norm(g) for g in gram]))
