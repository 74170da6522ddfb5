"""How often does the verdict err? A/A trials (joint := specialists with other seeds), power, and coverage, on simulation.

The simulated test split has clusters (units of unequal size, each with an effect of its own on truth), holes of random cells, and
models that differ by seed in two ways: a shift of quality that all rows feel, and noise of its own on every row.

`aa` is reusable: give it real predictions of many seeds of the same method and it draws disjoint sides from that pool.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.ratio import RESULTS, machine
from pluribus.evaluation import metrics
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.tasks import Task

TASKS = (
    Task("default", "binary", ("0", "1"), ("auc",)),
    Task("churn", "binary", ("0", "1"), ("logloss",)),
    Task("loss", "regression", (), ("rmse",)),
    Task("calls", "count", (), ("poisson_deviance",)),
)


@dataclass
class Tally:
    """Counts over repeats: of words, of repeats with any better or worse, and of intervals that hold the true gain."""

    repeats: int = 0
    words: Counter[str] = field(default_factory=Counter)
    any_different: int = 0
    overall_different: int = 0
    covered: int = 0
    covered_of: int = 0

    def add(self, verdict: Verdict, true_gain: Mapping[str, float] | None = None) -> None:
        comparison = verdict.comparisons[0]
        self.repeats += 1
        self.words.update(row.word for row in comparison.tasks)
        self.any_different += any(row.word in ("better", "worse") for row in comparison.tasks)
        self.overall_different += comparison.overall.word in ("better", "worse")
        for row in comparison.tasks if true_gain is not None else ():
            self.covered += row.gain.deciding.low <= true_gain[row.task] <= row.gain.deciding.high
            self.covered_of += 1

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
        self, random: np.random.Generator, scores: Mapping[str, np.ndarray], truth: Mapping[str, TaskTruth], seeds: int,
        quality: float = 1.0,
    ) -> dict[str, list[np.ndarray]]:  # fmt: skip
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
    world: World, *, seeds: tuple[int, int], repeats: int, gain: float = 1.0, resamples: int = 200, seed: int = 0
) -> Tally:
    """Fresh truth and fresh models in every repeat; `gain` > 1 plants a better challenger (its noise is divided by it)."""
    tally = Tally()
    for repeat in range(repeats):
        random = np.random.default_rng((seed, repeat))
        units, scores, truth = world.truth(random)
        one = world.predictions(random, scores, truth, seeds[0], gain)
        other = world.predictions(random, scores, truth, seeds[1])
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


def run(full: bool) -> None:
    start, most = time.time(), 2000
    lines = ["| split | seeds | splits | any task better or worse | Δm better or worse | interval holds the true gain 0 |"]
    lines.append("|---|---|---|---|---|---|")
    worst = 0.0
    for name, world in WORLDS.items():
        for seeds in ((3, 3), (5, 5), (10, 10), (5, 3)) if name == "as usual" else ((3, 3),):
            repeats = most if full or (name == "as usual" and seeds == (3, 3)) else 500
            tally = simulate(world, seeds=seeds, repeats=repeats)
            worst = max(worst, tally.rate)
            lines.append(
                f"| {name} | {seeds[0]} and {seeds[1]} | {repeats} | {tally.rate:.1%} | {tally.overall_rate:.1%} "
                f"| {tally.covered / tally.covered_of:.1%} |"
            )
            print(lines[-1], flush=True)
    single = simulate(World(), seeds=(1, 1), repeats=500)
    lines.append(f"| as usual, this file only | 1 and 1 | 500 | {single.rate:.1%} | {single.overall_rate:.1%} | — |")
    print(lines[-1], flush=True)
    power = ["| noise of the reference ÷ challenger | seeds | better | as good | undecided | worse |"]
    power.append("|---|---|---|---|---|---|")
    tried = 200 if full else 50
    for gain in (1.25, 1.5, 2.0, 3.0):
        for k in (3, 5, 10):
            tally = simulate(World(wobble=0.05), seeds=(k, k), repeats=tried, gain=gain, seed=1)
            shares = " | ".join(f"{tally.share(word):.0%}" for word in ("better", "as good", "undecided", "worse"))
            power.append(f"| {gain:g} | {k} | {shares} |")
            print(power[-1], flush=True)
    lines_power = "\n".join(power)
    page = f"""# How often the verdict errs

*{time.strftime("%Y-%m-%d")}, {machine()}, {os.environ.get("OMP_NUM_THREADS", "default")} thread(s), {time.time() - start:.0f} s;
`make bench ONLY=verdict{" FULL=1" if full else ""}`.*

## A/A: the joint model is the specialists with other seeds

Simulated test splits: four tasks (AUC, logloss, RMSE, Poisson deviance), {World().rows} rows unless said, 30 % holes in every
task, {World().units} units of unequal size with effects of their own. Both sides are the same method, so every "better" or
"worse" is an error. At the 95 % level with Holm over tasks, at most 5 % of the splits may show one; the target is at most
6 %. The worst line with at least three seeds a side has {worst:.1%}.

{chr(10).join(lines)}

What each seed makes of each unit counts in both variance terms, so that where seeds differ by row noise only, the rule is
stricter than its level. The line with one seed a side resamples units alone: it tells two seeds of one method apart, and it
may, since it speaks of these two files only; this is why one seed never speaks of the method. Its share grows with the rows.

## Power: a planted gain

The challenger's row noise is that of the reference divided by the factor; {tried} splits a line, shares over all four tasks.
"As good" and "undecided" are not errors here, "worse" is.

{lines_power}

Three seeds can only show large gains: with 2 degrees of freedom a side the t quantile is wide. Whoever expects small gains should
ask for five seeds or ten.
"""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "verdict.md").write_text(page, encoding="utf-8")
