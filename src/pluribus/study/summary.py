"""What a finished study writes for programs: `results.parquet` (one row a method, seed, task and metric) and `report.json`,
from which the report is drawn and can be drawn again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pluribus.data import leakage
from pluribus.data.leakage import Finding
from pluribus.data.prepared import Prepared
from pluribus.data.table import HOLES
from pluribus.evaluation.verdict import Verdict
from pluribus.files import atomic_file, read_json
from pluribus.files.plain import plain
from pluribus.modeling import Fitted
from pluribus.study.plan import EQUAL, EQUAL_TIME, Plan, is_balanced
from pluribus.study.selection import CHAMPION, Choice, Finalist
from pluribus.study.trial import Predictions, score

if TYPE_CHECKING:
    from pluribus.study.study import Study

SCHEMA_VERSION = 1
SELECTION = "best mean skill on validation"
Scores = dict[str, list[dict[str, dict[str, float]]]]
"""Candidate → for each seed: task → metric → value."""
HOLE_ROWS = 160
"""Rows of the table that the report's picture of the holes shows."""


def scores_on_test(data: Prepared, test: Mapping[str, Sequence[Predictions]]) -> Scores:
    """Every metric of every task that is predicted, on the test part."""
    return {
        name: [
            {t.name: {m.name: score(t, m.name, p[t.name], data, "test") for m in t.metrics} for t in data.tasks if t.name in p}
            for p in seeds
        ]
        for name, seeds in test.items()
    }


def write_results(folder: Path, study: Study, finalists: Sequence[Finalist], scores: Scores) -> None:
    """`results.parquet`: test figures of every method, with the ledger's columns."""
    import pandas as pd

    rows = []
    for name, seeds in scores.items():
        f = next((f for f in finalists if f.candidate == name), None)
        for i, each in enumerate(seeds):
            seconds = None if f is None else read_json(folder / "work" / "trials" / f.trials[i] / "result.json")["seconds"]
            for task in study.table.tasks:
                for m in task.metrics:
                    if task.name in each:
                        rows.append(
                            {
                                "method": name,
                                "seed": 0 if f is None else f.seeds[i],
                                "task": task.name,
                                "metric": m.name,
                                "value": each[task.name][m.name],
                                "direction": m.direction,
                                "selection": SELECTION,
                                "seconds": seconds,
                                "memory": None,
                                "main": m.name == task.main_metric.name,
                            }
                        )
    frame = pd.DataFrame(rows).astype({"seconds": "float64", "memory": "float64"})
    with atomic_file(folder / "results.parquet") as aside:
        frame.to_parquet(aside, index=False)


def write_summary(
    folder: Path,
    study: Study,
    planned: Plan,
    finalists: Sequence[Finalist],
    failed: dict[str, str],
    choice: Choice,
    verdict: Verdict | None,
    scores: Scores,
    model: Fitted,
    findings: Sequence[Finding],
    openings: int,
    *,
    notes: Sequence[str],
    seconds: float,
) -> None:
    """`report.json`: everything the report says, as plain JSON."""
    table, split = study.table, study.split
    results = {f.candidate: [read_json(folder / "work" / "trials" / t / "result.json") for t in f.trials] for f in finalists}
    summary = {
        "schema_version": SCHEMA_VERSION,
        "name": study.spec.run_name,
        "headline": headline(choice, verdict),
        "choice": choice.to_dict(),
        "verdict": None if verdict is None else verdict.to_dict(),
        "tasks": [
            {
                **task.to_dict(),
                "cells": {
                    part: {
                        hole: int(n)
                        for hole, n in zip(HOLES, np.bincount(table.hole_codes[task.name][rows], minlength=len(HOLES)))
                    }
                    for part, rows in split.parts.items()
                },
            }
            for task in table.tasks
        ],
        "parts": {part: len(rows) for part, rows in split.parts.items()},
        "split": table.split,
        "unit": split.unit,
        "units": {part: len(np.unique(split.units[rows])) for part, rows in split.parts.items()},
        "notes": [*(study.notes() if verdict is None else verdict.notes), *notes],
        "warnings": [finding.to_dict() for finding in findings],
        "labelled_at_random": leakage.labelled_at_random(table, study.learnable, seed=study.spec.seed),
        "holes": _hole_map(study),
        "candidates": {
            f.candidate: {
                "label": f.label,
                "per_task": f.per_task,
                "encoder": f.encoder,
                "settings": f.settings,
                "seeds": list(f.seeds),
                "rules": list(f.rules),
                "undertrained": sorted(f.undertrained),
                "curves": [r["curves"] for r in results[f.candidate]],
                "seconds": [r["seconds"] for r in results[f.candidate]],
                "costs": results[f.candidate][int(np.argmax(f.rules))]["costs"],
                "valid": [r["scores"] for r in results[f.candidate]],
            }
            for f in finalists
        },
        "diagnostics": {
            f.candidate: found
            for f in finalists
            if (found := [r.get("diagnostics") for r in results[f.candidate]]) and any(found)
        },
        "expert_health": {
            f.candidate: found
            for f in finalists
            if (found := [r.get("expert_health") for r in results[f.candidate]]) and any(found)
        },
        "balancers": balancers(finalists, results),
        "grouping": grouping(results.get(choice.winner or "", [])),
        "test": scores,
        "champion": study.spec.champion,
        "costs": {"model": model.costs().to_dict(), "specialists": specialists_costs(choice, results, table.names)},
        "reliability": model.record["reliability"],
        "hashes": model.record["hashes"],
        "versions": model.record["versions"],
        "openings": openings,
        "plan": planned.text(),
        "left_out": planned.left_out,
        "failed": failed,
        "settings": study.spec.model_dump(),
        "seconds": seconds,
    }
    with atomic_file(folder / "report.json") as aside:
        aside.write_text(json.dumps(plain(summary), allow_nan=False), "utf-8")


