"""The trainings of a study: screening, the finals, and the second rows that what is left of the budget pays for.

Trials that the journal holds from an earlier call are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pluribus.study import selection
from pluribus.study.crews import Crew
from pluribus.study.journal import Journal
from pluribus.study.plan import EQUAL, EQUAL_TIME, RESERVE, Plan, Road, Trial, is_balanced, make
from pluribus.study.progress import Reporter
from pluribus.study.selection import Finalist
from pluribus.study.trial import run_trial

UNENDING = 1_000_000  # epochs


@dataclass
class Trained:
    """What the trainings left.

    Parameters
    ----------
    finalists : list of Finalist
        The roads with a final that finished.
    failed : dict of str to str
        Road → why a final of it did not.
    seconds : float
        Core-seconds spent on screening and finals.
    longer : list of Finalist
        Second rows, never claimed.
    notes : list of str
        Why a second row is there or not.
    """

    finalists: list[Finalist]
    failed: dict[str, str]
    seconds: float
    longer: list[Finalist] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Training:
    """The trainings of a plan.

    Parameters
    ----------
    prepared : Path
        The folder of the prepared data.
    journal : Journal
        Where finished trials are found and kept.
    planned : Plan
        The roads, and how the budget is shared out over them.
    report : Reporter
        Who is told of each trial.
    crew : Crew
        Who trains. Joint networks are trained together where the crew has processes for it.
    seed : int
        The study's.
    """

    prepared: Path
    journal: Journal
    planned: Plan
    report: Reporter
    crew: Crew
    seed: int

    def run(self, n_tasks: int, *, balancers: bool) -> Trained:
        """All trainings: the roads' own, then the second rows: of the specialists of `n_tasks` tasks, and, where balancers are
        compared, of equal weights."""
        trained = self._roads()
        second = [self._longer(trained, n_tasks), *([self._equal_time(trained)] if balancers else [])]
        trained.longer = [row for rows, _ in second for row in rows]
        trained.notes = [note for _, notes in second for note in notes]
        return trained

    def _left(self, trained: Trained) -> float:
        """Core-seconds that screening and finals left over."""
        return (1 - RESERVE) * self.planned.budget - trained.seconds

    def _roads(self) -> Trained:
        """Screening, then the finals of every road's best configuration; a road whose finals all failed is left out."""
        screened: dict[str, list[dict[str, Any]]] = {}
        for trial, result in self._results([trial for road in self.planned.roads for trial in road.screens(self.seed)]):
            screened.setdefault(trial.candidate, []).append(result)
        finals: list[Trial] = []
        for road in self.planned.roads:
            results = sorted(screened.get(road.candidate, []), key=lambda r: r["index"])
            finals += road.finals(selection.best_configuration(results), self.planned.seeds)
        finals.sort(key=lambda trial: -trial.seconds)
        results_of: dict[str, list[tuple[Trial, dict[str, Any]]]] = {}
        for trial, result in self._results(finals):
            results_of.setdefault(trial.candidate, []).append((trial, result))
        found, failed = [], {}
        spent = sum(r["seconds"] for results in screened.values() for r in results)
        spent += sum(r["seconds"] for pairs in results_of.values() for _, r in pairs)
        for road in self.planned.roads:
            each = sorted(results_of.get(road.candidate, []), key=lambda pair: pair[0].seed)
            good = [(trial, result) for trial, result in each if result["status"] == "done"]
            if good:
                found.append(self._finalist(road, good))
            if len(good) < len(each):
                failed[road.candidate] = next(r["error"] for _, r in each if r["status"] != "done")
        return Trained(found, failed, spent)

    def _longer(self, trained: Trained, n_tasks: int) -> tuple[list[Finalist], list[str]]:
        """The second row of the specialists: up to T times their share, where one share cut them short and seconds are left."""
        short = [f for f in trained.finalists if f.per_task and f.undertrained]
        notes = [
            f"{f.label}: every early stop was reached within one share, so that {n_tasks} times the share is the same models"
            for f in trained.finalists
            if f.per_task and not f.undertrained
        ]
        found = []
        left = self._left(trained)
        for f in short:
            road = self._road(f.candidate)
            seconds = min(n_tasks * road.final_seconds, left / (len(short) * len(f.seeds)))
            if seconds < 1.5 * road.final_seconds:
                notes.append(f"{f.label}: cut short by the budget, and too little of it is left for a longer second row")
                continue
            chosen = road.configurations.index(f.settings)
            good = self._good(road.longer(chosen, self.planned.seeds, seconds))
            if good:
                times = seconds / road.final_seconds
                again = self._finalist(road, good)
                found.append(replace(again, candidate=f"{f.candidate}_longer", label=f"{f.label}, {times:.1f} times the share"))
        return found, notes

    def _equal_time(self, trained: Trained) -> tuple[list[Finalist], list[str]]:
        """Equal weights trained on, past their early stop, for the core-seconds of the slowest balancer: what a balancer costs
        could have bought as much training without it."""
        seconds = {f.candidate: self._seconds(f) for f in trained.finalists if is_balanced(f.candidate)}
        equal = next((f for f in trained.finalists if f.candidate == EQUAL), None)
        if equal is None or len(seconds) < 2:
            return [], []
        slowest = max(seconds, key=lambda name: seconds[name])
        named = next(f.label for f in trained.finalists if f.candidate == slowest)
        if seconds[slowest] <= 1.05 * seconds[EQUAL]:
            return [], [f"No balancer took longer than equal weights ({named}: {seconds[slowest]:.0f} core-seconds a training)"]
        given = min(seconds[slowest], self._left(trained) / len(equal.seeds))
        if given < 1.05 * seconds[EQUAL]:
            return [], ["Too little of the budget is left to train equal weights for the time of the slowest balancer"]
        settings = {**equal.settings, "epochs": UNENDING, "patience": UNENDING}
        good = self._good([Trial("equaltime", EQUAL, settings, seed, given) for seed in equal.seeds])
        if not good:
            return [], []
        found = self._finalist(self._road(EQUAL), good)
        label = f"{equal.label}, trained on for {given:.0f} core-seconds"
        short = "" if given == seconds[slowest] else f" (the budget left no more; {named} took {seconds[slowest]:.0f})"
        note = f"Equal weights were trained on for {given:.0f} core-seconds, as long as the slowest balancer, {named}{short}"
        return [replace(found, candidate=EQUAL_TIME, label=label, undertrained=frozenset())], [note]

    def _road(self, candidate: str) -> Road:
        return next(road for road in self.planned.roads if road.candidate == candidate)

    def _seconds(self, f: Finalist) -> float:
        """Mean core-seconds of a finalist's trainings."""
        return float(np.mean([self.journal.result(t)["seconds"] for t in f.trials]))

    def _good(self, todo: Sequence[Trial]) -> list[tuple[Trial, dict[str, Any]]]:
        """The trials that finished with their results, in the order of their seeds."""
        return sorted(((t, r) for t, r in self._results(todo) if r["status"] == "done"), key=lambda pair: pair[0].seed)

    def _results(self, todo: Sequence[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
        """Results of trials in the order in which they finish; those of an earlier run come first."""
        missing = []
        for trial in todo:
            result = self.journal.finished(trial)
            if result is None:
                missing.append(trial)
            else:
                self.report.trial(trial, result, again=True)
                yield trial, result
        shared = [self.crew.processes > 1 and make(trial.candidate, {}).processes for trial in missing]
        for together in (False, True):
            mine = [trial for trial, flag in zip(missing, shared) if flag == together]
            calls = [(str(self.prepared), str(self.journal.scratch), trial, self.seed) for trial in mine]
            for i, outcome in self.crew.run(run_trial, calls, together=together):
                if isinstance(outcome, str):
                    result = {"status": "failed", "error": outcome}
                else:
                    result = outcome
                    self.journal.keep(mine[i])
                self.report.trial(mine[i], result)
                yield mine[i], {**vars(mine[i]), **result}

    def _finalist(self, road: Road, good: Sequence[tuple[Trial, dict[str, Any]]]) -> Finalist:
        _, per_task, encoder = selection.describe(road.candidate)
        return Finalist(
            road.candidate,
            road.label,
            per_task,
            encoder,
            good[0][0].settings,
            tuple(trial.id for trial, _ in good),
            tuple(trial.seed for trial, _ in good),
            tuple(-math.inf if r["rule"] is None else float(r["rule"]) for _, r in good),
            tuple(self.journal.predictions(trial.id) for trial, _ in good),
            frozenset(name for _, r in good for name in r["undertrained"]),
        )
