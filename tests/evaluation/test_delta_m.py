"""Δm in each convention: mixing their signs or averages is the commonest error of multi-task tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.evaluation.delta_m import CONVENTIONS, convention, delta, hypervolume, mean_rank, negative_transfer, relative

DIRECTIONS = {"miou": "max", "acc": "max", "abs": "min", "auc": "max", "r2": "max"}
REFERENCE = {"seg": {"miou": 0.40, "acc": 0.50}, "depth": {"abs": 0.20}}
METHOD = {"seg": {"miou": 0.44, "acc": 0.49}, "depth": {"abs": 0.19}}


def test_values_by_hand() -> None:
    """seg: +10 % and −2 %, depth: +5 % (lower is better)."""
    assert delta("mean-relative", METHOD, REFERENCE, DIRECTIONS) == pytest.approx((10 + 5) / 2)
    assert delta("per-task-mean", METHOD, REFERENCE, DIRECTIONS) == pytest.approx(((10 - 2) / 2 + 5) / 2)
    assert delta("all-metrics", METHOD, REFERENCE, DIRECTIONS) == pytest.approx(-(10 - 2 + 5) / 3)


def test_error_reduction_and_relaimpr_by_hand() -> None:
    base, better = {"click": {"auc": 0.70}}, {"click": {"auc": 0.73}}
    assert delta("relaimpr", better, base, DIRECTIONS) == pytest.approx(100 * (0.23 / 0.20 - 1))
    assert delta("error-reduction", better, base, DIRECTIONS) == pytest.approx(100 * 0.03 / 0.30)
    r2 = delta("error-reduction", {"t": {"r2": 0.10}}, {"t": {"r2": -0.05}}, DIRECTIONS)
    assert r2 == pytest.approx(100 * 0.15 / 1.05)  # a negative R² is no obstacle here
    assert np.isnan(delta("mean-relative", {"t": {"r2": 0.10}}, {"t": {"r2": -0.05}}, DIRECTIONS))


@pytest.mark.parametrize("name", sorted(set(CONVENTIONS) - {"relaimpr", "error-reduction"}))
def test_equal_scores_give_zero_and_the_sign_is_the_declared_one(name: str) -> None:
    assert delta(name, REFERENCE, REFERENCE, DIRECTIONS) == 0
    better = {"seg": {"miou": 0.5, "acc": 0.6}, "depth": {"abs": 0.1}}
    assert (delta(name, better, REFERENCE, DIRECTIONS) > 0) == convention(name).higher
    assert convention(name).sign == ("higher is better" if convention(name).higher else "lower is better")


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0.01, 100))
def test_scale_of_a_metric_does_not_matter(value: float, base: float, scale: float) -> None:
    a = delta("mean-relative", {"t": {"abs": value}}, {"t": {"abs": base}}, DIRECTIONS)
    b = delta("mean-relative", {"t": {"abs": scale * value}}, {"t": {"abs": scale * base}}, DIRECTIONS)
    assert a == pytest.approx(b, abs=1e-7)


def test_relative_is_undefined_at_and_below_zero() -> None:
    np.testing.assert_array_equal(np.isnan(relative([1, 1, 1], [0, -1, 2], 1)), [True, True, False])


def test_refusals() -> None:
    with pytest.raises(BadInput, match="unknown Δm convention 'mean-relativ'; did you mean 'mean-relative'"):
        convention("mean-relativ")
    with pytest.raises(BadInput, match="do not hold the same metrics"):
        delta("mean-relative", {"seg": {"miou": 0.4}}, REFERENCE, DIRECTIONS)
    with pytest.raises(BadInput, match="no task"):
        delta("mean-relative", {}, {}, DIRECTIONS)
    with pytest.raises(BadInput, match="relaimpr compares AUCs"):
        delta("relaimpr", METHOD, REFERENCE, DIRECTIONS)
    with pytest.raises(BadInput, match="perfect value of 'miou' is not known"):
        delta("error-reduction", METHOD, REFERENCE, DIRECTIONS)


def test_mean_rank_by_hand() -> None:
    scores = {"a": {"t": {"acc": 0.9, "abs": 1.0}}, "b": {"t": {"acc": 0.8, "abs": 1.0}}, "c": {"t": {"acc": 0.7, "abs": 0.5}}}
    assert mean_rank(scores, DIRECTIONS) == {"a": 1.75, "b": 2.25, "c": 2.0}
    with pytest.raises(BadInput, match="lacks 'abs'"):
        mean_rank({**scores, "d": {"t": {"acc": 1.0}}}, DIRECTIONS)


def test_negative_transfer_counts_whole_intervals_below_zero() -> None:
    assert negative_transfer([(-2, -1), (-1, 1), (1, 2), (-3, -0.1)]) == 0.5


@pytest.mark.parametrize(
    ("points", "bound", "volume"),
    [
        ([(1, 2), (2, 1)], (3, 3), 3),
        ([(0, 0, 0)], (1, 1, 1), 1),
        ([(5, 5)], (3, 3), 0),
        ([(1,), (2,)], (4,), 3),
        ([(0, 0, 1), (0, 1, 0), (1, 0, 0)], (2, 2, 2), 7),  # all of the cube but [0,1)³
    ],
)
def test_hypervolume_closed_forms(points: list[tuple[float, ...]], bound: tuple[float, ...], volume: float) -> None:
    assert hypervolume(points, bound) == pytest.approx(volume)


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=8), st.integers(0, 7))
def test_hypervolume_counts_dominated_cells(points: list[tuple[int, ...]], dropped: int) -> None:
    """On whole numbers the volume is the number of unit cells that some point dominates; more points never lower it."""
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    cells = (grid[:, None] >= np.array(points)[None]).all(2).any(1).sum()
    assert hypervolume(points, (5, 5, 5)) == pytest.approx(cells)
    fewer = [p for i, p in enumerate(points) if i != dropped % len(points)]
    if fewer:
        assert hypervolume(fewer, (5, 5, 5)) <= cells
