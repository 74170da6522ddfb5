"""A small table of loans with holes, and a study of it that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FAST = {"budget": "600s", "seeds": 2, "configurations": 1, "repeats": 200}
TARGETS = ["default", "prepay", "loss:regression", "calls:count"]


def make_loans(n: int = 700, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    frame = pd.DataFrame(x, columns=list("abcd"))
    frame["region"] = rng.choice(["north", "south", None], n)
    frame["loan"] = [f"{i:06d}" for i in range(n)]
    frame["opened"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 120, n)), unit="D")
    frame["customer"] = rng.integers(0, n // 4, n)
    frame["exposure"] = rng.random(n) + 0.5
    signal = x[:, 0] + 0.5 * x[:, 1]
    frame["default"] = (signal + rng.normal(size=n) > 0.5).astype(float)
    frame.loc[rng.random(n) < 0.3, "default"] = np.nan
    frame["prepay"] = rng.random(n) < 1 / (1 + np.exp(-2 * x[:, 2]))
    frame["loss"] = signal * 100 + rng.normal(size=n) * 30
    frame["calls"] = rng.poisson(np.exp(0.5 * x[:, 3]))
    return frame


@pytest.fixture(scope="session")
def loans() -> pd.DataFrame:
    return make_loans()


@pytest.fixture(scope="session")
def loans_file(loans: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "loans.parquet"
    loans.to_parquet(path, index=False)
    return path


@pytest.fixture
def study_of(tmp_path: Path) -> Callable[..., Any]:
    from pluribus.study import Study

    def make(table: Any, targets: Any = TARGETS, **settings: Any) -> Study:
        roles = {"id": "loan", "group": "customer", "split": "time:opened", "weight": "exposure"}
        return Study(table, targets, folder=tmp_path, jobs=1, **{**roles, **FAST, **settings})

    return make


@pytest.fixture(scope="session")
def finished(loans: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One finished study that several tests look at."""
    from pluribus.study import Study

    study = Study(
        loans, TARGETS, folder=tmp_path_factory.mktemp("runs"), jobs=1, id="loan", group="customer", split="time:opened",
        weight="exposure", metrics={"default": "gini"}, name="loans", **FAST,
    )  # fmt: skip
    return study, study.run()
