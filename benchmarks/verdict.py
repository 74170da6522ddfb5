"""How often does the verdict err? A/A trials, power, and coverage, on simulation.

Two scopes, two trials. Of *the method*: the challenger is the specialists with other seeds; its word is `method_word`. Of *what
would be deployed*: two files of predictions whose cells are swapped at random, unit by unit, so that neither is better in
expectation. (Two seeds are two different files: a verdict on files that told them apart would be right.)

The simulated test split has clusters (units of unequal size, each with an effect of its own on truth), holes of random cells, and
models that differ by seed in two ways: a shift of quality that all rows feel, and noise of its own on every row.

`aa` is reusable: give it real predictions of many seeds of the same method and it draws disjoint sides from that pool.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratio import RESULTS, machine
from pluribus.evaluation import metrics
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.files import atomic_file
from pluribus.tasks import Task

WORDS = ("better", "as good", "undecided", "worse")
TASKS = (
    Task("default", "binary", ("0", "1"), ("auc",)),
    Task("churn", "binary", ("0", "1"), ("logloss",)),
    Task("loss", "regression", (), ("rmse",)),
    Task("calls", "count", (), ("poisson_deviance",)),
)


@dataclass
class Tally:
    """Counts over repeats: of words, of repeats with any better or worse, and of intervals that hold the true gain.

    scope: "method" or "file", whose words and intervals are counted.
    """

    scope: str = "method"
    repeats: int = 0
    words: Counter[str] = field(default_factory=Counter)
    any_different: int = 0
    overall_different: int = 0
    covered: int = 0
    covered_of: int = 0

    def add(self, verdict: Verdict, true_gain: Mapping[str, float] | None = None) -> None:
        comparison = verdict.comparisons[0]
        self.repeats += 1
        words = [self.word(row) for row in comparison.tasks]
        self.words.update(words)
        self.any_different += any(word in ("better", "worse") for word in words)
        self.overall_different += self.word(comparison.overall) in ("better", "worse")
        for row in comparison.tasks if true_gain is not None else ():
            gain = row.gain.file if self.scope == "file" else row.gain.method
            assert gain is not None
            self.covered += gain.low <= true_gain[row.task] <= gain.high
            self.covered_of += 1

    def word(self, row: Any) -> str:
        """The word of this scope."""
        return str(row.word if self.scope == "file" else row.method_word)

    def figures(self) -> dict[str, Any]:
        """What the page shows of it."""
        coverage = self.covered / self.covered_of if self.covered_of else None
        words = {word: self.share(word) for word in WORDS}
        return {"rate": self.rate, "overall": self.overall_rate, "coverage": coverage, **words}

    @property
    def rate(self) -> float:
        return self.any_different / self.repeats

    @property
    def overall_rate(self) -> float:
        return self.overall_different / self.repeats

    def share(self, word: str) -> float:
        return self.words[word] / max(1, self.words.total())


def aa(
    tasks: Sequence[Task],
    truth: Mapping[str, TaskTruth],
    units: np.ndarray | int,
    pool: Mapping[str, Sequence[np.ndarray]],
    constants: Mapping[str, float | np.ndarray],
    *,
    seeds: int,
    repeats: int,
    resamples: int = 200,
    seed: int = 0,
) -> Tally:
    """A/A on real predictions: `pool` holds, for every task, predictions of many seeds of one method; each repeat draws two
    disjoint sides of `seeds` from it. Any "better" or "worse" is an error."""
    random, tally = np.random.default_rng(seed), Tally()
    for repeat in range(repeats):
        one, other = {}, {}
        for task in tasks:
            drawn = random.permutation(len(pool[task.name]))[: 2 * seeds]
            one[task.name] = [pool[task.name][i] for i in drawn[:seeds]]
            other[task.name] = [pool[task.name][i] for i in drawn[seeds:]]
        tally.add(judge(tasks, truth, units, one, {"itself": other}, constants=constants, repeats=resamples, seed=repeat))
    return tally


@dataclass(frozen=True)
class World:
    """A simulated test split. signal: how well x tells y; wobble: between-seed spread of a model's quality; noise: what each
    seed adds to each row; holes: share of absent cells; clustered: share of y's variation that units share."""

    rows: int = 1500
    units: int = 60
    signal: float = 1.0
    wobble: float = 0.1
    noise: float = 0.3
    holes: float = 0.3
    clustered: float = 0.3

    def truth(self, random: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, TaskTruth]]:
        """Units [N], each task's best linear score [N], and the labelled cells."""
        sizes = random.dirichlet(np.full(self.units, 2.0))
        units = np.concatenate((np.arange(self.units), random.choice(self.units, self.rows - self.units, p=sizes)))
        common = random.normal(size=self.rows)
        scores, truth = {}, {}
        for task in TASKS:
            score = self.signal * (0.5 * common + 0.8 * random.normal(size=self.rows))
            effect = self.clustered * random.normal(size=self.units)[units]
            latent = score + effect
            if task.kind == "binary":
                y = (random.random(self.rows) < _sigmoid(latent - 1)).astype(float)
            elif task.kind == "count":
                y = random.poisson(np.exp(0.4 * latent)).astype(float)
            else:
                y = latent + random.standard_t(6, self.rows)
            rows = np.flatnonzero(random.random(self.rows) > self.holes)
            scores[task.name], truth[task.name] = score, TaskTruth(rows, y[rows])
        return units, scores, truth

    def predictions(
        self,
        random: np.random.Generator,
        scores: Mapping[str, np.ndarray],
        truth: Mapping[str, TaskTruth],
        seeds: int,
        quality: float = 1.0,
    ) -> dict[str, list[np.ndarray]]:
        """`seeds` models: each shrinks the true score by its own factor around `quality` and adds noise to every row."""
        found: dict[str, list[np.ndarray]] = {}
        for task in TASKS:
            found[task.name] = []
            for _ in range(seeds):
                spread = self.noise * abs(1 + self.wobble * 3 * random.normal()) / quality
                score = scores[task.name] * (1 + self.wobble * random.normal()) + spread * random.normal(size=self.rows)
                score = score[truth[task.name].rows]
                found[task.name].append(
                    _sigmoid(score - 1) if task.kind == "binary" else np.exp(0.4 * score) if task.kind == "count" else score
                )
        return found


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def constants_of(truth: Mapping[str, TaskTruth]) -> dict[str, float | np.ndarray]:
    return {task.name: metrics.constant(task.main_metric.name, truth[task.name].target) for task in TASKS}


