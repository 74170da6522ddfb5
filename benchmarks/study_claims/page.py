"""Scores, words and the page of `study_claims`: docs/results/study.md.

A task counts by its main metric on the test part. Δm is `mean-relative` of `pluribus.evaluation.delta_m`; words are those of
`pluribus.evaluation.verdict.judge` on the predictions of what each arm would deploy (one file a side: test units are resampled).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from benchmarks.ratio import RESULTS, machine
from benchmarks.study_claims.cells import OURS, Key, Work
from benchmarks.study_claims.rivals import ARMS
from benchmarks.study_claims.sets import CHOSEN_ON

RECOMMENDED, ONE, SPECIALISTS = "recommended", "one model", "specialists"
LABELS = {
    "lightgbm": "LightGBM, one a task, defaults",
    "lightgbm_tuned": "LightGBM, one a task, tuned",
    "extra_trees": "extra-trees, several outputs",
    "catboost": "CatBoost, several outputs",
    "xgboost": "XGBoost, multi_output_tree",
    "autogluon": "AutoGluon, one a target",
    "autogluon_chained": "AutoGluon, chained",
}
MANY_UNITS = 5000
DRAWS = 10_000
NEEDED = r"would decide|\d[\d,.]* (units|rows|days|groups) (would|are needed)"
HEAD = """\
Written by `make bench ONLY=study_claims`. `Study` with its defaults, and seven rivals: each on the same training rows, tuned and
stopped on these alone, {budget} core-seconds a table for every arm, in a process of its own with one thread. Each table is cut
once a split into train, valid and test (60/20/20, by group or by time where there is one). No arm sees a test label before it is
judged.

*Best specialists*: for each task the specialist that the study itself chose on validation. *Δm*: the mean over tasks of the
relative gain in the main metric (AUC of binary tasks, RMSE of regressions), in per cent, more is better. *Words*: those of the
verdict, on the predictions of what would be deployed; better is a win, worse a loss, anything else a tie. Intervals in brackets
are 95 % and resample tables. Losers are left in."""
HOW = """\
- *LightGBM, tuned*: random search, the defaults first; as many configurations as AutoGluon's curve allows for the rows and the
  budget holds; five folds below 3,000 units (the five boosters are averaged), else the valid part and a final fit on all rows.
- *Extra-trees, CatBoost, XGBoost*: one model for all tasks of a kind where the library can (labels with holes: CatBoost's
  MultiRMSEWithMissingValues; else one model a task); 6, 2 and 2 configurations, chosen on held-out rows, fitted again on all.
- *AutoGluon*: `medium_quality`; the budget is shared evenly over the targets, and its clock counts core-seconds. *Chained*: each
  target's predictor takes the earlier targets as columns, true ones while it learns, predicted ones afterwards. It runs without
  `fastai`.
- In the long layout (a row has the label of one task) CatBoost, XGBoost, extra-trees and AutoGluon learn all tasks together, with
  the task's name as a column.
