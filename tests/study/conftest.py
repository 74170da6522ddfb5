"""A small table of loans with holes, and a study of it that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

ROADS = ["single_networks", "lightgbm_per_task", "lightgbm_pooled", "shared_bottom_equal", "shared_bottom_uncertainty"]
FAST = {"budget": "600s", "seeds": 2, "configurations": 1, "repeats": 200, "candidates": ROADS}
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
        given = {**roles, **FAST, **settings}
        return Study(
            table, targets, folder=tmp_path, jobs=1, **{name: value for name, value in given.items() if value is not None}
        )

    return make


@pytest.fixture(scope="session")
def finished(loans: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One finished study that several tests look at."""
    from pluribus.study import Study

    study = Study(
        loans,
        TARGETS,
        folder=tmp_path_factory.mktemp("runs"),
        jobs=1,
        id="loan",
        group="customer",
        split="time:opened",
        weight="exposure",
        metrics={"default": "gini"},
        name="loans",
        **FAST,
    )
    return study, study.run()


@pytest.fixture(scope="session")
def summary_of() -> Callable[..., dict[str, Any]]:
    """`summary_of(names, one, other)`: the `report.json` of a study of binary tasks in which the joint model's scores carry
    `one` times the signal (a task each, or the same for all) and the specialists' `other` times; judged, not made up."""
    from pluribus.evaluation.verdict import TaskTruth, judge
    from pluribus.tasks import Task

    def make(names: Any, one: Any = 1.0, other: Any = 1.0, rows: int = 400, seeds: int = 3) -> dict[str, Any]:
        rng = np.random.default_rng(3)
        tasks = [Task(name, "binary") for name in names]
        ones, others = (np.broadcast_to(np.asarray(s, float), len(tasks)) for s in (one, other))
        target = {t.name: (rng.random(rows) < 0.4).astype(float) for t in tasks}
        noise = {t.name: rng.normal(size=(seeds, rows)) * 0.05 + rng.normal(size=rows) for t in tasks}

        def side(strength: Any) -> dict[str, list[Any]]:
            return {t.name: [1 / (1 + np.exp(-(s * target[t.name] + e))) for e in noise[t.name]] for t, s in zip(tasks, strength)}

        sides = {"joint": side(ones), "alone": side(others)}
        truth = {name: TaskTruth(np.arange(rows), y) for name, y in target.items()}
        verdict = judge(
            tasks,
            truth,
            rows,
            sides["joint"],
            {"best specialists": sides["alone"], "same-encoder specialists": sides["alone"]},
            constants=dict.fromkeys(target, 0.4),
            challenger_name="Joint",
            repeats=100,
        )
        costs = {"parameters": 900, "flops_per_row": 1800.0, "bytes": 4000, "train_seconds": 3.0, "rows_per_second": 1e5}
        curve = {name: [0.5, 0.6, 0.7] for name in target}
        candidates = {
            key: {
                "label": key.title(),
                "per_task": key == "alone",
                "encoder": "mlp",
                "settings": {"width": 64},
                "seeds": [0, 1, 2],
                "rules": [0.1, 0.2, 0.3],
                "undertrained": [],
                "curves": [curve] * seeds,
                "seconds": [1.0] * seeds,
                "costs": costs,
                "valid": [],
            }
            for key in ("joint", "alone", "other")
        }
        cells = {"labelled": rows, "missing": 0, "not_applicable": 0, "delayed": 0}
        bins = [
            {"rows": 40, "weight": 40.0, "predicted": p, "observed": p, "low": p - 0.05, "high": p + 0.05} for p in (0.1, 0.5)
        ]
        auc = {"auc": 0.7, "logloss": 0.6}
        reason = "no main task is worse on validation"
        return {
            "schema_version": 1,
            "name": "example",
            "headline": verdict.headline + " Recommended: the one model.",
            "choice": {
                "winner": "joint",
                "specialists": dict.fromkeys(target, "alone"),
                "same_encoder": "alone",
                "recommended": "one model",
                "answers": dict.fromkeys(target, "joint"),
                "trials": {},
                "settings": {},
                "rules": {},
                "valid_words": dict.fromkeys(target, "as good"),
                "reason": reason,
            },
            "verdict": verdict.to_dict(),
            "tasks": [{**t.to_dict(), "cells": dict.fromkeys(("train", "valid", "test"), cells)} for t in tasks],
            "parts": {"train": 3 * rows, "valid": rows, "test": rows},
            "split": "random",
            "unit": "row",
            "units": {"train": 3 * rows, "valid": rows, "test": rows},
            "notes": [],
            "warnings": [],
            "labelled_at_random": {},
            "holes": {"words": ["labelled", "missing", "not_applicable", "delayed"], "codes": {n: [0, 1, 2, 3] for n in target}},
            "candidates": candidates,
            "test": {key: [dict.fromkeys(target, auc)] * seeds for key in candidates},
            "champion": None,
            "costs": {"model": costs, "specialists": {**costs, "parameters": 2700.0}},
            "reliability": dict.fromkeys(target, bins),
            "hashes": {"data": "0" * 64, "code": "1" * 64, "tasks": dict.fromkeys(target, "2" * 64)},
            "versions": {"pluribus": "0", "python": "3"},
            "openings": 1,
            "plan": "Budget 60 core-seconds",
            "left_out": {},
            "failed": {},
            "settings": {"budget": "60", "level": 0.95},
            "seconds": 3.0,
        }

    return make
