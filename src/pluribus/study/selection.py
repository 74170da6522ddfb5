"""Choosing, on validation only: configurations, the winner among the joint models, the specialists it must beat, and which
model is recommended. The outcome is `choice.json`, written before the test split is opened; it holds no clock times, so that
equal settings give equal choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.study.plan import make
from pluribus.study.trial import Predictions, constants, skills

CHAMPION = "champion"


@dataclass(frozen=True)
class Finalist:
    """A candidate's finals.

    Parameters
    ----------
    candidate, label, encoder : str
        Its name, what people call it, and its encoder (None: it has none).
    per_task : bool
        Whether it is one model a task.
    settings : dict
        The configuration that the finals share.
    trials, seeds : tuple
        The trial and the seed of each final, in the order of the seeds.
    rules : tuple of float
        The rule of each final: mean skill over the main tasks on validation.
    valid : tuple of dict
        The predictions of each final on the valid part.
    undertrained : frozenset of str
        Tasks that the budget cut short.
    """

    candidate: str
    label: str
    per_task: bool
    encoder: str | None
    settings: dict[str, Any]
    trials: tuple[str, ...]
    seeds: tuple[int, ...]
    rules: tuple[float, ...]
    valid: tuple[Predictions, ...]
    undertrained: frozenset[str]

    @property
    def rule(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.rules))


@dataclass(frozen=True)
class StudyChoice:
    """What was chosen, and by what.

    Parameters
    ----------
    winner : str or None
        The joint candidate with the best rule; None where none ran.
    specialists : dict of str to str
        Task → the specialist with the best mean main metric ("champion" among them).
    same_encoder : str or None
        The specialists with the winner's encoder, if they ran.
    recommended : {"one model", "committee", "specialists"}
        What is deployed.
    answers : dict of str to str
        Task → the candidate that answers in `model/`.
    trials : dict of str to str
        Candidate → the trial whose weights are deployed (the seed with the best rule).
    settings : dict of str to dict
        Candidate → its configuration.
    rules : dict of str to float
        Candidate → its mean rule.
    valid_words : dict of str to str
        Task → the word of the verdict on validation, which is never claimed.
    reason : str
        Why this is recommended.
    """

    winner: str | None
    specialists: dict[str, str]
    same_encoder: str | None
    recommended: str
    answers: dict[str, str]
    trials: dict[str, str]
    settings: dict[str, dict[str, Any]]
    rules: dict[str, float]
    valid_words: dict[str, str]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """What `choice.json` holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> StudyChoice:
        """The choice that `choice.json` holds.

        Raises
        ------
        BadInput
            It is no choice of a table's study.
        """
        try:
            return cls(**row)
        except TypeError as error:
            raise BadInput("is not a choice of this study", where="choice.json", remedy="restore the file") from error


def best_configuration(results: Sequence[Mapping[str, Any]]) -> int:
    """The index of the screening result with the best rule; the earlier one (the defaults first) wins ties."""
    done = [r for r in results if r["status"] == "done" and r["rule"] is not None]
    if not done:
        return 0
    return int(max(done, key=lambda r: (r["rule"], -r["index"]))["index"])


def choose(
    data: Prepared,
    finalists: Sequence[Finalist],
    champion: Predictions | None,
    *,
    allow_committee: bool,
    level: float,
    repeats: int,
    seed: int,
    unit: str,
) -> StudyChoice:
    """Choose the winner, its references and the recommendation on the valid part.

    Parameters
    ----------
    data : Prepared
        The train and valid parts.
    finalists : sequence of Finalist
        What can be chosen, in the catalog's order, which decides ties.
    champion : dict or None
        Task → predictions of the user's own model on the valid part.
    allow_committee : bool
        Whether one model may be deployed beside specialists where sharing hurts.
    level, repeats, seed, unit
        Of the intervals, as for `pluribus.evaluation.verdict.judge`.

    Raises
    ------
    BadInput
        Nothing finished.
    """
    if not finalists:
        raise BadInput("every training failed", where="study", remedy="see log.jsonl for the reasons")
    joint = [f for f in finalists if not f.per_task]
    alone = [f for f in finalists if f.per_task]
    winner = max(joint, key=lambda f: f.rule) if joint else None
    specialists = _specialists(data, alone, champion)
    same = next((f for f in alone if winner is not None and f.encoder is not None and f.encoder == winner.encoder), None)
    best = {f.candidate: f.trials[int(np.argmax(f.rules))] for f in finalists}
    words: dict[str, str] = {}
    if winner is None:
        recommended, reason = "specialists", "no joint model ran"
    elif not specialists:
        recommended, reason = "one model", "no specialist ran"
    else:
        verdict = valid_verdict(data, winner, alone, specialists, champion, level=level, repeats=repeats, seed=seed, unit=unit)
        rows = verdict.comparisons[0].tasks
        words = {row.task: row.word for row in rows}
        worse = [row.task for row in rows if row.role == "main" and row.word == "worse"]
        overall = verdict.comparisons[0].overall
        gain = overall.delta.file.value
        if not worse and (math.isnan(gain) or gain >= -overall.tolerance):
            recommended, reason = "one model", "no main task is worse on validation"
        elif allow_committee and worse and set(worse) != {row.task for row in rows if row.role == "main"}:
            recommended, reason = "committee", f"sharing hurts {', '.join(worse)} on validation"
        else:
            hurt = f"sharing hurts {', '.join(worse)}" if worse else f"the mean over tasks falls by {-gain:.2f} %"
            recommended, reason = "specialists", f"{hurt} on validation"
    answers = _answers(data, winner, alone, specialists, words, recommended)
    return StudyChoice(
        None if winner is None else winner.candidate,
        specialists,
        None if same is None else same.candidate,
        recommended,
        answers,
        best,
        {f.candidate: f.settings for f in finalists},
        {f.candidate: f.rule for f in finalists},
        words,
        reason,
    )


