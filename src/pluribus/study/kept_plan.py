"""The plan of a run that goes on: a candidate keeps the configurations and seconds that an earlier call planned for it.

With more candidates every share of the budget is smaller, and fewer configurations would be screened: planned anew, trials that
are finished would be no part of the plan any more.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pluribus.files import atomic_file, read_json
from pluribus.files.plain import plain
from pluribus.study.plan import Plan, Road


def kept(planned: Plan, path: Path) -> Plan:
    """The plan with the roads of earlier calls in place of its own, and written down for later ones.

    Parameters
    ----------
    planned : Plan
        What the settings alone give.
    path : Path
        The run's file of roads; there is none yet where nothing was trained.

    Returns
    -------
    Plan
        The roads in the order of `planned`, then those of earlier calls that it left out.
    """
    earlier = {row["candidate"]: _road(row) for row in (read_json(path) if path.is_file() else [])}
    there = {road.candidate for road in planned.roads}
    roads = [_same(road, earlier.get(road.candidate)) for road in planned.roads]
    roads += [road for name, road in earlier.items() if name not in there]
    with atomic_file(path) as aside:
        aside.write_text(json.dumps([plain(asdict(road)) for road in roads], allow_nan=False), "utf-8")
    left_out = {name: why for name, why in planned.left_out.items() if name not in earlier}
    return replace(planned, roads=tuple(roads), left_out=left_out)


def _road(row: dict[str, Any]) -> Road:
    return Road(**{**row, "configurations": tuple(row["configurations"])})


def _same(road: Road, earlier: Road | None) -> Road:
    """The earlier road, or this one where they are equal: JSON knows no tuples."""
    if earlier is None or plain(asdict(road)) == plain(asdict(earlier)):
        return road
    return earlier
