"""A real server on a free loopback port: slow and vanishing clients, overload, a graceful stop, and requests made from its own
description."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

import uvicorn

from pluribus.cli import run as run_command
from pluribus.serving import Limits, application
from pluribus.serving.patience import protocol
from pluribus.serving.server import bind


class Running:
    """An application behind uvicorn in a thread."""

    def __init__(self, app: Any, **config: Any) -> None:
        self.app, self.socket = app, bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", **config))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not app.state.service.ready and time.monotonic() < deadline:
            time.sleep(0.01)
        assert app.state.service.ready

    def post(self, body: bytes, path: str = "/predict") -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, keep the connection open, and read until the server answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            return connection.recv(4096)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.socket.close()
        assert not self.thread.is_alive()


@pytest.fixture
def running(network: Any) -> Iterator[Any]:
    servers: list[Running] = []

    def make(*arguments: Any, **settings: Any) -> Running:
        servers.append(Running(application(network, *arguments, **settings)))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_concurrent_clients_share_forwards(running: Any, network: Any, rows: Any) -> None:
    """Twelve clients at once, with different tasks: each gets its own answer, from fewer forwards than requests."""
    server = running(max_delay=0.3)
    names = ["default", "loss", "calls", "grade"]
    forwards: list[int] = []
    network.model.register_forward_hook(lambda *_: forwards.append(1))

    def ask(i: int) -> tuple[int, Any]:
        return server.post(json.dumps({"rows": [rows[i]], "tasks": [names[i % 4]]}).encode())

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    assert len(forwards) < 12
    import pandas as pd

    for i, (status, answer) in enumerate(found):
        assert status == 200
        expected = network.predict(pd.DataFrame([rows[i]]), [names[i % 4]]).iloc[0].to_dict()
        near = {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in expected.items()}
        assert answer["rows"][0]["values"] == near


def test_a_slow_client_is_told_so(running: Any) -> None:
    """A body that trickles in is ended with 408, not waited for, and others are served meanwhile."""
    server = running(Limits(read_seconds=0.3))
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    answer = server.raw(head)
    assert answer.startswith(b"HTTP/1.1 408")
    assert server.post(b'{"rows": []}')[0] == 200


def test_a_head_that_does_not_arrive_is_given_up(network: Any, rows: Any) -> None:
    """A client that trickles its head, at once or after an answer, loses its connection; a quick one is served meanwhile."""
    server = Running(application(network), http=protocol(0.5))
    try:
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\n")
            assert server.post(json.dumps({"rows": rows[:1]}).encode())[0] == 200
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
            assert slow.recv(4096) == b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):  # head and body may come apart
                answer += slow.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.8)  # idle between two requests is no slowness
            slow.sendall(b"GET /health HTTP/1.1\r\nho")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begin < 30
    finally:
        server.stop()


def test_tls(network: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With a certificate and its key the server speaks TLS; files that are none end in one line."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate")
    names = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-days",
            "2",
            "-out",
            names[0],
            "-keyout",
            names[1],
        ],
        check=True,
        capture_output=True,
    )
    network.save(tmp_path / "model")
    command = [sys.executable, "-m", "pluribus", "serve", str(tmp_path / "model"), "--port", "0", "--certificate", names[0]]
    with subprocess.Popen([*command, "--key", names[1]], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        line = child.stderr.readline()
        try:
            port = int(line.partition("https://127.0.0.1:")[2].partition("/")[0])
            trusted = ssl.create_default_context(cafile=names[0])
            for _ in range(200):
                try:
                    with urllib.request.urlopen(f"https://localhost:{port}/ready", context=trusted, timeout=10) as answer:
                        assert answer.status == 200
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
            else:
                pytest.fail("no answer over TLS")
        finally:
            child.terminate()
    (tmp_path / "key.pem").write_text("no key", "utf-8")
    assert run_command(["serve", str(tmp_path / "model"), "--port", "0", "--certificate", *(names[0], "--key", names[1])]) == 2
    assert "cannot be used" in capfd.readouterr().err
    assert run_command(["serve", str(tmp_path / "model"), "--certificate", names[0]]) == 2
    assert "give both" in capfd.readouterr().err


def test_a_client_that_hangs_up_is_forgotten(running: Any, rows: Any) -> None:
    """A connection that ends in the middle of a body leaves no request in hand."""
    server = running()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert server.post(json.dumps({"rows": rows}).encode())[0] == 200
    deadline = time.monotonic() + 20
    while server.app.state.service.in_hand and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.app.state.service.in_hand == 0


def test_overload_is_503_and_passes(running: Any, network: Any, rows: Any) -> None:
    """More requests than allowed: the surplus is refused at once, the others are answered, and then all is well again."""
    server = running(Limits(concurrency=2))
    gate = threading.Event()
    hook = network.model.register_forward_hook(lambda *_: gate.wait(30) and None)
    body = json.dumps({"rows": rows[:1]}).encode()
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(server.post, body) for _ in range(2)]
        deadline = time.monotonic() + 20
        while server.app.state.service.in_hand < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        status, answer = server.post(body)
        assert (status, "in hand" in answer["error"]) == (503, True)
        gate.set()
        assert [future.result()[0] for future in held] == [200, 200]
    hook.remove()
    assert server.post(body)[0] == 200


def test_stopping_answers_what_is_in_hand(network: Any, rows: Any) -> None:
    """The server is told to stop while a request is being computed: the request is answered, then the port is closed."""
    server = Running(application(network))
    entered, gate = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        entered.set()
        gate.wait(30)

    hook = network.model.register_forward_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(server.post, json.dumps({"rows": rows[:1]}).encode())
        assert entered.wait(30)
        server.server.should_exit = True
        time.sleep(0.2)
        gate.set()
        assert held.result()[0] == 200
    hook.remove()
    server.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=2).close()


def test_requests_made_from_the_description(running: Any) -> None:
    """Schemathesis: whatever fits or breaks the server's own OpenAPI document, no answer is a 500."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    server = running()
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    seen: list[int] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                status = case.call(timeout=30).status_code
                seen.append(status)
                assert status < 500, case.as_curl_command()

            try:
                check()
            except hypothesis.errors.Unsatisfiable:  # an operation without parameters has nothing to break
                assert operation.path != "/predict"
    assert 200 in seen
    assert 422 in seen
