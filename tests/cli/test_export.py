"""`pluribus export --format onnx`: a network leaves for runtimes without Python; what cannot be exported is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pluribus.cli import run
from pluribus.data.prepared import Prepared
from pluribus.modeling import Budget
from pluribus.study.plan import make


def test_network_as_onnx(mixed: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    make("shared_bottom_equal", {"epochs": 1}).fit(mixed, Budget(60), 0).save(tmp_path / "model")
    name = mixed.tasks[0].name
    words = ["export", str(tmp_path / "model"), "--task", name, "-o", str(tmp_path / "out"), "--format", "onnx"]
    assert run(words) == 0
    assert {"model.onnx", "encoding.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert run(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*words, "--force"]) == 0


def test_trees_are_refused(mixed: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("lightgbm_per_task", {"rounds": 3}).fit(mixed, Budget(60), 0).save(tmp_path / "model")
    assert run(["export", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--format", "onnx"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "trees" in line
    assert not (tmp_path / "out").exists()
