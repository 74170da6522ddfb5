"""The README stays true: its blocks run on generated fixtures, through a real shell, with 4 s in place of the printed budget."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)


def _loans(folder: Path) -> None:
    rng = np.random.default_rng(0)
    n = 600
    x = rng.normal(size=(n, 3))
    frame = pd.DataFrame(x, columns=["income", "age", "rate"])
    frame["loan"] = [f"L{i:05d}" for i in range(n)]
    frame["opened"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 150, n)), unit="D")
    frame["customer"] = rng.integers(0, n // 3, n)
    frame["exposure"] = rng.random(n) + 0.5
    frame["default"] = (x[:, 0] + rng.normal(size=n) > 0.7).astype(float)
    frame.loc[rng.random(n) < 0.3, "default"] = np.nan
    frame["prepay"] = x[:, 1] + rng.normal(size=n) > 0
    frame["churn"] = (x[:, 2] + rng.normal(size=n) > 0).astype(int)
    frame["loss"] = 100 * x[:, 0] + 30 * rng.normal(size=n)
    frame["calls"] = rng.poisson(np.exp(0.4 * x[:, 1]))
    frame.to_parquet(folder / "loans.parquet", index=False)
    targets = ["default", "prepay", "churn", "loss", "calls"]
    frame.drop(columns=targets).to_parquet(folder / "new.parquet", index=False)
    champion = pd.DataFrame({"loan": frame["loan"], "loss": 100 * x[:, 0], "default__p": 1 / (1 + np.exp(-x[:, 0]))})
    champion.to_parquet(folder / "my_lgbm_predictions.parquet", index=False)


STUDY = """
schema_version: 1
kind: checkpoints
base: bert/
experts:
  cars: {path: ft-cars/, metric: accuracy, direction: max, valid: "0", test: "1"}
  sun: {path: ft-sun/, metric: accuracy, direction: max, valid: "2", test: "3"}
methods: [average]
"""
MINE = """
import pandas as pd, torch

def accuracy(model, task, split):
    ids = torch.randint(0, 40, (60, 6), generator=torch.Generator().manual_seed(int(split)))
    with torch.no_grad():
        found = model.eval()(input_ids=ids).logits.argmax(-1)
    return pd.DataFrame({"id": range(60), "score": (found == ids.sum(1) % 2).float()})
"""


def _checkpoints(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    base = transformers.BertModel(transformers.BertConfig(**sizes))
    base.save_pretrained(folder / "bert")
    for task, classes in {"cars": 3, "sun": 2}.items():
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=classes))
        model.bert.load_state_dict({name: t + 0.02 * torch.randn(t.shape) for name, t in base.state_dict().items()})
        model.save_pretrained(folder / f"ft-{task}")
    (folder / "checkpoints.yaml").write_text(STUDY, "utf-8")
    (folder / "mine.py").write_text(MINE, "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _loans(tmp_path)
    return tmp_path


def run(script: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = ["bash", "-c", f"set -euo pipefail\n{script}"]
    done = subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_checkpoint_lines(tmp_path: Path) -> None:
    """The engineer's first hour: doctor, merge, export, study (what `serve` would read is there)."""
    _checkpoints(tmp_path)
    served = re.search(r"\npluribus serve (\S+) [^\n]*", blocks("bash")[1])
    assert served
    run(blocks("bash")[1].replace(served[0], ""), tmp_path)
    assert (tmp_path / "merged" / "heads" / "cars.safetensors").is_file()
    assert (tmp_path / "cars" / "config.json").is_file()
    assert (tmp_path / served[1] / "pluribus.json").is_file()


def test_shell_lines(folder: Path) -> None:
    """The data scientist's first hour: plan, study, predict."""
    run(blocks("bash")[0].replace("--budget 2h", "--budget 4s"), folder)
    assert (folder / "runs" / "loans" / "report.html").is_file()
    scores = pd.read_parquet(folder / "scores.parquet")
    assert list(scores["loan"]) == list(pd.read_parquet(folder / "new.parquet")["loan"])
    assert {"default__p", "loss", "calls"} <= set(scores.columns)


def test_python_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimator and the researcher's loop run as printed."""
    monkeypatch.chdir(folder)
    study, loop = (block.replace('budget="2h"', 'budget="4s"') for block in blocks("python"))
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    Y = np.column_stack([X[:, 0] > 0, np.where(rng.random(200) < 0.3, np.nan, X[:, 1])])
    space = {"X": X, "Y": Y, "X_new": X[:5]}
    exec(study, space)
    assert space["scores"].shape == (5, 2)
    trunk, heads = torch.nn.Linear(4, 8), [torch.nn.Linear(8, 1) for _ in range(2)]
    z = trunk(torch.randn(16, 4)).tanh()
    l1, l2 = (head(z).square().mean() for head in heads)
    exec(loop, {"l1": l1, "l2": l2, "z": z, "kl": z.square().mean(), "s": 0, "v": 0.5})
    assert trunk.weight.grad is not None
    assert (folder / "runs" / "thesis" / "ledger.jsonl").is_file()