def simulate(
    world: World,
    *,
    seeds: tuple[int, int],
    repeats: int,
    gain: float = 1.0,
    resamples: int = 200,
    seed: int = 0,
    scope: str = "method",
    swapped: bool = False,
) -> Tally:
    """Fresh truth and fresh models in every repeat; `gain` > 1 plants a better challenger (its noise is divided by it).

    swapped: the cells of both sides change places at random, unit by unit.
    """
    tally = Tally(scope)
    for repeat in range(repeats):
        random = np.random.default_rng((seed, repeat))
        units, scores, truth = world.truth(random)
        one = world.predictions(random, scores, truth, seeds[0], gain)
        other = world.predictions(random, scores, truth, seeds[1])
        if swapped:
            chosen = random.random(world.units) < 0.5
            for name, cells in truth.items():
                here = chosen[units[cells.rows]]
                pairs = list(zip(one[name], other[name]))
                one[name], other[name] = ([np.where(here, a, b) for a, b in pairs], [np.where(here, b, a) for a, b in pairs])
        constants = constants_of(truth)
        verdict = judge(TASKS, truth, units, one, {"itself": other}, constants=constants, repeats=resamples, seed=repeat)
        tally.add(verdict, dict.fromkeys((task.name for task in TASKS), 0.0) if gain == 1 else None)
    return tally


