"""What a fit leaves to know beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(eq=False)
class FitRecord(MutableMapping[str, Any]):
    """What a fit leaves to know; plain JSON values. What was not said is None.

    It is also a mapping from the names of what was said: `record["seconds"]` is `record.seconds`, and "seconds" is not in a
    record that does not say them.

    Parameters
    ----------
    settings : dict or None
        The candidate's settings.
    seed : int or None
        The seed of the fit.
    seconds : float or None
        Core-seconds of training.
    curves : dict or None
        Task → its score on the valid part after each epoch or round; None where it was not finite.
    undertrained : list of str or None
        Tasks whose training ran out of budget before its early stop.
    rules : list of float or None
        What training stops by, after each epoch.
    times : list of float or None
        Core-seconds until the end of each epoch.
    diagnostics : dict or None
        How the tasks' gradients get along (`pluribus.balancing.diagnostics`).
    expert_health : dict or None
        Whether a mixture uses its experts (`pluribus.sharing.health`).
    ignored_inputs : list of str or None
        Input columns that the candidate cannot read.
    processes : int or None
        How many processes trained together.
    hashes : dict or None
        Of the data, of the code and of each task's labels.
    extra : dict
        Whatever else should travel along, by name.
    """

    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    seconds: float | None = None
    curves: Mapping[str, Sequence[float | None]] | None = None
    undertrained: Sequence[str] | None = None
    rules: list[float] | None = None
    times: list[float] | None = None
    diagnostics: dict[str, Any] | None = None
    expert_health: dict[str, Any] | None = None
    ignored_inputs: list[str] | None = None
    processes: int | None = None
    hashes: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> FitRecord:
        """From a plain mapping, as a manifest holds it."""
        found = cls()
        found.update(said)
        return found

    def to_dict(self) -> dict[str, Any]:
        """What was said, as a plain mapping."""
        return dict(self)

    def __getitem__(self, name: str) -> Any:
        if name not in _FIELDS:
            return self.extra[name]
        value = getattr(self, name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        if name in _FIELDS:
            setattr(self, name, value)
        else:
            self.extra[name] = value

    def __delitem__(self, name: str) -> None:
        if name in _FIELDS:
            self[name]  # a KeyError where it was not said
            setattr(self, name, None)
        else:
            del self.extra[name]

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in _FIELDS if getattr(self, name) is not None)
        yield from self.extra

    def __len__(self) -> int:
        return sum(1 for _ in self)


_FIELDS = tuple(each.name for each in fields(FitRecord) if each.name != "extra")
