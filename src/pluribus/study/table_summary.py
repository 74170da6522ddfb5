"""What a finished study of a table writes for programs: the rows of `results.parquet`, and what `report.json` says of the data,
the methods and the settings. The report is drawn from the latter, and can be drawn again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pluribus.data import leakage
from pluribus.data.prepared import Prepared
from pluribus.data.splitting import Split
from pluribus.data.table import HOLES, Table
from pluribus.evaluation.ledger import Row
from pluribus.evaluation.verdict import Verdict
from pluribus.modeling import Fitted
from pluribus.study.headline import headline
from pluribus.study.journal import Journal
from pluribus.study.plan import EQUAL, EQUAL_TIME, Plan, is_balanced
from pluribus.study.report import SCHEMA_VERSION
from pluribus.study.selection import CHAMPION, Finalist, StudyChoice
from pluribus.study.spec import TableStudy
from pluribus.study.trial import Predictions, score
from pluribus.tasks import Task

SELECTION = "best mean skill on validation"
Scores = dict[str, list[dict[str, dict[str, float]]]]
"""Candidate → for each seed: task → metric → value."""
IMPORTANCE_ROWS = 500
"""Validation rows that importance is measured on, at most."""
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


def rows(journal: Journal, tasks: Sequence[Task], finalists: Sequence[Finalist], scores: Scores) -> list[Row]:
    """Test figures of every method, a row each seed, task and metric. A champion, which is a file, is seed 0."""
    found = []
    for name, seeds in scores.items():
        f = next((f for f in finalists if f.candidate == name), None)
        for i, each in enumerate(seeds):
            costs = {} if f is None else journal.result(f.trials[i])
            for task in tasks:
                for m in task.metrics if task.name in each else ():
                    found.append(
                        Row(
                            method=name,
                            seed=0 if f is None else f.seeds[i],
                            task=task.name,
                            metric=m.name,
                            value=each[task.name][m.name],
                            direction=m.direction,
                            selection=SELECTION,
                            seconds=costs.get("seconds"),
                            memory=costs.get("peak_memory"),
                            main=m.name == task.main_metric.name,
                        )
                    )
    return found


def of_data(table: Table, split: Split, learnable: Prepared, *, seed: int) -> dict[str, Any]:
    """What the report says of the table: tasks, parts, holes."""
    return {
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
        "labelled_at_random": leakage.labelled_at_random(table, learnable, seed=seed),
        "holes": _hole_map(table, split),
    }


def of_methods(
    journal: Journal,
    finalists: Sequence[Finalist],
    choice: StudyChoice,
    verdict: Verdict | None,
    model: Fitted,
    tested: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What the report says of what was trained: every method, the balancers, the model that is left.

    `tested` is what each option does on the test part.
    """
    results = {f.candidate: [journal.result(t) for t in f.trials] for f in finalists}
    return {
        "headline": headline(choice, verdict, tested),
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
                "costs": costs_of(journal, f),
                "rule": f.rule,
                "valid": [r["scores"] for r in results[f.candidate]],
            }
            for f in finalists
        },
        "diagnostics": _kept(results, "diagnostics"),
        "expert_health": _kept(results, "expert_health"),
        "balancers": balancers(finalists, results),
        "grouping": grouping(results.get(choice.winner or "", [])),
        "costs": {
            "model": model.costs().to_dict(),
            "specialists": specialists_costs(choice, results, [task.name for task in model.tasks]),
        },
        "reliability": model.record["reliability"],
        "hashes": model.record["hashes"],
        "versions": model.record["versions"],
    }


def importance(model: Fitted, data: Prepared, *, budget: float, seed: int) -> dict[str, Any]:
    """Task → which inputs the model's predictions rest on, on at most `IMPORTANCE_ROWS` validation rows; in the long layout on a
    task's own. It takes a fiftieth of the study's core-seconds, at least 2 and at most 20."""
    held = {task.name: data.labelled(task.name, "valid").rows for task in data.tasks}
    if not data.context:
        held = dict.fromkeys(held, data.parts["valid"])
    rng = np.random.default_rng(seed)
    drawn = {len(rows): np.sort(rng.permutation(len(rows))[:IMPORTANCE_ROWS]) for rows in held.values()}
    wanted = {name: rows[drawn[len(rows)]] for name, rows in held.items() if len(rows) > 1}
    found = model.importance(data, wanted, max(2.0, min(20.0, budget / 50)))
    return {name: asdict(each) for name, each in found.items()}


def costs_of(journal: Journal, finalist: Finalist) -> dict[str, Any]:
    """What the finals of a candidate cost together, as they are deployed; rows per second of all of them, one after another."""
    return _together([journal.result(trial)["costs"] for trial in finalist.trials])


def _together(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {name: sum(costs[name] for costs in each) for name in ("parameters", "flops_per_row", "bytes", "train_seconds")}
    rates = [costs["rows_per_second"] for costs in each]
    return {**found, "rows_per_second": 1 / sum(1 / rate for rate in rates) if all(rates) else None}


def of_settings(spec: TableStudy, planned: Plan) -> dict[str, Any]:
    """What the report says of what was asked for."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": spec.run_name,
        "champion": spec.champion,
        "plan": planned.text(),
        "left_out": planned.left_out,
        "settings": spec.model_dump(),
    }


def _kept(results: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> dict[str, list[Any]]:
    """What the trials of each candidate say under a name, where any of them says something."""
    each = {candidate: [r.get(name) for r in trials] for candidate, trials in results.items()}
    return {candidate: found for candidate, found in each.items() if any(found)}


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
    measured = [r["diagnostics"] for r in results if r.get("diagnostics")]
    measured = [d for d in measured if d["tasks"] == measured[0]["tasks"]]
    if not measured or len(measured[0]["tasks"]) < 3:
        return []
    import torch

    from pluribus.balancing import group_tasks

    affinity = torch.tensor([d["affinity"] for d in measured]).mean(0)
    return [list(group.serves) for group in group_tasks(affinity, 2, tasks=measured[0]["tasks"])]


def specialists_costs(
    choice: StudyChoice, results: dict[str, list[dict[str, Any]]], names: Sequence[str]
) -> dict[str, Any] | None:
    """What the T reference specialists cost together; a candidate that fits all T counts by its share of tasks."""
    used = [choice.specialists[name] for name in names if choice.specialists.get(name, CHAMPION) in results]
    if len(used) < len(names):
        return None
    total = {"parameters": 0.0, "flops_per_row": 0.0, "bytes": 0.0, "train_seconds": 0.0}
    time_per_row = 0.0
    for name in set(used):
        costs = _together([r["costs"] for r in results[name]])
        share = used.count(name) / len(names)
        for key in total:
            total[key] += share * costs[key]
        time_per_row += share / costs["rows_per_second"] if costs["rows_per_second"] else math.nan
    return {**total, "rows_per_second": 1 / time_per_row if time_per_row > 0 else None}


def _hole_map(table: Table, split: Split) -> dict[str, Any]:
    """Hole codes of evenly spaced rows, in the order of time where there is one, else of the table."""
    order = np.argsort(split.units, kind="stable") if split.unit == "day" else np.arange(table.n_rows)
    rows = order[np.linspace(0, table.n_rows - 1, min(HOLE_ROWS, table.n_rows)).astype(int)]
    return {"words": list(HOLES), "codes": {name: table.hole_codes[name][rows].tolist() for name in table.names}}
