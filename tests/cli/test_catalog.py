"""`pluribus catalog` for people and for machines."""

from __future__ import annotations

import json

from click.testing import CliRunner

from pluribus import catalog
from pluribus.cli.catalog import command


def test_the_whole_catalog_fits_a_screen_and_names_every_method() -> None:
    """Broken: a reader meets hundreds of lines, or a method that cannot be found."""
    said = CliRunner().invoke(command, []).output
    assert all(entry.name in said for entry in catalog.entries())
    assert len(said.splitlines()) < 60


def test_a_family_shows_papers_and_proofs() -> None:
    """Broken: nobody can see what verifies a method."""
    said = CliRunner().invoke(command, ["--family", "balancer"]).output
    assert "Multi-Task Learning as a Bargaining Game" in said
    assert "oracle" in said
    assert "ties" not in said


def test_json_holds_every_entry() -> None:
    """Broken: tools that read the catalog lose entries."""
    found = json.loads(CliRunner().invoke(command, ["--json"]).output)
    assert found["schema"] == 1
    assert len(found["entries"]) == len(catalog.entries())
