"""Worker processes for trials: spawned, one thread each, gone when their study is gone."""

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


def run_all(
    function: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (position, result) as calls finish; a worker that dies (out of memory, say) yields the reason instead.

    With one job the calls run in this process, in order.
    """
    if jobs == 1:
        for i, call in enumerate(calls):
            yield i, function(*call)
        return
    todo = list(enumerate(calls))
    alone = False  # after a death the suspects run one at a time, so that the innocent finish
    while todo:
        width = 1 if alone else min(jobs, len(todo))
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(width, mp_context=context, initializer=watch, initargs=(os.getpid(),))
        left = dict(todo)
        with one_thread_each():
            try:
                waiting = iter(todo)
                running: dict[Future[dict[str, Any]], int] = {}
                broken = False
                while True:
                    while not broken and len(running) < width and (item := next(waiting, None)) is not None:
                        running[pool.submit(function, *item[1])] = item[0]
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        i = running.pop(future)
                        try:
                            outcome: dict[str, Any] | str = future.result()
                        except BrokenProcessPool:
                            broken = True
                            if not alone:
                                continue
                            outcome = "the worker process died (out of memory?)"
                        left.pop(i)
                        yield i, outcome
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        todo = sorted(left.items())
        alone = True
