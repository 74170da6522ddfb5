"""The exact k largest magnitudes of a tensor that is seen in chunks, in two passes and without sorting it.

`bracketed`: every so-manieth entry is a sample, whose quantiles bracket the k-th largest; the second pass counts what lies above
the bracket and picks what lies in it, a few per cent, where the k-th largest is found. A bracket that misses, or that holds too
much (many equal magnitudes), leaves the work to `radix`: the bit pattern of a non-negative float orders like an integer, so a
histogram of its upper 16 bits finds the bin of the k-th largest, and a histogram of the next 16 within that bin the value.
Both are exact, with the same result. Ties in magnitude go to the lower flat index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """The k largest magnitudes: those above `value`, and those equal to it up to flat index `last` (None: all of these)."""

    value: float
    last: int | None = None

    def mask(self, magnitude: Tensor, start: int) -> Tensor:
        """Which entries of a stretch that begins at flat index `start` belong."""
        if self.last is None:
            return magnitude >= self.value
        found = magnitude > self.value
        reach = min(max(0, self.last + 1 - start), magnitude.shape[-1])
        if reach:
            found[..., :reach] |= magnitude[..., :reach] == self.value
        return found

    def keep(self, x: Tensor, start: int) -> Tensor:
        """A copy of a stretch [n] in which only the entries that belong are not 0."""
        border = x.new_tensor(self.value).numpy()
        below = np.nextafter(border, border.dtype.type(-np.inf))
        found = torch.hardshrink(x, float(below))  # several times as fast as a mask
        if self.last is not None:
            late = found[min(max(0, self.last + 1 - start), len(x)) :]
            late.masked_fill_(late.abs() == self.value, 0)
        return found


NONE = Cut(float("inf"), -1)
ALL = Cut(0.0)

Chunks = Callable[[], Iterator[tuple[int, Tensor]]]


SAMPLE = 4096  # entries of a row, about
SPREAD = 4.0  # standard errors of a sample's quantile on either side of it


def top(chunks: Chunks, rows: int, ks: Sequence[int], count: int) -> list[list[Cut]]:
    """For each of `rows` rows and each k of `ks`: the `Cut` of its k largest magnitudes.

    chunks: starts a pass over (flat index of the first entry, magnitudes ≥ 0 [rows, n]), in order. count: entries in all.
    """
    open_ks = sorted({k for k in ks if 0 < k < count})
    found = bracketed(chunks, rows, open_ks, count) if open_ks and count >= 16 * SAMPLE else {}
    missed = [k for k in open_ks if any((row, k) not in found for row in range(rows))]
    if missed:
        found.update(radix(chunks, rows, missed))
    return [[NONE if k <= 0 else ALL if k >= count else found[row, k] for k in ks] for row in range(rows)]


def bracketed(chunks: Chunks, rows: int, ks: Sequence[int], count: int) -> dict[tuple[int, int], Cut]:
    """The cuts, by row and k, that the brackets of a sample hold."""
    step = count // SAMPLE | 1  # odd: not in step with the columns of a matrix
    sample = torch.cat([magnitude[:, -start % step :: step] for start, magnitude in chunks()], 1).sort(1, descending=True).values
    size = sample.shape[1]
    limits: dict[tuple[int, int], tuple[float, float]] = {}
    for k in ks:
        share = k / count
        slack = SPREAD * math.sqrt(share * (1 - share) * size) + 2
        low, high = math.ceil(share * size + slack), math.floor(share * size - slack)
        for row in range(rows):
            below = float(sample[row, low]) if low < size else 0.0
            limits[row, k] = below, float(sample[row, high]) if high >= 0 else math.inf
    above = dict.fromkeys(limits, 0)
    inside: dict[tuple[int, int], list[tuple[Any, Any]]] = {key: [] for key in limits}
    held = dict.fromkeys(limits, 0)
    for start, magnitude in chunks():
        for (row, k), (below, beyond) in limits.items():
            if held[row, k] > count // 8:
                continue
            mine = magnitude[row].numpy()  # numpy compares and counts several times as fast
            larger = mine > beyond
            above[row, k] += int(np.count_nonzero(larger))
            at = np.flatnonzero(np.bitwise_xor(mine >= below, larger, out=larger))
            inside[row, k].append((at + start, mine[at]))
            held[row, k] += len(at)
    found = {}
    for (row, k), parts in inside.items():
        rank = k - above[row, k]
        if held[row, k] > count // 8 or not 0 < rank <= held[row, k]:
            continue
        at, values = (np.concatenate(column) for column in zip(*parts))
        border = np.partition(values, len(values) - rank)[len(values) - rank]
        quota = rank - int(np.count_nonzero(values > border))
        equal = at[values == border]
        found[row, k] = Cut(float(border), None if len(equal) == quota else int(equal[quota - 1]))
    return found


def radix(chunks: Chunks, rows: int, open_ks: Sequence[int]) -> dict[tuple[int, int], Cut]:
    """The cuts by row and k.

    Two passes for float32, four for float64, one more only where equal magnitudes stand at the border.
    """
    prefix: dict[tuple[int, int], int] = {(row, k): 0 for row in range(rows) for k in open_ks}
    left = {key: key[1] for key in prefix}
    equal: dict[tuple[int, int], int] = {}
    kind, bits = torch.float32, 0
    digits_left = bool(prefix)
    shift = width = 0
    while digits_left:
        histograms: dict[tuple[int, int], Tensor] = {}
        for _, magnitude in chunks():
            if not bits:
                kind = magnitude.dtype
                bits = 31 if kind == torch.float32 else 63
                shift, width = bits - 16, 16
            integers = magnitude.view(torch.int32 if kind == torch.float32 else torch.int64)
            for row in range(rows):
                digits = integers[row] >> shift
                above = digits >> width if shift + width < bits else digits
                for known in {prefix[row, k] for k in open_ks}:
                    if shift + width < bits:
                        mine = digits[above == known].bitwise_and_((1 << width) - 1)
                    else:
                        mine = digits
                    found = torch.bincount(mine, minlength=1 << width)
                    histograms[row, known] = histograms[row, known].add_(found) if (row, known) in histograms else found
        for row, k in prefix:
            histogram = histograms[row, prefix[row, k]]
            larger = histogram.flip(0).cumsum(0)
            digit = int((larger < left[row, k]).sum())  # bins that lie wholly above the k-th largest
            left[row, k] -= int(larger[digit - 1]) if digit else 0
            digit = (1 << width) - 1 - digit
            equal[row, k] = int(histogram[digit])
            prefix[row, k] = prefix[row, k] << width | digit
        digits_left = shift > 0
        width = min(16, shift)
        shift -= width
    integer = torch.int32 if kind == torch.float32 else torch.int64
    value = {key: float(torch.tensor(p, dtype=integer).view(kind)) for key, p in prefix.items()}
    last: dict[tuple[int, int], int | None] = dict.fromkeys(prefix)
    unsure = {key: left[key] for key in prefix if equal[key] > left[key]}
    if unsure:
        for start, magnitude in chunks():
            for (row, k), quota in list(unsure.items()):
                at = (magnitude[row] == value[row, k]).nonzero()[:, 0]
                if len(at) >= quota:
                    last[row, k] = start + int(at[quota - 1])
                    del unsure[row, k]
                else:
                    unsure[row, k] = quota - len(at)
            if not unsure:
                break
    return {key: Cut(value[key], last[key]) for key in prefix}
