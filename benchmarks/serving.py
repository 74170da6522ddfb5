"""A server under 32 concurrent clients: against the same application returning a constant, and against one request, one forward.

One row a request, JSON, keep-alive connections on the loopback, clients in a process of their own. The three servers run the
same network on the flights, one process each, and are measured in turn; requests a second are medians over the rounds,
latencies are of all requests of a server. "CPU" is what the server process spent, which other work on the machine disturbs
less than the clock. "constant": the same application, whose handler reads the body and answers fixed bytes of the same size.
"one forward each": batches of one request.

Writes docs/results/serving.md."""

from __future__ import annotations

import asyncio
import datetime
import json
import multiprocessing
import os
import socket
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ratio import RESULTS, machine

CLIENTS = 32
REQUESTS = 960  # a round


def serve(folder: str, mode: str, port: Any) -> None:
    """A server process: `mode` is "batched", "one forward each" or "constant"."""
    import torch
    from starlette.requests import Request
    from starlette.responses import Response

    from pluribus.modeling import load
    from pluribus.serving.server import application, bind, run

    torch.set_num_threads(1)
    alone = mode == "one forward each"
    app = application(load(folder), max_batch=1 if alone else 1024, max_delay=0.0 if alone else 0.002)
    reply = b" " * 420

    async def constant(request: Request) -> Response:
        await request.body()
        return Response(reply, media_type="application/json")

    app.router.add_route("/constant", constant, methods=["POST"])
    listening = bind("127.0.0.1", 0)
    port.send(listening.getsockname()[1])
    run(app, listening)


async def _client(port: int, requests: list[bytes], seconds: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - start)
    writer.close()


async def one_round(port: int, requests: list[bytes]) -> tuple[float, list[float]]:
    seconds: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(_client(port, requests[i::CLIENTS], seconds) for i in range(CLIENTS)))
    return len(requests) / (time.perf_counter() - start), seconds


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                if connection.recv(100).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the server did not become ready")


def requests_to(path: str, rows: list[dict[str, Any]]) -> list[bytes]:
    found = []
    for i in range(REQUESTS):
        body = json.dumps({"rows": [rows[i % len(rows)]]}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        found.append(head.encode() + body)
    return found


def run(full: bool) -> None:
    import psutil
    import torch

    from benchmarks.trainer import model_of, prepared
    from pluribus.data.flights import flights
    from pluribus.tabular.network import Network
    from pluribus.tabular.settings import DEFAULTS, encoder_settings

    data = prepared()
    config = {
        "encoder": {"name": "tabular_mlp", "settings": encoder_settings(DEFAULTS, data)},
        "sharing": {"name": "shared_bottom", "settings": {"tower": 64}},
    }
    model = model_of(data)
    model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
    names = [source.name for source in data.columns.inputs]
    rows = json.loads(flights(2000).frame[names].to_json(orient="records", date_format="iso"))
    rounds = 31 if full else 15
    modes = ("batched", "one forward each", "constant")
    spawn = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    spent: dict[str, list[float]] = {mode: [] for mode in modes}
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    with TemporaryDirectory() as folder:
        Network(data.tasks, data.columns, config, model).save(Path(folder) / "model")
        servers, ports, processes = [], {}, {}
        try:
            for mode in modes:
                here, there = spawn.Pipe()
                servers.append(spawn.Process(target=serve, args=(str(Path(folder) / "model"), mode, there)))
                servers[-1].start()
                ports[mode] = here.recv()
                processes[mode] = psutil.Process(servers[-1].pid)
            for port in ports.values():
                wait_for(port)
            for number in range(rounds + 1):  # the first is for warming up
                for mode in modes if number % 2 else modes[::-1]:
                    sent = requests_to("/constant" if mode == "constant" else "/predict", rows)
                    before = sum(processes[mode].cpu_times()[:2])
                    rate, each = asyncio.run(one_round(ports[mode], sent))
                    if number:
                        spent[mode].append((sum(processes[mode].cpu_times()[:2]) - before) / REQUESTS)
                        rates[mode].append(rate)
                        seconds[mode] += each
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.join(30)
    _page(rates, seconds, spent, len(names), rounds)


def _page(
    rates: dict[str, list[float]], seconds: dict[str, list[float]], spent: dict[str, list[float]], columns: int, rounds: int
) -> None:
    table = ["| server | requests a second | p50, ms | p99, ms | CPU a request, ms |", "|---|---|---|---|---|"]
    for mode, found in rates.items():
        each = statistics.quantiles(seconds[mode], n=100)
        table.append(
            f"| {mode} | {statistics.median(found):.0f} | {1e3 * each[49]:.1f} | {1e3 * each[98]:.1f} "
            f"| {1e3 * statistics.median(spent[mode]):.2f} |"
        )
    lines, inverse = [], {mode: [1 / value for value in found] for mode, found in spent.items()}
    for other, target in (("constant", 0.6), ("one forward each", 2.0)):
        for what, found in (("requests a second", rates), ("requests a CPU second", inverse)):
            pairs = statistics.quantiles([a / b for a, b in zip(found["batched"], found[other])], n=4)
            word = "reached" if pairs[1] >= target else "missed"
            lines.append(
                f"| batched / {other}, {what} | {pairs[1]:.2f} | {pairs[0]:.2f}–{pairs[2]:.2f} | ≥ {target:g} | {word} |"
            )
    print("\n".join([*table, *lines]), flush=True)
    what = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    load = os.getloadavg()[0]
    page = [
        "# Serving",
        "",
        what,
        "",
        f"{CLIENTS} clients, {rounds} rounds of {REQUESTS} requests a server, rows of {columns} columns, 4 tasks; {machine()}, "
        f"load {load:.1f} (other work on the machine counts into it); {datetime.date.today()}; `make bench ONLY=serving`.",
        "",
        *table,
        "",
        "| ratio | median | quartiles | target | |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "serving.md").write_text("\n".join(page), "utf-8")
