"""A disk that fills up while a model is saved: one clear line, and the old model as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pluribus.data.prepared import Prepared
from pluribus.modeling import Budget, load
from pluribus.tabular.joint_networks import SharedBottomEqual

SCRIPT = """
import resource, signal, sys
from pluribus.modeling import load
model = load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))  # a write beyond this fails, as on a full disk
try:
    model.save(sys.argv[1])
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_old_model_survives(mixed: Prepared, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    SharedBottomEqual(epochs=1).fit(mixed, Budget(60), 0).save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True)
    assert done.stdout.startswith("BadInput"), done.stdout + done.stderr
    assert "cannot be written" in done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load(folder)
