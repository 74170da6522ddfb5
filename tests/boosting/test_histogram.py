"""Binning and growing: bins and raw values send a row the same way, limits are kept, the histogram kernel counts right."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pluribus.boosting.histogram import Binner, kernels
from pluribus.boosting.tree import Grower, TreeArrays


def grown(X: Any, y: Any, **settings: Any) -> Any:
    binner = Binner.fit(X, np.zeros(X.shape[1], dtype=bool), settings.pop("max_bins", 255))
    grower = Grower(binner.transform(X), binner, **settings)
    return grower, grower.grow(np.arange(len(X)), np.array([0, len(X)]), -y.reshape(len(y), -1), np.empty((len(X), 0)))


def test_few_values_keep_one_bin_each_and_many_are_cut_at_quantiles() -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(0, 7, 5000), rng.standard_normal(5000)]).astype(float)
    binner = Binner.fit(X, np.zeros(2, dtype=bool))
    assert binner.n_values.tolist() == [7, 255]
    assert binner.exact.tolist() == [True, False]
    counts = np.bincount(binner.transform(X)[:, 1], minlength=255)
    assert counts.max() <= 2 * 5000 / 255
    assert counts.min() > 0


def test_codes_of_missing_and_of_new_values() -> None:
    """NaN has the code after the last value; a value between two bins goes to the nearer one."""
    X = np.array([[0.0], [1.0], [3.0], [np.nan]])
    binner = Binner.fit(X, np.array([False]))
    assert binner.transform(X)[:, 0].tolist() == [0, 1, 2, 3]
    assert binner.transform(np.array([[-9.0], [0.4], [0.6], [2.1], [9.0]]))[:, 0].tolist() == [0, 0, 1, 2, 2]


def test_neighbouring_floats_and_an_empty_column() -> None:
    a = 1.0
    X = np.array([[a, np.nan], [np.nextafter(a, 2), np.nan], [2.0, np.nan]])
    binner = Binner.fit(X, np.zeros(2, dtype=bool))
    assert binner.transform(X)[:, 0].tolist() == [0, 1, 2]
    _, tree = grown(X, np.array([0.0, 5.0, 5.0]))
    out = np.zeros((3, 1))
    tree.trees.add_to(out, X)
    np.testing.assert_allclose(out[:, 0], [0, 5, 5])


@pytest.mark.parametrize(("K", "width"), [(1, 0), (1, 1), (3, 0), (3, 1), (3, 3)])
def test_histogram_equals_bincount(K: int, width: int) -> None:
    rng = np.random.default_rng(0)
    n, d = 300, 3
    bins = rng.integers(0, 5, (n, d)).astype(np.uint8)
    G, H = rng.standard_normal((n, K)), rng.random((n, width))
    rows, offset = rng.permutation(n).astype(np.int32), np.arange(0, 6 * d + 1, 6)
    hist = np.full((6 * d, K + width + 1), 7.0)
    kernels().fill(hist, bins, rows, 20, 250, G, H, np.array([0, 2]), offset)
    used = rows[20:250]
    for f in (0, 2):
        for c, column in enumerate([*G.T, *H.T, np.ones(n)]):
            expected = np.bincount(bins[used, f], weights=column[used], minlength=6)
            np.testing.assert_allclose(hist[6 * f : 6 * f + 6, c], expected, atol=1e-12)
    assert (hist[6:12] == 7.0).all()  # a feature that is not allowed is not touched


@hypothesis_settings(max_examples=20)
@given(seed=st.integers(0, 10_000), max_bins=st.sampled_from([4, 30, 255]), leaves=st.sampled_from([None, 9]))
def test_bins_and_raw_values_agree(seed: int, max_bins: int, leaves: int | None) -> None:
    """The cached training scores (by leaf), the bins (rows left out) and the raw values (prediction) give the same numbers."""
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((400, 3)) < 0.1, np.nan, rng.standard_normal((400, 3)))
    y = rng.standard_normal(400)
    grower, tree = grown(X, y, max_bins=max_bins, max_leaf_nodes=leaves, min_samples_leaf=3)
    by_leaf, by_bin, by_value = (np.zeros((400, 1)) for _ in range(3))
    tree.add_leaves(by_leaf, 1.0)
    tree.add_binned(by_bin, 1.0, grower.bins, np.arange(400), np.zeros(400, dtype=np.int64))
    tree.trees.add_to(by_value, X)
    np.testing.assert_array_equal(by_leaf, by_bin)
    np.testing.assert_array_equal(by_leaf, by_value)


@hypothesis_settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    depth=st.sampled_from([None, 1, 4]),
    leaves=st.sampled_from([None, 2, 7]),
    rows=st.sampled_from([1, 5, 40]),
)
def test_limits_are_kept(seed: int, depth: int | None, leaves: int | None, rows: int) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((200, 3)), rng.standard_normal(200)
    tree = grown(X, y, max_depth=depth, max_leaf_nodes=leaves, min_samples_leaf=rows)[1].trees
    leaf = tree.feature < 0
    assert tree.cover[leaf].min() >= rows
    assert tree.cover[leaf].sum() == 200
    assert leaves is None or leaf.sum() <= leaves
    level = np.zeros(len(leaf), dtype=int)
    for node in np.flatnonzero(~leaf):
        level[[tree.left[node], tree.right[node]]] = level[node] + 1
    assert depth is None or level.max() <= depth


def test_trees_of_many_roots_equal_trees_grown_one_by_one() -> None:
    """All tasks' trees of a round are grown in one pass; each must be the tree of its rows alone."""
    rng = np.random.default_rng(0)
    X, y = np.round(rng.standard_normal((300, 3)), 1), rng.standard_normal(300)
    binner = Binner.fit(X, np.zeros(3, dtype=bool))
    grower = Grower(binner.transform(X), binner, max_leaf_nodes=5, min_samples_leaf=4)
    roots = np.array([0, 80, 81, 300])
    together = grower.grow(np.arange(300), roots, -y[:, None], np.empty((300, 0))).trees
    assert len(together) == 3
    for t, (a, b) in enumerate(pairwise(roots)):
        alone = grower.grow(np.arange(a, b), np.array([0, b - a]), -y[:, None], np.empty((300, 0))).trees
        one, two = np.zeros((300, 1)), np.zeros((300, 1))
        together.take(np.array([t])).add_to(one, X)
        alone.add_to(two, X)
        np.testing.assert_array_equal(one, two)


def test_joining_and_taking_trees() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 2)), rng.standard_normal(100)
    parts = [grown(X, y * k, max_leaf_nodes=4)[1].trees for k in (1, 2, 3)]
    forest = TreeArrays.join(parts, 1)
    forest.check(2, 1)
    out, expected = np.zeros((100, 1)), np.zeros((100, 1))
    forest.take(np.array([2, 0])).add_to(out, X, 0.5)
    for k in (2, 0):
        parts[k].add_to(expected, X, 0.5)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    assert len(TreeArrays.join([], 3)) == 0


def test_missing_at_prediction_only_follows_the_larger_child() -> None:
    X, y = np.arange(10.0)[:, None], np.repeat([0.0, 1.0], [7, 3])
    tree = grown(X, y, max_depth=1)[1].trees
    out = np.zeros((1, 1))
    tree.add_to(out, np.array([[np.nan]]))
    assert out[0, 0] == pytest.approx(0.0)
