"""`python -m benchmarks.study_claims`: some cells, or the page alone; `make bench ONLY=study_claims` runs the whole set."""

from __future__ import annotations

import argparse

from benchmarks.study_claims import SHORT, Extent, cover, report
from benchmarks.study_claims.cells import Work, arms
from benchmarks.study_claims.sets import DEFAULT, SETS


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_claims", description=__doc__)
    parser.add_argument("--tables", type=words, default=list(DEFAULT), help="names, or all; default: the report's eight")
    parser.add_argument("--arms", type=words, default=arms(), help="of: " + ", ".join(arms()))
    parser.add_argument("--splits", type=int, default=SHORT.splits)
    parser.add_argument("--budget", type=float, default=SHORT.budget, help="core-seconds a table, split and arm")
    parser.add_argument("--again", action="store_true", help="run cells that are finished, too")
    parser.add_argument("--retry", action="store_true", help="run cells that failed, too")
    parser.add_argument("--page", action="store_true", help="write the page from the cells that are there, and run nothing")
    chosen = parser.parse_args()
    tables = list(SETS) if chosen.tables == ["all"] else chosen.tables
    for name, known in (*((t, SETS) for t in tables), *((a, arms()) for a in chosen.arms)):
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    work = Work()
    if not chosen.page:
        cover(work, tables, chosen.splits, chosen.arms, chosen.budget, again=chosen.again, retry=chosen.retry)
    report(work, Extent(tuple(tables), chosen.splits, chosen.budget))


main()
