"""Numbers as people write them: every style is read back, what may be two numbers is not guessed, and words stay words."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data.ingest import read_written
from pluribus.data.written.numbers import MARKS, NumberStyle, styles_of
from pluribus.data.written.reading import Reading
from pluribus.data.written.writing import Writing, WrittenNumbers
from pluribus.errors import BadInput

STYLES = [
    NumberStyle(decimal, mark, unit)
    for decimal in (".", ",")
    for mark in ("", *MARKS)
    for unit in ("", "€", "$", "%", "CHF")
    if decimal != mark
]


def write(value: float, style: NumberStyle, places: int, form: int) -> str:
    """A number as a person would write it; the oracle is Python's own formatting."""
    sign = "-" if value < 0 else ""
    size = f"{abs(value):,.{places}f}"
    digits = size.replace(",", "\0").replace(".", style.decimal).replace("\0", style.mark)
    if not style.unit:
        return [f"{sign}{digits}", f"({digits})" if sign else digits, f"{digits}-" if sign else digits, f" {sign}{digits} "][form]
    if style.unit == "%":
        return [f"{sign}{digits}%", f"{sign}{digits} %", f"({digits}%)" if sign else f"{digits}%", f"{sign}{digits}%"][form]
    unit = style.unit
    signed = f"({unit}{digits})" if sign else f"{unit}{digits}"
    return [f"{sign}{unit}{digits}", f"{sign}{digits} {unit}", signed, f"{unit} {sign}{digits}"][form]


values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=12)


@given(values, st.sampled_from(STYLES), st.integers(0, 4), st.integers(0, 3))
def test_every_style_is_read_back(numbers: list[float], style: NumberStyle, places: int, form: int) -> None:
    """Otherwise a table's prices would be other prices."""
    rounded = [float(f"{value:.{places}f}") for value in numbers]
    words = pa.array([write(value, style, places, form) for value in rounded])
    assert np.array_equal(style.numbers(words), np.array(rounded))


@given(values, st.sampled_from(STYLES), st.integers(0, 4), st.integers(0, 3))
def test_a_found_style_gives_the_numbers_or_several_are_possible(
    numbers: list[float], style: NumberStyle, places: int, form: int
) -> None:
    """The style is found out without a wrong guess: where one is found, its numbers are those that were written."""
    rounded = [float(f"{value:.{places}f}") for value in numbers]
    words = pa.array([write(value, style, places, form) for value in rounded])
    found = styles_of(words)
    assert found.possible, words
    readings = [one.numbers(words).tolist() for one in found.possible]
    assert rounded in readings
    if found.style is not None:
        assert readings == [rounded]


@given(st.lists(st.floats(-1e7, 1e7), min_size=3, max_size=12), st.sampled_from(STYLES), st.integers(0, 3))
def test_a_file_of_any_locale_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float], style: NumberStyle, form: int
) -> None:
    """Through a file, with the option where it is ambiguous; a further file gives the same numbers by the column's writing."""
    rounded = [float(f"{value:.2f}") for value in numbers]
    cells = [write(value, style, 2, form) for value in rounded]
    path = tmp_path_factory.getbasetemp() / "locale.csv"
    path.write_text("x\ty\n" + "".join(f"{cell}\tw{i}\n" for i, cell in enumerate(cells)), "utf-8")
    said = Reading(decimal=style.decimal, thousands=style.mark) if style.mark else Reading(decimal=style.decimal)
    found = read_written(path, reading=said)
    assert found.frame["x"].tolist() == rounded
    if "x" in found.writings:
        again = Writing.from_dict(found.writings["x"].to_dict())
        assert again == found.writings["x"]
        for cell, value in zip(cells, rounded):
            assert again.cell(cell) == value


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["1,234,567", "12"], [1234567, 12]),
        (["1.234,56", "7"], [1234.56, 7]),
        (["12.3%", "-4%", "0"], [12.3, -4, 0]),
        (["€9.99", "€ 1,200.50", "12"], [9.99, 1200.5, 12]),
        (["$1,200.50", "($3.10)"], [1200.5, -3.1]),
        (["(1,234)", "12.5"], [-1234, 12.5]),
        (["1\u202f234,5", "3,25"], [1234.5, 3.25]),
        (["1'234.50", "1\u2019000.00"], [1234.5, 1000]),
        (["12,34,567", "1,000"], [1234567, 1000]),
        (["\u22125,5", "1,25"], [-5.5, 1.25]),
        (["1,5e3", "2,25"], [1500, 2.25]),
        (["0,123", "0,500"], [0.123, 0.5]),
        (["1234,567", "1,000"], [1234.567, 1]),
        (["12 kr", "1 000 kr"], [12, 1000]),
        (["USD 5", "7 USD"], [5, 7]),
    ],
)
def test_known_words(words: list[str], numbers: list[float]) -> None:
    """Forms whose meaning is beyond doubt."""
    found = styles_of(pa.array(words))
    assert found.style is not None, found
    assert found.style.numbers(pa.array(words)).tolist() == numbers


