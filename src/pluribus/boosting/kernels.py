"""The compiled part of the boosters: histograms, split search, growth, routing and prediction (numba).

Notation of a node: G = sum of the gradients, H = sum of the Hessians, n = number of rows, per output k.
score(node) = sum_k w_k G_k^2 / (H_k + lambda); the gain of a split is score(left) + score(right) - score(node).

A histogram cell holds the channels [G_1..G_K, H.., n]. The Hessian comes in three widths, read off the array's shape:
[N, 0] every row counts 1 (squared error without weights: H = n), [N, 1] one for all outputs, [N, K] one an output.

Import this module through `pluribus.boosting.histogram.kernels`, which says what to install where numba is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Array = Any  # the kernels take numpy arrays of the types that `histogram` and `tree` declare

TINY = 1e-10  # a Hessian sum below this is rounding left by the subtraction of histograms, not a labelled row


def jit(function: Function) -> Function:
    """Compile once a signature, keep the machine code on disk, and let other threads run meanwhile."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@jit
def fill(
    hist: Array, bins: Array, rows: Array, start: int, stop: int, G: Array, H: Array, features: Array, offset: Array
) -> None:
    """Write the histogram of the rows [start, stop) into hist [bins of all features, channels]."""
    K, width = G.shape[1], H.shape[1]
    C = K + width + 1
    m = features.shape[0]
    flat = hist.reshape(-1)  # unsigned indices below: no test for negative ones in the innermost loop
    column, base = np.empty(m, np.uint64), np.empty(m, np.uint64)
    for j in range(m):
        f = features[j]
        hist[offset[f] : offset[f + 1]] = 0.0
        column[j], base[j] = f, C * offset[f]
    one, two, three, width_of = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(C)
    if K == 1 and width == 0:
        for i in range(start, stop):
            r = np.uint64(rows[i])
            g = G[r, 0]
            for j in range(m):
                p = base[j] + two * np.uint64(bins[r, column[j]])
                flat[p] += g
                flat[p + one] += 1.0
    elif K == 1:
        for i in range(start, stop):
            r = np.uint64(rows[i])
            g = G[r, 0]
            h = H[r, 0]
            for j in range(m):
                p = base[j] + three * np.uint64(bins[r, column[j]])
                flat[p] += g
                flat[p + one] += h
                flat[p + two] += 1.0
    else:
        channels = np.ones(C)
        for i in range(start, stop):
            r = np.uint64(rows[i])
            for k in range(K):
                channels[k] = G[r, k]
            for k in range(width):
                channels[K + k] = H[r, k]
            for j in range(m):
                p = base[j] + width_of * np.uint64(bins[r, column[j]])
                for c in range(C):
                    flat[p + np.uint64(c)] += channels[c]


@jit
def hessian(S: Array, k: int, K: int, width: int) -> float:
    """H_k of a row of channels."""
    return float(S[K] if width <= 1 else S[K + k])


@jit
def clipped(g: float, h: float, l2: float, low: float, high: float) -> float:
    """The leaf value -G/(H + lambda) inside its bounds."""
    v = -g / (h + l2)
    return min(max(v, low), high)


@jit
def score(S: Array, K: int, width: int, l2: float, weight: Array) -> float:
    """sum_k w_k G_k^2 / (H_k + lambda) of a row of channels; outputs without a label there add nothing."""
    total = 0.0
    for k in range(K):
        h = hessian(S, k, K, width)
        if h > TINY:
            total += weight[k] * S[k] * S[k] / (h + l2)
    return total


@jit
def bounded_gain(
    L: Array, R: Array, K: int, width: int, l2: float, weight: Array, sign: Array, low: Array, high: Array, has_sign: bool
) -> float:
    """score(left) + score(right) under bounds and monotone signs.

    An output whose children would go against its sign gets one pooled value in both (the constrained optimum), which
    gains nothing over the parent for that output.
    """
    total = 0.0
    for k in range(K):
        hl, hr = hessian(L, k, K, width), hessian(R, k, K, width)
        gl, gr = L[k], R[k]
        if hl <= TINY and hr <= TINY:
            continue
        vl = clipped(gl, hl, l2, low[k], high[k]) if hl > TINY else 0.0
        vr = clipped(gr, hr, l2, low[k], high[k]) if hr > TINY else 0.0
        if hl <= TINY or hr <= TINY or (has_sign and sign[k] * (vr - vl) < 0):
            v = clipped(gl + gr, hl + hr, l2, low[k], high[k])
            vl = v
            vr = v
        total -= weight[k] * (2 * gl * vl + (hl + l2) * vl * vl + 2 * gr * vr + (hr + l2) * vr * vr)
    return total