- *Rows/s*: from the raw frame (rivals: from columns that are numbers and categories already) to predictions of all tasks, per
  core-second, the best of three calls with 2,000 rows. *Bytes*: the model folder, or the pickled models. *Core-s*: all of the
  fit."""


@dataclass
class Judged:
    """One table and split: what every option and rival scored, and the words.

    scores: option or rival → task → main metric. delta: option or rival → Δm in % to the best specialists. word, worse: of the
    recommended and of the one model against the best specialists: the overall word, and how many tasks are worse. better: options
    that are better than the recommended. rivals: rival → (Δm of the recommended to it in %, overall word).
    """

    table: str
    split: int
    metrics: dict[str, str]
    units: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    delta: dict[str, float] = field(default_factory=dict)
    word: dict[str, str] = field(default_factory=dict)
    worse: dict[str, int] = field(default_factory=dict)
    better: list[str] = field(default_factory=list)
    rivals: dict[str, tuple[float, str]] = field(default_factory=dict)


# scores -------------------------------------------------------------------------------------------------------------------------


def truth_of(work: Work, table: str, split: int) -> tuple[list[Any], dict[str, Any], dict[str, float], Any, dict[str, Any]]:
    """Tasks, their truth, their constant predictions, the units of the test rows, and task → (target, its test rows)."""
    import pandas as pd

    from pluribus.evaluation import metrics
    from pluribus.evaluation.verdict import TaskTruth
    from pluribus.tasks import Task

    about, frame = work.about(table), pd.read_parquet(work.table(table) / "frame.parquet")
    part = work.split(table, split)
    test, seen = frame[part == 2], frame[part < 2]
    tasks, truth, constants, where = [], {}, {}, {}
    for target, kind in about["targets"].items():
        classes = ("0", "1") if kind == "binary" else ()
        column = about["task_column"]
        for name in [target] if column is None else sorted(frame[column].unique()):
            own = np.ones(len(test), bool) if column is None else (test[column] == name).to_numpy()
            labels = test[target].to_numpy(float)
            rows = np.flatnonzero(own & np.isfinite(labels))
            task = Task(str(name), kind, classes=classes)
            learnt = seen[target] if column is None else seen.loc[seen[column] == name, target]
            tasks.append(task)
            truth[task.name] = TaskTruth(rows, labels[rows])
            constants[task.name] = float(np.asarray(metrics.constant(task.main_metric, learnt.dropna().to_numpy(float))))
            where[task.name] = (target, rows)
    if about["group"] is not None:
        units: Any = test[about["group"]].to_numpy()
    elif about["split"].startswith("time:"):
        units = test[about["split"].split(":", 1)[1]].dt.normalize().to_numpy()
    else:
        units = np.arange(len(test))
    return tasks, truth, constants, np.unique(units, return_inverse=True)[1], where


def judged(work: Work, table: str, split: int, budget: float, cells: Mapping[Key, Mapping[str, Any]]) -> Judged:
    """Everything that the test part of a table and split says of the cells that are done."""
    from pluribus.evaluation import metrics
    from pluribus.evaluation.delta_m import delta
    from pluribus.evaluation.verdict import judge

    tasks, truth, constants, units, where = truth_of(work, table, split)
    given: dict[str, dict[str, Any]] = {}
    for arm in (OURS, *ARMS):
        key = Key(table, split, arm, budget)
        if cells.get(key, {}).get("status") == "done":
            for option, found in work.predictions(key).items():
                each = {name: np.asarray(found[target])[rows] for name, (target, rows) in where.items() if target in found}
                if len(each) == len(tasks) and all(np.isfinite(p).all() for p in each.values()):
                    given[option] = each
    made = Judged(table, split, {task.name: task.main_metric.name for task in tasks}, int(units.max()) + 1)
    kept = []
    for task in tasks:  # a metric that this test part does not define counts for nobody
        if not len(target := truth[task.name].target):
            continue
        values = {option: float(metrics.compute(task.main_metric, p[task.name], target)) for option, p in given.items()}
        if values and all(math.isfinite(value) for value in values.values()):
            kept.append(task)
            for option, value in values.items():
                made.scores.setdefault(option, {})[task.name] = value
    directions = {task.main_metric.name: task.main_metric.direction for task in kept}

    def gain(one: str, other: str) -> float:
        sides = ({name: {made.metrics[name]: value} for name, value in made.scores[who].items()} for who in (one, other))
        return delta("mean-relative", *sides, directions)

    def words(one: str, others: Sequence[str]) -> dict[str, Any]:
        if not others:
            return {}
        side = {who: {task.name: [given[who][task.name]] for task in kept} for who in (one, *others)}
        verdict = judge(
            kept, truth, units, side[one], {who: side[who] for who in others}, constants=constants, challenger_name=one
        )
        return {comparison.reference: comparison for comparison in verdict.comparisons}

    if SPECIALISTS in made.scores:
        made.delta = {option: gain(option, SPECIALISTS) for option in made.scores}
        for option in (RECOMMENDED, ONE):
            if option in made.scores:
                found = words(option, [SPECIALISTS])[SPECIALISTS]
                made.word[option], made.worse[option] = found.overall.word, found.counts()["worse"]
    if RECOMMENDED in made.scores:
        options = [option for option in made.scores if option not in ARMS and option != RECOMMENDED]
        made.better = [option for option in options if words(option, [RECOMMENDED])[RECOMMENDED].overall.word == "better"]
        others = [arm for arm in ARMS if arm in made.scores]
        made.rivals = {arm: (gain(RECOMMENDED, arm), c.overall.word) for arm, c in words(RECOMMENDED, others).items()}
    return made


# means over tables --------------------------------------------------------------------------------------------------------------


def over_tables(values: Iterable[tuple[str, float]]) -> tuple[float, float, float]:
    """Mean over tables of the mean over splits, with a 95 % interval that resamples tables; NaN where there is nothing."""
    each: dict[str, list[float]] = {}
    for table, value in values:
        if math.isfinite(value):
            each.setdefault(table, []).append(value)
    means = np.array([np.mean(own) for own in each.values()])
    if not len(means):
        return math.nan, math.nan, math.nan
    draws = means[np.random.default_rng(0).integers(len(means), size=(DRAWS, len(means)))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def shown(mean: tuple[float, float, float], unit: str = " %") -> str:
    value, low, high = mean
    return "–" if not math.isfinite(value) else f"{value:+.2f}{unit} ({low:+.2f} to {high:+.2f})"


def number(value: float | None, sign: str = "") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{sign}.2f}"


# the claims ---------------------------------------------------------------------------------------------------------------------


def claims(found: Sequence[Judged], cells: Mapping[Key, Mapping[str, Any]], budget: float) -> list[tuple[str, str, bool | None]]:
    """(what was to be reached, what was found, whether it was reached; None: not measured), on the tables that are given."""
    ours = [j for j in found if RECOMMENDED in j.delta]
    facts = {(j.table, j.split): cells[Key(j.table, j.split, OURS, budget)].get("facts", {}) for j in ours}
    made: list[tuple[str, str, bool | None]] = []

    worse = [f"{j.table} (split {j.split})" for j in ours if j.word[RECOMMENDED] == "worse"]
    said = f"worse on {len(worse)} of {len(ours)}{listed(worse)}; tasks that are worse: {sum(j.worse[RECOMMENDED] for j in ours)}"
    what = "The recommended option is *worse* than the best specialists on no table"
    made.append((what, said, not worse if ours else None))

    mean = over_tables((j.table, j.delta[RECOMMENDED]) for j in ours)
    made.append(("It gains at least 1 % on average", f"Δm {shown(mean)}", mean[0] >= 1 if ours else None))

    one = {j.table: [k.delta[ONE] for k in ours if k.table == j.table and ONE in k.delta] for j in ours}
    level = [table for table, values in one.items() if values and np.mean(values) >= -1]
    mean = over_tables((j.table, j.delta[ONE]) for j in ours if ONE in j.delta)
    said = f"{len(level)} of {len(one)} tables; Δm of the one model {shown(mean)}"
    what = "The one model's mean Δm over splits is −1 % or more on 60 % of the tables"
    made.append((what, said, len(level) >= 0.6 * len(one) if one else None))

    rows = [(j.units >= MANY_UNITS, row) for j in ours for row in facts[j.table, j.split].get("words", {}).values()]
    large = [row.get("word") for many, row in rows if many]
    decided = sum(word != "undecided" for word in large)
    what = f"Where a test part has {MANY_UNITS:,} units, the verdict decides 70 % of the tasks"
    made.append((what, f"{decided} of {len(large)} tasks", decided >= 0.7 * len(large) if large else None))

    reasons = [row.get("reason") or "" for many, row in rows if not many and row.get("word") == "undecided"]
    named = sum(bool(re.search(NEEDED, reason)) for reason in reasons)
    said = f"for {named} of {len(reasons)} undecided tasks"
    made.append(("Elsewhere it says how many units would decide", said, named == len(reasons) if reasons else None))

    better = [f"{j.table} (split {j.split}): {', '.join(j.better)}" for j in ours if j.better]
    what = "Another option is *better* than the recommended one in at most 5 % of tables × splits"
    made.append((what, f"{len(better)} of {len(ours)}{listed(better)}", len(better) <= 0.05 * len(ours) if ours else None))

    for arm in ("autogluon", "autogluon_chained"):
        both = [j for j in ours if arm in j.rivals]
        mean = over_tables((j.table, j.rivals[arm][0]) for j in both)
        faster = ratio_of(both, cells, budget, arm, "rows_per_second")
        said = f"Δm to it {shown(mean)} on {len(both)} tables × splits; {number(faster)} times its rows/s"
        what = f"At least level with {LABELS[arm]}, on average, in one artefact, at 3 times its rows/s"
        made.append((what, said, mean[0] >= 0 and faster >= 3 if both else None))
    return made


def listed(names: Sequence[str]) -> str:
    return ": " + "; ".join(names) if names else ""


def ratio_of(found: Sequence[Judged], cells: Mapping[Key, Mapping[str, Any]], budget: float, arm: str, what: str) -> float:
    """The geometric mean over tables and splits of our figure over the rival's."""
    logs = []
    for j in found:
        ours, theirs = (cells.get(Key(j.table, j.split, who, budget), {}).get(what) for who in (OURS, arm))
        if ours and theirs:
            logs.append(math.log(ours / theirs))
    return math.exp(float(np.mean(logs))) if logs else math.nan


