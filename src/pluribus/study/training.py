"""The trainings of a study: screening, the finals, and, with what is left, those again that the budget cut short.

Trials that the journal holds from an earlier call are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.study import selection
from pluribus.study.crews import Crew
from pluribus.study.folds import assembled, fold_parts, whole
from pluribus.study.journal import Journal
from pluribus.study.plan import EQUAL, EQUAL_TIME, RESERVE, Plan, Road, Trial, is_balanced, make
from pluribus.study.progress import Reporter
from pluribus.study.selection import Finalist
from pluribus.study.trial import averaged, ready, rule, run_trial

UNENDING = 1_000_000  # epochs
LONGER = 1.3  # times the seconds before, from which on a training is repeated


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
    beside : list of Finalist
        Rows that are shown and never claimed: equal weights, trained on for the time of the slowest balancer.
    notes : list of str
        What became of the seconds that were left.
    """

    finalists: list[Finalist]
    failed: dict[str, str]
    seconds: float
    beside: list[Finalist] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Training:
    """The trainings of a plan.

    Parameters
    ----------
    prepared : Path
        The folder of the prepared data.
    data : Prepared
        What it holds: the train and valid parts.
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
    data: Prepared
    journal: Journal
    planned: Plan
    report: Reporter
    crew: Crew
    seed: int

    def run(self, *, balancers: bool) -> Trained:
        """All trainings: the roads' own; those that were cut short again, with what is left; and, where balancers are compared,
        equal weights for the time of the slowest."""
        trained = self._roads()
        if balancers:
            trained.beside, trained.notes = self._equal_time(trained)
        else:
            self._longer(trained)
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
            finals += road.finals(selection.best_configuration(results), self.planned.draws)
        finals.sort(key=lambda trial: -trial.seconds)
        results_of: dict[str, list[tuple[Trial, dict[str, Any]]]] = {}
        for trial, result in self._results(finals):
            results_of.setdefault(trial.candidate, []).append((trial, result))
        found, failed = [], {}
        spent = sum(r["seconds"] for results in screened.values() for r in results)
        spent += sum(r["seconds"] for pairs in results_of.values() for _, r in pairs)
        for road in self.planned.roads:
            each = sorted(results_of.get(road.candidate, []), key=lambda pair: pair[0].draw)
            good = [(trial, result) for trial, result in each if result["status"] == "done"]
            if good and (self.planned.folds is None or len(good) == len(each)):  # a fold that failed leaves rows unpredicted
                found.append(self._finalist(road, good))
            if len(good) < len(each):
                failed[road.candidate] = next(r["error"] for _, r in each if r["status"] != "done")
        return Trained(found, failed, spent)

    def _longer(self, trained: Trained) -> None:
        """Train those that were cut short again, with what is left: the shortest first, each with an even part of it.

        The longer training takes the place of the shorter one.
        """
        short = sorted((f for f in trained.finalists if f.undertrained), key=self._seconds)
        for i, f in enumerate(short):
            cut = [trial for trial in f.trials if self.journal.result(trial)["undertrained"]]
            given = self._left(trained) / ((len(short) - i) * len(cut))
            before = max(self.journal.result(trial)["seconds"] for trial in cut)
            if given < LONGER * before:
                rest = f"the {max(given, 0):.0f} that are left for each training would not change that"
                trained.notes.append(f"{f.label}: cut short by the budget after {before:.0f} core-seconds; {rest}")
                continue
            again = [Trial(**{**self._trial(name), "phase": "longer", "seconds": given}) for name in cut]
            results = list(self._results(again))
            trained.seconds += sum(r["seconds"] for _, r in results)
            good = {trial.draw: (trial, r) for trial, r in results if r["status"] == "done"}
            pairs = []
            for name in f.trials:
                old = Trial(**self._trial(name))
                pairs.append(good.get(old.draw, (old, self.journal.result(name))))
            trained.finalists[trained.finalists.index(f)] = self._finalist(self._road(f.candidate), pairs)
            what = f"{len(good)} trainings that the budget had cut short were repeated with {given:.0f} core-seconds each"
            trained.notes.append(f"{f.label}: {what}")

    def _trial(self, name: str) -> dict[str, Any]:
        """The fields of a finished trial."""
        result = self.journal.result(name)
        found = {each.name: result.get(each.name) for each in fields(Trial)}
        return {**found, "fold": None if found["fold"] is None else tuple(found["fold"])}

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
        given = min(seconds[slowest], self._left(trained) / len(equal.trials))
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
        return sorted(((t, r) for t, r in self._results(todo) if r["status"] == "done"), key=lambda pair: pair[0].draw)

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
        for name in dict.fromkeys(trial.candidate for trial in missing):
            ready(name)  # compiled once here, and loaded by every worker
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
        rules = tuple(-math.inf if r["rule"] is None else float(r["rule"]) for _, r in good)
        valid = tuple(self.journal.predictions(trial.id) for trial, _ in good)
        shares: dict[str, float] = {}
        for _, r in good:
            for name in r["undertrained"]:
                shares[name] = shares.get(name, 0.0) + 1 / len(good)
        if good[0][0].fold is None:
            deployed = averaged(self.data.tasks, valid, int(np.argmax(rules)))
            rule_of_all = rule(self.data, deployed)
        else:
            folds = [trial.fold for trial, _ in good if trial.fold is not None]
            parts = [fold_parts(self.data, of, fold, self.seed) for fold, of in folds]
            deployed = assembled(whole(self.data), parts, valid)
            rule_of_all = rule(whole(self.data), deployed)
        return Finalist(
            candidate=road.candidate,
            label=road.label,
            per_task=per_task,
            encoder=encoder,
            settings=good[0][0].settings,
            trials=tuple(trial.id for trial, _ in good),
            seeds=tuple(trial.draw for trial, _ in good),
            rules=rules,
            valid=deployed,
            rule=rule_of_all,
            seconds=sum(r["seconds"] for _, r in good),
            undertrained=frozenset(name for name, share in shares.items() if share > 0.5),
        )
