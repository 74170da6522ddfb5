"""The study's arm of `study_claims`: `Study` with its defaults, its options' predictions of the test part, and what it says.

    python -m benchmarks.study_claims.ours study TABLE SPLIT BUDGET OUT

`read` is the only place that knows what the files of a run look like.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study_claims.cells import ROOT, Work
from benchmarks.study_claims.rivals import many, memory, size, speed, spent

RECOMMENDED, ONE, SPECIALISTS = "recommended", "one model", "specialists"


def answers(model: Any, frame: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, Any]:
    """Target → what a model predicts for every row of a raw frame; in the long layout each row for its own task."""
    data = model.columns.prepare(frame, model.tasks)
    if about["task_column"] is None:
        return dict(model.calibrated(data, np.arange(len(frame)), list(about["targets"])))
    (target,) = about["targets"]
    names, found = frame[about["task_column"]].astype(str).to_numpy(), np.full(len(frame), np.nan)
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        found[rows] = model.calibrated(data, rows, [name])[name]
    return {target: found}


# what a run left ----------------------------------------------------------------------------------------------------------------


class Run:
    """What a finished run says, read leniently: a field that is not there is None.

    Attributes
    ----------
    choice, report, verdict : dict
        choice.json, report.json, verdict.json; empty where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.choice, self.report, self.verdict = (self._json(name) for name in ("choice", "report", "verdict"))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return found

    def models(self, candidate: str) -> list[Path]:
        """The model folders of a candidate's deployed fits: all draws where options are averages, a longer training in place of
        the shorter one; else the one trial that the choice names."""
        trials = self.folder / "work" / "trials"
        if not self.choice.get("options"):
            return [trials / self.choice["trials"][candidate] / "model"]
        found = {}
        for phase in ("final", "longer"):
            start = f"{phase}-{candidate}-"
            found |= {path.parent.name.removeprefix(start): path for path in sorted(trials.glob(f"{start}*/model"))}
        return list(found.values())

    def options(self) -> dict[str, dict[str, dict[str, float]]]:
        """Option → task → candidate → its weight in the answer, beside the recommended model itself."""
        found = {each["name"]: each["answers"] for each in self.choice.get("options") or ()}
        if not found and (winner := self.choice.get("winner")) is not None:
            found[ONE] = {task: {winner: 1.0} for task in self.choice["answers"]}
        if SPECIALISTS not in found and self.choice.get("specialists"):
            found[SPECIALISTS] = {task: {name: 1.0} for task, name in self.choice["specialists"].items()}
        return found

    def facts(self) -> dict[str, Any]:
        """What the page says of the run."""
        first = (self.verdict.get("comparisons") or [{}])[0]
        overall = first.get("overall") or {}
        return {
            "recommended": self.choice.get("recommended"),
            "reason": self.choice.get("reason"),
            "winner": self.choice.get("winner"),
            "specialists": self.choice.get("specialists"),
            "headline": self.report.get("headline") or self.verdict.get("headline"),
            "words": {
                row.get("task"): {name: row.get(name) for name in ("word", "reason", "units", "positives", "role")}
                for row in first.get("tasks", [])
            },
            "overall": overall.get("word"),
            "delta": ((overall.get("delta") or {}).get("file") or {}).get("value"),
            "reference": {
                row.get("task"): ((row.get("reference") or {}).get("file") or {}).get("value") for row in first.get("tasks", [])
            },
            "undertrained": {
                name: row.get("undertrained")
                for name, row in (self.report.get("candidates") or {}).items()
                if row.get("undertrained")
            },
            "candidates": sorted(self.report.get("candidates") or {}),
            "failed": self.report.get("failed"),
            "units": self.verdict.get("units"),
        }


