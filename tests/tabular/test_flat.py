"""The columns' embeddings side by side: if these fail, a woven network reads other columns than it names."""

from __future__ import annotations

import pytest
import torch

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.tabular.flat import Flat


def test_by_hand(mixed: Prepared) -> None:
    """Numbers as they are, an indicator where missing, then the rows of the categories' table."""
    encoder = Flat.of(mixed.columns, embedding="plain", category_size=3)
    inputs = mixed.batch(torch.arange(30), tasks=()).inputs
    x, codes = inputs["numeric"], inputs["categorical"].long()
    words = [encoder.categorical.table[0][codes[:, c] + encoder.categorical.offsets[c]] for c in range(codes.shape[1])]
    expected = torch.cat((x.nan_to_num(), x.isnan().float(), *words), 1)
    torch.testing.assert_close(encoder(inputs, {}).main, expected)
    assert encoder.width == expected.shape[1]


def test_some_columns_only(mixed: Prepared) -> None:
    encoder = Flat.of(mixed.columns, only=["word", "x1"], embedding="plain", category_size=3)
    inputs = mixed.batch(torch.arange(30), tasks=()).inputs
    before = encoder(inputs, {}).main
    assert before.shape == (30, 2 + 3)
    inputs["numeric"][:, [0, 2, 3]] = 7.0
    assert torch.equal(encoder(inputs, {}).main, before)
    inputs["numeric"][:, 1] = 7.0
    assert not torch.equal(encoder(inputs, {}).main, before)


def test_copies_have_tables_of_their_own(mixed: Prepared) -> None:
    encoder = Flat.of(mixed.columns, copies=3)
    found = encoder.run(mixed.batch(torch.arange(5), tasks=()).inputs)
    assert found.shape == (3, 5, encoder.width)
    assert not torch.equal(found[0], found[1])


def test_bad_columns(mixed: Prepared) -> None:
    with pytest.raises(BadInput, match="unknown input column 'wrod'; did you mean 'word'"):
        Flat.of(mixed.columns, only=["wrod"])
    with pytest.raises(BadInput, match="no feature comes from the columns"):
        Flat.of(mixed.columns, only=[])