@pytest.mark.parametrize(
    "words", [["28,666"], ["€1.234"], ["1,234", "12"], ["1,234%"]], ids=["comma", "unit", "mixed", "percent"]
)
def test_what_may_be_two_numbers_is_not_guessed(words: list[str]) -> None:
    """28,666 is 28666 in New York and 28.666 in Berlin."""
    found = styles_of(pa.array(words))
    assert found.style is None
    assert len(found.possible) == 2
    first, second = (style.numbers(pa.array([found.example]))[0] for style in found.possible)
    assert math.isclose(max(first, second), 1000 * min(first, second))


@pytest.mark.parametrize(
    "words",
    [
        ["1,5", "1,5,2"],
        ["€9.99", "$9.99"],
        ["12%", "0.12"],
        ["red", "1"],
        ["1,234.5.6"],
        ["--5"],
        ["A123", "A124"],
        ["12:30"],
        ["1-2"],
        ["1 2"],
        ["+"],
        ["."],
        ["$"],
        ["()"],
    ],
)
def test_words_stay_words(words: list[str]) -> None:
    """No conversion unless all cells agree: two currencies, percent beside shares, codes, ranges."""
    assert styles_of(pa.array(words)).possible == ()


def test_ambiguous_numbers_are_refused_with_both_options(tmp_path: Path) -> None:
    """The line says what each option would make of the number."""
    path = tmp_path / "t.csv"
    path.write_text("a;b\n28,666;1\n1,500;2\n", "utf-8")
    with pytest.raises(BadInput) as caught:
        read_written(path)
    line = str(caught.value)
    assert "'28,666'" in line
    assert "thousands=','" in line
    assert "decimal=','" in line
    assert "28666" in line
    assert "28.666" in line
    assert read_written(path, reading=Reading(thousands=",")).frame["a"].tolist() == [28666, 1500]
    assert read_written(path, reading=Reading(decimal="a=,")).frame["a"].tolist() == [28.666, 1.5]
    assert read_written(path, ignore=["a"]).frame["a"].tolist() == ["28,666", "1,500"], "nobody reads it: nothing to refuse"


@pytest.mark.parametrize(
    ("other", "number"), [("1,5", 28.666), ("1.5", 28666), ("1,234,567", 28666), ("1.234,5", 28.666)], ids=str
)
def test_other_columns_decide(tmp_path: Path, other: str, number: float) -> None:
    """One program wrote all columns: a decimal comma elsewhere is one here; the line says so."""
    path = tmp_path / "t.csv"
    path.write_text(f"a;b\n28,666;{other}\n1,500;{other}\n", "utf-8")
    found = read_written(path)
    assert found.frame["a"].iloc[0] == number
    assert any("as in the other columns" in note and "'a'" in note for note in found.notes)


def test_points_of_thousands_are_not_decimals_in_a_file_of_commas(tmp_path: Path) -> None:
    """12.500 is 12500 where another column writes 1,5; a program alone would read 12.5."""
    path = tmp_path / "t.csv"
    path.write_text("a;b\n12.500;1,5\n1.250;2,25\n", "utf-8")
    found = read_written(path)
    assert found.frame["a"].tolist() == [12500, 1250]
    path.write_text("a;b\n12.500;1.5\n1.250;2.25\n", "utf-8")
    assert read_written(path).frame["a"].tolist() == [12.5, 1.25]


def test_a_writing_holds_for_further_files(tmp_path: Path) -> None:
    """A further file that holds nothing but 1.234 is read as the first one was."""
    writing = WrittenNumbers(style=NumberStyle(",", ".", "€"), na=("?",))
    assert writing.cell("1.234") == 1234
    assert writing.cell("€ 5,5") == 5.5
    assert writing.cell("?") is None
    assert writing.cell("NA") is None
    assert writing.cell(3.5) == 3.5
    assert writing.cell("five") == "five", "what is none is refused by the column's type"
