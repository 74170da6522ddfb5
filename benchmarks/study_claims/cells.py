"""The work folder of `study_claims`: tables, splits, cells, and a process an arm.

tables/NAME/frame.parquet, about.json, split-SEED.npy    made once; all arms read the same rows
cells.jsonl                                              a line a finished cell; of equal cells the last line counts
predictions/NAME-SEED-ARM-BUDGET.npz                     option/target → predictions of all test rows
venv/                                                    the rivals that this project does not depend on
runs/                                                    the run folders of the studies
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study_claims.rivals import ARMS, PEERS
from benchmarks.study_claims.sets import SETS

ROOT = Path(__file__).parents[2]
OURS = "study"
PACKAGES = ("autogluon.tabular", "lightgbm", "catboost", "xgboost-cpu", "torch", "pyarrow")
SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1")
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}


class MissingError(Exception):
    """A rival whose package is not at hand."""


@dataclass(frozen=True)
class Key:
    """What tells cells apart."""

    table: str
    split: int
    arm: str
    budget: float

    def __str__(self) -> str:
        return f"{self.table}-{self.split}-{self.arm}-{self.budget:g}"


class Work:
    """The work folder.

    Parameters
    ----------
    path : Path
        `STUDY_CLAIMS` of the environment, else runs/study_claims.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(path or os.environ.get("STUDY_CLAIMS", ROOT / "runs" / "study_claims")).resolve()
        self.path.mkdir(parents=True, exist_ok=True)

    # -- tables -----------------------------------------------------------------------------------------------------

    def table(self, name: str) -> Path:
        """The folder of a table; made where it is not there."""
        folder = self.path / "tables" / name
        if not (folder / "about.json").is_file():
            made = SETS[name]()
            folder.mkdir(parents=True, exist_ok=True)
            frame = made.frame.reset_index(drop=True)
            frame.to_parquet(folder / "frame.parquet")
            about = {
                "targets": made.targets,
                "task_column": made.task_column,
                "group": made.group,
                "split": made.split,
                "note": made.note,
                "rows": len(frame),
                "columns": frame.shape[1] - len(made.targets),
            }
            (folder / "about.json").write_text(json.dumps(about), "utf-8")
        return folder

    def why_not(self, name: str, splits: int) -> str | None:
        """Why a table cannot be run (a file that is not at hand, a task that a part has no label of), or None."""
        try:
            for seed in range(splits):
                self.split(name, seed)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def arms(self, name: str) -> list[str]:
        """The arms that a table can have: a chain needs two targets on a row."""
        chained = len(self.about(name)["targets"]) > 1
        return [OURS, *(arm for arm in ARMS if chained or arm != "autogluon_chained")]

    def about(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.table(name) / "about.json").read_text("utf-8"))
        return found

    def split(self, name: str, seed: int) -> Any:
        """For every row 0 (train), 1 (valid) or 2 (test), kept from the first time on."""
        import pandas as pd

        from pluribus.data import Table, split

        path = self.table(name) / f"split-{seed}.npy"
        if not path.is_file():
            about, frame = self.about(name), pd.read_parquet(self.table(name) / "frame.parquet")
            targets = [f"{target}:{kind}" for target, kind in about["targets"].items()]
            roles = {"group": about["group"], "task_column": about["task_column"], "split": about["split"]}
            np.save(path, split(Table(frame, targets, **roles), seed).part_of())
        return np.load(path)

    # -- cells ------------------------------------------------------------------------------------------------------

    def cells(self) -> dict[Key, dict[str, Any]]:
        """All finished cells."""
        path, found = self.path / "cells.jsonl", {}
        for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
            row = json.loads(line)
            found[Key(row["table"], row["split"], row["arm"], row["budget"])] = row
        return found

    def keep(self, key: Key, row: dict[str, Any]) -> None:
        with (self.path / "cells.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({**vars(key), "day": date.today().isoformat(), **row}) + "\n")

    def predictions(self, key: Key) -> dict[str, dict[str, Any]]:
        """Option → target → predictions of all test rows; a rival is an option of its own name."""
        found: dict[str, dict[str, Any]] = {}
        with np.load(self.path / "predictions" / f"{key}.npz") as held:
            for name in held.files:
                option, target = name.split("/", 1)
                found.setdefault(option, {})[target] = held[name]
        return found

    def run(self, key: Key) -> dict[str, Any]:
        """Compute a cell in a process of its own; what it says is kept, a failure too."""
        table = self.table(key.table)
        self.split(key.table, key.split)
        with tempfile.TemporaryDirectory(dir=self.path) as out:
            words = [key.arm, str(table), str(key.split), f"{key.budget:g}", out]
            try:
                row = self._call([*self._command(key.arm), *words], Path(out), limit=1200 + 8 * key.budget)
            except MissingError as error:
                row = {"status": "missing", "error": str(error)}
            if row["status"] == "done":
                (self.path / "predictions").mkdir(exist_ok=True)
                shutil.move(Path(out) / "predictions.npz", self.path / "predictions" / f"{key}.npz")
            self.keep(key, row)
        return row

    def _call(self, command: list[str], out: Path, *, limit: float) -> dict[str, Any]:
        environment = {**os.environ, **SINGLE, **HIDDEN, "STUDY_CLAIMS": str(self.path)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")])
        start = time.perf_counter()
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"status": "failed", "error": f"ran longer than {limit:.0f} s"}
        if done.returncode or not (out / "result.json").is_file():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return {"status": "failed", "error": last[:500]}
        took = time.perf_counter() - start
        return {"status": "done", **json.loads((out / "result.json").read_text("utf-8")), "process_seconds": took}

    def _command(self, arm: str) -> list[str]:
        if arm == OURS:
            return [sys.executable, "-m", "benchmarks.study_claims.ours"]
        script = str(Path(__file__).with_name("rivals.py"))
        if arm not in PEERS:
            return [sys.executable, script]
        return [self.peers(), script]

    def peers(self) -> str:
        """The Python of the rivals' virtual environment, made where it is not there; a failure is kept, and not tried again."""
        folder = self.path / "venv"
        python, failed = folder / "bin" / "python", self.path / "venv.failed"
        if (folder / "ready").is_file():
            return str(python)
        if failed.is_file():
            raise MissingError(failed.read_text("utf-8"))
        print("making the rivals' virtual environment: " + ", ".join(PACKAGES), flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
            install = [str(python), "-m", "pip", "install", "-q", *PACKAGES]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=1800)
        except (subprocess.SubprocessError, OSError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            failed.write_text(f"could not be installed: {said[-1] if said else error}"[:500], "utf-8")
            raise MissingError(failed.read_text("utf-8")) from error
        (folder / "ready").touch()
        return str(python)

    def versions(self) -> list[str]:
        """The releases of the rivals' libraries, where they are installed."""
        code = "import importlib.metadata as m, sys; print(*[f'{p} {m.version(p)}' for p in sys.argv[1:]], sep=chr(10))"
        ours, theirs = ("lightgbm", "scikit-learn"), ("catboost", "xgboost-cpu", "autogluon.tabular")
        found = []
        for python, names in ((sys.executable, ours), (str(self.path / "venv" / "bin" / "python"), theirs)):
            if Path(python).exists():
                done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True)
                found += done.stdout.split("\n")[:-1]
        return found


def arms() -> list[str]:
    return [OURS, *ARMS]
