"""Shared by all tests: where the real data sets are, one thread for torch, and hypothesis without deadlines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # small tensors: a second thread only waits, and results would depend on the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so that the processes which tests start do the same

settings.register_profile("pluribus", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pluribus")

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PLURIBUS_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real data file below $PLURIBUS_DATA; skips where it is missing."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"real data file {name} is not below PLURIBUS_DATA={DATA}")
        return path

    return find


@pytest.fixture(scope="session")
def mixed_frame() -> Any:
    """900 rows of a table with holes: numbers and words with missing cells, five targets of five kinds, a group."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(7)
    n = 900
    x = rng.normal(size=(n, 4))
    word = rng.choice(["a", "b", "c", "d"], n)
    frame = pd.DataFrame({f"x{i}": x[:, i] for i in range(4)}) * [1, 10, 1, 100] + [0, 5, 0, -300]
    frame["word"] = word
    frame["default"] = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * rng.normal(size=n) > 0).astype(float)
    frame["loss"] = 1000 + 50 * (x[:, 1] + x[:, 2] ** 2 + (word == "a") + 0.3 * rng.normal(size=n))
    frame["calls"] = rng.poisson(np.exp(0.5 * x[:, 3] + 0.5 * (word == "b"))).astype(float)
    frame["grade"] = np.where(x[:, 0] > 0.5, "u", np.where(x[:, 3] > 0, "v", "w"))
    frame["rating"] = np.digitize(x[:, 2] + 0.5 * rng.normal(size=n), [-0.7, 0.7]).astype(float)
    for column, share in {"x0": 0.1, "word": 0.1, "loss": 0.3, "calls": 0.5, "default": 0.1, "rating": 0.2}.items():
        frame.loc[rng.random(n) < share, column] = None
    return frame


@pytest.fixture(scope="session")
def mixed(mixed_frame: Any) -> Any:
    """`mixed_frame` prepared: parts train, valid and test."""
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table

    kinds = ["default:binary", "loss:regression", "calls:count", "grade:multiclass", "rating:ordinal"]
    table = Table(mixed_frame, kinds, split="random")
    return prepare(table, split(table, 0))
