"""The application: `/predict`, `/health`, `/ready`, `/metrics`, `/openapi.json`.

Nothing a request holds is ever opened as a path, unpickled or evaluated: bodies are parsed from the bytes at hand. Refusals are
`{"error": …}` with 401, 408, 413, 415, 422 or 503.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import hmac
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pluribus.errors import BadInput, require
from pluribus.modeling import Fitted
from pluribus.serving.batching import Batcher
from pluribus.serving.bodies import ARROW, JSON, PARQUET, BodyReader, Limits, Refusal, Rows
from pluribus.serving.cells import Answerer
from pluribus.serving.metrics import Metrics
from pluribus.serving.patience import by, protocol
from pluribus.serving.replies import as_json, as_table
from pluribus.serving.schema import document

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

SWITCH = 1e-4  # seconds; a forward gives the interpreter up at every operator and must not wait 5 ms to get it back
LARGE = 64 << 10  # bytes from which on a body is read beside the event loop
OTHER_NAMES = {"application/x-parquet": PARQUET, "application/vnd.apache.arrow.file": ARROW, "application/octet-stream": ""}
_log = logging.getLogger("pluribus.serving")


class Service:
    """One artefact's requests, from bytes to bytes."""

    def __init__(self, fitted: Fitted, limits: Limits, token: str | None, *, max_batch: int, max_delay: float) -> None:
        self.fitted, self.limits, self.token = fitted, limits, None if token is None else token.encode("utf-8")
        self.reader = BodyReader(fitted.columns, limits, fitted.tasks)
        self.answerer = Answerer(fitted, self.reader.names)
        self.metrics = Metrics()
        self._listed: tuple[Any, list[str]] = (None, [])
        self._described: tuple[Any, bytes] = (None, b"")
        self.max_batch, self.max_delay = max_batch, max_delay
        self.batcher: Batcher | None = None
        self.ready = False
        self.in_hand = 0

    # What it says of itself: read again once the artefact's tasks or columns are others, as a hub's are when one is added

    @property
    def names(self) -> list[str]:
        """The tasks that a request asks for where it names none."""
        if self._listed[0] is not self.fitted.tasks:
            self._listed = self.fitted.tasks, self.fitted.requested(None)
        return self._listed[1]

    @property
    def described(self) -> bytes:
        """The OpenAPI document."""
        now = (self.fitted.tasks, self.fitted.columns)
        if self._described[0] is None or any(a is not b for a, b in zip(self._described[0], now)):
            text = document(self.fitted, self.limits, secured=self.token is not None)
            self._described = now, json.dumps(text, ensure_ascii=False, allow_nan=False).encode("utf-8")
        return self._described[1]

    # Life

    async def start(self) -> None:
        """Begin to answer; ready once a row of missing values has gone through."""
        self.batcher = Batcher(
            self.answerer, max_rows=self.max_batch, max_delay=self.max_delay, on_batch=self.metrics.batch.observe
        )
        self.batcher.start()
        await asyncio.to_thread(self.answerer, [self.reader.empty], [self.fitted.requested(None)])
        self.ready = True

    async def stop(self) -> None:
        """Refuse what is new, answer what is in hand."""
        self.ready = False
        if self.batcher is not None:
            await self.batcher.stop()

    # Requests

    def check_token(self, headers: Mapping[bytes, bytes]) -> None:
        if self.token is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
            raise Refusal(401, "token", "the bearer token is missing or wrong; send Authorization: Bearer TOKEN")

    async def predict(self, request: Request) -> tuple[bytes, str]:
        """The reply and its content type."""
        headers = dict(request.scope["headers"])  # a header given twice counts as its last
        self.check_token(headers)
        if not self.ready or self.batcher is None:
            raise Refusal(503, "not ready", "the server is not ready; try again")
        if self.in_hand >= self.limits.concurrency:
            raise Refusal(503, "overload", f"{self.limits.concurrency} requests are in hand already; try again later")
        self.in_hand += 1
        try:
            form = _form(headers.get(b"content-type", b"").decode("latin-1"))
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise Refusal(415, "content", "the body is compressed; send it plain")
            body = await self._body(request, headers)
            read = {JSON: self.reader.json, ARROW: self.reader.arrow, PARQUET: self.reader.parquet}[form]
            query = request.query_params.getlist("tasks") if request.scope["query_string"] else []
            asked = [name for text in query for name in self._split(text) if name] if query else None
            rows = read(body, asked) if len(body) < LARGE else await asyncio.to_thread(read, body, asked)
            tasks = self._tasks(rows, asked)
            slots = await self._slots(rows, tasks)
            wanted = _accepted(headers.get(b"accept", b"").decode("latin-1"), form)
            if rows.size < 200:
                return self._reply(rows, slots, tasks, wanted), wanted
            return await asyncio.to_thread(self._reply, rows, slots, tasks, wanted), wanted
        finally:
            self.in_hand -= 1

    async def _body(self, request: Request, headers: Mapping[bytes, bytes]) -> bytes:
        limit = self.limits.body
        what = f"body: is larger than {limit} bytes; send several requests"
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise Refusal(413, "oversized", what)
        parts, size, more = [], 0, True
        deadline = asyncio.get_running_loop().time() + self.limits.read_seconds
        while more:
            try:
                message = await by(deadline, request.receive())
            except TimeoutError:
                raise Refusal(408, "slow", f"the body did not arrive within {self.limits.read_seconds:g} s") from None
            if message["type"] == "http.disconnect":
                raise Refusal(408, "disconnected", "the client went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise Refusal(413, "oversized", what)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _tasks(self, rows: Rows, asked: Sequence[str] | None) -> list[str]:
        if asked is None and rows.tasks is None:
            return self.names
        if asked is not None and rows.tasks is not None:
            raise Refusal(422, "task", "tasks are named in the address and in the body; keep one of them")
        try:
            return self.fitted.requested(rows.tasks if asked is None else asked)
        except BadInput as error:
            raise Refusal(422, "task", str(error)[:400]) from None

    def _split(self, text: str) -> list[str]:
        """At commas, unless the text is a task's name itself."""
        return [text] if text in self.answerer.by_name else [name.strip() for name in text.split(",")]

    async def _slots(self, rows: Rows, tasks: Sequence[str]) -> list[dict[str, Any]]:
        assert self.batcher is not None
        try:
            found = await self.batcher.submit(rows.values, tasks)
        except Exception as error:
            _log.exception("a batch failed")
            what = f"cannot be predicted ({type(error).__name__}); the server's log has the details"
            found = [{"error": what} for _ in rows.good]
        slots = found
        if rows.errors:
            answers = iter(found)
            slots = [{"error": rows.errors[place]} if place in rows.errors else next(answers) for place in range(rows.size)]
        self.metrics.answered(tasks, slots)
        return slots

    def _reply(self, rows: Rows, slots: list[dict[str, Any]], tasks: Sequence[str], form: str) -> bytes:
        if form == JSON:
            if rows.ids is not None:
                slots = [{"id": key if isinstance(key, str | int | None) else str(key), **s} for key, s in zip(rows.ids, slots)]
            return as_json(slots)
        ids = None if rows.ids is None or self.reader.id is None else (self.reader.id, rows.ids)
        return as_table(slots, [self.answerer.by_name[name] for name in tasks], ids, form)


def _form(content_type: str) -> str:
    if content_type == JSON:
        return JSON
    name = content_type.partition(";")[0].strip().lower() or JSON
    name = OTHER_NAMES.get(name, name)
    if name not in (JSON, ARROW, PARQUET):
        raise Refusal(415, "content", f"cannot read {content_type[:80]!r}; send {JSON}, {ARROW} or {PARQUET}")
    return name


def _accepted(accept: str, form: str) -> str:
    """The form of the reply: the first of ours that the client names, otherwise that of the request."""
    for part in accept.split(",") if accept else ():
        name = part.partition(";")[0].strip().lower()
        name = OTHER_NAMES.get(name, name)
        if name in (JSON, ARROW, PARQUET):
            return name
    return form


def application(
    fitted: Fitted, limits: Limits | None = None, *, token: str | None = None, max_batch: int = 1024, max_delay: float = 0.002
) -> FastAPI:
    """An ASGI application that serves one artefact.

    limits: what requests may hold. token: a bearer token that `/predict` and `/metrics` then ask for. max_batch, max_delay: rows
    of a batch and the seconds its first request waits for others (see `Batcher`).
    """
    require("fastapi", extra="serve", purpose="serving")
    from fastapi import FastAPI, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    service = Service(fitted, limits or Limits(), token, max_batch=max_batch, max_delay=max_delay)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    def refused(error: Refusal) -> Response:
        service.metrics.refused.labels(error.reason).inc()
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status, {})
        return JSONResponse({"error": error.text}, error.status, headers)

    app = FastAPI(title="Pluribus model", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service

    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        try:
            reply, form = await service.predict(request)
            return Response(reply, media_type=form)
        except Refusal as error:
            return refused(error)
        finally:
            service.metrics.seconds.observe(time.perf_counter() - start)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        if not service.ready:
            return JSONResponse({"error": "not ready"}, 503, {"Retry-After": "1"})
        names = [task.name for task in fitted.tasks]
        return JSONResponse({"status": "ready", "tasks": names, "kind": fitted.artefact})

    async def metrics(request: Request) -> Response:
        try:
            service.check_token(dict(request.scope["headers"]))
        except Refusal as error:
            return refused(error)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(_: Request) -> Response:
        return Response(service.described, media_type=JSON)

    async def wrong_address(_: Request, error: Any) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    app.add_exception_handler(HTTPException, wrong_address)
    app.router.add_route("/predict", predict, methods=["POST"])
    for path, handler in (("/health", health), ("/ready", ready), ("/metrics", metrics), ("/openapi.json", openapi)):
        app.router.add_route(path, handler, methods=["GET"])
    return app


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; a port in use or an address that is not ours is a `BadInput`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BadInput(f"is no address of this machine ({error.strerror})", where=host, remedy="use 127.0.0.1") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        found.close()
        foreign = error.errno == errno.EADDRNOTAVAIL
        remedy = "use 127.0.0.1, or an address of this machine" if foreign else "choose another --port; 0 takes a free one"
        raise BadInput(f"cannot listen ({error.strerror})", where=f"{host}:{port}", remedy=remedy) from error
    return found


def run(
    app: FastAPI,
    listening: socket.socket,
    *,
    stop_seconds: int = 30,
    started: Callable[[], None] | None = None,
    head_seconds: float = 10.0,
    certificate: tuple[str, str] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM: then no new request is taken, those in hand are answered within `stop_seconds`.

    started: called once a signal would end the server properly. head_seconds: for the head of a request to arrive.
    certificate: files of a certificate and its key; then the server speaks TLS.
    """
    uvicorn = require("uvicorn", extra="serve", purpose="serving")
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()  # what is loaded stays: collections look at what requests leave only
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=stop_seconds,
        backlog=1024,
        http=protocol(head_seconds),
        ssl_certfile=certificate[0] if certificate else None,
        ssl_keyfile=certificate[1] if certificate else None,
    )
    if certificate is not None:
        try:
            config.load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            remedy = "give PEM files of a certificate and of its key without a password"
            raise BadInput(f"cannot be used ({error})", where=" and ".join(certificate), remedy=remedy) from error
    server = uvicorn.Server(config)

    def stop(*_: Any) -> None:  # before uvicorn listens to signals, and after it has stopped, when it raises them again
        server.should_exit = True

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if started is not None:
            started()
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()
