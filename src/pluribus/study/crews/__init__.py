"""Crews: who computes a study's calls. `local` makes one call a process, `processes` lets several processes share a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

Outcome = dict[str, Any] | str
"""What a call returned, or why it returned nothing."""


class Crew(Protocol):
    """Makes the calls of a study, in whatever processes, and hands back what they return.

    A call may read and write files below the paths among its arguments. Of a trial these are two: the prepared data, which it
    reads, and the folder below which it leaves what it made. Nothing else on the disk is touched, so a crew on other machines
    need only send the first (its content hash names it) and bring back the bytes of the second.

    Attributes
    ----------
    processes : int
        How many processes share a call that is made together; 1 where none does.
    """

    processes: int

    def run(
        self, function: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]], *, together: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        """Make all calls of one function and yield each outcome as it comes. A call whose process died may be made again.

        Parameters
        ----------
        function : callable
            A function at the top of a module: other processes import it.
        calls : sequence of tuple
            The arguments of each call.
        together : bool, default False
            Whether all `processes` of a team make each call, as members of one `torch.distributed` group.

        Yields
        ------
        tuple of int and (dict or str)
            The call's position, and what it returned. A process that died yields the reason as a str; an exception of the
            function itself is raised here.
        """
        ...