@jit
def heavy(S: Array, K: int, width: int, min_child_weight: float) -> bool:
    """Whether the Hessians, summed over the outputs, reach the least weight of a child."""
    total = S[K]
    for k in range(1, width):
        total += S[K + k]
    return bool(total >= min_child_weight)


@jit
def category_order(hist: Array, first: int, last: int, K: int, width: int, smooth: float, weight: Array, order: Array) -> int:
    """Write the non-empty bins of a categorical feature into `order`, sorted by their mean gradient; return how many.

    With several outputs the mean gradients are vectors; they are sorted along their direction of largest spread (three
    steps of the power method on the between-category covariance). The missing bin takes part as a category of its own.
    """
    C = hist.shape[1]
    n = 0
    for b in range(last - first):
        if hist[first + b, C - 1] > 0.5:
            order[n] = b
            n += 1
    if n < 2:
        return n
    means = np.zeros((n, K))
    mass = np.zeros(n)
    for i in range(n):
        for k in range(K):
            S = hist[first + order[i]]
            means[i, k] = np.sqrt(weight[k]) * S[k] / (max(hessian(S, k, K, width), 0.0) + smooth + TINY)
        mass[i] = hist[first + order[i], C - 1]
    key = np.zeros(n)
    if K == 1:
        key[:] = means[:, 0]
    else:
        total = mass.sum()
        for k in range(K):
            centre = (mass * means[:, k]).sum() / total
            means[:, k] -= centre
        u = np.zeros(K)
        widest = 0
        for i in range(n):
            if mass[i] * (means[i] ** 2).sum() > mass[widest] * (means[widest] ** 2).sum():
                widest = i
        u[:] = means[widest]
        for _ in range(3):
            for i in range(n):
                key[i] = (means[i] * u).sum()
            u[:] = 0.0
            for i in range(n):
                u += mass[i] * key[i] * means[i]
            size = np.sqrt((u * u).sum())
            if size > 0:
                u /= size
        for i in range(n):
            key[i] = (means[i] * u).sum()
    ranks = np.argsort(key, kind="mergesort")
    found = order[:n].copy()
    for i in range(n):
        order[i] = found[ranks[i]]
    return n


