"""Robustly scaled columns: against numpy's quartiles, and by hand for categories and missing cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.data.columns import FittedColumns
from pluribus.data.table import Table
from pluribus.tabular.robust import CLIP, RobustColumns, smooth_clip


def fitted(frame: pd.DataFrame) -> tuple[FittedColumns, torch.Tensor, torch.Tensor]:
    """Columns fitted on a frame (with a target added), and its encoded rows."""
    table = Table(frame.assign(y=np.arange(len(frame)) % 7), ["y:regression"], split="random")
    columns = FittedColumns.fit(table)
    numeric, categorical = columns.encode(frame)
    return columns, torch.from_numpy(numeric)[None], torch.from_numpy(categorical)[None]


def test_smooth_clip_ends_at_three_and_is_the_identity_at_zero() -> None:
    far = smooth_clip(torch.tensor([1e3, -1e3, 1e30, -torch.inf]))
    torch.testing.assert_close(far, torch.tensor([CLIP, -CLIP, CLIP, -CLIP]), rtol=1e-4, atol=0)
    x = torch.zeros(1, requires_grad=True)
    smooth_clip(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=41, max_size=61), st.floats(0.1, 1e4))
def test_a_number_is_centred_at_its_median_and_divided_by_its_quartiles(values: list[float], unit: float) -> None:
    """Whatever the unit: (x − median)/(Q75 − Q25), or 2 (x − median)/(max − min) where the quartiles meet, then the clip."""
    x = unit * np.array(values) + np.linspace(0, 1e-3, len(values))  # no two alike: a column of few values is read as categories
    columns, numeric, categorical = fitted(pd.DataFrame({"x": x}))
    low, q1, q2, q3, high = np.percentile(x, [0, 25, 50, 75, 100])
    spread = q3 - q1 if q3 > q1 else (high - low) / 2
    if spread < 1e-4 * np.abs(x).max():  # float32 of the encoded column cannot say
        return
    z = (x - q2) / spread
    known, _ = RobustColumns(columns)(numeric, categorical)
    np.testing.assert_allclose(known[0, :, 0].numpy(), z / np.sqrt(1 + (z / 3) ** 2), rtol=2e-3, atol=2e-3)


def test_a_constant_column_is_zero() -> None:
    columns, numeric, categorical = fitted(pd.DataFrame({"x": [4.0] * 50, "z": np.arange(50.0)}))
    numeric[0, 0, 0] = 1e9
    known, _ = RobustColumns(columns)(numeric, categorical)
    assert torch.equal(known[0, :, 0], torch.zeros(50))


def test_a_missing_number_is_the_mean_and_says_so() -> None:
    """The mean, not the median, stands in; the indicator is centred and scaled as the ±1 column that it is."""
    x = np.r_[np.arange(30.0), 300.0, np.full(10, np.nan)]
    columns, numeric, categorical = fitted(pd.DataFrame({"x": x, "z": np.arange(41.0)}))
    robust = RobustColumns(columns)
    known, fixed = robust(numeric, categorical)
    mean, q1, q2, q3 = np.nanmean(x), *np.nanpercentile(x, [25, 50, 75])
    z = (mean - q2) / (q3 - q1)
    np.testing.assert_allclose(known[0, 31:, 0], z / np.sqrt(1 + (z / 3) ** 2), rtol=1e-3)
    assert robust.fixed == 1  # of x alone: z has no missing cell
    told = 2 / 1.0  # −1 at three quarters, so the quartiles meet: divided by half the range, 1
    np.testing.assert_allclose(fixed[0, :31, 0], 0.0, atol=1e-6)
    np.testing.assert_allclose(fixed[0, 31:, 0], told / np.sqrt(1 + (told / 3) ** 2), rtol=1e-5)


def test_small_categories_are_one_hot_and_two_levels_are_one_column() -> None:
    """Quarters of a, b, c, d: in each column Q75 − Q25 is 0 (3/4 are 0), so half the range divides."""
    frame = pd.DataFrame({"four": list("abcd") * 20, "two": list("pq") * 40, "z": np.arange(80.0)})
    columns, numeric, categorical = fitted(frame)
    categorical[0, 0] = 0  # missing
    robust = RobustColumns(columns)
    _, fixed = robust(numeric, categorical)
    assert robust.fixed == 5
    hot = 2 / np.sqrt(1 + (2 / 3) ** 2)
    np.testing.assert_allclose(fixed[0, 1:5, :4], hot * np.eye(4)[[1, 2, 3, 0]], rtol=1e-5)
    np.testing.assert_allclose(fixed[0, 0, :4], 0.0)
    missing, p, q = (float(v) for v in fixed[0, [0, 2, 1], 4])
    assert q > missing > p
    assert (q - p) == pytest.approx(q, rel=1e-5) or (q - p) == pytest.approx(-p, rel=1e-5)  # the median is one of them


def test_rare_words_are_a_level_where_training_had_them_and_nothing_where_not() -> None:
    """Words of fewer than five rows share the code of the unseen: one more level. Without them an unseen word is like no word."""
    common = ["a"] * 30 + ["b"] * 30
    rare, _, codes = fitted(pd.DataFrame({"w": [*common, "r1", "r2"], "z": np.arange(62.0)}))
    assert RobustColumns(rare).fixed == 3
    assert int(codes[0, 61, 0]) == 1
    plain, numeric, codes = fitted(pd.DataFrame({"w": common, "z": np.arange(60.0)}))
    codes[0, 0], codes[0, 1] = 0, 1
    _, fixed = RobustColumns(plain)(numeric, codes)
    assert torch.equal(fixed[0, 0], fixed[0, 1])


def test_larger_categories_are_left_to_embeddings() -> None:
    words = [f"w{i % 10}" for i in range(100)]
    columns, _, _ = fitted(pd.DataFrame({"w": words, "z": np.arange(100.0)}))
    robust = RobustColumns(columns)
    assert robust.large == (0,)
    assert robust.fixed == 0
