"""Choosing, on predictions of rows that no fit has learnt from: the valid part, or all folds.

What can be deployed are four *options*, each compared with the best specialists by the rule of the verdict:

| option      | who answers                                                                                        |
|-------------|----------------------------------------------------------------------------------------------------|
| one model   | the joint candidate with the best mean skill, the average of its fits                              |
| blend       | per task the weighted mean of candidates that greedy selection finds (`blend`), measured cross-fitted |
| committee   | the one model, but the best specialist of each task where sharing hurts                            |
| specialists | per task the best candidate that shares nothing                                                    |

"One model" is a statement of non-inferiority: the one-sided 90 % lower bound of its Δm lies above −1 %, and no main task is
*worse*. Where it cannot be made, the option with the best Δm is recommended, and the price of the one model is said.

The outcome is `choice.json`, written before the test split is opened; it holds no clock times, so that equal settings give
equal choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.study.blend import blended
from pluribus.study.plan import make
from pluribus.study.trial import Predictions, by_terms, constants, skills

CHAMPION = "champion"
MARGIN = 1.0
"""Per cent of Δm that the one model may be below the best specialists."""
CONFIDENCE = 0.9
"""Of the one-sided bound of Δm."""

Preference = Literal["one", "best", "cheap"]


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
        The trial of each final, and its seed or fold, in their order.
    rules : tuple of float
        The rule of each final: mean skill over the main tasks on its own valid part.
    valid : dict
        The predictions of the average of the finals on the judged rows: the valid part; out of fold, all folds.
    rule : float
        The rule of these predictions.
    seconds : float
        Core-seconds of all finals.
    undertrained : frozenset of str
        Tasks of which the budget cut short more than half of the finals.
    """

    candidate: str
    label: str
    per_task: bool
    encoder: str | None
    settings: dict[str, Any]
    trials: tuple[str, ...]
    seeds: tuple[int, ...]
    rules: tuple[float, ...]
    valid: Predictions
    rule: float
    seconds: float
    undertrained: frozenset[str]

    @property
    def best(self) -> int:
        """The final with the best rule: what answers where answers cannot be averaged."""
        return int(np.argmax(self.rules))


@dataclass(frozen=True)
class Option:
    """What could be deployed, against the best specialists on the judged rows.

    Parameters
    ----------
    name : {"one model", "blend", "committee", "specialists"}
        What people call it.
    answers : dict
        Task → candidate → weight.
    delta, low, high : float or None
        Δm in per cent with its interval; None where Δm means nothing.
    lower : float or None
        The one-sided 90 % lower bound of Δm.
    skill : float
        Mean skill over the main tasks.
    worse : tuple of str
        Main tasks whose word is "worse".
    fits : int
        Fitted models that answer.
    parameters, bytes, flops : float
        What they hold and compute together; flops per row.
    """

    name: str
    answers: dict[str, dict[str, float]]
    delta: float | None
    low: float | None
    high: float | None
    lower: float | None
    skill: float
    worse: tuple[str, ...]
    fits: int
    parameters: float
    bytes: float
    flops: float

    @property
    def harmless(self) -> bool:
        """Whether it may stand for the specialists: no main task is worse, and Δm is not below the margin."""
        return not self.worse and (self.lower is None or self.lower > -MARGIN)