@jit
def search(
    hist: Array,
    total: Array,
    features: Array,
    offset: Array,
    categorical: Array,
    K: int,
    width: int,
    l2: float,
    weight: Array,
    min_rows: int,
    min_child_weight: float,
    min_gain: float,
    smooth: float,
    signs: Array,
    low: Array,
    high: Array,
    monotone: bool,
    order: Array,
    best: Array,
    best_left: Array,
    left_mask: Array,
) -> float:
    """The best split of a node from its histogram; returns its gain, or 0 where there is none.

    best (int64): [feature, last bin of the left child a, first bin of the right child b, missing goes left, is categorical].
    best_left: the channels of the left child. left_mask [256]: the codes that go left (categorical splits only).
    Between a and b the node has no rows; b = number of value bins means that only missing values go right.
    """
    C = total.shape[0]
    n = total[C - 1]
    parent = score(total, K, width, l2, weight)
    if monotone:
        parent = 0.0
        for k in range(K):
            h = hessian(total, k, K, width)
            if h > TINY:
                v = clipped(total[k], h, l2, low[k], high[k])
                parent -= weight[k] * (2 * total[k] * v + (h + l2) * v * v)
    floor = max(min_gain, 1e-12 * abs(parent))  # below it a gain is rounding
    top = floor
    L, R = np.empty(C), np.empty(C)
    for j in range(features.shape[0]):
        f = features[j]
        first, last = offset[f], offset[f + 1]
        if categorical[f]:
            count = category_order(hist, first, last, K, width, smooth, weight, order)
            L[:] = 0.0
            for i in range(count - 1):
                for c in range(C):
                    L[c] += hist[first + order[i], c]
                if L[C - 1] < min_rows - 0.5:
                    continue
                if n - L[C - 1] < min_rows - 0.5:
                    break
                for c in range(C):
                    R[c] = total[c] - L[c]
                if not (heavy(L, K, width, min_child_weight) and heavy(R, K, width, min_child_weight)):
                    continue
                if monotone:
                    gain = bounded_gain(L, R, K, width, l2, weight, signs[f], low, high, False) - parent
                else:
                    gain = score(L, K, width, l2, weight) + score(R, K, width, l2, weight) - parent
                if gain > top:
                    top = gain
                    best[0], best[1], best[2], best[3], best[4] = f, i, i + 1, 0, 1
                    best_left[:] = L
                    left_mask[:] = False
                    for q in range(i + 1):
                        left_mask[order[q]] = True
            continue
        missing = hist[last - 1]
        ways = 2 if missing[C - 1] > 0.5 else 1
        values = last - first - 1
        for way in range(ways):  # 0: missing goes right (or there is none), 1: missing goes left
            if way == 0:
                L[:] = 0.0
            else:
                L[:] = missing
            a = -1
            for b in range(values + 1):
                if b == values:
                    if ways == 1 or way == 1:
                        break  # nothing is left for the right child
                elif hist[first + b, C - 1] < 0.5:
                    continue
                if a >= 0 and L[C - 1] >= min_rows - 0.5:
                    if n - L[C - 1] < min_rows - 0.5:
                        break
                    for c in range(C):
                        R[c] = total[c] - L[c]
                    if heavy(L, K, width, min_child_weight) and heavy(R, K, width, min_child_weight):
                        if monotone:
                            gain = bounded_gain(L, R, K, width, l2, weight, signs[f], low, high, True) - parent
                        else:
                            gain = score(L, K, width, l2, weight) + score(R, K, width, l2, weight) - parent
                        if gain > top:
                            top = gain
                            best[0], best[1], best[2], best[3], best[4] = f, a, b, way, 0
                            best_left[:] = L
                if b < values:
                    a = b
                    for c in range(C):
                        L[c] += hist[first + b, c]
    return top if top > floor else 0.0


@jit
def search_scalar(
    hist: Array,
    total: Array,
    features: Array,
    offset: Array,
    width: int,
    l2: float,
    min_rows: int,
    min_child_weight: float,
    min_gain: float,
    best: Array,
    best_left: Array,
) -> float:
    """`search` for one output, numeric features and no constraint: the same numbers without the loops over outputs."""
    G, n = total[0], total[width + 1]
    H = total[1]
    parent = G * G / (H + l2) if H > TINY else 0.0
    floor = max(min_gain, 1e-12 * abs(parent))
    top = floor
    for j in range(features.shape[0]):
        f = features[j]
        first, last = offset[f], offset[f + 1]
        mg, mh, mn = hist[last - 1, 0], hist[last - 1, 1], hist[last - 1, width + 1]
        ways = 2 if mn > 0.5 else 1
        values = last - first - 1
        for way in range(ways):
            g, h, c = 0.0, 0.0, 0.0
            if way == 1:
                g, h, c = mg, mh, mn
            a = -1
            for b in range(values + 1):
                if b == values:
                    if ways == 1 or way == 1:
                        break
                elif hist[first + b, width + 1] < 0.5:
                    continue
                if a >= 0 and c >= min_rows - 0.5:
                    if n - c < min_rows - 0.5:
                        break
                    r = H - h
                    if h >= min_child_weight and r >= min_child_weight:
                        gain = -parent
                        if h > TINY:
                            gain += g * g / (h + l2)
                        if r > TINY:
                            gain += (G - g) * (G - g) / (r + l2)
                        if gain > top:
                            top = gain
                            best[0], best[1], best[2], best[3], best[4] = f, a, b, way, 0
                            best_left[0], best_left[1], best_left[width + 1] = g, h, c
                if b < values:
                    a = b
                    g += hist[first + b, 0]
                    h += hist[first + b, 1]
                    c += hist[first + b, width + 1]
    return top if top > floor else 0.0


