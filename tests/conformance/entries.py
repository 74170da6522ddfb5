"""Which entries of the catalog a conformance suite runs.

A suite takes its cases from here, so that it is known which entries some suite runs: a new entry that names one of the suite's
fixtures joins it, and one that no suite runs fails `tests/conformance/test_nothing_is_left_out.py`.
"""

from __future__ import annotations

from pluribus import catalog

RUN: dict[tuple[str, str], set[str]] = {}
"""(family, name) of an entry → the suites that run it."""


def entries_for(suite: str, family: str, *fixtures: str, extras: tuple[str | None, ...] | None = None) -> list[catalog.Entry]:
    """The entries of a family that name one of these fixtures, now known to be run by the suite (a test file's `__name__`).

    extras: those that need one of these optional dependencies (None: of none) only, where two suites share out a family.
    """
    listed = [entry for entry in catalog.entries(family=family) if entry.fixture in fixtures]
    found = [entry for entry in listed if extras is None or entry.extra in extras]
    for entry in found:
        RUN.setdefault((family, entry.name), set()).add(suite)
    return found
