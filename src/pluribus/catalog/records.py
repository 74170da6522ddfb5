"""Open records: what a family of the catalog holds by name, whoever brought it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from pluribus import catalog
from pluribus.errors import BadInput, unknown


class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Named)


class Records(Mapping[str, R]):
    """The records of one catalog family by name: those that were registered, and those that the catalog lists.

    A record that the catalog lists is imported when it is asked for, so that listing names costs nothing.

    Parameters
    ----------
    family : str
        The family's name in the catalog, which is also what messages call a record ("kind", "metric", "input").
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self._held: dict[str, R] = {}

    def register(self, record: R) -> R:
        """Add a record; a name can be registered once.

        Raises
        ------
        BadInput
            Another record has the name.
        """
        if record.name in self._held:
            raise BadInput(f"{self.family} {record.name!r} is registered already", remedy="choose another name")
        self._held[record.name] = record
        return record

    def __getitem__(self, name: str) -> R:
        if name not in self._held:
            if not any(entry.name == name for entry in catalog.entries(family=self.family)):
                raise KeyError(name)
            found: R = catalog.get(self.family, name).resolve()
            self._held.setdefault(name, found)
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        listed = (entry.name for entry in catalog.entries(family=self.family))
        return iter(dict.fromkeys((*listed, *self._held)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._held or any(entry.name == name for entry in catalog.entries(family=self.family))

    def named(self, name: str, *, where: str | None = None) -> R:
        """The record called `name`.

        Raises
        ------
        BadInput
            There is none of that name; the nearest one is suggested.
        """
        try:
            return self[name]
        except KeyError:
            raise unknown(self.family, name, tuple(self), where=where) from None
