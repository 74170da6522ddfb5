"""`pluribus serve`: a real process with a real model folder, and every way to start it wrongly."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")

from pluribus.cli import run
from pluribus.cli.serve import loopback, read_token
from pluribus.errors import BadInput


@pytest.fixture
def model(mixed: Any, tmp_path: Path) -> Path:
    from pluribus.tabular.network import Network, build

    config = {
        "encoder": {"name": "tabular_mlp", "settings": {"width": 8, "depth": 1}},
        "sharing": {"name": "shared_bottom", "settings": {}},
    }
    torch.manual_seed(0)
    Network(mixed.tasks, mixed.columns, config, build(mixed.tasks, mixed.columns, config)).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_stops(number: int, model: Path, tmp_path: Path) -> None:
    """The command listens on the loopback, asks for its token, predicts, and ends with 0 on a signal."""
    token = tmp_path / "token"
    token.write_text("t" * 32 + "\n")
    words = [sys.executable, "-m", "pluribus", "serve", str(model), "--port", "0", "--token-file", str(token)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/predict", line)
        assert found, line
        rows = [{"x0": 1, "x1": 2, "x2": None, "x3": 4.5, "word": "a"}]
        headers = {"authorization": "Bearer " + "t" * 32, "content-type": "application/json"}
        request = urllib.request.Request(found[0], json.dumps(rows).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert set(json.load(answer)["rows"][0]["values"]) >= {"default", "default__p", "loss", "calls", "grade", "rating"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(found[0], b"[]"), timeout=60)
        process.send_signal(number)
        assert process.wait(60) == 0
        assert "stopped" in process.stderr.read()
    finally:
        process.kill()
        process.wait(30)


def test_port_in_use(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert run(["serve", str(model), "--port", str(other.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "cannot listen (Address already in use); choose another --port" in error
    assert len(error.splitlines()) == 1


def test_address_of_another_machine(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another port would not help. (192.0.2.0/24 is no machine's.)"""
    assert run(["serve", str(model), "--host", "192.0.2.1", "--port", "0"]) == 2
    assert "192.0.2.1:0: cannot listen (Cannot assign requested address); use 127.0.0.1" in capsys.readouterr().err


def test_a_run_s_folder_is_told_from_its_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """runs/loans in place of runs/loans/model: the line names the folder to give."""
    run_folder = tmp_path / "loans"
    model.rename(tmp_path / "aside")
    run_folder.mkdir()
    (tmp_path / "aside").rename(run_folder / "model")
    assert run(["serve", str(run_folder)]) == 2
    assert capsys.readouterr().err.endswith(f"(it has no pluribus.json); name {run_folder / 'model'}\n")


def test_newer_schema(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((model / "pluribus.json").read_text())
    (model / "pluribus.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    assert run(["serve", str(model)]) == 2
    assert "schema_version 99 is newer than this program's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "no such model folder"),
        (["MODEL", "--port", "70000"], "70000"),
        (["MODEL", "--host", "not an address"], "is no address of this machine"),
        (["MODEL", "--token-file", "nowhere"], "name a text file that holds the token"),
        (["MODEL", "--prot", "1"], "did you mean '--port'"),
    ],
)
def test_wrong_starts(words: list[str], text: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", *(str(model) if word == "MODEL" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_missing_extra(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra the command says which to install."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve", str(model)]) == 2
    assert "pip install 'pluribus[serve]'" in capsys.readouterr().err


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is short or has blanks would be no protection: refused. The environment is the second place to look."""
    monkeypatch.delenv("PLURIBUS_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("PLURIBUS_TOKEN", "e" * 16)
    assert read_token(None) == "e" * 16
    for wrong in ("", "short", "with blank " * 5, "é" * 20):
        (tmp_path / "t").write_text(wrong, "utf-8")
        with pytest.raises(BadInput, match="16 or more visible ASCII"):
            read_token(str(tmp_path / "t"))


def test_loopback() -> None:
    """Only addresses of this machine count: others deserve the note about the missing token."""
    assert loopback("127.0.0.1")
    assert loopback("::1")
    assert loopback("localhost")
    assert not loopback("0.0.0.0")
    assert not loopback("192.0.2.1")
