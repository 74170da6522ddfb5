"""Every entry of the catalog is run by a conformance suite, whatever its package."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tests.conformance.entries import RUN

from pluribus import catalog

TESTS = Path(__file__).parents[1]


def _suites() -> list[str]:
    """The test files that take their cases from the catalog."""
    found = [path for path in sorted(TESTS.rglob("test_*.py")) if "entries_for(" in path.read_text("utf-8")]
    parts = [path.relative_to(TESTS).with_suffix("").parts for path in found if path.name != Path(__file__).name]
    return [".".join(("tests", *each)) for each in parts]


def test_every_entry_is_run() -> None:
    """Broken: a method is listed, and nothing holds it to its family's protocol."""
    for suite in _suites():
        try:
            importlib.import_module(suite)
        except pytest.skip.Exception as skipped:  # an extra that is not installed
            pytest.skip(f"{suite}: {skipped}")
    left = [f"{e.family} {e.name!r} (fixture {e.fixture!r})" for e in catalog.entries() if (e.family, e.name) not in RUN]
    assert not left, "no conformance suite runs: " + ", ".join(left)