@dataclass(frozen=True)
class StudyChoice:
    """What was chosen, and by what.

    Parameters
    ----------
    winner : str or None
        The joint candidate with the best rule; None where none ran.
    specialists : dict of str to str
        Task → the specialist with the best main metric ("champion" among them).
    same_encoder : str or None
        The specialists with the winner's encoder, if they ran.
    recommended : {"one model", "blend", "committee", "specialists"}
        What is deployed.
    answers : dict of str to str
        Task → the candidate that answers in `model/`, or weighs most there.
    trials : dict of str to str
        Candidate → its best trial (by the rule).
    settings : dict of str to dict
        Candidate → its configuration.
    rules : dict of str to float
        Candidate → its rule.
    valid_words : dict of str to str
        Task → the word of the verdict of the one model on the judged rows, which is never claimed.
    reason : str
        Why this is recommended.
    options : list of dict
        Every option (see `Option`), the best first; empty in choices of before there were options.
    weights : dict
        Task → trial → weight in `model/`; empty in choices of before averages.
    judged_on : {"valid", "out of fold"}
        The rows of these figures.
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
    options: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    judged_on: str = "valid"

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

    def member_weights(self) -> dict[str, dict[str, float]]:
        """Task → trial → weight of what is deployed, also of a choice of before averages."""
        return self.weights or {task: {self.trials[name]: 1.0} for task, name in self.answers.items()}


def best_configuration(results: Sequence[Mapping[str, Any]]) -> int:
    """The index of the screening result with the best rule; the earlier one (the defaults first) wins ties."""
    done = [r for r in results if r["status"] == "done" and r["rule"] is not None]
    if not done:
        return 0
    return int(max(done, key=lambda r: (r["rule"], -r["index"]))["index"])


@dataclass(frozen=True)
class Judging:
    """How options are judged: arguments of `pluribus.evaluation.verdict.judge`."""

    level: float
    repeats: int
    seed: int
    unit: str


def choose(
    data: Prepared,
    finalists: Sequence[Finalist],
    champion: Predictions | None,
    *,
    costs: Mapping[str, Mapping[str, float]],
    judging: Judging,
    prefer: Preference = "one",
    allow_committee: bool = True,
    judged_on: str = "valid",
) -> StudyChoice:
    """Choose the winner, its references and the recommendation.

    Parameters
    ----------
    data : Prepared
        Its valid part holds the judged rows, its train part the labels of the constant predictor.
    finalists : sequence of Finalist
        What can be chosen, in the catalog's order, which decides ties.
    champion : dict or None
        Task → predictions of the user's own model on the judged rows.
    costs : mapping
        Candidate → parameters, bytes and flops_per_row of all its finals together.
    judging : Judging
        Of the intervals.
    prefer : {"one", "best", "cheap"}, default "one"
        The one model where it is harmless; the option with the best Δm; or the cheapest that is harmless.
    allow_committee : bool, default True
        Whether several candidates may answer together (a blend, a committee).
    judged_on : {"valid", "out of fold"}
        What the judged rows are.

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
    options, words = _options(data, finalists, winner, champion, specialists, costs, judging)
    if not allow_committee:
        options = [option for option in options if option.name in ("one model", "specialists")]
    recommended, reason = _recommended(options, prefer, bool(specialists))
    weights: dict[str, dict[str, float]] = {}
    by_name = {f.candidate: f for f in finalists}
    for task in data.tasks:
        each: dict[str, float] = {}
        for name, weight in recommended.answers[task.name].items():
            f = by_name[name]
            trials = [f.trials[f.best]] if by_terms(task) else list(f.trials)
            each |= {trial: weight / len(trials) for trial in trials}
        weights[task.name] = each
    return StudyChoice(
        winner=None if winner is None else winner.candidate,
        specialists=specialists,
        same_encoder=None if same is None else same.candidate,
        recommended=recommended.name,
        answers={task: max(each, key=lambda name: each[name]) for task, each in recommended.answers.items()},
        trials={f.candidate: f.trials[f.best] for f in finalists},
        settings={f.candidate: f.settings for f in finalists},
        rules={f.candidate: f.rule for f in finalists},
        valid_words=words,
        reason=reason,
        options=[asdict(option) for option in options],
        weights=weights,
        judged_on=judged_on,
    )


def _options(
    data: Prepared,
    finalists: Sequence[Finalist],
    winner: Finalist | None,
    champion: Predictions | None,
    specialists: Mapping[str, str],
    costs: Mapping[str, Mapping[str, float]],
    judging: Judging,
) -> tuple[list[Option], dict[str, str]]:
    """Everything that could be deployed, the best first, and the words of the one model.

    A champion is a file and cannot be deployed: it stands in the reference, and the best specialist of ours in the options.
    """
    by_name = {f.candidate: f for f in finalists}
    own = _specialists(data, [f for f in finalists if f.per_task], None)
    sides: dict[str, tuple[dict[str, dict[str, float]], Predictions]] = {}

    def add(name: str, answers: dict[str, dict[str, float]], said: Predictions | None = None) -> None:
        found = {task: by_name[next(iter(each))].valid[task] if len(each) == 1 else None for task, each in answers.items()}
        sides[name] = (answers, {**found, **(said or {})})

    if winner is not None:
        add("one model", {task.name: {winner.candidate: 1.0} for task in data.tasks})
    if len(own) == len(data.tasks):
        add("specialists", {task.name: {own[task.name]: 1.0} for task in data.tasks})
    if len(finalists) > 1:
        blends = {
            task.name: blended(task, data, {f.candidate: f.valid[task.name] for f in finalists}, judging.seed)
            for task in data.tasks
            if not by_terms(task)
        }
        best = {task.name: {own.get(task.name) or _first(winner): 1.0} for task in data.tasks}
        best |= {name: each for name, (each, _) in blends.items()}
        add("blend", best, {name: said for name, (_, said) in blends.items()})
    judged = {
        name: _against_specialists(data, said, by_name, champion, specialists, judging) for name, (_, said) in sides.items()
    }
    words = {} if winner is None or judged["one model"] is None else _words(judged["one model"])
    hurt = [name for name, word in words.items() if word == "worse" and name in own]
    if winner is not None and hurt and len(hurt) < len(data.tasks):
        add("committee", {t.name: {own[t.name] if t.name in hurt else winner.candidate: 1.0} for t in data.tasks})
        judged["committee"] = _against_specialists(data, sides["committee"][1], by_name, champion, specialists, judging)
    found = [_option(data, name, *sides[name], judged[name], by_name, costs) for name in sides]
    order = ("one model", "specialists", "committee", "blend")  # fewer models first where two are equal
    found.sort(key=lambda option: (-_worth(option), order.index(option.name)))
    return found, words


def _first(winner: Finalist | None) -> str:
    assert winner is not None
    return winner.candidate


def _worth(option: Option) -> float:
    """What options are ranked by: Δm; where it means nothing, the mean skill in per cent."""
    return 100 * option.skill if option.delta is None else option.delta


