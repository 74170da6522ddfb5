"""Columns on one robust scale: numbers and small categories as numbers between −3 and 3, without anything learnt by gradient.

Holzmüller, Grinsztajn, Steinwart, "Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on Tabular Data", NeurIPS 2024,
section 3 ("robust scaling and smooth clipping"). For a column x with quartiles q₁, q₂, q₃ on the training rows:

    x ← f (x − q₂),     f = 1/(q₃ − q₁);  2/(max − min) where q₃ = q₁;  0 where the column is constant
    x ← x / √(1 + (x/3)²)

Categories of at most nine levels are one-hot columns (two levels: one column of ±1; a missing cell is 0 in all of them), which
are scaled the same way. So such a column has one number for each code, which stands in a table here.

The public code refuses missing numbers. Here, as AutoGluon does: the mean stands in their place, and a column of ±1 says that the
cell is missing, where the training rows had any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pluribus.data.statistics import FIRST, UNSEEN

if TYPE_CHECKING:
    from pluribus.data.columns import FittedColumns

ONE_HOT = 9  # levels up to which a category is one-hot
CLIP = 3.0
_FAR = 1e6  # beyond this a number is as good as clipped; its square still is a float32


def smooth_clip(x: Tensor) -> Tensor:
    """x / √(1 + (x/3)²): slope 1 at 0, ±3 far out."""
    x = x.clamp(-_FAR, _FAR)
    return x * torch.rsqrt(1 + (x / CLIP).square())


def robust(low: float, quartiles: Sequence[float], high: float) -> tuple[float, float]:
    """Centre and factor of a column with this minimum, these quartiles and this maximum."""
    first, middle, third = quartiles
    spread = third - first if third > first else 0.5 * (high - low)
    return middle, 1 / spread if spread > 0 else 0.0


class RobustColumns(nn.Module):
    """Encoded rows → numbers on one scale.

    Parameters
    ----------
    columns : FittedColumns
        Says what the training rows held: quantiles of numbers, frequencies of codes.

    Attributes
    ----------
    numbers : int
        F, the numeric features.
    fixed : int
        O, the columns made of small categories and of what is missing.
    large : tuple of int
        The places of the categorical features with more than nine levels, which are left to embeddings.
    """

    centre: Tensor
    factor: Tensor
    holed: Tensor
    told: Tensor
    source: Tensor
    offset: Tensor
    table: Tensor

    def __init__(self, columns: FittedColumns) -> None:
        super().__init__()
        found = list(columns.numbers.values())
        centre, factor, holed, told = np.zeros(len(found)), np.zeros(len(found)), [], []
        for i, number in enumerate(found):
            q = (number.quantiles - number.centre) / number.scale
            if np.isfinite(q).all():
                step = (len(q) - 1) // 4
                centre[i], factor[i] = robust(q[0], (q[step], q[2 * step], q[3 * step]), q[-1])
            if number.missing > 0:
                holed.append(i)
                told.append(_scaled(np.array([-1.0, 1.0]), np.array([1 - number.missing, number.missing])))
        source: list[int] = []
        rows: list[NDArray[np.float64]] = []
        large: list[int] = []
        for i, category in enumerate(columns.categories.values()):
            levels = [code for code in range(UNSEEN, len(category.frequency)) if code >= FIRST or category.frequency[UNSEEN] > 0]
            if len(levels) > ONE_HOT:
                large.append(i)
                continue
            for hot in _hot(levels, len(category.frequency)):
                source.append(i)
                rows.append(_scaled(hot, category.frequency))
        self.numbers, self.fixed, self.large = len(found), len(holed) + len(rows), tuple(large)
        widest = max((len(row) for row in rows), default=0)
        table = np.zeros((len(rows), widest))
        for k, row in enumerate(rows):
            table[k, : len(row)] = row
        self._keep("centre", centre)
        self._keep("factor", factor)
        self._keep("holed", np.array(holed, np.int64))
        self._keep("told", np.array(told).reshape(len(holed), 2))
        self._keep("source", np.array(source, np.int64))
        self._keep("offset", np.arange(len(rows)) * widest)
        self._keep("table", smooth_clip(torch.from_numpy(table)).flatten().numpy())
        self.told.copy_(smooth_clip(self.told))

    def _keep(self, name: str, values: ArrayLike) -> None:
        """A buffer; the fitted columns make it again, so that it is not written with the weights."""
        held = torch.as_tensor(np.asarray(values))
        self.register_buffer(name, held.float() if held.is_floating_point() else held, persistent=False)

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """x [A, B, F] with NaN where missing, codes [A, B, C] → numbers [A, B, F] and fixed columns [A, B, O]."""
        missing = x.isnan()
        known = smooth_clip((torch.where(missing, 0.0, x) - self.centre) * self.factor)
        fixed = []
        if self.holed.shape[0]:
            gone = missing.index_select(-1, self.holed)
            fixed.append(torch.where(gone, self.told[:, 1], self.told[:, 0]))
        if self.source.shape[0]:
            fixed.append(self.table[codes.index_select(-1, self.source).long() + self.offset])
        nothing = x.new_zeros(*x.shape[:-1], 0)
        return known, fixed[0] if len(fixed) == 1 else torch.cat(fixed, -1) if fixed else nothing


def _hot(levels: Sequence[int], codes: int) -> list[NDArray[np.float64]]:
    """The one-hot columns of a category with these levels: for each column its number by code."""
    if len(levels) == 2:
        column = np.zeros(codes)
        column[levels[0]], column[levels[1]] = -1.0, 1.0
        return [column]
    return [np.eye(codes)[level] for level in levels]


def _scaled(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers of a column that takes each of them in this share of the training rows, centred and scaled."""
    order = np.argsort(values, kind="stable")
    taken = order[shares[order] > 0]
    if not len(taken):
        return np.zeros(len(values))
    reached = np.cumsum(shares[taken]) / shares[taken].sum()
    quartiles = [float(values[taken[np.searchsorted(reached, at)]]) for at in (0.25, 0.5, 0.75)]
    middle, factor = robust(float(values[taken[0]]), quartiles, float(values[taken[-1]]))
    return (values - middle) * factor


__all__ = ["CLIP", "ONE_HOT", "RobustColumns", "robust", "smooth_clip"]
