"""Slow clients: a request whose head or body does not arrive is given up after a while, so that nobody can hold the server's
sockets.

uvicorn times idle connections out after an answer, but waits for ever for the rest of a head: `protocol` is its own with a timer
more. The body has a limit of its own (`Limits.read_seconds`); most bodies are there with their head, and then `by` sets no timer.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

from pluribus.errors import require

REPLY = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: 44\r\nconnection: close\r\n\r\n"
    b'{"error": "the head did not arrive in time"}'
)

T = TypeVar("T")


async def by(deadline: float, awaited: Awaitable[T]) -> T:
    """The result of an awaitable, by the event loop's clock no later than `deadline`; otherwise TimeoutError."""
    steps = awaited.__await__()
    try:
        first = next(steps)
    except StopIteration as done:  # it was there already: the usual case, and a timer costs more than the rest of this
        found: T = done.value
        return found
    async with asyncio.timeout_at(deadline):
        return await _rest(first, steps)


@types.coroutine
def _rest(first: Any, steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Go on with an awaitable that waits for `first`."""
    try:
        yield first
    except BaseException:
        steps.close()
        raise
    return (yield from steps)


def protocol(seconds: float) -> Any:
    """uvicorn's HTTP protocol, with `seconds` for the head of a request to arrive."""
    require("uvicorn", extra="serve", purpose="serving")
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Patient(base):  # type: ignore[misc]
        head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.head = self.loop.call_later(seconds, self.give_up)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:  # the head is there
                self.forget()
            elif self.head is None:  # a part of one
                self.head = self.loop.call_later(seconds, self.give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self.forget()
            super().connection_lost(exc)

        def forget(self) -> None:
            if self.head is not None:
                self.head.cancel()
                self.head = None

        def give_up(self) -> None:
            self.head = None
            if not self.transport.is_closing():
                self.transport.write(REPLY)
                self.transport.close()

    return Patient
