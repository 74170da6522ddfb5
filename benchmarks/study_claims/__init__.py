"""Does a default study win? Its one model and its recommendation against the best specialists and against other people's tools.

34 tables (`sets`), each cut by seed into train, valid and test; no arm sees a test label before it is judged. `ours`:
`Study` with its defaults. `rivals`: LightGBM per task (defaults; tuned), extra-trees, CatBoost, XGBoost, AutoGluon. Every arm
runs in a process of its own with one thread, on the same training rows. A finished cell is kept in the work folder (`cells`:
STUDY_CLAIMS of the environment, else runs/study_claims) and not run again.

By default the eight tables of the report, one split, 120 core-seconds a cell; FULL=1: all tables, three splits, 600 core-seconds.
Settings of this library were chosen while looking at eight of the tables; their figures stand apart, and no claim rests on them.
Writes docs/results/study.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.study_claims.cells import Key, Work, arms
from benchmarks.study_claims.page import write
from benchmarks.study_claims.sets import DEFAULT, SETS


@dataclass(frozen=True)
class Extent:
    """What is run: tables, splits, core-seconds a cell."""

    tables: tuple[str, ...]
    splits: int
    budget: float


SHORT = Extent(DEFAULT, 1, 120.0)
FULL = Extent(tuple(SETS), 3, 600.0)


def cover(
    work: Work,
    tables: Sequence[str],
    splits: int,
    chosen: Sequence[str],
    budget: float,
    *,
    again: bool = False,
    retry: bool = False,
) -> None:
    """Run the cells that are not there, one at a time; `again`: all of them; `retry`: those that failed too."""
    done = work.cells()
    for split in range(splits):
        for table in tables:
            if why := work.why_not(table, splits):
                print(f"{table}: {why}", flush=True)
                continue
            for arm in [arm for arm in work.arms(table) if arm in chosen]:
                key = Key(table, split, arm, budget)
                if key in done and not again and not (retry and done[key]["status"] != "done"):
                    continue
                row = work.run(key)
                said = f"{row['seconds']:.0f} core-s, {row['wall_seconds']:.0f} s" if row["status"] == "done" else row["error"]
                print(f"{key}: {row['status']}, {said}", flush=True)


def report(work: Work, extent: Extent) -> None:
    write(work, extent.tables, extent.splits, extent.budget)


def run(full: bool) -> None:
    work, extent = Work(), FULL if full else SHORT
    for table in extent.tables:
        cover(work, [table], extent.splits, arms(), extent.budget)
        report(work, extent)
