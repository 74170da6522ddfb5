"""What are the columns called? Names that occur twice, are empty, or have spaces around them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pluribus.data.written.reading import SEPARATORS
from pluribus.errors import BadInput

_BODY = 3


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


def lines_above(lines: Sequence[str]) -> int:
    """How many lines stand above the names: comments, titles and empty lines.

    They have another number of separators than all lines of the second half, which have the same. 0 where that cannot be told.
    """
    bare = [re.sub(r'"[^"]*"', "", line.rstrip("\r\n")) for line in lines]
    body = [line for line in bare[len(bare) // 2 :] if line.strip()]
    if len(body) < _BODY:
        return 0
    steady = {sign: body[0].count(sign) for sign in SEPARATORS if len({line.count(sign) for line in body}) == 1}
    steady = {sign: count for sign, count in steady.items() if count}
    if any(bare[0].count(sign) == count for sign, count in steady.items()) or bare[0].startswith("sep="):
        return 0
    for sign, count in steady.items():
        return next((i for i, line in enumerate(bare) if line.count(sign) in (count, count - 1) and line.count(sign)), 0)
    return next((i for i, line in enumerate(bare) if line.strip() and not line.startswith("#")), 0)


def one_more(lines: Sequence[str], sign: str) -> bool:
    """Whether every line has one field more than the names."""
    bare = [re.sub(r'"[^"]*"', "", line.rstrip("\r\n")) for line in lines]
    counts = {line.count(sign) for line in bare[1:] if line.strip()}
    return counts == {bare[0].count(sign) + 1} and not lines[0].rstrip().endswith(sign)


def _free(name: str, taken: Collection[str], sign: str) -> str:
    """A name that is not taken: x.1, x.2, …"""
    stem, _, last = name.rpartition(sign)
    number = int(last)
    while f"{stem}{sign}{number}" in taken:
        number += 1
    return f"{stem}{sign}{number}"
