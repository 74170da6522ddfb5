"""One trial: configuration in, a folder out; a pure function that runs in a worker process of its own.

The folder appears whole or not at all: `result.json`, `valid.npz` (predictions on the valid part, calibrated by fits that did not
see the row), and for finals `model/`. The study's own process takes it from there into its journal.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import calibration, metrics
from pluribus.evaluation.skill import best_constant
from pluribus.files import atomic_folder, read_json
from pluribus.files.plain import plain
from pluribus.modeling import Budget, Fitted
from pluribus.study.folds import fold_parts
from pluribus.study.memory import forget_peak, peak
from pluribus.study.plan import Trial, make, screening_part
from pluribus.tasks import Task
from pluribus.tasks.metrics import Terms
from pluribus.training.judging import Judge

Predictions = dict[str, Any]
"""Task → predictions of its labelled cells of a part: an array, lists or maps; or their `Terms`."""
TERMS = "terms//"
KEPT = ("rules", "times", "diagnostics", "expert_health")  # of a fit's record, where it is there


def run_trial(prepared: str, scratch: str, trial: Trial, screening_seed: int) -> dict[str, Any]:
    """Fit and judge on the valid part. A diverged or refused fit is a failed trial, with the reason, not an exception.

    In the processes of a team all fit, and the first judges and writes.

    Parameters
    ----------
    prepared : str
        The folder of the prepared data, without test labels.
    scratch : str
        The folder below which the trial's own, `TRIAL.id`, is left.
    trial : Trial
        What is fitted.
    screening_seed : int
        Seed of the rows that a screening trial trains on.

    Returns
    -------
    dict
        What `result.json` holds.
    """
    import torch

    from pluribus.training import processes

    torch.set_num_threads(1)
    rank, size = processes.world()
    if rank > 0:
        return _assist(prepared, trial, screening_seed)
    forget_peak()
    data = Prepared.load(prepared, mmap=True)
    ready(trial.candidate)
    began = time.process_time()
    result: dict[str, Any] = {"trial": trial.id, **vars(trial)}
    with atomic_folder(Path(scratch) / trial.id) as aside:
        try:
            part = part_of(data, trial, screening_seed)
            candidate = make(trial.candidate, trial.settings)
            fitted = candidate.fit(part, Budget(trial.seconds / size), trial.seed)
            _together(fitted, time.process_time() - began)
            if ignored := candidate.ignored(data):
                fitted.record["ignored_inputs"] = ignored
            predictions = calibrate(fitted, part)
            scores = valid_scores(part, predictions)
            write_predictions(aside / "valid.npz", predictions)
            result |= {
                "status": "done",
                "scores": scores,
                "rule": rule(part, predictions),
                "curves": fitted.record.get("curves", {}),
                "undertrained": fitted.record.get("undertrained", []),
                "seconds": fitted.record["seconds"],
                "processes": size,
                "peak_memory": peak(),
                **{name: fitted.record[name] for name in KEPT if fitted.record.get(name)},
            }
            if trial.phase != "screen":
                fitted.save(aside / "model")
                result["costs"] = fitted.costs().to_dict()
        except (BadInput, ArithmeticError, MemoryError) as error:
            result |= {"status": "failed", "error": str(error), "seconds": time.process_time() - began}
        (aside / "result.json").write_text(json.dumps(plain(result), allow_nan=False), "utf-8")
    return result


def ready(candidate: str) -> None:
    """Import what a candidate's fit needs, and call what it names to be called first."""
    for library in make(candidate, {}).libraries:
        module, _, function = library.partition(":")
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()


def part_of(data: Prepared, trial: Trial, seed: int) -> Prepared:
    """What a trial learns from and is judged on."""
    if trial.fold is not None:
        return fold_parts(data, trial.fold[1], trial.fold[0], seed)
    return screening_part(data, seed) if trial.phase == "screen" else data


def averaged(tasks: Sequence[Task], predictions: Sequence[Predictions], best: int) -> Predictions:
    """The mean of several fits' predictions of the same cells; of lists and maps, those of the best fit."""
    if len(predictions) == 1:
        return predictions[0]
    return {
        task.name: predictions[best][task.name] if by_terms(task) else np.mean([own[task.name] for own in predictions], axis=0)
        for task in tasks
        if task.name in predictions[best]
    }


def _assist(prepared: str, trial: Trial, screening_seed: int) -> dict[str, Any]:
    """What the other processes of a team do of a trial."""
    from pluribus.training import processes

    data, began = Prepared.load(prepared, mmap=True), time.process_time()
    try:
        part = part_of(data, trial, screening_seed)
        fitted = make(trial.candidate, trial.settings).fit(part, Budget(trial.seconds / processes.world()[1]), trial.seed)
        _together(fitted, time.process_time() - began)
    except (BadInput, ArithmeticError, MemoryError) as error:
        return {"status": "failed", "error": str(error), "seconds": time.process_time() - began}
    return {"status": "done"}


def _together(fitted: Fitted, spent: float) -> None:
    """Put the core-seconds of all processes of a team into the record; each epoch's by the first one's clock."""
    from pluribus.training import processes

    fitted.record["seconds"] = processes.total(fitted.record.get("seconds", spent))
    if "times" in fitted.record:
        fitted.record["times"] = [processes.world()[1] * seconds for seconds in fitted.record["times"]]


def finished(trials: Path, trial: Trial) -> dict[str, Any] | None:
    """The result of a trial that is done already, or None: its folder is there, and holds this very trial.

    The seconds that a trial may spend are no part of what it is: those of a second row depend on what a study has left.
    """
    path = trials / trial.id / "result.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    asked = {name: value for name, value in vars(trial).items() if name != "seconds"}
    same = {name: found.get(name) for name in asked} == json.loads(json.dumps(plain(asked)))
    return found if same else None