@jit
def partition(
    bins: Array,
    rows: Array,
    buffer: Array,
    start: int,
    stop: int,
    f: int,
    a: int,
    missing: int,
    missing_left: bool,
    is_category: bool,
    left_mask: Array,
) -> int:
    """Put the rows of the left child first, keeping their order; return where the right child starts."""
    at, other = start, 0
    for i in range(start, stop):
        r = rows[i]
        code = bins[r, f]
        if is_category:
            left = left_mask[code]
        elif code == missing:
            left = missing_left
        else:
            left = code <= a
        if left:
            rows[at] = r
            at += 1
        else:
            buffer[other] = r
            other += 1
    for i in range(other):
        rows[at + i] = buffer[i]
    return at


@jit
def grow(
    bins: Array,
    rows: Array,
    roots: Array,
    G: Array,
    H: Array,
    features: Array,
    offset: Array,
    categorical: Array,
    max_depth: int,
    max_leaves: int,
    min_rows: int,
    min_child_weight: float,
    l2: float,
    min_gain: float,
    smooth: float,
    weight: Array,
    signs: Array,
    monotone: bool,
    feature: Array,
    split: Array,
    missing_left: Array,
    mask_of: Array,
    masks: Array,
    left: Array,
    right: Array,
    first: Array,
    start: Array,
    stop: Array,
) -> tuple[int, int]:
    """Grow one tree a root over the rows [roots[i], roots[i + 1]); `rows` is permuted so that each node's rows are a range.

    With a limit on the leaves the leaf with the largest gain is split first, otherwise the smaller child comes first, so
    that only about log2(n) histograms are alive. Nodes of root i are numbered consecutively; its root comes first.
    Returns the numbers of nodes and of categorical splits written. `split[:, 0:2]` holds the bins a and b of `search`.
    """
    K, width = G.shape[1], H.shape[1]
    C = K + width + 1
    total_bins = offset[offset.shape[0] - 1]
    plain = K == 1 and not monotone and weight[0] == 1.0
    for j in range(features.shape[0]):
        if categorical[features[j]]:
            plain = False
    best_first = max_leaves > 0
    slots = max_leaves + 1 if best_first else 2
    if not best_first:
        n = rows.shape[0]
        while n > 0:
            slots += 1
            n //= 2
    if max_depth > 0:  # a tree of this depth never has more open nodes
        if best_first and max_depth < 30:
            slots = min(slots, 2**max_depth + 1)
        elif not best_first:
            slots = min(slots, max_depth + 2)
    pool = np.empty((slots, total_bins, C))
    free = np.arange(slots)
    buffer = np.empty(rows.shape[0], dtype=rows.dtype)
    order = np.empty(256, dtype=np.int64)
    best = np.zeros(5, dtype=np.int64)
    best_left = np.zeros(C)
    mask = np.zeros(256, dtype=np.bool_)
    # open nodes: a stack (depth first) or a bag (best first)
    open_node = np.empty(slots + 1, dtype=np.int64)
    open_slot = np.empty(slots + 1, dtype=np.int64)
    open_depth = np.empty(slots + 1, dtype=np.int64)
    open_gain = np.empty(slots + 1)
    open_best = np.empty((slots + 1, 5), dtype=np.int64)
    open_total = np.empty((slots + 1, C))
    open_left = np.empty((slots + 1, C))
    open_mask = np.empty((slots + 1, 256 if not plain else 1), dtype=np.bool_)
    bound = K if monotone else 0
    open_low = np.empty((slots + 1, bound))
    open_high = np.empty((slots + 1, bound))
    nodes, n_masks = 0, 0
    low, high = np.empty(bound), np.empty(bound)
    pair_total = np.empty((2, C))
    pair_low, pair_high = np.empty((2, bound)), np.empty((2, bound))
    for root in range(roots.shape[0] - 1):
        free_count = slots
        opened = 0
        leaves = 1
        node = nodes
        first[root] = node
        nodes += 1
        start[node], stop[node] = roots[root], roots[root + 1]
        feature[node] = -1
        # the root is a "child" whose histogram is filled; from then on children come in pairs
        if stop[node] - start[node] >= 2 * min_rows and max_depth != 0:
            free_count -= 1
            slot = free[free_count]
            fill(pool[slot], bins, rows, start[node], stop[node], G, H, features, offset)
            total = np.zeros(C)
            f = features[0]
            for p in range(offset[f], offset[f + 1]):
                for c in range(C):
                    total[c] += pool[slot, p, c]
            low[:] = -np.inf
            high[:] = np.inf
            if plain:
                gain = search_scalar(
                    pool[slot], total, features, offset, width, l2, min_rows, min_child_weight, min_gain, best, best_left
                )
            else:
                gain = search(
                    pool[slot],
                    total,
                    features,
                    offset,
                    categorical,
                    K,
                    width,
                    l2,
                    weight,
                    min_rows,
                    min_child_weight,
                    min_gain,
                    smooth,
                    signs,
                    low,
                    high,
                    monotone,
                    order,
                    best,
                    best_left,
                    mask,
                )
            if gain > 0:
                open_node[0], open_slot[0], open_depth[0], open_gain[0] = node, slot, 0, gain
                open_best[0], open_total[0], open_left[0] = best, total, best_left
                if not plain:
                    open_mask[0] = mask
                open_low[0], open_high[0] = low, high
                opened = 1
            else:
                free[free_count] = slot
                free_count += 1
        while opened > 0 and (not best_first or leaves < max_leaves):
            at = opened - 1
            if best_first:
                for i in range(opened):
                    if open_gain[i] > open_gain[at] or (open_gain[i] == open_gain[at] and open_node[i] < open_node[at]):
                        at = i
            node, slot, depth, gain = open_node[at], open_slot[at], open_depth[at], open_gain[at]
            f, a, b = open_best[at, 0], open_best[at, 1], open_best[at, 2]
            to_left, is_category = open_best[at, 3] == 1, open_best[at, 4] == 1
            pair_total[0] = open_left[at]
            for c in range(C):
                pair_total[1, c] = open_total[at, c] - open_left[at, c]
            if not plain:
                mask[:] = open_mask[at]
            if monotone:
                for k in range(K):
                    lo, hi = open_low[at, k], open_high[at, k]
                    pair_low[0, k], pair_high[0, k] = lo, hi
                    pair_low[1, k], pair_high[1, k] = lo, hi
                    s = 0 if is_category else signs[f, k]
                    if s != 0:
                        hl, hr = hessian(pair_total[0], k, K, width), hessian(pair_total[1], k, K, width)
                        middle = split_value(pair_total[0, k], hl, pair_total[1, k], hr, l2, lo, hi, s)
                        if s > 0:
                            pair_high[0, k], pair_low[1, k] = middle, middle
                        else:
                            pair_low[0, k], pair_high[1, k] = middle, middle
            last = opened - 1
            if at != last:
                open_node[at], open_slot[at], open_depth[at] = open_node[last], open_slot[last], open_depth[last]
                open_gain[at] = open_gain[last]
                open_best[at], open_total[at], open_left[at] = open_best[last], open_total[last], open_left[last]
                if not plain:
                    open_mask[at] = open_mask[last]
                if monotone:
                    open_low[at], open_high[at] = open_low[last], open_high[last]
            opened = last
            missing = offset[f + 1] - offset[f] - 1
            begin, end = start[node], stop[node]
            cut = partition(bins, rows, buffer, begin, end, f, a, missing, to_left, is_category, mask)
            l, r = nodes, nodes + 1
            nodes += 2
            leaves += 1
            feature[node], split[node, 0], split[node, 1] = f, a, b
            larger = cut - begin >= end - cut  # what was never seen in this node follows the larger child
            if is_category:
                for code in range(256):
                    if code > missing or pool[slot, offset[f] + code, C - 1] < 0.5:
                        mask[code] = larger
                missing_left[node] = mask[missing]
            else:
                missing_left[node] = to_left if pool[slot, offset[f] + missing, C - 1] > 0.5 else larger
            left[node], right[node] = l, r
            if is_category:
                mask_of[node] = n_masks
                masks[n_masks] = mask
                n_masks += 1
            else:
                mask_of[node] = -1
            start[l], stop[l], start[r], stop[r] = begin, cut, cut, end
            feature[l], feature[r] = -1, -1
            depth += 1
            small, large = (l, r) if cut - begin <= end - cut else (r, l)
            deep = max_depth > 0 and depth >= max_depth
            if deep or (best_first and leaves >= max_leaves) or end - begin < 2 * min_rows:
                free[free_count] = slot
                free_count += 1
                continue
            if stop[large] - start[large] < 2 * min_rows:  # then the small one is too small as well
                free[free_count] = slot
                free_count += 1
                continue
            free_count -= 1
            small_slot = free[free_count]
            fill(pool[small_slot], bins, rows, start[small], stop[small], G, H, features, offset)
            for j in range(features.shape[0]):
                q = features[j]
                for p in range(offset[q], offset[q + 1]):
                    for c in range(C):
                        pool[slot, p, c] -= pool[small_slot, p, c]
            for turn in range(2):
                child = large if turn == 0 else small  # the small one lies on top of the stack and is split first
                child_slot = slot if turn == 0 else small_slot
                side = 0 if child == l else 1
                gain = 0.0
                if stop[child] - start[child] >= 2 * min_rows:
                    if plain:
                        gain = search_scalar(
                            pool[child_slot],
                            pair_total[side],
                            features,
                            offset,
                            width,
                            l2,
                            min_rows,
                            min_child_weight,
                            min_gain,
                            best,
                            best_left,
                        )
                    else:
                        gain = search(
                            pool[child_slot],
                            pair_total[side],
                            features,
                            offset,
                            categorical,
                            K,
                            width,
                            l2,
                            weight,
                            min_rows,
                            min_child_weight,
                            min_gain,
                            smooth,
                            signs,
                            pair_low[side],
                            pair_high[side],
                            monotone,
                            order,
                            best,
                            best_left,
                            mask,
                        )
                if gain > 0:
                    open_node[opened], open_slot[opened], open_depth[opened] = child, child_slot, depth
                    open_gain[opened] = gain
                    open_best[opened], open_total[opened], open_left[opened] = best, pair_total[side], best_left
                    if not plain:
                        open_mask[opened] = mask
                    if monotone:
                        open_low[opened], open_high[opened] = pair_low[side], pair_high[side]
                    opened += 1
                else:
                    free[free_count] = child_slot
                    free_count += 1
        while opened > 0:
            opened -= 1
            free[free_count] = open_slot[opened]
            free_count += 1
    first[roots.shape[0] - 1] = nodes
    return nodes, n_masks


