"""What a study will train, and how the budget is shared out: equal core-seconds for every road.

The T specialists of one kind together count as one road. A tenth of the budget is kept for encoding, predicting and judging.
Specialists that their share cut short are trained again with up to T times of it, from what the other roads left over: a
second row of the results that is never claimed.

A road first screens k configurations (its defaults among them) on a subsample with one seed, where a quarter of its share
pays for at least two of them; then its best configuration is trained with every seed on all training rows.

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
    """

    phase: str
    candidate: str
    settings: dict[str, Any]
    seed: int
    seconds: float
    index: int = 0

    @property
    def id(self) -> str:
        """The name of its folder in the journal."""
        return f"{self.phase}-{self.candidate}-{self.index}-s{self.seed}"


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

    def longer(self, chosen: int, seeds: Sequence[int], seconds: float) -> list[Trial]:
        """The finals again, with more seconds each."""
        return [Trial("longer", self.candidate, self.configurations[chosen], seed, seconds, chosen) for seed in seeds]

    def finals(self, chosen: int, seeds: Sequence[int]) -> list[Trial]:
        """The chosen configuration on all training rows, with each seed."""
        return [Trial("final", self.candidate, self.configurations[chosen], seed, self.final_seconds, chosen) for seed in seeds]


@dataclass(frozen=True)
class Plan:
    """What a study will train.

    Parameters
    ----------
    roads : tuple of Road
        The candidates that run.
    left_out : dict of str to str
        Candidate → why it cannot run.
    seeds : tuple of int
        The seeds of the finals.
    budget : float
        Core-seconds in all.
    """

    roads: tuple[Road, ...]
    left_out: dict[str, str]
    seeds: tuple[int, ...]
    budget: float

    def text(self) -> str:
        """For people: candidates, trainings and estimated cost."""
        lines = [f"Budget {self.budget:.0f} core-seconds, {len(self.roads)} roads, seeds {', '.join(map(str, self.seeds))}."]
        rows = [("candidate", "configurations", "trainings", "share, s", "estimate, s", "")]
        for road in self.roads:
            share = road.final_seconds * len(self.seeds) + road.screening_seconds * len(road.screens(0))
            need = road.estimate * len(self.seeds)
            note = "may end undertrained" if road.estimate > road.final_seconds else ""
            rows.append((road.candidate, str(len(road.configurations)), str(road.trainings), f"{share:.0f}", f"{need:.0f}", note))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines += [f"{name}: left out, {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def chosen_candidates(spec: TableStudy, inputs: Collection[str] = ()) -> list[str]:
    """Names of the candidates: those asked for, or the catalog's defaults for a table with these types of inputs; those asked
    for as `+NAME` are added to either; and
    `shared_bottom+B` for every balancer B asked for ("all": every one of the catalog), beside equal weighting."""
    known = {entry.name: entry for entry in catalog.entries(family="candidate")}
    usual = [name for name, entry in known.items() if entry.default or entry.default_for in inputs]
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


def plan(spec: TableStudy, data: Prepared) -> Plan:
    """Share the budget out over the candidates that can run on this table.

    Parameters
    ----------
    spec : TableStudy
        The settings.
    data : Prepared
        The train and valid parts.

    Raises
    ------
    BadInput
        Names or settings that nobody knows, or no candidate that can run.
    """
    left_out: dict[str, str] = {}
    running: list[tuple[str, Candidate]] = []
    if spec.backbone is not None and not data.texts:
        raise BadInput("names a backbone, and the table has no text column", where="backbone", remedy="add --text COLUMN")
    chosen = chosen_candidates(spec, {source.type for source in data.columns.inputs})
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
    seeds = tuple(range(spec.seed, spec.seed + spec.seeds))
    share = (1 - RESERVE) * spec.core_seconds / len(running)
    screening = screening_part(data, spec.seed)
    affordable: dict[str, int] = {}
    for name, candidate in running:
        fits = MARGIN * candidate.estimate(data) * len(seeds) <= (1 - SCREENING) * share
        paid = int(SCREENING * share / max(candidate.estimate(screening), 1e-3))
        affordable[name] = max(1, min(spec.configurations, paid)) if fits else 1
    if spec.balancers:
        alike = [name for name in affordable if is_balanced(name)]
        affordable |= dict.fromkeys(alike, min((affordable[name] for name in alike), default=1))
    roads = []
    for name, candidate in running:
        fixed, count, grid = base_settings(spec, name), affordable[name], candidate.grid(data)
        drawn = candidate.space.sample(spec.seed, count) if count >= 2 else [{}]
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
                ((1 - SCREENING) if screened else 1.0) * share / len(seeds),
                candidate.estimate(data),
                ((len(configurations) if screened else 0) + len(seeds)) * (len(data.tasks) if candidate.per_task else 1),
            )
        )
    return Plan(tuple(roads), left_out, seeds, spec.core_seconds)