def _option(
    data: Prepared,
    name: str,
    answers: dict[str, dict[str, float]],
    said: Predictions,
    verdict: Verdict | None,
    by_name: Mapping[str, Finalist],
    costs: Mapping[str, Mapping[str, float]],
) -> Option:
    each = skills(data, said)
    main = [each[task.name] for task in data.tasks if task.role == "main" and math.isfinite(each[task.name])]
    used = dict.fromkeys(candidate for own in answers.values() for candidate in own)
    delta = None if verdict is None else verdict.comparisons[0].overall.delta.file
    if delta is not None and not math.isfinite(delta.value):
        delta = None
    words = {} if verdict is None else _words(verdict)
    roles = {task.name: task.role for task in data.tasks}

    def total(what: str) -> float:
        return float(sum(costs[candidate][what] for candidate in used))

    def known(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    return Option(
        name=name,
        answers=answers,
        delta=None if delta is None else delta.value,
        low=None if delta is None else known(delta.low),
        high=None if delta is None else known(delta.high),
        lower=None if delta is None else known(delta.lower(CONFIDENCE)),
        skill=float(np.mean(main)) if main else -math.inf,
        worse=tuple(task for task, word in words.items() if word == "worse" and roles[task] == "main"),
        fits=sum(len(by_name[candidate].trials) for candidate in used),
        parameters=total("parameters"),
        bytes=total("bytes"),
        flops=total("flops_per_row"),
    )


def _recommended(options: Sequence[Option], prefer: Preference, compared: bool) -> tuple[Option, str]:
    """The option that is deployed, and why."""
    by_name = {option.name: option for option in options}
    one, best = by_name.get("one model"), options[0]
    if one is None:
        if len(options) == 1 or prefer == "cheap":
            return by_name.get("specialists", best), "no joint model ran"
        return best, f"no joint model ran; {_said(best)}"
    if not compared:
        return one, "no specialist ran"
    if prefer == "cheap":
        cheap = min((option for option in options if option.harmless), key=lambda option: option.flops, default=best)
        return cheap, f"the cheapest option that no main task suffers from: {_said(cheap)}"
    if prefer == "one" and one.harmless:
        return one, f"no main task is worse than with the best specialists: {_said(one)}"
    others = [option for option in options if option is not one] if prefer == "one" else list(options)
    chosen = others[0] if others else one
    if chosen is one:
        return one, _said(one)
    why = f"the one model is worse on {', '.join(one.worse)}" if one.worse else f"the one model is not safe enough: {_said(one)}"
    saving = "" if not chosen.flops > 0 else f"; the one model would need {one.flops / chosen.flops:.0%} of its arithmetic a row"
    return chosen, f"{why}; {chosen.name}: {_said(chosen)}{saving}"


def _said(option: Option) -> str:
    """An option's Δm in words."""
    if option.name == "specialists" and not option.delta:
        return "they are the reference"
    if option.delta is None:
        return f"mean skill {option.skill:.3f}"
    word = "better" if option.delta >= 0 else "worse"
    span = ""
    if option.low is not None and option.high is not None:
        span = f" (interval {option.low:+.1f} to {option.high:+.1f} %)"
    return f"{abs(option.delta):.1f} % {word} on average{span}"


def _words(verdict: Verdict) -> dict[str, str]:
    return {row.task: row.word for row in verdict.comparisons[0].tasks}


def _against_specialists(
    data: Prepared,
    said: Predictions,
    by_name: Mapping[str, Finalist],
    champion: Predictions | None,
    specialists: Mapping[str, str],
    judging: Judging,
) -> Verdict | None:
    """The verdict of predictions of the judged rows, for choosing only; it is never claimed. None without a specialist."""
    reference = {
        task: champion[task] if name == CHAMPION and champion is not None else by_name[name].valid[task]
        for task, name in specialists.items()
    }
    tasks = [task for task in data.tasks if task.name in reference and task.name in said]
    if not tasks:
        return None
    truth, units = truth_of(data, "valid", {task.name for task in tasks})
    return judge(
        tasks,
        truth,
        units,
        {task.name: [said[task.name]] for task in tasks},
        {"specialists": {task.name: [reference[task.name]] for task in tasks}},
        constants=constants(data),
        level=judging.level,
        repeats=judging.repeats,
        seed=judging.seed,
        unit=judging.unit,
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
    """Task → the specialist with the best skill on the judged rows; the earlier one in the catalog wins ties."""
    scores = {f.candidate: skills(data, f.valid) for f in alone}
    if champion is not None:
        scores[CHAMPION] = skills(data, champion)
    found = {}
    for task in data.tasks:
        known = {name: each[task.name] for name, each in scores.items() if task.name in each}
        if known:
            found[task.name] = max(known, key=lambda name: -math.inf if math.isnan(known[name]) else known[name])
    return found


def describe(name: str) -> tuple[str, bool, str | None]:
    """(label, per_task, encoder) of a candidate."""
    candidate = make(name, {})
    return candidate.label, candidate.per_task, candidate.encoder
