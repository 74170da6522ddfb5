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
        pytest.importorskip({"text": "transformers"}.get(entry.extra, entry.extra))
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


BASES = {
    "balancer": ("pluribus.balancing.balancer:Balancer", {"balancer", "balancer_wrapper"}),
    "encoder": ("pluribus.modeling:Encoder", {"encoder"}),
    "sharing": ("pluribus.modeling:Sharing", {"sharing"}),
    "candidate": ("pluribus.modeling:Candidate", {"candidate"}),
    "artefact": ("pluribus.modeling:Fitted", {"artefact"}),
}


def _defined(base: type) -> set[str]:
    """Every public concrete class below `base` that the package defines, as "module:name"."""
    import importlib
    import inspect
    import pkgutil

    import pluribus

    for module in pkgutil.walk_packages(pluribus.__path__, "pluribus."):
        if module.name != "pluribus.__main__":
            try:
                importlib.import_module(module.name)
            except ImportError:  # an extra that is not installed
                continue
    found, todo = set(), [base]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("pluribus.") and not cls.__name__.startswith("_") and not inspect.isabstract(cls):
                found.add(f"{cls.__module__}:{cls.__qualname__}")
    return found


@pytest.mark.parametrize("family", BASES)
def test_no_method_is_forgotten(family: str) -> None:
    """Every public class of a protocol is a catalog entry: what is not listed, nobody finds and no suite checks."""
    import importlib

    target, families = BASES[family]
    module, _, name = target.partition(":")
    listed = {e.resolve() for e in ENTRIES if e.family in families}
    names = {f"{cls.__module__}:{cls.__qualname__}" for cls in listed if isinstance(cls, type)}
    found = _defined(getattr(importlib.import_module(module), name))
    missing = {cls for cls in found - names if not cls.startswith("pluribus.balancing.torchjd:")}  # a stranger's objects
    assert not missing, f"not in the catalog: {sorted(missing)}"


def test_every_paper_is_cited_and_can_be() -> None:
    """Broken: `pluribus table --paper` leaves out a method's reference, or the bibliography holds what nobody uses."""
    used = {entry.paper.bibtex for entry in ENTRIES if entry.paper}
    assert used == {paper.bibtex for paper in catalog.papers().values()}
    for key, paper in catalog.papers().items():
        assert all(f"  {field} = {{" in paper.bibtex for field in ("title", "author", "year", "url")), key
        assert paper.bibtex.count("{") == paper.bibtex.count("}"), key
    text = (ROOT / "src/pluribus/catalog/papers.bib").read_text("utf-8")
    assert text.count("\n@") + 1 == len(catalog.papers()), "an entry is malformed or stands twice"


def test_an_unknown_paper_names_the_entry() -> None:
    """Broken: a typing error in a key ends in a traceback."""
    row = {"name": "new", "road": "train", "family": "balancer", "target": "a:b", "paper": "navon2022mutli"}
    with pytest.raises(BadInput, match="navon2022multi"):
        catalog.parse(row, where="catalog/x.toml")


def test_a_script_adds_entries_of_its_own() -> None:
    """If this fails, who writes a candidate in a notebook must make a distribution of it first."""
    entry = catalog.Entry("mine_alone", "train", "candidate", "tests.catalog.test_catalog:test_a_script_adds_entries_of_its_own")
    try:
        assert catalog.register(entry) is entry
        assert catalog.get("candidate", "mine_alone") is entry
        assert entry in catalog.entries(family="candidate")
        with pytest.raises(BadInput, match="family 'candidate' has an entry called 'mine_alone' already"):
            catalog.register(entry)
    finally:
        del catalog._all()["candidate", "mine_alone"]
