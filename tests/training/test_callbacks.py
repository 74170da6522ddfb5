"""Listeners: MLflow hears every epoch's numbers; a missing package is one clear line."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from pluribus.data.prepared import Prepared
from pluribus.errors import MissingExtra
from pluribus.modeling import MultiTaskModel
from pluribus.training import MLflow, Progress, Stage, Trainer


def test_mlflow_hears_every_epoch(data: Prepared, model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, list[Any]] = {"params": [], "metrics": []}
    fake: Any = types.ModuleType("mlflow")
    fake.log_params = lambda params: heard["params"].append(params)
    fake.log_metrics = lambda numbers, step: heard["metrics"].append((step, numbers))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    Trainer(model, [Stage(epochs=3, batch_size=128, patience=None)], callbacks=[MLflow(), Progress()]).fit(data)
    assert heard["params"][0]["stage0.epochs"] == "3"
    assert [step for step, _ in heard["metrics"]] == [0, 1, 2]
    assert {"rule", "loss/loss", "score/default"} <= set(heard["metrics"][0][1])


def test_without_mlflow_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pluribus\[track\]'"):
        MLflow()