@jit
def split_value(gl: float, hl: float, gr: float, hr: float, l2: float, low: float, high: float, sign: int) -> float:
    """The value that separates the children of a monotone split: between them, or the pooled one if they would cross."""
    if hl <= TINY and hr <= TINY:
        return 0.0 if low <= 0.0 <= high else (low if low > 0.0 else high)
    pooled = clipped(gl + gr, hl + hr, l2, low, high)
    if hl <= TINY or hr <= TINY:
        return pooled
    vl, vr = clipped(gl, hl, l2, low, high), clipped(gr, hr, l2, low, high)
    return pooled if sign * (vr - vl) < 0 else 0.5 * (vl + vr)


@jit
def node_values(
    roots: Array,
    nodes: int,
    rows: Array,
    start: Array,
    stop: Array,
    left: Array,
    right: Array,
    feature: Array,
    mask_of: Array,
    G: Array,
    H: Array,
    l2: float,
    signs: Array,
    monotone: bool,
    sums: Array,
    value: Array,
) -> None:
    """sums [nodes, 2K]: G and H of every node; value [nodes, K] = -G/(H + lambda), the parent's where no label is (H = 0).

    `roots` holds the first node of every tree and, last, `nodes`.
    """
    K, width = G.shape[1], H.shape[1]
    for node in range(nodes - 1, -1, -1):
        if feature[node] >= 0:
            for c in range(2 * K):
                sums[node, c] = sums[left[node], c] + sums[right[node], c]
            continue
        sums[node] = 0.0
        for i in range(start[node], stop[node]):
            r = rows[i]
            for k in range(K):
                sums[node, k] += G[r, k]
                if width == 0:
                    sums[node, K + k] += 1.0
                elif width == 1:
                    sums[node, K + k] += H[r, 0]
                else:
                    sums[node, K + k] += H[r, k]
    bound = K if monotone else 0
    low, high = np.full((nodes, bound), -np.inf), np.full((nodes, bound), np.inf)
    for t in range(roots.shape[0] - 1):
        for k in range(K):
            h = sums[roots[t], K + k]
            value[roots[t], k] = -sums[roots[t], k] / (h + l2) if h > 0.0 else 0.0
        for node in range(roots[t], roots[t + 1]):
            if feature[node] < 0:
                continue
            l, r = left[node], right[node]
            for k in range(K):
                for child in (l, r):
                    h = sums[child, K + k]
                    value[child, k] = -sums[child, k] / (h + l2) if h > 0.0 else value[node, k]
                if monotone:
                    lo, hi = low[node, k], high[node, k]
                    for child in (l, r):
                        low[child, k], high[child, k] = lo, hi
                    s = signs[feature[node], k]
                    if s != 0 and mask_of[node] < 0:
                        middle = split_value(sums[l, k], sums[l, K + k], sums[r, k], sums[r, K + k], l2, lo, hi, s)
                        if s > 0:
                            high[l, k], low[r, k] = middle, middle
                        else:
                            low[l, k], high[r, k] = middle, middle
                    for child in (l, r):
                        value[child, k] = min(max(value[child, k], low[child, k]), high[child, k])