# the page -----------------------------------------------------------------------------------------------------------------------


def table_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def against_specialists(found: Sequence[Judged], work: Work, cells: Mapping[Key, Mapping[str, Any]], budget: float) -> list[str]:
    head = ["table", "rows × columns, tasks", "test units", "recommended", "its Δm, %", "its word", "the test contradicts it"]
    head += ["the one model's Δm, %", "its word", "verdict decides", "core-s"]
    rows = []
    for j in found:
        cell = cells.get(Key(j.table, j.split, OURS, budget), {})
        about, facts = work.about(j.table), cell.get("facts", {})
        words = [row.get("word") for row in facts.get("words", {}).values()]
        decided = f"{sum(word != 'undecided' for word in words)} of {len(words)}" if words else "–"
        note = f" ({about['note']})" if about["note"] else ""
        row = [f"{j.table}, split {j.split}{note}", f"{about['rows']:,} × {about['columns']}, {len(j.metrics)}", f"{j.units:,}"]
        row += [facts.get("recommended") or "–", number(j.delta.get(RECOMMENDED), "+"), j.word.get(RECOMMENDED, "–")]
        against = [*(["the best specialists"] if j.word.get(RECOMMENDED) == "worse" else []), *j.better]
        row += [("yes: better are " + ", ".join(against) if against else "no") if RECOMMENDED in j.delta else "–"]
        row += [number(j.delta.get(ONE), "+"), j.word.get(ONE, "–"), decided, number(cell.get("seconds"))]
        rows.append(row)
    return table_of(head, rows)