def valid_predictions(trials: Path, trial_id: str) -> Predictions:
    """The predictions of a finished trial on the labelled cells of the valid part."""
    return read_predictions(trials / trial_id / "valid.npz")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions or terms as one array each: `TASK`, or `terms//METRIC//TASK`.

    Raises
    ------
    BadInput
        Lists or maps, of which nothing but their terms is ever written.
    """
    held: dict[str, Any] = {}
    for name, value in predictions.items():
        if isinstance(value, Terms):
            held |= {f"{TERMS}{metric}//{name}": terms for metric, terms in value.each.items()}
        elif isinstance(value, np.ndarray):
            held[name] = value
        else:
            raise BadInput(
                "its lists or maps are too large to keep", where=f"task {name!r}", remedy="give it additive metrics alone"
            )
    np.savez(path, **held)


def read_predictions(path: Path) -> Predictions:
    """Undo `write_predictions`."""
    found: Predictions = {}
    terms: dict[str, dict[str, NDArray[np.float64]]] = {}
    with np.load(path, allow_pickle=False) as held:
        for key in held.files:
            if key.startswith(TERMS):
                metric, task = key.removeprefix(TERMS).split("//", 1)
                terms.setdefault(task, {})[metric] = held[key]
            else:
                found[key] = held[key]
    return found | {task: Terms(each) for task, each in terms.items()}


def calibrate(fitted: Fitted, data: Prepared) -> Predictions:
    """Predictions at each task's labelled valid cells; binary tasks are calibrated where Platt's scaling lowers the
    cross-fitted logloss, and get the threshold with the best F1. Platt keeps the ranking, so rank metrics do not move."""
    found = cell_scores(fitted, data, "valid")
    for task in data.tasks:
        cells, p = data.labelled(task.name, "valid"), found[task.name]
        if task.record.positive and len(cells):
            y = cells.numbers
            counted = y if cells.weight is None else y[cells.weight > 0]
            units = data.units[cells.rows]
            if min(counted.sum(), len(counted) - counted.sum()) >= 20 and len(np.unique(units)) >= 5:
                best = calibration.choose(p, y, cells.weight, methods=("none", "platt"), units=units)
                if best.method != "none":
                    fitted.calibration[task.name] = best.calibrator.to_dict()
                    p = best.held_out
            fitted.thresholds[task.name] = best_threshold(p, y)
        found[task.name] = p
    return found


def cell_scores(fitted: Fitted, data: Prepared, part: str, *, calibrated: bool = False) -> Predictions:
    """Predictions at each task's labelled cells of a part, or their terms where a task answers with lists or maps.

    Where most rows have most labels every row is run once for all tasks; where cells are few (long layout), once for each task
    that labels it.
    """
    predict = fitted.calibrated if calibrated else fitted.scores
    cells = {task.name: data.labelled(task.name, part) for task in fitted.tasks}
    large = [task.name for task in fitted.tasks if by_terms(task)]
    found: Predictions = {}
    if large:
        found |= {name: Terms(each) for name, each in fitted.terms(data, {name: cells[name] for name in large}).items()}
    names = [name for name in cells if name not in large]
    if not names:
        return found
    rows = {name: cells[name].rows for name in names}
    union = np.unique(np.concatenate(list(rows.values())))
    if sum(map(len, rows.values())) < 0.3 * len(union) * len(names):
        found |= {name: predict(data, rows[name], [name])[name] for name in names}
    else:
        whole = predict(data, union, names)
        found |= {name: whole[name][np.searchsorted(union, rows[name])] for name in names}
    return {name: found[name] for name in cells}


def by_terms(task: Task) -> bool:
    """Whether a study keeps the terms of a task's predictions instead of them: lists and maps are large."""
    return task.record.per != "value"


def best_threshold(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The threshold on P(positive) with the best F1 (0.5 where there is no positive)."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    if not hits[-1]:
        return 0.5
    last_of_ties = np.append(p[order][1:] != p[order][:-1], True)
    f1 = np.where(last_of_ties, 2 * hits / (np.arange(1, len(p) + 1) + hits[-1]), -1.0)
    return float(p[order][f1.argmax()])


def constants(data: Prepared) -> dict[str, float | NDArray[np.float64]]:
    """Task → the best constant prediction for its main metric, from its training labels."""
    found = {}
    for task in data.tasks:
        train = data.labelled(task.name, "train")
        found[task.name] = best_constant(task, train.values, train.weight)
    return found


def score(task: Task, name: str, p: Any, data: Prepared, part: str = "valid") -> float:
    """One metric of one task on one part."""
    cells = data.labelled(task.name, part)
    metric = next(m for m in task.metrics if m.name == name)
    groups = data.units[cells.rows] if metric.grouped else None
    return float(metrics.compute(metric, p, cells.values, cells.weight, groups=groups))


def valid_scores(data: Prepared, predictions: Predictions) -> dict[str, dict[str, float]]:
    """Task → metric → value on the valid part."""
    return {task.name: {m.name: score(task, m.name, predictions[task.name], data) for m in task.metrics} for task in data.tasks}


def skills(data: Prepared, predictions: Predictions) -> dict[str, float]:
    """Task → skill of its main metric over the constant predictor on the valid part."""
    judges = [Judge(task, data) for task in data.tasks if task.name in predictions]
    return {each.task.name: each.skill(each.score(predictions[each.task.name])) for each in judges}


def rule(data: Prepared, predictions: Predictions) -> float:
    """Mean skill over the main tasks on the valid part: what configurations and roads are chosen by."""
    each = skills(data, predictions)
    known = [each[task.name] for task in data.tasks if task.role == "main" and math.isfinite(each[task.name])]
    return sum(known) / len(known) if known else -math.inf
