"""A model that was fitted on a file that people wrote answers requests with the same words."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import pytest

from pluribus.data.columns import FittedColumns
from pluribus.data.table import Table
from pluribus.serving.bodies import BodyReader, Limits


@pytest.fixture
def reader(tmp_path: Path) -> BodyReader:
    lines = ["price;day;flag;zip;y"]
    lines += [
        f"€ {i},5;{i % 28 + 1:02d}/{i % 12 + 1:02d}/2024;{('Yes', 'no', 'YES')[i % 3]};{i % 5:05d};{i % 7}" for i in range(60)
    ]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    table = Table.read(path, ["y:count"], split="random")
    return BodyReader(FittedColumns.fit(table), Limits(), table.tasks)


def test_words_of_the_file_are_words_of_requests(reader: BodyReader) -> None:
    """Otherwise a client that sends what stands in the file is refused, or gets another answer than the file."""
    rows = [
        {"price": "€ 3,5", "day": "03/04/2024", "flag": "yes", "zip": "00003"},
        {"price": 3.5, "day": "2024-04-03", "flag": True, "zip": "00003"},
        {"price": "NA", "day": None, "flag": None, "zip": None},
    ]
    found = reader.json(json.dumps({"rows": rows}).encode())
    assert not found.errors
    cells = [dict(zip(reader.names, row)) for row in found.values]
    assert cells[0] == cells[1]
    assert cells[0]["price"] == 3.5
    assert cells[0]["day"] == datetime.datetime(2024, 4, 3)
    assert math.isnan(cells[2]["price"])


def test_other_words_are_refused_with_the_column(reader: BodyReader) -> None:
    """A text that is no price is no missing price."""
    row = {"price": "cheap", "day": "12/31/2024", "flag": "yes", "zip": "1"}
    found = reader.json(json.dumps({"rows": [row, {**row, "price": 1}]}).encode())
    assert "column 'price'" in found.errors[0]
    assert "column 'day'" in found.errors[1]
