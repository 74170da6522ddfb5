"""Forward passes in pieces: every row once and in order, and memory that does not grow with the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.modeling.pieces import FEW, LIMIT, MOST, bytes_of, bytes_per_row, pieces


@given(st.integers(0, 50_000), st.floats(0, 1e9), st.integers(1, 20_000))
def test_pieces_hold_every_row_once_and_stay_below_the_limit(rows: int, each: float, most: int) -> None:
    """If this fails, a row is predicted twice or not at all, or a piece is larger than the memory that it was given."""
    found = list(pieces(rows, each, most=most))
    assert [i for piece in found[:200] for i in range(rows)[piece]] == list(range(min(rows, found[:200][-1].stop)))
    assert found[-1].stop == rows
    for piece in found:
        size = piece.stop - piece.start
        assert size <= most
        assert size * each <= LIMIT or size == 1


def test_a_usual_table_is_cut_as_it_always_was() -> None:
    """If this fails, tables of a few hundred columns are predicted in smaller pieces than 8,192 rows: slower, for nothing."""
    assert [piece.stop for piece in pieces(20_000, 4 * 500)] == [MOST, 2 * MOST, 20_000]


def test_no_row_is_one_empty_piece() -> None:
    """If this fails, a request without rows has outputs without shapes."""
    assert list(pieces(0, 100.0)) == [slice(0, 0)]


def test_bytes_of_a_tree() -> None:
    """If this fails, pictures or masks inside nested inputs do not count."""
    tree = {"values": torch.zeros(3, 5), "more": [np.zeros(7, np.uint8), (torch.zeros(2, dtype=torch.bool), None, 3, "a")]}
    assert bytes_of(tree) == 60 + 7 + 2


def test_a_row_is_measured_on_rows_that_lie_over_all() -> None:
    """If this fails, a table whose first rows are short is cut into pieces that its last rows burst."""
    lengths = np.arange(1000)
    asked: list[slice] = []

    def run(piece: slice) -> Any:
        asked.append(piece)
        longest = int(lengths[piece].max())
        return torch.zeros(len(lengths[piece]), longest, dtype=torch.uint8), {"task": torch.zeros(len(lengths[piece]))}

    assert bytes_per_row(run, 1000) == pytest.approx(1000 + 4, abs=70)
    assert len(lengths[asked[0]]) == FEW
    asked.clear()
    assert bytes_per_row(run, FEW) == 0
    assert not asked
