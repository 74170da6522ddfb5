"""A connection whose request's head does not arrive: closed after a while, so that slow clients cannot hold the server's sockets.

uvicorn times idle connections out after an answer, but waits for ever for the rest of a head. This is its own protocol with one
timer more; the body has a limit of its own (`Limits.read_seconds`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from pluribus.errors import require

REPLY = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: 44\r\nconnection: close\r\n\r\n"
    b'{"error": "the head did not arrive in time"}'
)


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