WORLDS = {
    "as usual": World(),
    "seeds alike (row noise only)": World(wobble=0.0),
    "seeds far apart": World(wobble=0.3),
    "few large units (15; 900 rows)": World(units=15, rows=900),
    "strong clusters": World(clustered=1.0),
    "each row its own unit": World(units=1500),
}


def flights_pool(
    rows: int = 30_000, seeds: int = 16
) -> tuple[list[Task], dict[str, TaskTruth], np.ndarray, dict[str, list[np.ndarray]], dict[str, float | np.ndarray]]:
    """LightGBM specialists of the flights of 2013 with many seeds: tasks, test truth, test days, predictions, constants.

    Trained on the earlier 80 % of days, predicting the latest 20 %; a seed draws rows (80 % a round) and columns (80 % a tree).
    """
    import lightgbm
    import pandas as pd

    from pluribus.data.flights import TASKS as FLIGHTS
    from pluribus.data.flights import frame_of_flights

    frame = frame_of_flights()
    frame = frame.iloc[np.sort(np.random.default_rng(0).choice(len(frame), rows, replace=False))].reset_index(drop=True)
    day = frame["departure"].dt.strftime("%Y-%m-%d").to_numpy(str)
    later = day >= np.unique(day)[int(0.8 * len(np.unique(day)))]
    inputs = frame.drop(columns=["flight_id", "departure", *(task.name for task in FLIGHTS)])
    inputs["hour"], inputs["weekday"] = frame["departure"].dt.hour, frame["departure"].dt.dayofweek
    for column in inputs:
        if not pd.api.types.is_numeric_dtype(inputs[column]):
            inputs[column] = inputs[column].astype("category")
    truth, pool, constants = {}, {}, {}
    for task in FLIGHTS:
        y = frame[task.name].to_numpy(float, na_value=np.nan)
        known = np.isfinite(y)
        train, test = known & ~later, known & later
        truth[task.name] = TaskTruth(np.flatnonzero(test[later]), y[test])
        constants[task.name] = metrics.constant(task.main_metric.name, y[train])
        pool[task.name] = []
        for seed in range(seeds):
            made = lightgbm.train(
                {
                    "objective": "binary" if task.kind == "binary" else "regression",
                    "seed": seed,
                    "bagging_fraction": 0.8,
                    "bagging_freq": 1,
                    "feature_fraction": 0.8,
                    "num_leaves": 31,
                    "learning_rate": 0.05,
                    "verbose": -1,
                    "num_threads": 1,
                },
                lightgbm.Dataset(inputs[train], y[train]),
                120,
            )
            pool[task.name].append(np.asarray(made.predict(inputs[test]), float))
    return list(FLIGHTS), truth, day[later], pool, constants


