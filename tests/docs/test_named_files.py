"""What the pages for contributors name exists: a reader who follows them finds the file."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "pluribus"
PAGES = ("docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md")
FILE = re.compile(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|md|toml|bib))?)`|`([a-z_]+\.py)`")
MODULE = re.compile(r"`(pluribus(?:\.[a-z_]+)+)(?:\.[A-Z]\w*)?`")
STORED = ("work/", "model/")
"""Folders of a run, not of the project."""


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    named = {found for pair in FILE.findall(text) for found in pair if found and not found.startswith(STORED)}
    missing = [
        name
        for name in sorted(named)
        if not any((root / name).exists() for root in (ROOT, SRC, SRC / "study", SRC / "tasks/kinds"))
    ]
    assert named or page == "docs/glossary.md"
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    missing = []
    for name in sorted(set(MODULE.findall(text))):
        parent, _, last = name.rpartition(".")
        found = importlib.util.find_spec(name) if importlib.util.find_spec(parent) else None
        if found is None and not hasattr(importlib.import_module(parent), last):
            missing.append(name)
    assert not missing, f"{page} names {missing}"
