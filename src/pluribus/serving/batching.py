"""Micro-batching: requests that arrive within `max_delay` of each other share one forward, up to `max_rows` rows.

The first request of a batch waits at most `max_delay`, and not at all once as many rows are there as the last batch had: clients
that wait for their answers come back together. While a batch is computed the next one gathers, so under load hardly anything
waits for the clock. A batch that should take less than `INLINE` runs in the event loop itself, where it contends with
nothing; a longer one, or one of unknown length, runs in a thread, and the loop stays free for health checks and for refusing.
What a batch should take is the quickest of the last few: other work on the machine makes some slow that are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

Slots = list[dict[str, Any]]
Answer = Callable[[Sequence[Sequence[Any]], Sequence[Sequence[str]]], Slots]

INLINE = 0.005  # seconds that the event loop may be held


@dataclass(slots=True)
class _Waiting:
    rows: Sequence[Sequence[Any]]
    tasks: Sequence[str]
    done: asyncio.Future[Slots] = field(repr=False)


class Batcher:
    """Gathers rows of concurrent requests for `answer(rows, tasks of each row)`.

    max_rows: rows after which a batch is full (a request is never split; a larger one is a batch of its own).
    max_delay: seconds that the first request of a batch waits for others. on_batch: called with the number of rows.
    """

    def __init__(
        self, answer: Answer, *, max_rows: int = 1024, max_delay: float = 0.002, on_batch: Callable[[int], None] | None = None
    ) -> None:
        self.answer, self.max_rows, self.max_delay, self.on_batch = answer, max_rows, max_delay, on_batch
        self._waiting: list[_Waiting] = []
        self._rows = 0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._stopping = False
        self._last: deque[tuple[int, float]] = deque(maxlen=8)  # rows and seconds of the last batches
        self._enough = max_rows  # rows that no batch waits beyond
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pluribus-serving")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; call inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        self._stopping = True
        self._arrived.set()
        self._full.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def submit(self, rows: Sequence[Sequence[Any]], tasks: Sequence[str]) -> Slots:
        """The slots of these rows, once their batch has run."""
        if not rows:
            return []
        item = _Waiting(rows, tasks, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._rows += len(rows)
        self._arrived.set()
        if self._rows >= self._enough:
            self._full.set()
        return await item.done

    def _take(self) -> list[_Waiting]:
        taken, rows = 0, 0
        for item in self._waiting:
            if taken and rows + len(item.rows) > self.max_rows:
                break
            taken, rows = taken + 1, rows + len(item.rows)
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._rows -= rows
        if not self._waiting:
            self._arrived.clear()
        self._enough = min(self.max_rows, max(1, rows))
        if self._rows < self._enough:
            self._full.clear()
        return [item for item in batch if not item.done.cancelled()]

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if not self._waiting and self._stopping:
                return
            if self._rows < self._enough and self.max_delay > 0 and not self._stopping:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self.max_delay)
            batch = self._take()
            if batch:
                await self._run(loop, batch)
            if self._stopping:
                self._arrived.set()

    async def _run(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        rows = [row for item in batch for row in item.rows]
        tasks = [item.tasks for item in batch for _ in item.rows]
        if self.on_batch:
            self.on_batch(len(rows))
        start = time.perf_counter()
        try:
            if self._expected(len(rows)) < INLINE:
                slots = self.answer(rows, tasks)
            else:
                slots = await loop.run_in_executor(self._thread, self.answer, rows, tasks)
            self._last.append((len(rows), time.perf_counter() - start))
        except Exception as error:  # a batch that fails must not leave its requests waiting
            for item in batch:
                if not item.done.done():
                    item.done.set_exception(error)
            return
        start = 0
        for item in batch:
            if not item.done.done():
                item.done.set_result(slots[start : start + len(item.rows)])
            start += len(item.rows)

    def _expected(self, rows: int) -> float:
        """Seconds that a batch of so many rows should take at most, by the last few."""
        return min((seconds * max(1.0, rows / last) for last, seconds in self._last), default=INLINE)
