"""MultiTab-Bench: the tables have the correlations, degrees, links, holes and categories that were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.tabular import multitab_bench
from pluribus.tabular.multitab_tables import directions, matrix


@given(st.integers(2, 10), st.floats(0, 1), st.integers(0, 9))
def test_directions_have_the_wanted_inner_products(tasks: int, place: float, seed: int) -> None:
    """Oracle: W Wᵀ = P to 1e-6, anywhere from the lowest possible correlation to 1."""
    rho = -1 / (tasks - 1) + place * (1 + 1 / (tasks - 1))
    p = matrix(tasks, rho)
    w = directions(p, 12, np.random.default_rng(seed))
    np.testing.assert_allclose(w @ w.T, p, atol=1e-6)


@pytest.mark.parametrize("rho", [-0.1, 0.0, 0.4, 0.9])
def test_empirical_correlation(rho: float) -> None:
    """Tasks of degree 1 without noise are the linear parts: their correlation is ρ."""
    frame = multitab_bench(40_000, tasks=5, features=8, correlation=rho, degrees=[1] * 5, noise=0.0, seed=1)
    found = np.corrcoef(frame[[f"y{t}" for t in range(5)]].to_numpy().T)
    np.testing.assert_allclose(found[~np.eye(5, dtype=bool)], rho, atol=0.02)


def test_blocks() -> None:
    frame = multitab_bench(
        40_000, tasks=5, features=8, correlation=[0.8, 0.3], blocks=[2, 3], between=0.1, degrees=[1] * 5, noise=0.0
    )
    found = np.corrcoef(frame[[f"y{t}" for t in range(5)]].to_numpy().T)
    assert found[0, 1] == pytest.approx(0.8, abs=0.02)
    np.testing.assert_allclose([found[2, 3], found[2, 4], found[3, 4]], 0.3, atol=0.02)
    np.testing.assert_allclose(found[:2, 2:], 0.1, atol=0.02)


def test_degrees() -> None:
    """y_t is exactly s + s² + … + s^deg of the same s: the tasks share their direction where P is all ones."""
    frame = multitab_bench(500, tasks=3, features=4, correlation=1.0, degrees=[1, 2, 3], noise=0.0)
    s = frame["y0"]
    np.testing.assert_allclose(frame["y1"], s + s**2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(frame["y2"], s + s**2 + s**3, rtol=1e-5, atol=1e-6)


def test_noise_has_its_spread() -> None:
    clean, noisy = (multitab_bench(20_000, tasks=1, features=2, noise=n, seed=3)["y0"] for n in (0.0, 0.5))
    assert float((noisy - clean).std()) == pytest.approx(0.5, rel=0.03)


def test_links_holes_and_categories() -> None:
    frame = multitab_bench(
        10_000, tasks=3, features=6, binary={"y1": 0.2}, categorical=2, bins=4, missing=0.1, missing_labels=0.3, seed=2
    )
    assert set(frame["y1"].dropna()) == {0.0, 1.0}
    assert float(frame["y1"].mean()) == pytest.approx(0.2, abs=0.02)
    for name in ("y0", "y1", "y2"):
        assert float(frame[name].isna().mean()) == pytest.approx(0.3, abs=0.02)
    for j in range(6):
        assert float(frame[f"x{j}"].isna().mean()) == pytest.approx(0.1, abs=0.02)
    for j in (4, 5):
        share = frame[f"x{j}"].value_counts(normalize=True)
        assert sorted(share.index) == ["c0", "c1", "c2", "c3"]
        np.testing.assert_allclose(share, 0.25, atol=0.02)
    assert frame["x3"].dtype == np.float64


def test_a_seed_is_a_table() -> None:
    one, again, other = (multitab_bench(50, seed=seed) for seed in (5, 5, 6))
    assert one.equals(again)
    assert not one.equals(other)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": 9, "features": 8}, "9 tasks need at least as many features"),
        ({"correlation": -0.5}, "a correlation of -0.5 among 7 tasks is impossible"),
        ({"correlation": 1.5}, "is impossible"),
        ({"correlation": "high"}, "must be a number, one a block, or a matrix"),
        ({"tasks": 2, "correlation": [[1, 0.5], [0.4, 1]]}, "must be symmetric"),
        ({"tasks": 3, "correlation": [[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]}, "eigenvalue"),
        ({"blocks": [3, 3]}, "blocks must be whole numbers that add up to 7"),
        ({"blocks": 7}, "blocks must be whole numbers that add up to 7"),
        ({"blocks": [3, 4], "correlation": [0.1, 0.2, 0.3]}, "3 values for 2 blocks"),
        ({"blocks": [3, 4], "correlation": None}, "must be numbers"),
        ({"degrees": [1, 2]}, "degrees has 2 values for 7 tasks"),
        ({"degrees": [0] * 7}, "degrees must be whole numbers from 1 to 9"),
        ({"binary": {"z": 0.5}}, "binary names 'z', but the targets are y0 … y6"),
        ({"binary": {"y0": 1.0}}, "the share of positives of 'y0' must lie between 0 and 1"),
        ({"missing": 1.0}, "missing must be a share"),
        ({"noise": -1}, "noise must be a number of at least 0"),
        ({"rows": 0}, "rows must be a whole number of at least 1"),
        ({"rows": 10**9}, "rows must be at most"),
        ({"categorical": 99}, "categorical must be at most"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        multitab_bench(**{"rows": 10, **settings})
