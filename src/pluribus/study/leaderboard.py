"""The leaderboard of a study: a row a candidate, the best on validation first. What is measured for it alone stands here.

| figure          | what it is                                                                                            |
|-----------------|-------------------------------------------------------------------------------------------------------|
| valid, test     | mean skill over the main tasks: 0 is the constant predictor, 1 is perfect; test figures are exploratory |
| fit_seconds     | core-seconds of all its finals together                                                               |
| rows_per_second | one fit predicts all tasks for at most `ROWS` validation rows, one thread; the best of up to `TIMES` |
| bytes           | files of the model folder of one fit                                                                  |
| peak_memory     | the most resident memory that a worker process held while it fitted and judged one final              |
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.evaluation import metrics
from pluribus.evaluation.skill import best_constant, skill
from pluribus.modeling import Fitted, load
from pluribus.study.journal import Journal
from pluribus.study.selection import CHAMPION, Finalist, StudyChoice
from pluribus.study.table_summary import Scores

ROWS = 500
TIMES = 10
LONGEST = 0.5
"""Seconds after which a speed is not measured again."""


def leaderboard(
    data: Prepared, journal: Journal, finalists: Sequence[Finalist], choice: StudyChoice, scores: Scores
) -> list[dict[str, Any]]:
    """The rows of the leaderboard, as `report.json` holds them.

    Parameters
    ----------
    data : Prepared
        All parts, with the test part's labels.
    journal : Journal
        The finished trials.
    finalists : sequence of Finalist
        The candidates with a final that finished.
    choice : StudyChoice
        What was chosen; candidates that answer a task in `model/` are `recommended`.
    scores : dict
        Candidate → for each fit: task → metric → value on the test part. A champion, which is a file, may be among them.

    Returns
    -------
    list of dict
        A row a candidate, by falling score on validation; the order of the candidates decides ties.
    """
    constants = _constants(data)
    rows = [_row(data, journal, f, choice, _mean_skill(data, constants, scores.get(f.candidate, []))) for f in finalists]
    rows.sort(key=lambda row: -math.inf if row["valid"] is None else row["valid"], reverse=True)
    if CHAMPION in scores:
        empty = dict.fromkeys(("valid", "fit_seconds", "rows_per_second", "bytes", "peak_memory"))
        tested = _mean_skill(data, constants, scores[CHAMPION])
        rows.append({"candidate": CHAMPION, "recommended": False, "undertrained": False, "fits": 1, **empty, "test": tested})
    return rows


def rows_per_second(model: Fitted, data: Prepared) -> float | None:
    """How fast one thread predicts all tasks, on at most `ROWS` rows of the valid part; None where there is no row."""
    import torch

    rows = data.parts["valid"][:ROWS]
    names = [task.name for task in model.tasks]
    if not len(rows):
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model.scores(data, rows, names)
        seconds: list[float] = []
        while len(seconds) < TIMES and sum(seconds) < LONGEST:
            began = time.perf_counter()
            model.scores(data, rows, names)
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return len(rows) / max(min(seconds), 1e-9)


def _row(data: Prepared, journal: Journal, f: Finalist, choice: StudyChoice, tested: float | None) -> dict[str, Any]:
    results = [journal.result(trial) for trial in f.trials]
    peaks = [r["peak_memory"] for r in results if r.get("peak_memory") is not None]  # trials of before it have none
    model = journal.model(choice.trials[f.candidate] if f.candidate in choice.trials else f.trials[0])
    return {
        "candidate": f.candidate,
        "recommended": f.candidate in choice.answers.values(),
        "undertrained": bool(f.undertrained),
        "fits": len(f.trials),
        "valid": f.rule if math.isfinite(f.rule) else None,
        "test": tested,
        "fit_seconds": sum(r["seconds"] for r in results),
        "rows_per_second": rows_per_second(load(model), data),
        "bytes": sum(file.stat().st_size for file in model.rglob("*") if file.is_file()),
        "peak_memory": max(peaks, default=None),
    }


def _constants(data: Prepared) -> dict[str, float]:
    """Main task → what the best constant prediction scores on the test part."""
    found = {}
    for task in data.tasks:
        train, test = data.labelled(task.name, "train"), data.labelled(task.name, "test")
        if task.role == "main" and len(train) and len(test):
            groups = data.units[test.rows] if task.main_metric.grouped else None
            best = best_constant(task, train.values, train.weight)
            found[task.name] = float(metrics.of_constant(task.main_metric, best, test.values, test.weight, groups))
    return found


def _mean_skill(
    data: Prepared, constants: Mapping[str, float], fits: Sequence[Mapping[str, Mapping[str, float]]]
) -> float | None:
    """Mean over fits and main tasks of the skill on the test part; None where no task has one."""
    each = [
        skill(task.main_metric, fit[task.name][task.main_metric.name], constants[task.name])
        for fit in fits
        for task in data.tasks
        if task.name in constants and task.name in fit
    ]
    known = [value for value in each if math.isfinite(value)]
    return float(np.mean(known)) if known else None
