"""Tables that are made, not read: `table: {generator: multitab_bench, rows: 20000, correlation: 0.9}` in a study file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pluribus.errors import BadInput, unknown

if TYPE_CHECKING:
    import pandas as pd

GENERATORS = {"multitab_bench": "pluribus.tabular:multitab_bench"}
"""Functions of keyword settings that return a DataFrame with the targets y0, y1, …"""


def check(table: Mapping[str, Any], *, where: str) -> None:
    """The generator exists and has these settings; their values are checked where the table is made."""
    name = table.get("generator")
    if name is None:
        raise BadInput("names no generator", where=where, remedy=f"write generator: {next(iter(GENERATORS))}, or a file's path")
    if name not in GENERATORS:
        raise unknown("generator", str(name), GENERATORS, where=where)
    known = [*inspect.signature(_function(name)).parameters]
    for key in table:
        if key != "generator" and key not in known:
            raise unknown("setting", str(key), known, where=f"{where}, {name}")


def targets(table: Mapping[str, Any]) -> list[str]:
    """All targets of a checked table with their kinds."""
    made = make({**table, "rows": 1})
    links = table.get("binary") or ()
    return [f"{name}:{'binary' if name in links else 'regression'}" for name in _all(made)]


def _all(frame: pd.DataFrame) -> list[str]:
    return [str(column) for column in frame if str(column).startswith("y")]


def make(table: Mapping[str, Any], keep: Sequence[str] | None = None) -> pd.DataFrame:
    """The table. keep: the targets that stay in it (None: all); another target would be an input that gives answers away."""
    settings = {key: value for key, value in table.items() if key != "generator"}
    frame = _function(table["generator"])(**settings)
    if keep is None:
        return frame
    for name in keep:
        if name not in frame:
            raise unknown("target", name, _all(frame), where=table["generator"])
    return frame.drop(columns=[column for column in _all(frame) if column not in keep])


def _function(name: str) -> Callable[..., pd.DataFrame]:
    module, _, attribute = GENERATORS[name].partition(":")
    found: Callable[..., pd.DataFrame] = getattr(importlib.import_module(module), attribute)
    return found