def valid_verdict(
    data: Prepared,
    winner: Finalist,
    alone: Sequence[Finalist],
    specialists: Mapping[str, str],
    champion: Predictions | None,
    *,
    level: float,
    repeats: int,
    seed: int,
    unit: str,
) -> Verdict:
    """The verdict on the valid part, for choosing only; it is never claimed."""
    by_name = {f.candidate: f for f in alone}
    reference = {
        task: [champion[task]] if name == CHAMPION and champion is not None else [p[task] for p in by_name[name].valid]
        for task, name in specialists.items()
    }
    tasks = [task for task in data.tasks if task.name in reference]
    truth, units = truth_of(data, "valid", {task.name for task in tasks})
    return judge(
        tasks,
        truth,
        units,
        {task.name: [p[task.name] for p in winner.valid] for task in tasks},
        {"specialists": reference},
        constants=constants(data),
        level=level,
        repeats=repeats,
        seed=seed,
        unit=unit,
    )


def truth_of(data: Prepared, part: str, names: set[str] | None = None) -> tuple[dict[str, TaskTruth], Any]:
    """The labelled cells of a part for `judge`, with rows counted within the part, and the units of its rows."""
    rows = data.parts[part]
    units = data.units[rows]
    truth = {}
    for task in data.tasks:
        if names is not None and task.name not in names:
            continue
        cells = data.labelled(task.name, part)
        groups = data.units[cells.rows] if task.main_metric.grouped else None
        truth[task.name] = TaskTruth(np.searchsorted(rows, cells.rows), cells.values, cells.weight, groups)
    return truth, units


def _specialists(data: Prepared, alone: Sequence[Finalist], champion: Predictions | None) -> dict[str, str]:
    """Task → the specialist with the best mean skill on validation; the earlier one in the catalog wins ties."""
    scores: dict[str, dict[str, float]] = {}
    for f in alone:
        each = [skills(data, p) for p in f.valid]
        scores[f.candidate] = {name: float(np.mean([e[name] for e in each])) for name in each[0]}
    if champion is not None:
        scores[CHAMPION] = skills(data, champion)
    found = {}
    for task in data.tasks:
        known = {name: each[task.name] for name, each in scores.items() if task.name in each}
        if known:
            found[task.name] = max(known, key=lambda name: -math.inf if math.isnan(known[name]) else known[name])
    return found


def _answers(
    data: Prepared,
    winner: Finalist | None,
    alone: Sequence[Finalist],
    specialists: Mapping[str, str],
    words: Mapping[str, str],
    recommended: str,
) -> dict[str, str]:
    """Task → the candidate that answers in `model/`. A champion is a file and cannot be deployed: the best specialist of ours
    stands in for it."""
    ours = _specialists(data, alone, None)
    answers = {}
    for task in data.tasks:
        own = specialists.get(task.name)
        deployable = ours.get(task.name) if own in (None, CHAMPION) else own
        shared = recommended == "one model" or (recommended == "committee" and words.get(task.name) != "worse")
        chosen = winner.candidate if winner is not None and shared else deployable
        if chosen is None and winner is not None:
            chosen = winner.candidate
        assert chosen is not None
        answers[task.name] = chosen
    return answers


def describe(name: str) -> tuple[str, bool, str | None]:
    """(label, per_task, encoder) of a candidate."""
    candidate = make(name, {})
    return candidate.label, candidate.per_task, candidate.encoder
