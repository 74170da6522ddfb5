"""Micro-batching: who shares a forward, how long they wait, and what happens at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from pluribus.serving.batching import INLINE, Batcher


def _echo(rows: Sequence[Sequence[Any]], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    return [{"row": row[0], "tasks": tuple(names)} for row, names in zip(rows, tasks)]


def _run(batcher_of: Any, use: Any) -> Any:
    async def main() -> Any:
        batcher = batcher_of()
        batcher.start()
        try:
            return await use(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def test_concurrent_requests_share_a_batch() -> None:
    """Twenty requests at once, with different tasks: one batch, and each gets its own rows back."""
    sizes: list[int] = []

    async def use(batcher: Batcher) -> Any:
        asked = [batcher.submit([[i], [-i]], ["a"] if i % 2 else ["b"]) for i in range(20)]
        return await asyncio.gather(*asked)

    found = _run(lambda: Batcher(_echo, max_delay=0.2, max_rows=40, on_batch=sizes.append), use)
    assert sizes == [40]
    for i, slots in enumerate(found):
        assert [slot["row"] for slot in slots] == [i, -i]
        assert {slot["tasks"] for slot in slots} == {("a",) if i % 2 else ("b",)}


def test_a_full_batch_does_not_wait() -> None:
    """A batch that is full runs at once, however long the delay."""
    start = time.perf_counter()
    _run(lambda: Batcher(_echo, max_delay=30, max_rows=4), lambda b: asyncio.gather(*(b.submit([[i]], ["a"]) for i in range(8))))
    assert time.perf_counter() - start < 15


def test_max_rows_is_kept() -> None:
    """No batch holds more rows than allowed, unless one request does."""
    sizes: list[int] = []

    async def use(batcher: Batcher) -> Any:
        return await asyncio.gather(*(batcher.submit([[0]] * n, ["a"]) for n in (3, 3, 3, 25, 1, 1)))

    found = _run(lambda: Batcher(_echo, max_delay=0.05, max_rows=7, on_batch=sizes.append), use)
    assert [len(slots) for slots in found] == [3, 3, 3, 25, 1, 1]
    assert sum(sizes) == 36
    assert all(size <= 7 or size == 25 for size in sizes)


def test_the_delay_is_bounded() -> None:
    """A lone request is answered after the delay at most: nothing waits for company that never comes."""

    async def use(batcher: Batcher) -> float:
        start = time.perf_counter()
        await batcher.submit([[1]], ["a"])
        return time.perf_counter() - start

    assert 0.04 <= _run(lambda: Batcher(_echo, max_delay=0.05), use) < 10


def test_while_one_batch_runs_the_next_gathers() -> None:
    """Under load the next batch is as large as what arrived meanwhile: throughput rises with load."""
    gate, sizes = threading.Event(), []  # type: ignore[var-annotated]

    def slow(rows: Any, tasks: Any) -> Any:
        sizes.append(len(rows))
        gate.wait(10)
        return _echo(rows, tasks)

    async def use(batcher: Batcher) -> Any:
        first = asyncio.ensure_future(batcher.submit([[0]], ["a"]))
        while not sizes:
            await asyncio.sleep(0.001)
        rest = [asyncio.ensure_future(batcher.submit([[i]], ["a"])) for i in range(10)]
        await asyncio.sleep(0.01)
        gate.set()
        return await asyncio.gather(first, *rest)

    assert len(_run(lambda: Batcher(slow, max_delay=0.001), use)) == 11
    assert sizes == [1, 10]


def test_a_batch_that_fails_answers_everyone() -> None:
    """An exception reaches each request of its batch, and the batcher goes on."""

    def broken(rows: Any, tasks: Any) -> Any:
        if rows[0][0] == "bad":
            raise ValueError("no")
        return _echo(rows, tasks)

    async def use(batcher: Batcher) -> Any:
        for future in [asyncio.ensure_future(batcher.submit([["bad"]], ["a"])) for _ in range(2)]:
            with pytest.raises(ValueError, match="no"):
                await future
        return await batcher.submit([["good"]], ["a"])

    assert _run(lambda: Batcher(broken), use)[0]["row"] == "good"


def test_stopping_answers_what_waits() -> None:
    """A graceful stop loses nothing that was taken in."""

    async def main() -> Any:
        batcher = Batcher(_echo, max_delay=5)
        batcher.start()
        waiting = [asyncio.ensure_future(batcher.submit([[i]], ["a"])) for i in range(5)]
        await asyncio.sleep(0)
        await batcher.stop()
        return [await future for future in waiting]

    start = time.perf_counter()
    assert [slots[0]["row"] for slots in asyncio.run(main())] == list(range(5))
    assert time.perf_counter() - start < 20


def test_a_client_that_goes_away_costs_nothing() -> None:
    """A cancelled request leaves the queue; the others are answered."""

    async def use(batcher: Batcher) -> Any:
        gone = asyncio.ensure_future(batcher.submit([[1]], ["a"]))
        await asyncio.sleep(0)
        gone.cancel()
        return await batcher.submit([[2]], ["a"])

    sizes: list[int] = []
    assert _run(lambda: Batcher(_echo, max_delay=0.02, on_batch=sizes.append), use)[0]["row"] == 2
    assert sizes == [1]


def test_quick_batches_run_in_the_loop_and_long_ones_in_a_thread() -> None:
    """A long forward in the event loop would silence health checks; a quick one gains from no switch."""
    seen: list[bool] = []

    def answer(rows: Any, tasks: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return _echo(rows, tasks)

    async def use(batcher: Batcher) -> Any:
        for known in ([], [(1, INLINE / 2)], [(1, INLINE * 2)]):  # how long the first takes nobody knows
            batcher._last.clear()
            batcher._last.extend(known)
            await batcher.submit([[0]], ["a"])

    _run(lambda: Batcher(answer, max_delay=0), use)
    assert seen == [False, True, False]


def test_what_a_batch_should_take_grows_with_its_rows() -> None:
    batcher = Batcher(_echo)
    assert batcher._expected(1) == INLINE
    batcher._last.extend([(10, 0.001), (20, 0.004)])
    assert [batcher._expected(rows) for rows in (1, 10, 100)] == [0.001, 0.001, pytest.approx(0.01)]


def test_after_a_full_batch_the_next_waits_again() -> None:
    """Fullness is of one batch: a lone request behind it must not lose its company."""
    sizes: list[int] = []

    async def use(batcher: Batcher) -> Any:
        await asyncio.gather(*(batcher.submit([[i]], ["a"]) for i in range(4)))
        first = asyncio.ensure_future(batcher.submit([[4]], ["a"]))
        await asyncio.sleep(0.02)
        return await asyncio.gather(first, batcher.submit([[5]], ["a"]))

    _run(lambda: Batcher(_echo, max_delay=5, max_rows=2, on_batch=sizes.append), use)
    assert sizes == [2, 2, 2]
