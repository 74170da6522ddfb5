"""The report: one HTML file, drawn from `report.json`."""

from __future__ import annotations

from pathlib import Path

from pluribus.files import atomic_file, read_json


def write_report(folder: Path) -> Path:
    """Draw `report.html` from `report.json` and return its path."""
    summary = read_json(folder / "report.json")
    with atomic_file(folder / "report.html") as aside:
        aside.write_text(f"<!doctype html><title>{summary['name']}</title><p>{summary['headline']}", "utf-8")
    return folder / "report.html"
