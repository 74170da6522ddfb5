"""Waiting for a slow client: what is there at once costs no timer, what comes in time is taken, what does not is given up."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from pluribus.serving.patience import by


async def _after(seconds: float, steps: int = 1) -> str:
    for _ in range(steps):
        await asyncio.sleep(seconds)
    return "body"


def test_what_is_there_is_taken_even_past_the_deadline() -> None:
    """No timer is set for it: a full event loop must not turn a body that has arrived into a refusal."""

    async def there() -> str:
        return "body"

    async def main() -> str:
        return await by(asyncio.get_running_loop().time() - 1, there())

    assert asyncio.run(main()) == "body"


def test_what_comes_in_time_is_taken() -> None:
    """Also where it takes several steps, and where it fails: its own exception comes through."""

    async def broken() -> str:
        await asyncio.sleep(0.001)
        raise KeyError("own")

    async def main() -> str:
        deadline = asyncio.get_running_loop().time() + 30
        with pytest.raises(KeyError, match="own"):
            await by(deadline, broken())
        return await by(deadline, _after(0.001, steps=3))

    assert asyncio.run(main()) == "body"


def test_what_does_not_come_is_given_up_and_cleaned_up() -> None:
    """The awaitable ends with the wait: nothing of a client that went silent is left in the server."""
    left: list[str] = []

    async def silent() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            left.append("ended")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await by(asyncio.get_running_loop().time() + 0.02, silent())
        task = asyncio.ensure_future(by(asyncio.get_running_loop().time() + 60, silent()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert left == ["ended", "ended"]