def against_rivals(found: Sequence[Judged], cells: Mapping[Key, Mapping[str, Any]], budget: float) -> list[str]:
    head = [
        "rival",
        "tables × splits",
        "Δm of the recommended to it",
        "win / tie / loss",
        "Δm of the rival to the best specialists",
    ]
    head += ["rows/s, ours over its", "bytes, ours over its", "its core-s"]
    rows = []
    for arm in ARMS:
        both = [j for j in found if arm in j.rivals]
        mine = [cells[Key(j.table, j.split, arm, budget)] for j in found if arm in j.scores]
        words = [j.rivals[arm][1] for j in both]
        wins, losses = words.count("better"), words.count("worse")
        row = [LABELS[arm], str(len(both) or len(mine)), shown(over_tables((j.table, j.rivals[arm][0]) for j in both))]
        row += [f"{wins} / {len(words) - wins - losses} / {losses}" if words else "–"]
        row += [shown(over_tables((j.table, j.delta[arm]) for j in found if arm in j.delta))]
        row += [number(ratio_of(both, cells, budget, arm, what)) for what in ("rows_per_second", "bytes")]
        rows.append([*row, number(float(np.mean([cell["seconds"] for cell in mine])) if mine else None)])
    return table_of(head, rows)


def each_table(found: Sequence[Judged]) -> list[str]:
    """Δm of every option and rival to the best specialists."""
    names = [name for name in (RECOMMENDED, ONE, *_others(found), *ARMS) if any(name in j.delta for j in found)]
    rows = [[f"{j.table}, split {j.split}", *(number(j.delta.get(name), "+") for name in names)] for j in found]
    return table_of(["table", *(LABELS.get(name, name) for name in names)], rows)


