"""Several processes share a call: teams of processes of one thread each, all started and watched from here.

The processes of a team meet in a file (a TCP store would die with its first process), and the team stays for many calls. Where
one of its processes ends, the others are ended, and the call is tried once more by a fresh team.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from pluribus.study.crews import Crew, Outcome
from pluribus.study.crews.local import one_thread_each, watch


class Teams:
    """A crew with teams for the calls that are made together; it leaves the others to another crew.

    Parameters
    ----------
    alone : Crew
        Who makes the calls that are not made together.
    jobs : int
        Teams at a time.
    processes : int
        Processes of a team. With 1 there is no team, and `alone` makes every call.
    """

    def __init__(self, alone: Crew, jobs: int, processes: int) -> None:
        self.alone, self.jobs, self.processes = alone, jobs, processes

    def run(
        self, function: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]], *, together: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        """Make each call by a team where it is made together. See `Crew.run`."""
        if together and self.processes > 1:
            return run_together(function, calls, self.jobs, self.processes)
        return self.alone.run(function, calls)


def run_together(
    function: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]], jobs: int, processes: int
) -> Iterator[tuple[int, Outcome]]:
    """Yield (position, result) as calls finish; `function` runs in all `processes` of a team, the first one's result counts.
    `jobs` teams work at a time. A team that loses a process twice over one call yields the reason instead."""
    if not calls:
        return
    free: SimpleQueue[Team] = SimpleQueue()
    teams = [Team(processes) for _ in range(min(jobs, len(calls)))]
    for team in teams:
        free.put(team)

    def one(call: tuple[Any, ...]) -> Outcome:
        team = free.get()
        try:
            outcome = team.call(function, call)
            return team.call(function, call) if isinstance(outcome, str) else outcome
        finally:
            free.put(team)

    with one_thread_each(), ThreadPoolExecutor(len(teams)) as threads:
        running = {threads.submit(one, call): i for i, call in enumerate(calls)}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            for future in running:
                future.cancel()
            for team in teams:
                team.close()


class Team:
    """`size` processes that make the same calls; started at the first call, and anew after a loss."""

    def __init__(self, size: int) -> None:
        self.size, self.closed = size, False
        self.meeting = ""
        self.members: list[Any] = []
        self.pipes: list[Connection] = []

    def call(self, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> Outcome:
        """The first process's result, or why there is none."""
        if not self.members and not self.closed:
            self._start()
        try:
            for pipe in self.pipes:
                pipe.send((function, arguments))
        except OSError:
            return self._lost("a training process of the team has ended")
        found: dict[int, Outcome] = {}
        while len(found) < self.size and not self.closed:
            for rank in self._ready():
                try:
                    kind, outcome = self.pipes[rank].recv()
                except (EOFError, OSError):
                    return self._lost(f"training process {rank} of {self.size} has ended (out of memory?)")
                found[rank] = outcome
                if kind == "error" or (isinstance(outcome, dict) and outcome.get("status") == "failed"):
                    return self._failed(rank, found)
        return found[0] if not self.closed else "the study was ended"

    def _ready(self, timeout: float | None = None) -> list[int]:
        """Which processes have sent something, or have ended."""
        try:
            ready = wait(self.pipes, timeout)
        except OSError:  # closed meanwhile
            return []
        return [rank for rank, pipe in enumerate(self.pipes) if pipe in ready]

    def _failed(self, rank: int, found: dict[int, Outcome]) -> Outcome:
        """A process gave up. The others may wait for it: none is of use any more. Whoever knows the reason tells it."""
        for other in self._ready(timeout=5):
            try:
                _, found[other] = self.pipes[other].recv()
            except (EOFError, OSError):
                continue
        self._end()
        known = [outcome for outcome in found.values() if isinstance(outcome, dict) and outcome["status"] == "failed"]
        return known[0] if known else found[rank]

    def _lost(self, why: str) -> str:
        self._end()
        return why

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.meeting = tempfile.mkdtemp(prefix="pluribus-team-")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            member = context.Process(target=_member, args=(rank, self.size, self.meeting, os.getpid(), theirs))
            member.start()
            theirs.close()
            self.members.append(member)
            self.pipes.append(ours)

    def _end(self) -> None:
        for member in self.members:
            member.kill()
        for member in self.members:
            member.join()
        for pipe in self.pipes:
            pipe.close()
        self.members, self.pipes = [], []
        shutil.rmtree(self.meeting, ignore_errors=True)

    def close(self) -> None:
        """End the processes."""
        self.closed = True
        self._end()


def _member(rank: int, size: int, meeting: str, parent: int, pipe: Connection) -> None:
    """One process of a team: meet the others, then make every call that comes."""
    watch(parent)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=size)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            pipe.send(("done", function(*arguments)))
        except Exception as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"))
            os._exit(1)
