"""What a study will train, and how the budget is shared out.

Every road is fitted several times (*draws*): with other seeds on one train and one valid part, or, below 3,000 units, once
without each of five folds (`folds`). A tenth of the budget is kept for encoding, predicting and judging. The rest is shared out
evenly; what a road does not need goes to those that need more. What trainings then leave unspent goes to those that were cut
short, which are trained again with it.

Where the estimates say that a budget cannot hold everything, the plan first leaves out the per-task twins of joint networks, then
takes fewer draws; what is still too much is cut by each candidate's own means (fewer epochs).

On 2,000 rows and more a road first screens k configurations (its defaults among them) on a subsample with one seed, where a
quarter of its share pays for at least two of them; then its best configuration is trained with every seed on all training rows.
Unless a number is asked for, there are never more configurations than AutoGluon's curve allows for the number of rows: more
would be chosen by luck.

Where balancers are compared (`balancers`), the shared bottoms under them, under equal weights and under the grid of fixed weights
try the same configurations, hence the same learning rates: as many as the dearest of them can pay for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Candidate
from pluribus.study.spec import TableStudy

RESERVE = 0.1
SCREENING = 0.25
MARGIN = 1.5  # estimates are rough: a road screens only where its finals would fit so many times over
FEWEST_SCREENED = 2_000  # training rows: below, a screening chooses by luck
FEWEST_FOLDS = 3
LEAST_SHARE = 0.5  # of an even share: estimates of quick roads are the roughest
SCREENING_ROWS = 20_000
SCREENING_SHARE = 0.3
EQUAL, FIXED = "shared_bottom_equal", "shared_bottom_fixed"  # what balancers are compared with
EQUAL_TIME = "shared_bottom_equal_time"  # equal weights, trained on for the time of the slowest balancer


@dataclass(frozen=True)
class Trial:
    """One training: a pure function of these fields and the prepared data.

    Parameters
    ----------
    phase : {"screen", "final", "longer", "equaltime"}
        A screening on a subsample with one seed; a final; specialists that the budget cut short, given up to T times their
        share from what the roads left over; or equal weights, trained on for the time of the slowest balancer.
    candidate : str
        A name of the catalog, or `NAME+BALANCER`.
    settings : dict
        The candidate's settings.
    seed : int
        Of initial weights, sampling and shuffling.
    seconds : float
        Core-seconds it may spend.
    index : int, default 0
        Which of the candidate's configurations the settings are.
    fold : tuple of int or None
        (k, K): it does without fold k of K; None: it learns from the train part.
    """

    phase: str
    candidate: str
    settings: dict[str, Any]
    seed: int
    seconds: float
    index: int = 0
    fold: tuple[int, int] | None = None

    @property
    def id(self) -> str:
        """The name of its folder in the journal."""
        without = "" if self.fold is None else f"-f{self.fold[0]}of{self.fold[1]}"
        return f"{self.phase}-{self.candidate}-{self.index}-s{self.seed}{without}"

    @property
    def draw(self) -> int:
        """What tells the draws of a road apart: the seed, or the fold."""
        return self.seed if self.fold is None else self.fold[0]


@dataclass(frozen=True)
class Road:
    """One candidate's share of the budget.

    Parameters
    ----------
    candidate : str
        Its name.
    label : str
        What people call it.
    per_task : bool
        Whether it is one model a task.
    configurations : tuple of dict
        What is screened; a single one goes straight to the finals.
    screening_seconds : float
        Core-seconds of each screening trial.
    final_seconds : float
        Core-seconds of each final.
    estimate : float
        Core-seconds that a final is estimated to need for its early stop.
    trainings : int
        How many models are trained in all.
    """

    candidate: str
    label: str
    per_task: bool
    configurations: tuple[dict[str, Any], ...]
    screening_seconds: float
    final_seconds: float
    estimate: float
    trainings: int

    def screens(self, seed: int) -> list[Trial]:
        """The screening trials; none where there is one configuration."""
        if len(self.configurations) < 2:
            return []
        return [
            Trial("screen", self.candidate, settings, seed, self.screening_seconds, i)
            for i, settings in enumerate(self.configurations)
        ]

    def finals(self, chosen: int, draws: Sequence[tuple[int, tuple[int, int] | None]]) -> list[Trial]:
        """The chosen configuration, once a draw."""
        settings = self.configurations[chosen]
        return [Trial("final", self.candidate, settings, seed, self.final_seconds, chosen, fold) for seed, fold in draws]


@dataclass(frozen=True)
class Plan:
    """What a study will train.

    Parameters
    ----------
    roads : tuple of Road
        The candidates that run.
    left_out : dict of str to str
        Candidate → why it cannot run.
    draws : tuple of (int, tuple of int or None)
        Seed and fold of the finals of each road.
    budget : float
        Core-seconds in all.
    notes : tuple of str
        What the budget decided, for people.
    """

    roads: tuple[Road, ...]
    left_out: dict[str, str]
    draws: tuple[tuple[int, tuple[int, int] | None], ...]
    budget: float
    notes: tuple[str, ...] = ()

    @property
    def folds(self) -> int | None:
        """How many folds the draws are, or None where they are seeds."""
        fold = self.draws[0][1]
        return None if fold is None else fold[1]

    def text(self) -> str:
        """For people: candidates, trainings and estimated cost."""
        drawn = f"seeds {', '.join(str(seed) for seed, _ in self.draws)}"
        if self.folds is not None:
            drawn = f"{self.folds} folds (every row is predicted by a model that did not see it)"
        lines = [f"Budget {self.budget:.0f} core-seconds, {len(self.roads)} roads, {drawn}."]
        rows = [("candidate", "configurations", "trainings", "share, s", "estimate, s", "")]
        for road in self.roads:
            share = road.final_seconds * len(self.draws) + road.screening_seconds * len(road.screens(0))
            need = road.estimate * len(self.draws)
            note = "may end undertrained" if road.estimate > road.final_seconds else ""
            rows.append((road.candidate, str(len(road.configurations)), str(road.trainings), f"{share:.0f}", f"{need:.0f}", note))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines += [f"{name}: left out, {why}" for name, why in self.left_out.items()]
        return "\n".join([*lines, *self.notes])


def chosen_candidates(spec: TableStudy, inputs: Collection[str] = (), rows: int = 0) -> list[str]:
    """Names of the candidates: those asked for, or the catalog's defaults for a table with these types of inputs and as many
    training rows; those asked for as `+NAME` are added to either; and
    `shared_bottom+B` for every balancer B asked for ("all": every one of the catalog), beside equal weighting."""
    known = {entry.name: entry for entry in catalog.entries(family="candidate")}
    few = {name for name, entry in known.items() if entry.default_rows is None or rows <= entry.default_rows}
    usual = [name for name, entry in known.items() if name in few and (entry.default or entry.default_for in inputs)]
    asked = [name for name in spec.candidates or () if not name.startswith("+")]
    chosen = [*(asked or usual), *(name[1:] for name in spec.candidates or () if name.startswith("+"))]
    for name in chosen:
        if name.partition("+")[0] not in known:
            raise unknown("candidate", name, known, where="candidates")
    balancers = [entry.name for entry in catalog.entries(family="balancer")]
    for name in balancers if spec.balancers == ["all"] else spec.balancers:
        if name not in balancers:
            raise unknown("balancer", name, balancers, where="balancers")
        chosen += [EQUAL, FIXED, f"shared_bottom+{name}"]
    return list(dict.fromkeys(chosen))


def is_balanced(name: str) -> bool:
    """Whether a candidate is a shared bottom that a comparison of balancers is about."""
    return name in (EQUAL, FIXED) or name.startswith("shared_bottom+")


def make(name: str, settings: dict[str, Any]) -> Candidate:
    """A candidate by its catalog name; `NAME+BALANCER` fixes the balancer."""
    base, plus, balancer = name.partition("+")
    fixed = {"balancer": balancer} if plus else {}
    candidate: Candidate = catalog.get("candidate", base).resolve()(**{**settings, **fixed})
    return candidate


def base_settings(spec: TableStudy, name: str) -> dict[str, Any]:
    """What the user fixed for a candidate (`settings`, LightGBM's parameters, the backbone of texts)."""
    base = name.partition("+")[0]
    defaults = catalog.get("candidate", base).resolve().defaults
    fixed: dict[str, Any] = {}
    if spec.lgbm_params and name.startswith("lightgbm"):
        for key in spec.lgbm_params:
            if key not in defaults:
                raise unknown("LightGBM parameter", key, defaults, where="lgbm_params")
        fixed |= spec.lgbm_params
    if spec.backbone is not None and "backbone" in defaults:
        fixed["backbone"] = spec.backbone
    for key in dict.fromkeys((base, name)):
        fixed |= spec.settings.get(key, {})
    return fixed


def screening_part(data: Prepared, seed: int) -> Prepared:
    """The same valid part, and a seeded subsample of the training rows."""
    train = data.parts["train"]
    count = min(len(train), max(SCREENING_ROWS // 4, min(SCREENING_ROWS, round(SCREENING_SHARE * len(train)))))
    if count == len(train):
        return data
    rows = np.sort(np.random.default_rng(seed).choice(train, count, replace=False))
    return data.with_parts(train=rows, valid=data.parts["valid"])


def _why_not(candidate: Candidate, data: Prepared) -> str | None:
    """Why a candidate cannot run on a table."""
    return candidate.unreadable(data) or candidate.unfit(data)


def plan(spec: TableStudy, data: Prepared, folds: int | None = None) -> Plan:
    """Share the budget out over the candidates that can run on this table.

    Parameters
    ----------
    spec : TableStudy
        The settings.
    data : Prepared
        The train and valid parts.
    folds : int or None
        How many folds take the place of seeds; None: there is one valid part.

    Raises
    ------
    BadInput
        Names or settings that nobody knows, or no candidate that can run.
    """
    left_out: dict[str, str] = {}
    running: list[tuple[str, Candidate]] = []
    if spec.backbone is not None and not data.texts:
        raise BadInput("names a backbone, and the table has no text column", where="backbone", remedy="add --text COLUMN")
    chosen = chosen_candidates(spec, {source.type for source in data.columns.inputs}, len(data.parts["train"]))
    for name in spec.settings:
        known = dict.fromkeys(each for one in chosen for each in (one.partition("+")[0], one))
        if name not in known:
            raise unknown("candidate", name, known, where="settings")
    for name in chosen:
        candidate = make(name, base_settings(spec, name))
        why = _why_not(candidate, data)
        if why is None:
            running.append((name, candidate))
        else:
            left_out[name] = why
    if not running:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        names = [entry.name for entry in catalog.entries(family="candidate") if entry.name not in left_out]
        able = [name for name in names if _why_not(make(name, {}), data) is None]
        remedy = f"name others: {', '.join(able)}" if able else "see `pluribus catalog --family candidate` for what each reads"
        raise BadInput(f"no candidate can run ({reasons})", where="candidates", remedy=remedy)
    count = folds if folds is not None else spec.seeds
    running, count, notes = _within_budget(spec, data, running, count, folds, left_out)
    draws: list[tuple[int, tuple[int, int] | None]] = [(spec.seed + i, None) for i in range(count)]
    if folds is not None:
        draws = [(spec.seed, (i, count)) for i in range(count)]
    estimates = {name: candidate.estimate(data) for name, candidate in running}
    shares = _shared(spec.core_seconds, {name: MARGIN * count * estimates[name] for name, _ in running})
    affordable = dict.fromkeys(shares, 1)
    rows, asked = len(data.parts["train"]), "configurations" in spec.model_fields_set
    if folds is None and (rows >= FEWEST_SCREENED or asked or spec.balancers):
        screening = screening_part(data, spec.seed)
        most = spec.configurations if asked or spec.balancers else max(1, most_configurations(rows) // len(running))
        even = (1 - RESERVE) * spec.core_seconds / len(running)
        for name, candidate in running:
            fits = MARGIN * estimates[name] * count <= (1 - SCREENING) * even
            paid = int(SCREENING * even / max(candidate.estimate(screening), 1e-3))
            affordable[name] = max(1, min(spec.configurations, most, paid)) if fits else 1
    if spec.balancers:  # they are compared within the same seconds
        shares = dict.fromkeys(shares, (1 - RESERVE) * spec.core_seconds / len(running))
        alike = [name for name in affordable if is_balanced(name)]
        affordable |= dict.fromkeys(alike, min((affordable[name] for name in alike), default=1))
    roads = []
    for name, candidate in running:
        fixed, tried, grid, share = base_settings(spec, name), affordable[name], candidate.grid(data), shares[name]
        drawn = candidate.space.sample(spec.seed, tried) if tried >= 2 else [{}]
        if grid:
            drawn = [{**drawn[i % len(drawn)], **grid[i % len(grid)]} for i in range(max(len(drawn), len(grid)))]
        configurations = tuple({**settings, **fixed} for settings in drawn)
        screened = len(configurations) >= 2
        roads.append(
            Road(
                name,
                candidate.label,
                candidate.per_task,
                configurations,
                SCREENING * share / len(configurations) if screened else 0.0,
                ((1 - SCREENING) if screened else 1.0) * share / count,
                estimates[name],
                ((len(configurations) if screened else 0) + count) * (len(data.tasks) if candidate.per_task else 1),
            )
        )
    return Plan(tuple(roads), left_out, tuple(draws), spec.core_seconds, tuple(notes))


def most_configurations(rows: int) -> int:
    """How many configurations of all candidates together a validation of so many rows can tell apart (AutoGluon 1.6: 4 at 100
    rows, 8 at 500, 15 at 2,500, 40 at 10,000, 100 at 100,000, interpolated over the logarithm)."""
    known, most = np.log([100, 500, 2_500, 10_000, 100_000]), [4, 8, 15, 40, 100]
    return int(np.interp(np.log(max(rows, 1)), known, most))


def _shared(budget: float, needs: dict[str, float]) -> dict[str, float]:
    """Core-seconds of each road: an even share, and what roads that need less leave to the others."""
    left = (1 - RESERVE) * budget
    found: dict[str, float] = {}
    waiting = dict(sorted(needs.items(), key=lambda pair: pair[1]))
    while waiting:
        name = next(iter(waiting))
        need, even = waiting.pop(name), left / (len(waiting) + 1)
        found[name] = min(even, max(need, LEAST_SHARE * even))
        left -= found[name]
    return {name: found[name] + left / len(needs) for name in needs}


def _within_budget(
    spec: TableStudy,
    data: Prepared,
    running: list[tuple[str, Candidate]],
    count: int,
    folds: int | None,
    left_out: dict[str, str],
) -> tuple[list[tuple[str, Candidate]], int, list[str]]:
    """What a budget can hold: default candidates without the per-task twins of joint networks, then fewer draws."""
    estimates = {name: candidate.estimate(data) for name, candidate in running}

    def need(names: Sequence[str]) -> float:
        return count * sum(estimates[name] for name in names)

    available, notes = (1 - RESERVE) * spec.core_seconds, []
    names = [name for name, _ in running]
    if spec.candidates is None:
        for name, candidate in sorted(running, key=lambda pair: -estimates[pair[0]]):
            twins = [n for n, other in running if other.encoder == candidate.encoder and not other.per_task]
            if need(names) > available and candidate.per_task and candidate.encoder is not None and twins:
                names.remove(name)
                left_out[name] = f"all would need {need([*names, name]):.0f} core-seconds of {available:.0f}; --budget decides"
    asked, fewest = count, 1 if folds is None else FEWEST_FOLDS
    while need(names) > available and count > fewest and not spec.model_fields_set & {"seeds", "folds"}:
        count -= 1
    if count < asked:
        notes.append(f"{count} fits of each candidate, not {asked}: more would not fit into {spec.core_seconds:.0f} core-seconds")
    if need(names) > available:
        dear = max(names, key=lambda name: estimates[name])
        what = f"{need(names):.0f} core-seconds would be needed, most of them by {dear}"
        notes.append(f"The budget decides: {what}; some trainings are made shorter or end early")
    return [pair for pair in running if pair[0] in names], count, notes