@jit
def add_leaves(nodes: int, rows: Array, start: Array, stop: Array, feature: Array, value: Array, rate: float, out: Array) -> None:
    """out[row] += rate * value of the row's leaf, for the rows the trees were grown on."""
    K = out.shape[1]
    for node in range(nodes):
        if feature[node] < 0:
            for i in range(start[node], stop[node]):
                for k in range(K):
                    out[rows[i], k] += rate * value[node, k]


@jit
def add_binned(
    bins: Array,
    rows: Array,
    root_of: Array,
    feature: Array,
    last_left: Array,
    missing_code: Array,
    missing_left: Array,
    mask_of: Array,
    masks: Array,
    left: Array,
    right: Array,
    value: Array,
    rate: float,
    out: Array,
) -> None:
    """out[row] += rate * leaf value for `rows`, by their bins; root_of[i] is the root of the tree that rows[i] goes down."""
    K = out.shape[1]
    for i in range(rows.shape[0]):
        r = rows[i]
        node = root_of[i]
        while feature[node] >= 0:
            f = feature[node]
            code = bins[r, f]
            if mask_of[node] >= 0:
                go = masks[mask_of[node], code]
            elif code == missing_code[f]:
                go = missing_left[node]
            else:
                go = code <= last_left[node]
            node = left[node] if go else right[node]
        for k in range(K):
            out[r, k] += rate * value[node, k]


