"""Embeddings of columns: against the authors' library, by hand, and with missing values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pluribus.tabular.embeddings import PLR, Categorical, Numeric, PiecewiseLinear, Plain, thinned


def _present(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def test_piecewise_linear_by_hand() -> None:
    encode = PiecewiseLinear([[0.0, 1.0, 3.0]])
    x = torch.tensor([[[-0.5], [0.5], [1.0], [2.0], [4.0], [99.0]]])
    expected = torch.tensor([[-0.5, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1.5], [1, 2]])
    torch.testing.assert_close(encode(x, _present(x))[0], expected)


def test_one_bin_is_min_max_scaling() -> None:
    encode = PiecewiseLinear([[2.0, 6.0]], bins=1)
    x = torch.linspace(2, 6, 9)[None, :, None]
    torch.testing.assert_close(encode(x, _present(x)), (x - 2) / 4)


@pytest.mark.peer
def test_piecewise_linear_equals_the_authors() -> None:
    """Oracle: rtdl_num_embeddings, within the training range (beyond it theirs goes on without end)."""
    rtdl = pytest.importorskip("rtdl_num_embeddings")
    torch.manual_seed(0)
    x = torch.randn(500, 3)
    bins = rtdl.compute_bins(x, n_bins=8)
    theirs = rtdl.PiecewiseLinearEncoding(bins)(x)
    ours = PiecewiseLinear([b.numpy() for b in bins], bins=8)(x[None], _present(x[None]))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("lite", [True, False])
def test_periodic_equals_the_authors(lite: bool) -> None:
    """Oracle: rtdl_num_embeddings with our weights put in."""
    rtdl = pytest.importorskip("rtdl_num_embeddings")
    torch.manual_seed(0)
    theirs = rtdl.PeriodicEmbeddings(3, 4, n_frequencies=5, frequency_init_scale=0.1, activation=True, lite=lite)
    ours = PLR(3, frequencies=5, sigma=0.1, per_feature=4, lite=lite)
    with torch.no_grad():
        theirs.periodic.weight.copy_(ours.c[0])
        theirs.linear.weight.copy_(ours.linear.weight[0].T if lite else ours.linear.weight)
        theirs.linear.bias.copy_(ours.linear.bias[0] if lite else ours.linear.bias)
    x = torch.randn(7, 3)
    torch.testing.assert_close(ours(x[None], _present(x[None]))[0], theirs(x).flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lite", [True, False])
def test_frequencies_are_truncated(lite: bool) -> None:
    torch.manual_seed(0)
    c = PLR(100, sigma=0.5, lite=lite).c
    assert c.abs().max() <= 1.5
    assert float(c.detach().std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["plain", "piecewise_linear", "plr", "plr_lite"])
def test_missing_numbers_never_reach_a_gradient(kind: str) -> None:
    """NaN gives zeros and an indicator, finite gradients, and does not depend on what would have been there."""
    torch.manual_seed(0)
    values = {
        "plain": lambda: Plain(2),
        "piecewise_linear": lambda: PiecewiseLinear([[-1.0, 0, 1]] * 2),
        "plr": lambda: PLR(2, lite=False),
        "plr_lite": lambda: PLR(2),
    }[kind]()
    embed = Numeric(values, 2)
    x = torch.tensor([[[0.3, torch.nan], [torch.nan, torch.nan], [0.1, -0.2]]])
    out = embed(x)
    assert out.shape == (1, 3, embed.width)
    assert out.isfinite().all()
    torch.testing.assert_close(out[0, 1, :-2], torch.zeros(embed.width - 2))
    torch.testing.assert_close(out[0, :, -2:], torch.tensor([[0.0, 1], [1, 1], [0, 0]]))
    weight = torch.randn(embed.width, requires_grad=True)
    (out @ weight).sum().backward()
    for p in (weight, *embed.parameters()):
        assert p.grad is not None
        assert p.grad.isfinite().all()


def test_categories_share_one_table_without_touching() -> None:
    """Column c's code k is row offset_c + k; gradients fall on the rows that were read and on no other."""
    torch.manual_seed(0)
    embed = Categorical([3, 4], size=2)
    codes = torch.tensor([[[2, 0], [0, 3]]], dtype=torch.int32)
    out = embed(codes)
    table = embed.table[0]
    torch.testing.assert_close(out[0, 0], torch.cat((table[2], table[3])))
    torch.testing.assert_close(out[0, 1], torch.cat((table[0], table[6])))
    out.sum().backward()
    assert embed.table.grad is not None
    assert embed.table.grad[0].abs().sum(1).nonzero()[:, 0].tolist() == [0, 2, 3, 6]


def test_copies_are_separate_embeddings() -> None:
    torch.manual_seed(0)
    plr, table = PLR(2, lite=False, copies=3, sigma=1.0), Categorical([3], size=2, copies=3)
    x, codes = torch.randn(1, 4, 2), torch.randint(0, 3, (1, 4, 1))
    e, c = plr(x, _present(x)), table(codes)
    one = torch.tensor([1])
    torch.testing.assert_close(plr(x, _present(x), one)[0], e[1])
    torch.testing.assert_close(table(codes, one)[0], c[1])
    assert not torch.allclose(e[0], e[1])
    torch.testing.assert_close(c[2], table.table[2][codes[0, :, 0]])


def test_no_columns_of_a_kind() -> None:
    """A table of words only, or of numbers only, has an embedding of width 0 for the other kind."""
    assert Categorical([])(torch.zeros(1, 5, 0, dtype=torch.int32)).shape == (1, 5, 0)
    assert Numeric(PiecewiseLinear([]), 0)(torch.zeros(1, 5, 0)).shape == (1, 5, 0)
    assert Numeric(PLR(0), 0)(torch.zeros(1, 5, 0)).shape == (1, 5, 0)


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=60), st.integers(1, 20))
def test_thinned_edges(values: list[float], bins: int) -> None:
    edges = thinned(values, bins)
    assert 2 <= len(edges) <= bins + 1
    assert (np.diff(edges) > 0).all()
    if len(set(values)) > 1:
        assert edges[0] == min(values)
        assert edges[-1] == max(values)
