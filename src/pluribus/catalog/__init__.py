"""The catalog: every method by its name, what it is, where it lives, and what verifies it.

Entries are static: one TOML file a package beside this one, so that listing the catalog imports no method. `Entry.resolve`
imports its target on demand. Other distributions add entries by an entry point of group ``pluribus.catalog`` whose value
is a callable that returns an iterable of `Entry`; a script adds them with `register`, for its own process.

A TOML file holds an array of tables ``[[entry]]`` with the fields of `Entry`; ``paper`` is a key of ``papers.bib``,
``verified_by`` a table {oracle = [test ids], property = [test ids], claim = path}.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from typing import Any, Literal

from pluribus.errors import BadInput, require, unknown

ROADS = ("train", "adapt", "merge", "boost", "grow")


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    year: int
    url: str = ""
    bibtex: str = ""


@dataclass(frozen=True)
class Verification:
    """What verifies an entry: pytest ids of oracles and properties, and the results page of the claim."""

    oracle: tuple[str, ...] = ()
    property: tuple[str, ...] = ()
    claim: str | None = None

    def complete(self) -> bool:
        """Whether all three proofs are named."""
        return bool(self.oracle and self.property and self.claim)


@dataclass(frozen=True)
class Entry:
    """One method.

    name: as the paper or the field spells it, unique within its family.
    road: "train" | "adapt" | "merge" | "boost" | "grow".
    family: what protocol it implements: "kind", "encoder", "sharing", "balancer", "regulariser", "merger",
        "booster", "adapter", "objective", "candidate", "sampler", …
    target: "module:attribute", imported on demand.
    summary: one line a reader can decide by.
    signal: what a balancer needs; doors: which of ("combine", "backward") serve it.
    extra: the optional dependency group it needs.
    default: for candidates, whether a study runs it unless told otherwise. default_for: a type of input ("text") whose presence
        makes it a default. default_rows: the most training rows for which it is one (None: any number).
    fixture: what its family's conformance suite runs it on ("table", "text", "jacobians", "checkpoints", …); an entry that no
        suite runs fails the suite.
    status: "verified" only with oracle, property and claim.
    """

    name: str
    road: str
    family: str
    target: str
    summary: str = ""
    paper: Paper | None = None
    signal: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()
    extra: str | None = None
    default: bool = False
    default_for: str | None = None
    default_rows: int | None = None
    fixture: str | None = None
    status: Literal["verified", "experimental"] = "experimental"
    verified_by: Verification = field(default_factory=Verification)

    def resolve(self) -> Any:
        """Import the target; a missing optional dependency is one clear error with the pip command."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if self.extra and error.name and not error.name.startswith("pluribus"):
                require(error.name, extra=self.extra, purpose=f"{self.family} {self.name!r}")
            raise

    def settings(self) -> dict[str, Any]:
        """The method's settings and their documented defaults; `inspect.Parameter.empty` where the caller must give one."""
        target = self.resolve()
        if isinstance(defaults := getattr(target, "defaults", None), Mapping):
            return dict(defaults)
        if not callable(target):
            return {}
        own = dataclasses.is_dataclass(target)  # its fields are its settings; elsewhere what comes by position is the data
        kinds = (inspect.Parameter.KEYWORD_ONLY, *((inspect.Parameter.POSITIONAL_OR_KEYWORD,) if own else ()))
        found = inspect.signature(target).parameters.values()
        return {p.name: p.default for p in found if p.kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain JSON values (`pluribus catalog --json`)."""
        row: dict[str, Any] = {
            "name": self.name,
            "road": self.road,
            "family": self.family,
            "target": self.target,
            "summary": self.summary,
            "paper": vars(self.paper) if self.paper else None,
            "extra": self.extra,
            "fixture": self.fixture,
            "status": self.status,
            "verified_by": {
                "oracle": list(self.verified_by.oracle),
                "property": list(self.verified_by.property),
                "claim": self.verified_by.claim,
            },
        }
        if self.signal:
            row["signal"] = list(self.signal)
        if self.doors:
            row["doors"] = list(self.doors)
        return row


_BIB_ENTRY = re.compile(r"^@\w+\{([^,\s]+),\n(.*?)^\}", re.S | re.M)
_BIB_FIELD = re.compile(r"^ +(\w+) = \{(.*)\},$", re.M)


@functools.cache
def papers() -> dict[str, Paper]:
    """The papers by their BibTeX key: ``papers.bib``, one field a line."""
    found: dict[str, Paper] = {}
    for entry in _BIB_ENTRY.finditer(resources.files(__package__).joinpath("papers.bib").read_text("utf-8")):
        fields = dict(_BIB_FIELD.findall(entry[2]))
        try:
            title = fields["title"].replace("{", "").replace("}", "")
            found[entry[1]] = Paper(title, int(fields["year"]), fields.get("url", ""), entry[0])
        except (KeyError, ValueError) as error:
            raise BadInput(f"paper {entry[1]!r} lacks a title or a year", where="catalog/papers.bib") from error
    return found


def parse(row: dict[str, Any], *, where: str) -> Entry:
    """Build an `Entry` from a TOML table, naming the file and the field that is wrong."""
    row = dict(row)
    try:
        key = row.pop("paper", None)
        if key is not None and key not in papers():
            raise unknown("paper", str(key), papers(), where=f"{where}, entry {row.get('name')!r}")
        verified_by = row.pop("verified_by", {})
        for name in ("signal", "doors"):
            if name in row:
                row[name] = tuple(row[name])
        entry = Entry(
            **row,
            paper=papers()[key] if key is not None else None,
            verified_by=Verification(
                oracle=tuple(verified_by.get("oracle", ())),
                property=tuple(verified_by.get("property", ())),
                claim=verified_by.get("claim"),
            ),
        )
    except TypeError as error:
        raise BadInput(f"catalog entry {row.get('name')!r} is malformed ({error})", where=where) from error
    if entry.road not in ROADS:
        raise unknown("road", entry.road, ROADS, where=f"{where}, entry {entry.name!r}")
    return entry


def _static() -> Iterator[Entry]:
    for file in sorted(resources.files(__package__).iterdir(), key=lambda item: item.name):
        if file.name.endswith(".toml"):
            for row in tomllib.loads(file.read_text("utf-8")).get("entry", []):
                yield parse(row, where=f"catalog/{file.name}")


def _foreign() -> Iterator[Entry]:
    for point in metadata.entry_points(group="pluribus.catalog"):
        made: Iterable[Entry] = point.load()()
        yield from made


@functools.cache
def _all() -> dict[tuple[str, str], Entry]:
    found: dict[tuple[str, str], Entry] = {}
    for entry in (*_static(), *_foreign()):
        key = (entry.family, entry.name)
        if key in found:
            raise BadInput(f"two catalog entries are called {entry.name!r} in family {entry.family!r}", where=entry.target)
        found[key] = entry
    return found


def register(entry: Entry) -> Entry:
    """Add an entry for as long as this process lives.

    A distribution names its entries by an entry point instead (see above): every process finds those. Processes that this one
    starts, the workers of a study with more than one job among them, do not know an entry that was registered here.

    Parameters
    ----------
    entry : Entry
        Its target may stand in any module that can be imported, a script's own ("__main__:MyCandidate") too.

    Returns
    -------
    Entry
        The same.

    Raises
    ------
    BadInput
        The family has an entry of that name.
    """
    key = (entry.family, entry.name)
    if key in _all():
        what = f"family {entry.family!r} has an entry called {entry.name!r} already"
        raise BadInput(what, where=entry.target, remedy="choose another name")
    _all()[key] = entry
    return entry


def entries(*, family: str | None = None, road: str | None = None) -> list[Entry]:
    """The entries, in the order of their files, optionally of one family or one road."""
    return [e for e in _all().values() if family in (None, e.family) and road in (None, e.road)]


def get(family: str, name: str) -> Entry:
    """One entry; an unknown name is an error that suggests the nearest."""
    found = _all().get((family, name))
    if found is None:
        raise unknown(family, name, [e.name for e in entries(family=family)])
    return found


def named(name: str) -> list[Entry]:
    """The entries of that name, whatever their family; an unknown name is an error that suggests the nearest."""
    found = [entry for entry in entries() if entry.name == name]
    if not found:
        raise unknown("method", name, sorted({entry.name for entry in entries()}))
    return found
