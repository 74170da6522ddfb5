"""`pluribus catalog` for people and for machines."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pluribus import catalog
from pluribus.cli.catalog import command, described
from pluribus.errors import BadInput


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


def test_a_name_shows_settings_proofs_and_bibtex() -> None:
    """Broken: whoever knows a method's name still has to search the code for its settings and its paper."""
    said = CliRunner().invoke(command, ["nash"]).output
    assert "from pluribus.balancing.nash_mtl import NashMTL" in said
    assert "max_norm=1.0" in said
    assert "@article{navon2022multi" in said


def test_a_candidate_shows_where_it_is_searched() -> None:
    """A study's search is no secret: each setting with its choices or bounds."""
    text = " ".join(CliRunner().invoke(command, ["mmoe"]).output.split())
    for line in ("searched", "experts: 2 … 16 (whole)", "expert: 32 | 64 | 128", "lr: 0.0003 … 0.005 (log)"):
        assert line in text


def test_a_name_in_two_families_shows_both() -> None:
    """Broken: `mmoe` shows the building block and hides the candidate that a study runs."""
    said = CliRunner().invoke(command, ["mmoe"]).output
    assert "mmoe: sharing" in said
    assert "--candidate mmoe" in said


def test_a_wrong_name_suggests_the_nearest() -> None:
    """Broken: a typing error ends in silence or in a listing of everything."""
    with pytest.raises(BadInput, match="did you mean 'mmoe'"):
        CliRunner().invoke(command, ["mmeo"], catch_exceptions=False)


@pytest.mark.parametrize("entry", catalog.entries(), ids=lambda e: f"{e.family}:{e.name}")
def test_every_method_can_be_described(entry: catalog.Entry) -> None:
    """Broken: one method's settings cannot be read, and the command fails for it alone."""
    if entry.extra:
        pytest.importorskip({"text": "transformers"}.get(entry.extra, entry.extra))
    assert entry.summary in described(entry)
