"""Dates as people write them: every order, month names, times of day and zones; what may be two dates is not guessed."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data.ingest import read_written
from pluribus.data.table import Table
from pluribus.data.written.dates import dates_of
from pluribus.data.written.reading import Reading
from pluribus.data.written.writing import Writing, WrittenDates

FORMATS = {
    "%Y-%m-%d": None,
    "%Y-%m-%d %H:%M:%S": None,
    "%Y-%m-%dT%H:%M:%S.%f": None,
    "%Y/%m/%d": None,
    "%d/%m/%Y": True,
    "%m/%d/%Y": False,
    "%d-%m-%Y": True,
    "%d.%m.%Y": None,
    "%d.%m.%Y %H:%M": None,
    "%m/%d/%Y %I:%M:%S %p": False,
    "%m/%d/%Y %I:%M %p": False,
    "%d %b %Y": None,
    "%d %B %Y": None,
    "%b %d, %Y": None,
    "%B %d, %Y %I:%M %p": None,
    "%d-%b-%y": None,
    "%a, %d %b %Y %H:%M:%S": None,
    "%d/%m/%y": True,
}
moments = st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2068, 12, 31))


@given(st.lists(moments, min_size=1, max_size=10), st.sampled_from(sorted(FORMATS)))
def test_every_format_is_read_back(stamps: list[datetime.datetime], form: str) -> None:
    """Python's own formatting and parsing are the oracle."""
    words = [stamp.strftime(form) for stamp in stamps]
    expected = [datetime.datetime.strptime(word, form) for word in words]
    found = dates_of(pa.array(words), FORMATS[form], settled=FORMATS[form] is not None)
    assert found.stamps.tolist() == expected
    free = dates_of(pa.array(words))
    if not free.matters or free.dayfirst is not None:
        assert free.stamps.tolist() == expected, "an order that was found out is the one that was written"
    else:
        assert FORMATS[form] is not None


@pytest.mark.parametrize(
    ("word", "iso"),
    [
        ("31/12/2024", "2024-12-31"),
        ("12/31/2024", "2024-12-31"),
        ("31.12.24 14:30", "2024-12-31T14:30"),
        ("12/31/2024 12:05 AM", "2024-12-31T00:05"),
        ("12/31/2024 12:05 pm", "2024-12-31T12:05"),
        ("2024-12-31T23:00:00Z", "2024-12-31T23:00"),
        ("2024-12-31 23:00:00-02:30", "2025-01-01T01:30"),
        ("2024-12-31 23:00 UTC", "2024-12-31T23:00"),
        ("1st March 2024", "2024-03-01"),
        ("Tue, 5 Mar 2024 10:00:00 +0100", "2024-03-05T09:00"),
        ("29/02/2024", "2024-02-29"),
        ("2024-03", "2024-03-01"),
        ("March 2024", "2024-03-01"),
    ],
)
def test_known_dates(word: str, iso: str) -> None:
    """Noon and midnight, zones, leap years."""
    assert dates_of(pa.array([word])).stamps[0] == np.datetime64(iso)


@pytest.mark.parametrize(
    "word",
    ["31/02/2024", "29/02/2023", "13/13/2024", "2024-13-01", "12/31/2024 13:00 PM", "25:00", "red", "", "1/2", "2024", "1.5.3"],
)
def test_what_is_no_date(word: str) -> None:
    """A day that the calendar lacks is no date, rather than another day."""
    assert np.isnat(dates_of(pa.array([word])).stamps[0])


def _file(tmp_path: Path, *columns: list[str]) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("a;b\n" + "".join(";".join(row) + "\n" for row in zip(*columns)), "utf-8")
    return path


def test_ambiguous_dates_stay_words_until_somebody_decides(tmp_path: Path) -> None:
    """03/04/2024 alone is in March or in April: the note names the options, each of which reads it."""
    path = _file(tmp_path, ["03/04/2024", "05/06/2024"], ["x", "y"])
    found = read_written(path)
    assert found.frame["a"].tolist() == ["03/04/2024", "05/06/2024"]
    (note,) = found.notes
    assert "'a'" in note
    assert "--dayfirst or --monthfirst" in note
    assert read_written(path, reading=Reading(dayfirst=True)).frame["a"].dt.month.tolist() == [4, 6]
    assert read_written(path, reading=Reading(dayfirst=False)).frame["a"].dt.month.tolist() == [3, 5]


def test_another_column_decides_the_order(tmp_path: Path) -> None:
    """The program that wrote 31/12/2024 wrote the other column too."""
    found = read_written(_file(tmp_path, ["03/04/2024", "05/06/2024"], ["31/12/2024", "01/02/2024"]))
    assert found.frame["a"].dt.month.tolist() == [4, 6]
    assert any("as in the other columns" in note for note in found.notes)


def test_two_orders_in_one_column_are_named(tmp_path: Path) -> None:
    """No order fits both cells: the column stays words, and the line shows them."""
    found = read_written(_file(tmp_path, ["31/12/2024", "12/31/2024"], ["x", "y"]))
    assert found.frame["a"].tolist() == ["31/12/2024", "12/31/2024"]
    assert "'31/12/2024'" in found.notes[0]
    assert "'12/31/2024'" in found.notes[0]


def test_mixed_zones_become_utc_and_missing_words_nat(tmp_path: Path) -> None:
    """A column may mix forms, as exports of several programs do."""
    path = _file(tmp_path, ["2024-01-01T00:00:00+02:00", "31 Dec 2023 23:00", "unknown"], ["x", "y", "z"])
    found = read_written(path)
    assert found.frame["a"].tolist()[:2] == [pd.Timestamp("2023-12-31 22:00"), pd.Timestamp("2023-12-31 23:00")]
    assert pd.isna(found.frame["a"].iloc[2])
    assert any("taken for UTC" in note and "'unknown' means missing" in note for note in found.notes)


def test_a_writing_keeps_the_order(tmp_path: Path) -> None:
    """In a further file 03/04/2024 is in April too, and 12/31/2024 is refused rather than turned round."""
    writing = Writing.from_dict(WrittenDates(dayfirst=True).to_dict())
    assert writing.cell("03/04/2024") == datetime.datetime(2024, 4, 3)
    assert writing.cell("12/31/2024") == "12/31/2024"
    assert writing.cell(None) is None


def test_compact_dates_are_named_and_read_on_demand(tmp_path: Path) -> None:
    """20241231 stays a number until the user says that it is a date."""
    path = _file(tmp_path, ["20241231", "20240102"], ["x", "y"])
    assert any("--type a=datetime" in note for note in read_written(path).notes)
    found = read_written(path, reading=Reading(types={"a": "datetime"}))
    assert found.frame["a"].dt.day.tolist() == [31, 2]


def test_rows_in_time_are_read_with_the_order_that_their_cells_show() -> None:
    """A frame's column that orders the rows: 31/12/2024 says how 03/04/2024 is read, not each cell for itself."""
    days = [f"{day:02d}/{month:02d}/2024" for month in range(1, 13) for day in (3, 17, 28)]
    frame = pd.DataFrame({"day": days, "x": np.arange(36.0), "y": [0.5, 1.5, 2.5] * 12})
    table = Table(frame, ["y"], time="day")
    assert table.frame["day"].dt.month.tolist() == [month for month in range(1, 13) for _ in range(3)]