def read(
    folder: Path, frame: pd.DataFrame, about: Mapping[str, Any], test: Sequence[int]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Option → target → predictions of the test rows; and the facts of a finished run."""
    import pluribus

    run, rows = Run(folder), frame.iloc[list(test)].reset_index(drop=True)
    shown = rows.drop(columns=list(about["targets"]))
    facts = run.facts()
    recommended = pluribus.load(folder / "model")
    found = {RECOMMENDED: answers(recommended, shown, about)}
    kept: dict[str, list[dict[str, Any]]] = {}
    cost: dict[str, dict[str, float]] = {}
    for name, weights in run.options().items():
        try:
            for candidate in {candidate for own in weights.values() for candidate in own}:
                if candidate not in kept:
                    kept[candidate] = [answers(pluribus.load(path), shown, about) for path in run.models(candidate)]
            found[name] = _mixed(weights, kept, shown, about)
        except Exception as error:  # an option that cannot be rebuilt is named, and the others go on
            facts.setdefault("unread", {})[name] = f"{type(error).__name__}: {error}"[:300]
    cost[RECOMMENDED] = {"bytes": size([folder / "model"]), "rows_per_second": _speed(recommended, shown, about)}
    one = run.models(facts["winner"]) if facts["winner"] else []
    if one:
        loaded = [pluribus.load(path) for path in one]
        each = [_speed(model, shown, about) for model in loaded]
        cost[ONE] = {"bytes": size(one), "rows_per_second": 1 / sum(1 / speed_ for speed_ in each)}
    return found, {**facts, "cost": cost, "parameters": recommended.costs().parameters}


def _mixed(
    weights: Mapping[str, Mapping[str, float]],
    kept: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Any,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Target → the weighted mean over candidates of the mean over their fits."""

    def mean(own: Mapping[str, float], target: str) -> Any:
        total = sum(own.values())
        return sum(w / total * np.mean([each[target] for each in kept[name]], axis=0) for name, w in own.items())

    if about["task_column"] is None:
        return {target: mean(weights[target], target) for target in about["targets"] if target in weights}
    (target,) = about["targets"]
    names, found = rows[about["task_column"]].astype(str).to_numpy(), np.full(len(rows), np.nan)
    for task, own in weights.items():
        at = names == task
        found[at] = mean(own, target)[at]
    return {target: found}


def _speed(model: Any, rows: pd.DataFrame, about: Mapping[str, Any]) -> float:
    frame = rows.iloc[many(np.arange(len(rows)))].reset_index(drop=True)
    return speed(lambda given: answers(model, given, about), frame)


# the process --------------------------------------------------------------------------------------------------------------------


def main(arm: str, table: str, split: str, budget: str, out: str) -> None:
    from pluribus.study import Study

    folder, name = Path(table), Path(table).name
    frame, about = pd.read_parquet(folder / "frame.parquet"), json.loads((folder / "about.json").read_text("utf-8"))
    part = np.load(folder / f"split-{split}.npy")
    targets = [f"{target}:{kind}" for target, kind in about["targets"].items()]
    roles: dict[str, Any] = {key: about[key] for key in ("group", "task_column") if about[key] is not None}
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"
    cpu, wall = spent(), time.perf_counter()
    study = Study(
        frame,
        targets,
        folder=Work().path / "runs",
        jobs=1,
        budget=float(budget),
        seed=int(split),  # of the split, too
        split=about["split"],
        name=f"{name}-{split}-{float(budget):g}-{commit}",  # goes on only where the code is the same
        **roles,
    )
    if not np.array_equal(study.split.part_of(), part):
        raise ValueError("the study does not cut the table as the other arms do")
    result = study.run()
    seconds, elapsed, peak = spent() - cpu, time.perf_counter() - wall, memory()
    found, facts = read(result.folder, frame, about, np.flatnonzero(part == 2).tolist())
    flat = {f"{option}/{target}": np.asarray(p, np.float64) for option, each in found.items() for target, p in each.items()}
    np.savez(Path(out) / "predictions.npz", **flat)
    study.clean()
    row = {
        "seconds": seconds,
        "wall_seconds": elapsed,
        "memory_mb": peak,
        **facts["cost"][RECOMMENDED],
        "facts": facts,
        "commit": commit,
    }
    (Path(out) / "result.json").write_text(json.dumps(row, default=float), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
