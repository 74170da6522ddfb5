"""The catalog tells the truth: targets exist, named tests exist, `verified` means verified."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pluribus import catalog
from pluribus.cli import run
from pluribus.errors import BadInput

ROOT = Path(__file__).parents[2]
ENTRIES = catalog.entries()


@functools.cache
def _collected() -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "--no-header"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    ids = {line.strip() for line in done.stdout.splitlines() if "::" in line}
    return ids | {line.split("[")[0] for line in ids}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.family}:{e.name}")
def test_target_resolves(entry: catalog.Entry) -> None:
    if entry.extra:
        pytest.importorskip({"text": "transformers", "boost": "numba"}.get(entry.extra, entry.extra))
    assert entry.resolve() is not None


def test_verified_has_all_three_proofs() -> None:
    incomplete = [entry.name for entry in ENTRIES if entry.status == "verified" and not entry.verified_by.complete()]
    assert not incomplete, f"verified without oracle, property and claim: {incomplete}"


def test_named_proofs_exist() -> None:
    missing = []
    for entry in ENTRIES:
        for test in (*entry.verified_by.oracle, *entry.verified_by.property):
            if test not in _collected():
                missing.append(f"{entry.name}: {test}")
        if entry.verified_by.claim and not (ROOT / entry.verified_by.claim).is_file():
            missing.append(f"{entry.name}: {entry.verified_by.claim}")
    assert not missing, "\n".join(missing)


def test_json_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalog", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["schema"] == 1
    assert {"name", "road", "family", "target", "paper", "status", "verified_by"} <= set(listing["entries"][0])


def test_unknown_name_suggests_the_nearest() -> None:
    entry = ENTRIES[0]
    with pytest.raises(BadInput, match=f"did you mean '{entry.name}'"):
        catalog.get(entry.family, entry.name + "x")


def test_malformed_entry_names_itself() -> None:
    with pytest.raises(BadInput, match="'x' is malformed"):
        catalog.parse({"name": "x", "rod": "merge"}, where="catalog/test.toml")
    with pytest.raises(BadInput, match="unknown road 'mrege'; did you mean 'merge'"):
        catalog.parse({"name": "x", "road": "mrege", "family": "f", "target": "a:b"}, where="catalog/test.toml")
