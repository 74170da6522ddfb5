"""`torchrun -m pluribus.training`: two real processes train one model, one is killed, the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pluribus.errors import BadInput
from pluribus.modeling import load
from pluribus.training.__main__ import command
from pluribus.training.snapshot import read_snapshot

PATIENCE = 240  # seconds that anything may take on a busy machine


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4))
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["default"] = (x[:, 0] + rng.normal(size=len(x)) > 0).astype(int)
    frame["loss"] = 100 * x[:, 1] + rng.normal(size=len(x))
    frame.loc[rng.random(len(x)) < 0.3, "loss"] = np.nan
    frame.to_parquet(tmp_path / "loans.parquet", index=False)
    return tmp_path / "loans.parquet"


def _command(table: Path, *more: str, processes: int = 2) -> list[str]:
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [*start, "pluribus.training", str(table), *more]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Whatever a test starts ends with it, its workers too."""
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until(what: str, found: object, process: subprocess.Popen[bytes], log: Path) -> None:
    assert callable(found)
    end = time.monotonic() + PATIENCE
    while not found():
        assert process.poll() is None, f"ended before {what}: {log.read_text()[-2000:]}"
        assert time.monotonic() < end, f"no {what} in {PATIENCE} s: {log.read_text()[-2000:]}"
        time.sleep(0.05)


def test_a_killed_rank_ends_the_other_and_the_rerun_goes_on(
    table: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """If this fails, a machine that loses one process of a long training hangs, or loses the epochs it had."""
    model, work, log = tmp_path / "model", tmp_path / "model.work", tmp_path / "log"
    settings = ["--target", "default", "--target", "loss:regression", "--set", "width=16", "--set", "batch_size=64"]
    slow = [*settings, "--set", "epochs=150", "--set", "patience=150", "-o", str(model), "--keep"]
    with open(log, "wb") as out:
        process = subprocess.Popen(
            _command(table, *slow), env=_environment(), stdout=out, stderr=out, start_new_session=True, cwd=tmp_path
        )
    started.append(process)
    _until("both processes trained", lambda: len(re.findall(r"\(pid \d+\)", log.read_text())) == 2, process, log)
    _until("a snapshot was there", lambda: (work / "snapshot" / "state.json").is_file(), process, log)
    pids = dict(re.findall(r"process (\d) of 2 \(pid (\d+)\)", log.read_text()))
    os.kill(int(pids["1"]), signal.SIGKILL)
    assert process.wait(PATIENCE) != 0
    assert not model.exists()
    mine = [line for line in log.read_text().splitlines() if "pluribus.training: process 0" in line and "pid" not in line]
    assert len(mine) == 1, log.read_text()
    assert "the same command goes on" in mine[0]
    _until_gone(int(pids["0"]))

    snapshot = read_snapshot(work)
    assert snapshot is not None
    reached = snapshot["progress"]["epoch"]
    assert 1 <= reached < 150
    again = subprocess.run(  # another number of processes, and the last epochs only
        _command(table, *slow, processes=1), env=_environment(), capture_output=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr.decode()
    last = read_snapshot(work)
    assert last is not None
    rules = last["history"]["rule"]
    assert rules[:reached] == snapshot["history"]["rule"]
    assert len(rules) > reached
    predicted = load(model).predict(pd.read_parquet(table))
    assert np.corrcoef(predicted["default__p"], pd.read_parquet(table)["a"])[0, 1] > 0.5


def _until_gone(pid: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} outlives the one that was killed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "lost"], "lost"),
        (["--candidate", "shared_bottm_equal", "--target", "default"], "did you mean 'shared_bottom_equal'"),
        (["--set", "lr", "--target", "default"], "is not KEY=VALUE"),
        ([], "add --target"),
        (["--target", "default"], "one task alone"),
    ],
)
def test_bad_input_names_the_option(table: Path, tmp_path: Path, words: list[str], said: str) -> None:
    """If this fails, a misspelt option ends in a traceback, or after hours."""
    with pytest.raises(BadInput, match=said):
        command.main([str(table), *words, "-o", str(tmp_path / "model")], standalone_mode=False)
    assert not (tmp_path / "model").exists()


def test_bad_input_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """If this fails, a script that starts trainings cannot tell its own mistake from a lost machine."""
    found = subprocess.run(
        _command(tmp_path / "lost.parquet", "--target", "x", "-o", "model", processes=1),
        env=_environment(),
        capture_output=True,
        timeout=PATIENCE,
        cwd=tmp_path,
    )
    assert found.returncode == 2
    (line,) = found.stderr.decode().strip().splitlines()
    assert "lost.parquet: no such file" in line


def test_a_work_folder_belongs_to_one_training(table: Path, tmp_path: Path) -> None:
    """If this fails, a run with other settings goes on from a snapshot that is not its own."""
    words = [str(table), "--target", "default", "--target", "loss", "--set", "width=8", "--work", str(tmp_path / "work")]
    done = [*words, "--set", "epochs=1", "--keep", "-o", str(tmp_path / "model")]
    command.main(done, standalone_mode=False)
    with pytest.raises(BadInput, match="exists already"):
        command.main(done, standalone_mode=False)
    with pytest.raises(BadInput, match="holds another training"):
        command.main([*words, "--set", "epochs=2", "-o", str(tmp_path / "other")], standalone_mode=False)
    prepared = [str(tmp_path / "work" / "prepared"), "--set", "width=8", "--set", "epochs=1"]
    command.main([*prepared, "-o", str(tmp_path / "again")], standalone_mode=False)
    assert not (tmp_path / "again.work").exists()
    one, two = (load(tmp_path / name).predict(pd.read_parquet(table)) for name in ("model", "again"))
    pd.testing.assert_frame_equal(one, two)
    with pytest.raises(BadInput, match="knows its targets"):
        command.main([*prepared, "--target", "default", "-o", str(tmp_path / "third")], standalone_mode=False)


def test_a_work_folder_of_the_first_edition_goes_on(table: Path, tmp_path: Path) -> None:
    """Its note names every role, two of them otherwise: if this fails, a long training begins anew after an update."""
    words = [str(table), "--target", "default", "--target", "loss", "--split", "random", "--set", "width=8", "--set", "epochs=1"]
    command.main([*words, "--keep", "-o", str(tmp_path / "model")], standalone_mode=False)
    note = tmp_path / "model.work" / "training.json"
    held = json.loads(note.read_text())
    assert held.pop("split") == "random"
    roles = dict.fromkeys(("id_", "weight", "group", "task_column"))
    note.write_text(json.dumps({**held, **roles, "ignore": [], "how": "random"}))
    (tmp_path / "model").rename(tmp_path / "first")
    command.main([*words, "--keep", "-o", str(tmp_path / "model")], standalone_mode=False)
    note.write_text(json.dumps({**held, **roles, "ignore": ["a"], "how": "random"}))
    (tmp_path / "model").rename(tmp_path / "second")
    with pytest.raises(BadInput, match="holds another training"):
        command.main([*words, "--keep", "-o", str(tmp_path / "model")], standalone_mode=False)