class Cells:
    """Finished cells, kept in a file so that an interrupted run goes on where it stopped; delete it to measure anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def get(self, key: str, tally: Callable[[], Tally]) -> dict[str, Any]:
        """The figures of a cell, measured now or before."""
        if key not in self.done:
            self.done[key] = tally().figures()
            with atomic_file(self.path) as aside:
                aside.write_text(json.dumps(self.done, indent=1), "utf-8")
        print(key, self.done[key], flush=True)
        return self.done[key]


def flights_lines(cells: Cells, repeats: int) -> str:
    """The A/A trial on the flights as a table."""
    pooled: list[Any] = []  # trained when the first cell asks for it

    def trial(seeds: int, by_day: bool) -> Tally:
        if not pooled:
            pooled.append(flights_pool())
        tasks, truth, days, pool, constants = pooled[0]
        return aa(tasks, truth, days if by_day else len(days), pool, constants, seeds=seeds, repeats=repeats)

    rows = ["| seeds a side | resampled | any task better or worse | Δm better or worse |", "|---|---|---|---|"]
    for seeds, by_day in ((1, False), (1, True), (3, True), (5, True)):
        what = "days" if by_day else "flights"
        cell = cells.get(f"flights, {seeds} seeds, {what}, {repeats}", partial(trial, seeds, by_day))
        scope = " (this file only)" if seeds == 1 else ""
        rows.append(f"| {seeds}{scope} | {what} | {cell['rate']:.1%} | {cell['overall']:.1%} |")
    return "\n".join(rows)


def run(full: bool) -> None:
    cells = Cells(Path("runs") / "bench" / "verdict.json")
    most, some, tried, drawn = (2000, 2000, 200, 300) if full else (2000, 500, 50, 100)
    lines = ["| split | seeds | splits | any task better or worse | Δm better or worse | interval holds the true gain 0 |"]
    lines.append("|---|---|---|---|---|---|")
    worst = 0.0
    for name, world in WORLDS.items():
        for seeds in ((3, 3), (5, 5), (10, 10), (5, 3), (1, 1)) if name == "as usual" else ((3, 3),):
            repeats = most if name == "as usual" and seeds == (3, 3) else some
            key = f"{name}, {seeds[0]} and {seeds[1]} seeds, {repeats}"
            cell = cells.get(key, partial(simulate, world, seeds=seeds, repeats=repeats))
            alone = seeds == (1, 1)
            worst = worst if alone else max(worst, cell["rate"])
            lines.append(
                f"| {name}{' (this file only)' if alone else ''} | {seeds[0]} and {seeds[1]} | {repeats} | {cell['rate']:.1%} "
                f"| {cell['overall']:.1%} | {'–' if alone else format(cell['coverage'], '.1%')} |"
            )
    power = ["| noise of the reference ÷ challenger | seeds | better | as good | undecided | worse |"]
    power.append("|---|---|---|---|---|---|")
    for gain in (1.25, 1.5, 2.0, 3.0):
        for k in (3, 5, 10):
            plant = partial(simulate, World(wobble=0.05), seeds=(k, k), repeats=tried, gain=gain, seed=1)
            cell = cells.get(f"gain {gain:g}, {k} seeds, {tried}", plant)
            power.append(f"| {gain:g} | {k} | " + " | ".join(f"{cell[word]:.0%}" for word in WORDS) + " |")
    real = flights_lines(cells, drawn)
    page = f"""# How often the verdict errs

*{time.strftime("%Y-%m-%d")}, {machine()}, {os.environ.get("OMP_NUM_THREADS", "default")} thread(s);
`make bench ONLY=verdict{" FULL=1" if full else ""}`.*

## A/A: the joint model is the specialists with other seeds

Simulated test splits: four tasks (AUC, logloss, RMSE, Poisson deviance), {World().rows} rows unless said, 30 % holes in every
task, {World().units} units of unequal size with effects of their own. Both sides are the same method, so every "better" or
"worse" is an error. At the 95 % level with Holm over tasks, at most 5 % of the splits may show one; the target is at most
6 %. The worst line with at least three seeds a side has {worst:.1%}.

{chr(10).join(lines)}

What each seed makes of each unit counts in both variance terms, so that where seeds differ by row noise only, the rule is
stricter than its level. The line with one seed a side resamples units alone: it tells two seeds of one method apart, and it
may, since it speaks of these two files only; this is why one seed never speaks of the method.

## A/A on the flights of 2013

LightGBM, one model a task, 16 seeds that differ in the rows and columns each tree sees; trained on the earlier 80 % of days
of 30,000 random flights, judged on the later days. {drawn} times, two disjoint sides of seeds are drawn from the 16 and
judged; they are the same method, so every "better" or "worse" is an error. The draws share one test split and one pool, so
the shares are rougher than those of independent trials.

{real}

## Power: a planted gain

The challenger's row noise is that of the reference divided by the factor; {tried} splits a line, shares over all four tasks.
"As good" and "undecided" are not errors here, "worse" is.

{chr(10).join(power)}

Three seeds can only show large gains: with 2 degrees of freedom a side the t quantile is wide. Whoever expects small gains should
ask for five seeds or ten.
"""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "verdict.md").write_text(page, encoding="utf-8")
