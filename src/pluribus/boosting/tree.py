"""Regression trees with a vector in each leaf: grown on bins, kept as flat arrays, read on raw values."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from pluribus.boosting.histogram import Binner, Bools, Floats, Ints, kernels
from pluribus.errors import BadInput


@dataclass(frozen=True)
class TreeArrays:
    """A sequence of trees over d features with K outputs, all nodes in one set of arrays.

    first [n_trees + 1]: each tree's first node (its root) and, last, the number of nodes.
    feature: the feature split on, -1 in a leaf; threshold: x <= threshold goes left; missing_left: where NaN goes.
    mask_of: row of `masks` [n, 256] with the categories that go left, -1 for a numeric split.
    left, right: children; value [nodes, K]; cover: training rows in the node; gain [nodes, K]: what the split gained.
    """

    first: Ints
    feature: Ints
    threshold: Floats
    missing_left: Bools
    mask_of: Ints
    masks: Bools
    left: Ints
    right: Ints
    value: Floats
    cover: Floats
    gain: Floats

    def __len__(self) -> int:
        return len(self.first) - 1

    @classmethod
    def empty(cls, outputs: int) -> TreeArrays:
        """No tree at all."""
        none = np.empty(0, dtype=np.int32)
        return cls(
            np.zeros(1, dtype=np.int64),
            none,
            np.empty(0),
            np.empty(0, bool),
            none,
            np.empty((0, 256), bool),
            none,
            none,
            np.empty((0, outputs)),
            np.empty(0),
            np.empty((0, outputs)),
        )

    @classmethod
    def join(cls, parts: Sequence[TreeArrays], outputs: int) -> TreeArrays:
        """All trees of `parts`, in order."""
        parts = [cls.empty(outputs), *parts]
        nodes = np.cumsum([0, *(len(p.feature) for p in parts)])
        masks = np.cumsum([0, *(len(p.masks) for p in parts)])
        moved = {
            "first": [p.first[:-1] + n for p, n in zip(parts, nodes)] + [nodes[-1:]],
            "left": [np.where(p.feature >= 0, p.left + n, 0).astype(np.int32) for p, n in zip(parts, nodes)],
            "right": [np.where(p.feature >= 0, p.right + n, 0).astype(np.int32) for p, n in zip(parts, nodes)],
            "mask_of": [np.where(p.mask_of >= 0, p.mask_of + m, -1).astype(np.int32) for p, m in zip(parts, masks)],
        }
        return cls(**{f.name: np.concatenate(moved.get(f.name, [getattr(p, f.name) for p in parts])) for f in fields(cls)})

    def take(self, which: Ints | slice) -> TreeArrays:
        """The trees `which` (indices, a slice or a boolean mask), in that order."""
        picked = np.arange(len(self))[which]
        parts = []
        for t in picked:
            span = slice(int(self.first[t]), int(self.first[t + 1]))
            own = {f.name: getattr(self, f.name)[span] for f in fields(self) if f.name not in ("first", "masks")}
            used = own["mask_of"] >= 0
            own["left"], own["right"] = own["left"] - span.start, own["right"] - span.start
            masks = self.masks[own["mask_of"][used]]
            own["mask_of"] = np.where(used, np.cumsum(used) - 1, -1)
            parts.append(TreeArrays(first=np.array([0, span.stop - span.start]), masks=masks, **own))
        return TreeArrays.join(parts, self.value.shape[1])

    def add_to(
        self, out: Floats, X: Floats, rate: float = 1.0, rows: Ints | None = None, trees: Ints | None = None, threads: int = 1
    ) -> None:
        """out[i] += rate * the sum of the trees at X[rows[i]] (all rows, all trees by default), rows shared among threads."""
        rows = np.arange(len(X)) if rows is None else rows
        roots = self.first[:-1] if trees is None else self.first[trees]
        add = kernels().add_raw

        def work(part: tuple[int, int]) -> None:
            span = slice(*part)
            add(
                X,
                rows[span],
                roots,
                self.feature,
                self.threshold,
                self.missing_left,
                self.mask_of,
                self.masks,
                self.left,
                self.right,
                self.value,
                float(rate),
                out[span],
            )

        if threads == 1 or len(rows) < 4096:
            work((0, len(rows)))
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, pairwise(np.linspace(0, len(rows), threads + 1).astype(int).tolist())))

    def check(self, n_features: int, outputs: int) -> None:
        """Raise BadInput unless the arrays form trees over `n_features` features (they may come from a stranger's file)."""
        n, inner = len(self.feature), self.feature >= 0
        node = np.arange(n)
        first = np.asarray(self.first)
        tree = np.searchsorted(first, node, side="right") - 1
        sound = (
            len(first) > 0
            and first[0] == 0
            and first[-1] == n
            and bool((np.diff(first) > 0).all())
            and all(len(a) == n for a in (self.threshold, self.missing_left, self.mask_of, self.left, self.right, self.cover))
            and self.value.shape == self.gain.shape == (n, outputs)
            and self.masks.shape[1:] == (256,)
            and bool((self.feature < n_features).all() and (self.mask_of < len(self.masks)).all())
            and all(
                bool((child[inner] > node[inner]).all() and (child[inner] < first[tree[inner] + 1]).all())
                for child in (self.left, self.right)
            )
        )
        if not sound:
            raise BadInput("the trees are not sound", where="the model's arrays", remedy="save the model again")

    def importance(self, n_features: int, trees: Ints | slice = slice(None)) -> Floats:
        """Total gain a feature and output, [d, K], of the given trees."""
        tree = np.repeat(np.arange(len(self)), np.diff(self.first))
        chosen = np.zeros(len(self), dtype=bool)
        chosen[trees] = True
        use = (self.feature >= 0) & chosen[tree]
        total = np.zeros((n_features, self.value.shape[1]))
        np.add.at(total, self.feature[use], self.gain[use])
        return total


@dataclass(frozen=True)
class Grown:
    """Trees of one call and where their training rows fell (rows[start[node] : stop[node]])."""

    trees: TreeArrays
    rows: Ints
    start: Ints
    stop: Ints
    last_left: Ints
    missing_code: Ints

    def add_leaves(self, out: Floats, rate: float) -> None:
        """out[row] += rate * leaf value, for the rows that the trees were grown on."""
        t = self.trees
        kernels().add_leaves(len(t.feature), self.rows, self.start, self.stop, t.feature, t.value, float(rate), out)

    def add_binned(self, out: Floats, rate: float, bins: Any, rows: Ints, tree: Ints) -> None:
        """out[rows[i]] += rate * value of tree[i] at the row's bins (rows left out of the growing)."""
        t = self.trees
        kernels().add_binned(
            bins,
            rows,
            t.first[tree],
            t.feature,
            self.last_left,
            self.missing_code,
            t.missing_left,
            t.mask_of,
            t.masks,
            t.left,
            t.right,
            t.value,
            float(rate),
            out,
        )


@dataclass(frozen=True)
class Grower:
    """How trees are grown on a binned table.

    bins [N, d] uint8 and the binner they came from; max_depth and max_leaf_nodes (None: no limit; with a limit on the
    leaves the leaf with the largest gain is split first); min_samples_leaf rows and min_child_weight (Hessian, summed over
    the outputs) a child; l2: lambda; min_gain: a split must gain more; cat_smooth: added to the Hessian when categories
    are sorted; signs [d, K]: monotone constraints (0 none, 1 increasing, -1 decreasing).
    """

    bins: Any
    binner: Binner
    max_depth: int | None = None
    max_leaf_nodes: int | None = None
    min_samples_leaf: int = 1
    min_child_weight: float = 0.0
    l2: float = 0.0
    min_gain: float = 0.0
    cat_smooth: float = 10.0
    signs: Ints | None = None

    def grow(
        self,
        rows: Ints,
        roots: Ints,
        G: Floats,
        H: Floats,
        *,
        features: Ints | None = None,
        search: tuple[Floats, Floats] | None = None,
        weight: Floats | None = None,
    ) -> Grown:
        """Grow one tree for each range rows[roots[i] : roots[i + 1]].

        G, H [N, K] (H may be [N, 0]: all one, or [N, 1]: one for all outputs) give the leaf values -G / (H + lambda).
        search: other (G, H) to find the splits by; weight [K]: of the outputs in the gain; features: those allowed.
        """
        lib, binner = kernels(), self.binner
        rows = np.array(rows, dtype=np.int32)  # a copy: it is permuted
        roots = np.asarray(roots, dtype=np.int64)
        features = np.arange(len(binner.n_values)) if features is None else np.asarray(features, dtype=np.int64)
        search_G, search_H = search if search is not None else (G, H)
        weight = np.ones(search_G.shape[1]) if weight is None else weight
        monotone = self.signs is not None and bool(self.signs.any())
        signs = self.signs if monotone and self.signs is not None else np.zeros((len(binner.n_values), G.shape[1]), dtype=np.int8)
        sizes = np.diff(roots)
        limit = np.maximum(2 * sizes - 1, 1)
        if self.max_leaf_nodes is not None:
            limit = np.minimum(limit, 2 * self.max_leaf_nodes - 1)
        if self.max_depth is not None and self.max_depth < 30:
            limit = np.minimum(limit, 2 ** (self.max_depth + 1) - 1)
        room = int(limit.sum())
        feature, mask_of = np.empty(room, np.int32), np.full(room, -1, np.int32)
        split, missing_left = np.zeros((room, 2), np.int32), np.zeros(room, bool)
        left, right = np.zeros(room, np.int32), np.zeros(room, np.int32)
        first, start, stop = np.empty(len(roots), np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
        masks = np.empty((room // 2 + 1 if binner.categorical.any() else 0, 256), bool)
        nodes, n_masks = lib.grow(
            self.bins,
            rows,
            roots,
            search_G,
            search_H,
            features,
            binner.offset,
            binner.categorical,
            -1 if self.max_depth is None else self.max_depth,
            self.max_leaf_nodes or 0,
            self.min_samples_leaf,
            float(self.min_child_weight),
            float(self.l2),
            float(self.min_gain),
            float(self.cat_smooth),
            weight,
            signs,
            monotone,
            feature,
            split,
            missing_left,
            mask_of,
            masks,
            left,
            right,
            first,
            start,
            stop,
        )
        feature, mask_of, missing_left = feature[:nodes].copy(), mask_of[:nodes].copy(), missing_left[:nodes].copy()
        split, left, right, start, stop = split[:nodes], left[:nodes].copy(), right[:nodes].copy(), start[:nodes], stop[:nodes]
        K = G.shape[1]
        sums, value = np.empty((nodes, 2 * K)), np.empty((nodes, K))
        lib.node_values(
            first, nodes, rows, start, stop, left, right, feature, mask_of, G, H, float(self.l2), signs, monotone, sums, value
        )
        inner = np.flatnonzero(feature >= 0)
        l, r = left[inner], right[inner]
        gain = np.zeros((nodes, K))
        gain[inner] = self._score(sums[l]) + self._score(sums[r]) - self._score(sums[inner])
        threshold, last_left = np.zeros(nodes), np.zeros(nodes, np.int32)
        lib.cut_points(
            feature,
            split,
            mask_of >= 0,
            binner.value_offset,
            binner.lower,
            binner.upper,
            binner.edge,
            binner.exact,
            threshold,
            last_left,
        )
        cover = (stop - start).astype(np.float64)
        trees = TreeArrays(
            first, feature, threshold, missing_left, mask_of, masks[:n_masks].copy(), left, right, value, cover, gain
        )
        return Grown(trees, rows, start, stop, last_left, binner.n_values)

    def _score(self, sums: Floats) -> Floats:
        K = sums.shape[1] // 2
        G, H = sums[:, :K], sums[:, K:]
        return np.divide(G * G, H + self.l2, out=np.zeros_like(G), where=H > 0)
