"""`pluribus serve`: a model folder behind HTTP."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import click

from pluribus.errors import BadInput

TOKEN = "PLURIBUS_TOKEN"


def read_token(path: str | None) -> str | None:
    """The bearer token: the file's only line, or the environment's; none where neither is given."""
    if path is None:
        found = os.environ.get(TOKEN)
        where = f"environment variable {TOKEN}"
    else:
        where = path
        try:
            found = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput("cannot be read", where=where, remedy="name a text file that holds the token") from error
    if found is None:
        return None
    if len(found) < 16 or not found.isascii() or not found.isprintable() or " " in found:
        what = "the token is not 16 or more visible ASCII characters"
        raise BadInput(what, where=where, remedy="openssl rand -hex 32 makes one")
    return found


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@click.command("serve", epilog="Example:  pluribus serve runs/loans/model --port 8000")
@click.argument("model", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; the default is this machine only.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--token-file", metavar="FILE", help=f"Ask for this bearer token (default: ${TOKEN}, if set).")
@click.option("--certificate", metavar="FILE", help="PEM certificate: speak TLS; needs --key.")
@click.option("--key", metavar="FILE", help="PEM key of the certificate.")
@click.option("--max-batch", default=1024, show_default=True, type=click.IntRange(1), help="Rows of a batch.")
@click.option(
    "--max-delay", default=2.0, show_default=True, type=click.FloatRange(0, 1000), help="Milliseconds a request waits for others."
)
@click.option("--max-rows", default=10_000, show_default=True, type=click.IntRange(1), help="Rows of a request.")
@click.option("--max-body", default=8, show_default=True, type=click.IntRange(1, 1024), help="MiB of a request.")
@click.option("--max-requests", default=256, show_default=True, type=click.IntRange(1), help="Requests in hand; more get 503.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of a forward.")
def command(
    model: str,
    host: str,
    port: int,
    token_file: str | None,
    certificate: str | None,
    key: str | None,
    max_batch: int,
    max_delay: float,
    max_rows: int,
    max_body: int,
    max_requests: int,
    threads: int,
) -> None:
    """Serve the model folder MODEL: POST rows to /predict (JSON, an Arrow stream, or Parquet; ?tasks=a,b picks tasks).

    /openapi.json describes columns and tasks, /health and /ready are for whoever watches, /metrics for Prometheus. Concurrent
    requests share one forward. Ctrl-C or SIGTERM answers what is in hand and ends.
    """
    from pluribus.errors import require

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, extra="serve", purpose="pluribus serve")
    from pluribus.modeling import load
    from pluribus.serving.bodies import Limits
    from pluribus.serving.server import application, bind, run

    token = read_token(token_file)
    pair = None
    if certificate is not None or key is not None:
        if certificate is None or key is None:
            raise BadInput("one of --certificate and --key is missing", remedy="give both, as PEM files")
        for file in (certificate, key):
            if not Path(file).is_file():
                raise BadInput("no such file", where=file, remedy="check the path")
        pair = (certificate, key)
    fitted = load(model)
    listening = bind(host, port)
    import torch

    torch.set_num_threads(threads)
    limits = Limits(body=max_body << 20, rows=max_rows, concurrency=max_requests)
    app = application(fitted, limits, token=token, max_batch=max_batch, max_delay=max_delay / 1000)
    if token is None and not loopback(host):
        click.echo(f"note: {host} can be reached from other machines and no token is asked for; see --token-file", err=True)
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(task.name for task in fitted.tasks[:8]) + (", …" if len(fitted.tasks) > 8 else "")
    line = f"serving {names} on {'https' if pair else 'http'}://{shown}:{listening.getsockname()[1]}/predict; Ctrl-C ends"
    run(app, listening, started=lambda: click.echo(line, err=True), certificate=pair)
    click.echo("stopped", err=True)
