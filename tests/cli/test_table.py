"""`pluribus table` through the shell."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pluribus.cli import run
from pluribus.cli.table import CONVENTIONS, FORMATS
from pluribus.evaluation import Ledger, delta_m, ledger


@pytest.fixture
def thesis(tmp_path: Path) -> str:
    book = Ledger(tmp_path / "thesis")
    for method, value in (("single", 0.5), ("nash", 0.6)):
        for seed in range(3):
            book.log(method=method, seed=seed, task="seg", metric="accuracy", value=value + 0.01 * seed, selection="last epoch")
    return str(tmp_path / "thesis")


def test_words_are_those_of_the_library() -> None:
    """--help lists them without loading the library; a convention added there must be added here."""
    assert tuple(delta_m.CONVENTIONS) == CONVENTIONS
    assert ledger.FORMATS == FORMATS


def test_formats(thesis: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["table", thesis, "--reference", "single"]) == 0
    text = capsys.readouterr().out
    assert "| nash | 3 | **0.61 ± 0.01** |" in text
    assert "cannot fall below 0.25" in text
    assert run(["table", thesis, "--reference", "single", "--delta", "error-reduction", "--format", "latex", "--paper"]) == 0
    assert "Protocol." in capsys.readouterr().out
    assert run(["table", thesis, "--reference", "single", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert float(rows[1]["delta"]) == pytest.approx(100 * 0.1 / 0.51)
    assert run(["table", thesis, "--reference", "single", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"][1]["method"] == "nash"


def test_output_file(thesis: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["table", thesis, "--reference", "single", "-o", str(tmp_path / "t.md")]) == 0
    assert capsys.readouterr().out == ""
    assert "nash" in (tmp_path / "t.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "singel"], "unknown reference 'singel'; did you mean 'single'?"),
        (["--reference", "single", "--delta", "relaimpr"], "relaimpr compares AUCs"),
        (["--reference", "single", "--delta", "delta_m"], "'delta_m' is not one of"),
        (["--reference", "single", "--format", "csv", "--paper"], "CSV has no place"),
        (["--reference", "single", "--json", "--paper"], "--json prints figures only"),
        ([], "Missing option '--reference'"),
    ],
)
def test_bad_input_is_one_line(thesis: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["table", thesis, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["table", str(tmp_path / "none"), "--reference", "single"]) == 2
    assert "no such run" in capsys.readouterr().err