def _others(found: Sequence[Judged]) -> list[str]:
    every = dict.fromkeys(name for j in found for name in j.scores)
    return [name for name in every if name not in ARMS and name not in (RECOMMENDED, ONE, SPECIALISTS)]


def scores(found: Sequence[Judged], most: int = 20) -> list[str]:
    """The main metric of each task; the mean over tasks where there are many."""
    names = [name for name in (RECOMMENDED, ONE, SPECIALISTS, *_others(found), *ARMS) if any(name in j.scores for j in found)]
    rows = []
    for j in found:
        tasks = list(next(iter(j.scores.values()), {}))
        for label, own in [(task, [task]) for task in tasks] if len(tasks) <= most else [(f"mean of {len(tasks)}", tasks)]:
            values = [f"{np.mean([j.scores[name][task] for task in own]):.4g}" if name in j.scores else "–" for name in names]
            rows.append([f"{j.table}, {j.split}", label, "/".join(dict.fromkeys(j.metrics[task] for task in own)), *values])
    return table_of(["table", "task", "metric", *(LABELS.get(name, name) for name in names)], rows)


def costs(found: Sequence[Judged], cells: Mapping[Key, Mapping[str, Any]], budget: float) -> list[str]:
    rows = []
    for j in found:
        for arm in (OURS, *ARMS):
            cell = cells.get(Key(j.table, j.split, arm, budget), {})
            if cell.get("status") == "done":
                row = [f"{j.table}, {j.split}", LABELS.get(arm, arm), f"{cell['seconds']:.1f}", f"{cell['wall_seconds']:.0f}"]
                rows.append([*row, f"{cell['memory_mb']:.0f}", f"{cell['rows_per_second']:,.0f}", f"{cell['bytes']:,}"])
    return table_of(["table", "arm", "core-s", "wall s", "peak MB", "rows/s", "bytes"], rows)


def amiss(
    work: Work, extent: Sequence[tuple[str, int]], cells: Mapping[Key, Mapping[str, Any]], budget: float, found: Sequence[Judged]
) -> list[str]:
    """What failed, is missing, did not run yet, or does not fit together."""
    lines, waiting = [], []
    away = {table: why for table in dict.fromkeys(table for table, _ in extent) if (why := work.why_not(table, 1))}
    lines += [f"- {table}: not run: {why}" for table, why in away.items()]
    for table, split in ((t, s) for t, s in extent if t not in away):
        for arm in work.arms(table):
            cell = cells.get(Key(table, split, arm, budget))
            if cell is None:
                waiting.append(f"{table}, {split}: {LABELS.get(arm, arm)}")
            elif cell["status"] != "done":
                lines.append(f"- {table}, split {split}, {LABELS.get(arm, arm)}: {cell['status']}: {cell['error']}")
    for j in found:
        facts = cells.get(Key(j.table, j.split, OURS, budget), {}).get("facts", {})
        for name, why in facts.get("unread", {}).items():
            lines.append(f"- {j.table}, split {j.split}: the option {name!r} could not be rebuilt from the run: {why}")
        theirs, mine = facts.get("reference", {}), j.scores.get(SPECIALISTS, {})
        apart = [abs(theirs[task] / mine[task] - 1) for task in mine if theirs.get(task) is not None and mine[task]]
        if apart and max(apart) > 2e-3:
            how = f"by {100 * float(np.median(apart)):.1f} % in the median, {100 * max(apart):.1f} % at most"
            lines.append(
                f"- {j.table}, split {j.split}: the specialists of the verdict and those rebuilt from the run differ {how}"
            )
    if waiting:
        lines.append(f"- Not run yet ({len(waiting)} cells): {'; '.join(waiting[:40])}{' …' if len(waiting) > 40 else ''}")
    return lines or ["- Nothing."]