def balancers(finalists: Sequence[Finalist], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The compared balancers beside equal weights: core-seconds a training, validation skill of the best epoch, and the gain on
    equal weights, seed by seed, as they stopped and within the same seconds (None where they were not trained so long)."""
    names = [f.candidate for f in finalists if is_balanced(f.candidate)]
    plain = {r["seed"]: r for r in results.get(EQUAL, []) if r.get("rules")}
    on = {r["seed"]: r for r in results.get(EQUAL_TIME, []) if r.get("rules")}
    if EQUAL not in names or len(names) < 2:
        return []
    found = []
    for f in finalists:
        if f.candidate not in names:
            continue
        rows = [r for r in results[f.candidate] if r.get("rules")]
        epochs, times = [], []
        for r in rows:
            best, seconds = max(r["rules"]), r["times"][-1]
            if r["seed"] in plain:
                epochs.append(best - max(plain[r["seed"]]["rules"]))
            curves = [run for run in (on.get(r["seed"]), plain.get(r["seed"])) if run is not None]
            reached = [v for run in curves for v, t in zip(run["rules"], run["times"]) if t <= 1.02 * seconds]
            if reached and any(run["times"][-1] >= 0.95 * seconds for run in curves):
                times.append(best - max(reached))
        found.append(
            {
                "candidate": f.candidate,
                "seconds": float(np.mean([r["seconds"] for r in rows])) if rows else None,
                "epochs": float(np.mean([len(r["rules"]) for r in rows])) if rows else None,
                "skill": [max(r["rules"]) for r in rows],
                "minus_equal": epochs,
                "minus_equal_at_equal_time": times,
            }
        )
    return found


def grouping(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The tasks in at most two groups that help each other most by the measured affinity, mean over seeds."""
    heard = [r["diagnostics"] for r in results if r.get("diagnostics")]
    heard = [d for d in heard if d["tasks"] == heard[0]["tasks"]]
    if not heard or len(heard[0]["tasks"]) < 3:
        return []
    import torch

    from pluribus.balancing import group_tasks

    affinity = torch.tensor([d["affinity"] for d in heard]).mean(0)
    return [list(group.serves) for group in group_tasks(affinity, 2, tasks=heard[0]["tasks"])]


def headline(choice: Choice, verdict: Verdict | None) -> str:
    """The one sentence at the top, made of the words of the verdict and of the choice."""
    if verdict is None:
        return f"No verdict: {choice.reason}."
    advice = {
        "one model": "Recommended: the one model",
        "committee": "Recommended: a committee of the one model and specialists",
        "specialists": "Recommended: keep your specialists",
    }[choice.recommended]
    return f"{verdict.headline.rstrip('.')}. {advice} ({choice.reason})."


def specialists_costs(choice: Choice, results: dict[str, list[dict[str, Any]]], names: Sequence[str]) -> dict[str, Any] | None:
    """What the T reference specialists cost together; a candidate that fits all T counts by its share of tasks."""
    used = [choice.specialists[name] for name in names if choice.specialists.get(name, CHAMPION) in results]
    if len(used) < len(names):
        return None
    total = {"parameters": 0.0, "flops_per_row": 0.0, "bytes": 0.0, "train_seconds": 0.0}
    time_per_row = 0.0
    for name in set(used):
        costs = min(results[name], key=lambda r: r["seed"])["costs"]
        share = used.count(name) / len(names)
        for key in total:
            total[key] += share * costs[key]
        time_per_row += share / costs["rows_per_second"] if costs["rows_per_second"] else math.nan
    return {**total, "rows_per_second": 1 / time_per_row if time_per_row > 0 else None}


def _hole_map(study: Study) -> dict[str, Any]:
    """Hole codes of evenly spaced rows, in the order of time where there is one, else of the table."""
    table = study.table
    order = np.argsort(study.split.units, kind="stable") if study.split.unit == "day" else np.arange(table.n_rows)
    rows = order[np.linspace(0, table.n_rows - 1, min(HOLE_ROWS, table.n_rows)).astype(int)]
    return {"words": list(HOLES), "codes": {name: table.hole_codes[name][rows].tolist() for name in table.names}}


def spoken(folder: Path) -> str:
    """What the command line says at the end: the headline, a line a task, and where things are."""
    summary = read_json(folder / "report.json")
    lines = [summary["headline"], ""]
    if summary["verdict"] is not None:
        comparison = summary["verdict"]["comparisons"][0]
        for row in comparison["tasks"]:
            gain = row["gain"]["method"] or row["gain"]["file"]
            low, high = gain["low"], gain["high"]
            span = "" if low is None or high is None else f" (gain {gain['value']:+.4g}, {low:+.4g} to {high:+.4g})"
            why = f": {row['reason']}" if row["word"] == "undecided" and row["reason"] else ""
            lines.append(f"  {row['task']}: {row['word']} in {row['metric']}{span}{why}")
        lines.append("")
    lines.append(f"report  {folder / 'report.html'}")
    lines.append(f"model   {folder / 'model'}   (pluribus predict {folder / 'model'} TABLE -o OUT.parquet)")
    lines.append(f"the test split has been opened {summary['openings']} time(s)")
    return "\n".join(lines)
