"""What is told of a run: a progress bar, a JSON log, MLflow. One small protocol."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pluribus.errors import require


class Callback:
    """Is told of a run. `record` is plain JSON: stage, epoch, step, seconds, losses, scores, rule, rate, weights."""

    def start(self, plan: dict[str, Any]) -> None:
        """A stage begins: {"stage", "epochs", "tasks", "parameters"}."""

    def step(self, record: dict[str, Any]) -> None:
        """An optimiser step has been taken: {"stage", "epoch", "step", "of"}."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch has been evaluated."""

    def end(self, record: dict[str, Any]) -> None:
        """A stage has ended: {"stage", "reason", "best_epoch", "seconds"}."""


class JsonLog(Callback):
    """Appends one JSON line per epoch and stage border to a file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def _write(self, event: str, record: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, "time": time.time(), **record}) + "\n")

    def start(self, plan: dict[str, Any]) -> None:
        self._write("start", plan)

    def epoch(self, record: dict[str, Any]) -> None:
        self._write("epoch", record)

    def end(self, record: dict[str, Any]) -> None:
        self._write("end", record)


class Progress(Callback):
    """A progress bar on the terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(), transient=True
        )
        self.line: Any = None

    def start(self, plan: dict[str, Any]) -> None:
        self.bar.start()
        self.line = self.bar.add_task(f"stage {plan['stage'] + 1}", total=plan["epochs"], note="")

    def step(self, record: dict[str, Any]) -> None:
        self.bar.update(self.line, completed=record["epoch"] + record["step"] / record["of"])

    def epoch(self, record: dict[str, Any]) -> None:
        self.bar.update(self.line, completed=record["epoch"] + 1, note=f"{record['rule']:.4f}")

    def end(self, record: dict[str, Any]) -> None:
        self.bar.stop()


class MLflow(Callback):
    """Sends every epoch's numbers to the active MLflow run (extra `track`)."""

    def __init__(self) -> None:
        self.mlflow: Any = require("mlflow", extra="track", purpose="the MLflow callback")

    def start(self, plan: dict[str, Any]) -> None:
        self.mlflow.log_params({f"stage{plan['stage']}.{key}": str(value) for key, value in plan.items()})

    def epoch(self, record: dict[str, Any]) -> None:
        numbers = {f"loss/{name}": value for name, value in record["losses"].items()}
        numbers |= {f"score/{name}": value for name, value in record["scores"].items()}
        numbers["rule"] = record["rule"]
        self.mlflow.log_metrics(numbers, step=record["epoch"])
