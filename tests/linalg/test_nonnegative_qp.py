"""The non-negative QP under UPGrad, DualProj, MGDA and CAGrad: KKT conditions, both solvers, hard and degenerate matrices."""

import itertools

import pytest
import torch

from pluribus.linalg.nonnegative_qp import _interior_point, nonnegative_qp

SHAPES = [(1, 5), (2, 1), (3, 2), (5, 3), (10, 40), (10, 9), (40, 400), (40, 39), (40, 25), (40, 10)]


def problem(size, dimensions, seed, kind):
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, dimensions, generator=source, dtype=torch.float64)
    if kind == "alike":
        rows = rows + 4 * torch.randn(1, dimensions, generator=source, dtype=torch.float64)
    matrix = rows @ rows.T / dimensions + 1e-10 * torch.eye(size, dtype=torch.float64)
    if kind == "bounded":  # q in the range of C, as in a projection on a cone
        linear = torch.randn(7, size, generator=source, dtype=torch.float64) @ (matrix - 1e-10 * torch.eye(size))
    else:
        linear = torch.randn(7, size, generator=source, dtype=torch.float64)
    return matrix, linear


def assert_kkt(matrix, linear, x, tolerance):
    y = x @ matrix + linear
    scale = x @ matrix.abs() + linear.abs()
    assert (x >= 0).all()
    assert (y >= -tolerance * scale).all()
    assert ((x * y).abs().sum(-1) <= tolerance * (x * scale).sum(-1) + 1e-300).all()


@pytest.mark.parametrize("kind", ["plain", "alike", "bounded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kkt(shape, kind):
    for seed in range(3):
        matrix, linear = problem(*shape, seed, kind)
        assert_kkt(matrix, linear, nonnegative_qp(matrix, linear), 1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_accelerators_way_meets_the_same_conditions(shape):
    """On a device that must not be asked, the interior point runs alone: it must reach the optimum, not only approach it."""
    matrix, linear = problem(*shape, 0, "bounded")
    x = _interior_point(matrix.expand(7, -1, -1), linear, 40)
    assert_kkt(matrix, linear, x, 1e-8)
    value = ((x @ matrix) * x).sum(-1) / 2 + (x * linear).sum(-1)
    other = nonnegative_qp(matrix, linear)
    best = ((other @ matrix) * other).sum(-1) / 2 + (other * linear).sum(-1)
    torch.testing.assert_close(value, best, rtol=1e-9, atol=1e-12)


def test_against_all_supports():
    """For T = 4 every support can be tried: the best feasible one is the answer."""
    for seed in range(20):
        matrix, linear = problem(4, 6, seed, "plain")
        for q, x in zip(linear, nonnegative_qp(matrix, linear)):
            values = []
            for number in range(5):
                for support in map(list, itertools.combinations(range(4), number)):
                    z = torch.zeros(4, dtype=torch.float64)
                    if support:
                        z[support] = torch.linalg.solve(matrix[support][:, support], -q[support])
                    if (z >= 0).all():
                        values.append(float(z @ matrix @ z / 2 + q @ z))
            assert float(x @ matrix @ x / 2 + q @ x) == pytest.approx(min(values), abs=1e-12)


def test_a_batch_is_its_problems_and_a_guess_changes_nothing():
    matrices, linears = zip(*(problem(6, 8, seed, "plain") for seed in range(5)))
    matrix, linear = torch.stack(matrices), torch.stack([q[0] for q in linears])
    x = nonnegative_qp(matrix, linear)
    for i in range(5):
        torch.testing.assert_close(nonnegative_qp(matrix[i], linear[i]), x[i])
        torch.testing.assert_close(nonnegative_qp(matrix[i], linear[i], torch.ones(6, dtype=torch.bool)), x[i])


def test_nothing_to_gain_is_zero():
    assert torch.equal(nonnegative_qp(torch.eye(3), torch.tensor([1.0, 0.0, 2.0])), torch.zeros(3))