_known: dict[str, Judged] = {}


def _judged(work: Work, table: str, split: int, budget: float, cells: Mapping[Key, Mapping[str, Any]]) -> Judged:
    """The same, computed once for the same cells."""
    own = {str(key): row for key, row in cells.items() if key.table == table and key.split == split and key.budget == budget}
    name = json.dumps(own, sort_keys=True)
    if name not in _known:
        _known[name] = judged(work, table, split, budget, cells)
    return _known[name]


def write(work: Work, tables: Sequence[str], splits: int, budget: float) -> None:
    """Write the page from the cells of this budget that are there, also those of tables and splits beyond what was asked for."""
    cells = work.cells()
    extent = [(table, split) for table in tables for split in range(splits)]
    extent = list(dict.fromkeys([*extent, *((key.table, key.split) for key in cells if key.budget == budget)]))
    ran = [(t, s) for t, s in extent if any(Key(t, s, arm, budget) in cells for arm in (OURS, *ARMS))]
    every = [_judged(work, table, split, budget, cells) for table, split in ran]
    found, chosen = ([j for j in every if (j.table in CHOSEN_ON) == on] for on in (False, True))
    lines = [
        "# The study against the specialists and against other tools",
        "",
        *HEAD.format(budget=f"{budget:g}").splitlines(),
        "",
        "## What was to be reached",
        "",
        f"On tables that no setting was chosen on ({len({j.table for j in found})} ran, {len(found)} tables × splits).",
        "",
        "| to be reached | found | |",
        "|---|---|---|",
    ]
    mark = {True: "reached", False: "**not reached**", None: "not measured"}
    lines += [f"| {what} | {said} | {mark[reached]} |" for what, said, reached in claims(found, cells, budget)]
    for title, these in (("Tables that no setting was chosen on", found), ("Tables that settings were chosen on", chosen)):
        lines += ["", f"## {title}", ""]
        if not these:
            lines += ["Not run.", ""]
            continue
        lines += ["### Against the best specialists", "", *against_specialists(these, work, cells, budget)]
        lines += ["### Against each rival", "", *against_rivals(these, cells, budget)]
        lines += ["### Δm to the best specialists, table by table, %", "", *each_table(these)]
        lines += ["### Scores", "", *scores(these), "### Costs", "", *costs(these, cells, budget)]
    own = {key: row for key, row in cells.items() if key.budget == budget}
    commits = sorted({str(row["commit"]) for row in own.values() if row.get("commit")})
    days = sorted({row["day"] for row in own.values()}) or [date.today().isoformat()]
    lines += [
        "## What failed, and what is not there",
        "",
        *amiss(work, extent, cells, budget, every),
        "",
        "## How",
        "",
        *HOW.splitlines(),
        "",
        f"Rivals: {', '.join(work.versions())}.",
        "",
        f"{machine()}; {days[0]} to {days[-1]}{'; ours at ' + ', '.join(commits) if commits else ''}.",
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "study.md").write_text("\n".join(lines), "utf-8")
