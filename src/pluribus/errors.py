"""One style of error: what is wrong, where, what to do.

Bad input of any kind (a file, an option, an argument) raises `BadInput`; the command line prints it as one line and exits
with code 2. Anything else that escapes is a failure of ours (exit code 1).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class BadInput(ValueError):
    """The caller's input cannot be used.

    Parameters
    ----------
    what: what is wrong, in one clause.
    where: the file, field, column, task or argument (optional).
    remedy: what to do about it (optional).
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        line = f"{where}: {what}" if where else what
        super().__init__(" ".join((f"{line}; {remedy}" if remedy else line).split()))

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments survive the trip from a worker process
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(kind: type[BadInput], what: str, where: str | None, remedy: str | None) -> BadInput:
    error = BadInput(what, where=where, remedy=remedy)
    error.__class__ = kind
    return error


class MissingExtra(BadInput):
    """An optional dependency is not installed."""


class NonFinite(BadInput):
    """A loss or gradient is NaN or infinite; the message names the task."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module or raise `MissingExtra` with the pip command that provides it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs the package {module.split('.')[0]!r}, which is not installed",
            remedy=f"pip install 'pluribus[{extra}]'",
        ) from error


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, or None where nothing is close."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.55)
    return by_lower[found[0]] if found else None


def unknown(what: str, name: str, options: Iterable[str], *, where: str | None = None) -> BadInput:
    """The error for a name that is not among `options`, with the nearest one (or the whole list) as the remedy."""
    options = list(options)
    guess = nearest(name, options)
    listed = ", ".join(options[:12]) + (", …" if len(options) > 12 else "")
    remedy = f"did you mean {guess!r}?" if guess else f"use one of: {listed}" if options else "there is none to choose"
    return BadInput(f"unknown {what} {name!r}", where=where, remedy=remedy)
