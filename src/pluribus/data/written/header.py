"""What are the columns called? Names that occur twice, are empty, or have spaces around them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pluribus.errors import BadInput


@dataclass(frozen=True)
class Header:
    """The names of a file's columns.

    Parameters
    ----------
    names : tuple of str
        Distinct, none of them empty.
    doubles : dict
        New name → the name that the file has twice.
    unnamed : tuple of str
        The new names of columns that have none.
    notes : tuple of str
        What was changed.
    """

    names: tuple[str, ...]
    doubles: dict[str, str]
    unnamed: tuple[str, ...]
    notes: tuple[str, ...]


def header_of(written: Sequence[str], wanted: Collection[str], where: str) -> Header:
    """Distinct names for the columns of a file.

    Parameters
    ----------
    written : sequence of str
        The names as the file has them.
    wanted : collection of str
        Names that the user speaks of: they stay as they are written.
    where : str
        The file, for messages.

    Raises
    ------
    BadInput
        The user speaks of a name that occurs twice.
    """
    names: list[str] = []
    doubles: dict[str, str] = {}
    unnamed: list[str] = []
    notes: list[str] = []
    spaced = 0
    taken = set(written)
    for position, name in enumerate(written, 1):
        bare = name if name in wanted else " ".join(name.split()) if name.strip() != name else name
        spaced += bare != name
        if not bare:
            bare = _free(f"column_{position}", {*names, *taken}, "_")
            unnamed.append(bare)
        if bare in names:
            if bare in wanted:
                remedy = "rename all but one"
                raise BadInput(f"has {written.count(name)} columns called {bare!r}", where=where, remedy=remedy)
            again = _free(f"{bare}.1", {*names, *taken}, ".")
            doubles[again] = bare
            bare = again
        names.append(bare)
    if spaced:
        notes.append(f"spaces around {spaced} column name{'s' * (spaced > 1)} are left out")
    return Header(tuple(names), doubles, tuple(unnamed), tuple(notes))


def _free(name: str, taken: Collection[str], sign: str) -> str:
    """A name that is not taken: x.1, x.2, …"""
    stem, _, last = name.rpartition(sign)
    number = int(last)
    while f"{stem}{sign}{number}" in taken:
        number += 1
    return f"{stem}{sign}{number}"
