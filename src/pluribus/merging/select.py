"""The exact k largest magnitudes of a tensor that is seen in chunks: a radix select on the bits, no sort, no index array.

The bit pattern of a non-negative float orders like an integer. A histogram of its upper 16 bits finds the bin of the k-th
largest; a histogram of the next 16 within that bin finds the value. Ties in magnitude go to the lower flat index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


NONE = Cut(float("inf"), -1)
ALL = Cut(0.0)

Chunks = Callable[[], Iterator[tuple[int, Tensor]]]


def top(chunks: Chunks, rows: int, ks: Sequence[int], count: int) -> list[list[Cut]]:
    """For each of `rows` rows and each k of `ks`: the `Cut` of its k largest magnitudes.

    chunks: starts a pass over (flat index of the first entry, magnitudes ≥ 0 [rows, n]), in order. count: entries in all.
    Two passes for float32, four for float64, one more only where equal magnitudes stand at the border.
    """
    open_ks = [k for k in ks if 0 < k < count]
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
    return [
        [NONE if k <= 0 else ALL if k >= count else Cut(value[row, k], last[row, k]) for k in ks] for row in range(rows)
    ]