@jit
def add_raw(
    X: Array,
    rows: Array,
    roots: Array,
    feature: Array,
    threshold: Array,
    missing_left: Array,
    mask_of: Array,
    masks: Array,
    left: Array,
    right: Array,
    value: Array,
    rate: float,
    out: Array,
) -> None:
    """out[i] += rate * sum over the trees `roots` of the leaf value of X[rows[i]]; categories are codes, unknown ones NaN."""
    K = out.shape[1]
    n = rows.shape[0]
    for begin in range(0, n, 512):  # a block of rows stays in the cache while all trees pass over it
        end = min(begin + 512, n)
        for t in range(roots.shape[0]):
            for i in range(begin, end):
                r = rows[i]
                node = roots[t]
                f = feature[node]
                while f >= 0:
                    x = X[r, f]
                    if x != x:
                        go = missing_left[node]
                    elif mask_of[node] >= 0:
                        go = masks[mask_of[node], int(x)]
                    else:
                        go = x <= threshold[node]
                    node = left[node] if go else right[node]
                    f = feature[node]
                for k in range(K):
                    out[i, k] += rate * value[node, k]


@jit
def shapley(
    X: Array,
    rows: Array,
    roots: Array,
    feature: Array,
    threshold: Array,
    missing_left: Array,
    mask_of: Array,
    masks: Array,
    left: Array,
    parent: Array,
    cover: Array,
    value: Array,
    first: Array,
    rate: float,
    phi: Array,
) -> None:
    """phi [rows, features, K] += rate * Shapley values of the trees, path dependent (Lundberg et al. 2020, algorithm 2).

    For a leaf with path features 1..D: z_j the share of the cover that follows the path at j's splits, o_j whether the row
    does. The leaf's game is v * prod_j (o_j in the coalition, z_j outside); its Shapley value of j is v (o_j - z_j) times
    the coalition weights of the others, found by the paper's EXTEND and UNWIND. first[t], first[t + 1]: nodes of tree t.
    """
    K = value.shape[1]
    longest = 64
    path = np.empty(longest, dtype=np.int64)
    z, o = np.empty(longest), np.empty(longest)
    w, u = np.empty(longest + 1), np.empty(longest + 1)
    for t in range(roots.shape[0]):
        begin, end = first[t], first[t + 1]
        goes_left = np.zeros(end - begin, dtype=np.bool_)
        for i in range(rows.shape[0]):
            r = rows[i]
            for node in range(begin, end):
                f = feature[node]
                if f >= 0:
                    x = X[r, f]
                    if x != x:
                        goes_left[node - begin] = missing_left[node]
                    elif mask_of[node] >= 0:
                        goes_left[node - begin] = masks[mask_of[node], int(x)]
                    else:
                        goes_left[node - begin] = x <= threshold[node]
            for leaf in range(begin, end):
                if feature[leaf] >= 0 or leaf == roots[t]:
                    continue
                D = 0
                node = leaf
                while node != roots[t]:
                    p = parent[node]
                    f = feature[p]
                    share = cover[node] / cover[p]
                    follows = 1.0 if goes_left[p - begin] == (left[p] == node) else 0.0
                    at = 0
                    while at < D and path[at] != f:
                        at += 1
                    if at == D:
                        if path.shape[0] == D:  # a very deep tree: make room
                            path = np.concatenate((path, path))
                            z, o = np.concatenate((z, z)), np.concatenate((o, o))
                            w, u = np.concatenate((w, w)), np.concatenate((u, u))
                        path[D], z[D], o[D] = f, share, follows
                        D += 1
                    else:
                        z[at] *= share
                        o[at] *= follows
                    node = p
                w[0] = 1.0  # EXTEND: w[s] = sum over coalitions of size s of |S|!(D-|S|)!/(D+1)! prod
                for d in range(D):
                    w[d + 1] = 0.0
                    for s in range(d, -1, -1):
                        w[s + 1] += o[d] * w[s] * (s + 1) / (d + 2)
                        w[s] = z[d] * w[s] * (d + 1 - s) / (d + 2)
                for j in range(D):  # UNWIND j, sum the weights of the coalitions without it
                    total = 0.0
                    if o[j] != 0.0:
                        nxt = w[D]
                        for s in range(D - 1, -1, -1):
                            u[s] = nxt * (D + 1) / ((s + 1) * o[j])
                            nxt = w[s] - u[s] * z[j] * (D - s) / (D + 1)
                            total += u[s]
                    else:
                        for s in range(D - 1, -1, -1):
                            total += w[s] * (D + 1) / (z[j] * (D - s))
                    for k in range(K):
                        phi[i, path[j], k] += rate * total * (o[j] - z[j]) * value[leaf, k]


@jit
def cut_points(
    feature: Array,
    split: Array,
    is_category: Array,
    value_offset: Array,
    lower: Array,
    upper: Array,
    edge: Array,
    exact: Array,
    threshold: Array,
    last_left: Array,
) -> None:
    """Turn the bins (a, b) of each split into a threshold on the raw value and the last bin on its left side.

    Where every bin holds one distinct value (`exact`) the threshold lies midway between the largest value on the left and
    the smallest on the right, as in an exact search; otherwise on the edge of bins nearest below that midpoint, so that
    a row goes the same way by its bin and by its value. edge[i] separates the bins i and i + 1.
    """
    for node in range(feature.shape[0]):
        f = feature[node]
        if f < 0 or is_category[node]:
            continue
        a, b = split[node, 0], split[node, 1]
        base = value_offset[f]
        if base + b >= value_offset[f + 1]:  # only missing values go right
            threshold[node], last_left[node] = np.inf, b - 1
            continue
        low, high = upper[base + a], lower[base + b]
        middle = low + 0.5 * (high - low)
        if not middle < high:
            middle = low
        at = a
        while at + 1 < b and upper[base + at + 1] <= middle:
            at += 1
        last_left[node] = at
        threshold[node] = middle if exact[f] else edge[base + at]
