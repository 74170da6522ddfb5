"""One call a process: worker processes that are spawned, compute on one thread each, and end when their study ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pluribus.study.crews import Outcome

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def watch(parent: int) -> None:
    """End this worker when its parent is gone (a killed study must not leave trainings behind)."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that are started inside compute on one thread."""
    old = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Workers:
    """Worker processes for the calls of a whole study; they start as calls come, and end with the block.

    Parameters
    ----------
    jobs : int
        Calls at a time. With 1 the calls run in this process, in order.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs, self.processes = jobs, 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(
        self, function: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]], *, together: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        """Make each call in one process (`together` changes nothing). See `Crew.run`."""
        if self.jobs == 1:
            for i, call in enumerate(calls):
                yield i, function(*call)
            return
        left = dict(enumerate(calls))
        alone = False  # after a death the suspects run one at a time, so that the innocent finish
        with one_thread_each():
            while left:
                pool = self._started()
                waiting = iter(list(left.items()))
                running: dict[Future[dict[str, Any]], int] = {}
                broken = suspected = False
                while True:
                    while not broken and len(running) < (1 if alone else self.jobs) and (item := next(waiting, None)) is not None:
                        try:
                            running[pool.submit(function, *item[1])] = item[0]
                        except BrokenProcessPool:  # a worker died that had nothing to do
                            broken = True
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        i = running.pop(future)
                        try:
                            outcome: Outcome = future.result()
                        except BrokenProcessPool:
                            broken = suspected = True
                            if not alone:
                                continue
                            outcome = "the worker process died (out of memory?)"
                        del left[i]
                        yield i, outcome
                if broken:
                    self._end()
                alone = alone or suspected

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=watch, initargs=(os.getpid(),))
        return self._pool

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
