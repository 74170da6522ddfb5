"""What a study of checkpoints compares: experts of one base, and every road to one model, by somebody's own evaluation.

    read → check headers → score every road on valid → choose → score on test → verdict → model, report

The evaluator (see `evaluator`) is code and therefore never named in a file: it is handed over, and asked about the same rows for
every road. The choice looks at the valid split only: among the roads that lose at most 2 % of the expert's score on every task,
the one that stores the fewest bytes; where there is none, the experts stay.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pluribus
from pluribus.errors import BadInput
from pluribus.evaluation.ledger import Row
from pluribus.evaluation.verdict import Verdict
from pluribus.files import atomic_file, read_json
from pluribus.merging.bundle import bundle, homes_of
from pluribus.merging.checkpoints import MergePlan, config
from pluribus.merging.container import MergeContainer
from pluribus.merging.modules import example, filled, names_in, skeleton
from pluribus.merging.run import prepare
from pluribus.study.checkpoint_spec import CheckpointStudy, RoadSpec
from pluribus.study.crews import Crew
from pluribus.study.evaluator import Evaluate, asked, check_same_rows
from pluribus.study.paired import Scored, compare_scores
from pluribus.study.progress import Reporter
from pluribus.study.report import SCHEMA_VERSION
from pluribus.study.run_folder import RunFolder
from pluribus.study.spec import seconds

if TYPE_CHECKING:
    import pandas as pd

EXPERTS = "experts"
REQUESTS = 60  # forwards of one row that the latencies are taken from

MOST_LOST = 0.02
"""Share of any expert's score on the valid split that a road may lose and still be chosen for its bytes."""


class RoadScores:
    """The files of a study of checkpoints below its work folder: a folder a road, with what it stores and its scores.

    Parameters
    ----------
    work : Path
        The folder.
    tasks : sequence of str
        All tasks, in the study file's order, which numbers the files.
    """

    def __init__(self, work: Path, tasks: Sequence[str]) -> None:
        self.work, self.tasks = work, list(tasks)

    def file(self, road: RoadSpec, task: str, split: str) -> Path:
        """Where the scores of a road on a task are kept."""
        return self._place(road) / f"{split}-{self.tasks.index(task)}.parquet"

    def of(self, road: RoadSpec, task: str, split: str) -> pd.DataFrame:
        """The scores of a road on a task."""
        import pandas as pd

        return pd.read_parquet(self.file(road, task, split))

    def mean(self, road: RoadSpec, task: str, split: str) -> float:
        """The road's metric on a task."""
        return float(self.of(road, task, split)["score"].mean())

    def complete(self, road: RoadSpec, split: str) -> bool:
        """Whether every task of a road is scored."""
        return all(self.file(road, t, split).is_file() for t in self.tasks)

    def described(self, road: RoadSpec) -> bool:
        """Whether it is written down what a road stores."""
        return (self._place(road) / "about.json").is_file()

    def about(self, road: RoadSpec) -> dict[str, Any]:
        """What a road stores, and how long a request takes."""
        found: dict[str, Any] = read_json(self._place(road) / "about.json")
        return found

    def describe(self, road: RoadSpec, about: Mapping[str, Any]) -> None:
        """Write down what a road stores."""
        with atomic_file(self._place(road) / "about.json") as aside:
            aside.write_text(json.dumps(about), "utf-8")

    @property
    def spent(self) -> float:
        """Core-seconds of all calls so far."""
        path = self.work / "spent.json"
        return float(read_json(path)["seconds"]) if path.is_file() else 0.0

    def spend(self, more: float) -> None:
        """Add core-seconds."""
        before = self.spent
        with atomic_file(self.work / "spent.json") as aside:
            aside.write_text(json.dumps({"seconds": before + max(0.0, more)}), "utf-8")

    def _place(self, road: RoadSpec) -> Path:
        return self.work / (hashlib.sha256(road.name.encode()).hexdigest()[:12] if road.settings else road.method)


@dataclass
class Walked:
    """What the valid split left.

    Parameters
    ----------
    scores : RoadScores
        The files.
    roads : dict of str to Road
        The experts, and the roads that are scored on every task.
    left_out : list of str
        Roads that the budget left out.
    failed : dict of str to str
        Road → why it cannot be walked.
    """

    scores: RoadScores
    roads: dict[str, RoadSpec] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class CheckpointArena:
    """The roads from several experts of one base to one model, and the experts.

    Parameters
    ----------
    spec : CheckpointStudy
        The settings.
    evaluate : callable
        The evaluator; a function of whoever calls, so the crew is this process.
    named : str
        What it is called in messages.
    code : str
        What identifies it.
    """

    about = "settings, checkpoints or evaluation"

    def __init__(self, spec: CheckpointStudy, evaluate: Evaluate, named: str, code: str) -> None:
        self.spec, self.evaluate, self.named, self.code = spec, evaluate, named, code
        self.paths = {task: expert.path for task, expert in spec.experts.items()}
        self.heads = [expert.head for expert in spec.experts.values() if expert.head]

    @cached_property
    def plan(self) -> MergePlan:
        """What the checkpoints have in common; they are checked."""
        return prepare(self.spec.base, self.paths, "average", heads=self.heads)[0]

    @cached_property
    def homes(self) -> dict[str, Path]:
        """Task → the expert's folder, where all have configurations; else nothing."""
        homes = homes_of(self.paths)
        return homes if len(homes) == len(self.paths) else {}

    # -- the steps of the arena -----------------------------------------------------------------------------------

    def check(self) -> None:
        """The checkpoints are there and fit together; see `Arena`."""
        for who, path in (("base", self.spec.base), *self.paths.items()):
            if not Path(path).exists():
                raise BadInput("no such file or folder", where=f"{who}: {path}", remedy="check the path")
        _ = self.plan

    def configuration(self) -> str:
        """Settings, the evaluator's code, and the checkpoints' files, sizes and dates."""
        files: list[Any] = []
        for path in (self.spec.base, *self.paths.values()):
            root = Path(path)
            for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
                if file.is_file():
                    about = file.stat()
                    files.append([file.name, about.st_size, about.st_mtime_ns])
        row = [self.spec.model_dump(exclude={"name", "budget"}), self.code, files]
        return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()

    def goes_on(self, held: Mapping[str, Any]) -> bool:
        """Never: its roads are scored once."""
        return False

    def settings(self) -> dict[str, Any]:
        """The study file, and what the evaluator is called."""
        return {**self.spec.model_dump(), "evaluate": self.named}

    def trials(self, folder: RunFolder, crew: Crew, report: Reporter) -> Walked:
        """Score the experts and, within the budget, every road on the valid split."""
        found = Walked(RoadScores(folder.work, list(self.paths)))
        roads = [RoadSpec(method=EXPERTS), *self.spec.roads()]
        for i, outcome in crew.run(self._trial, [(found.scores, road) for road in roads]):
            assert isinstance(outcome, dict)  # this process has not died
            road, status = roads[i], outcome["status"]
            if status == "left out":
                found.left_out.append(road.name)
            elif status == "failed":
                found.failed[road.name] = outcome["error"]
                report.note(f"{road.name}: left out, {outcome['error']}")
            else:
                found.roads[road.name] = road
                if road.name != EXPERTS:
                    values = ", ".join(f"{t} {found.scores.mean(road, t, 'valid'):.4g}" for t in self.paths)
                    report.note(f"{road.name}: {values}; {found.scores.about(road)['bytes'] / 1e6:.3g} MB")
        return found

    def _trial(self, scores: RoadScores, road: RoadSpec) -> dict[str, Any]:
        """Score a road on the valid split, unless the budget is spent."""
        expert = road.name == EXPERTS
        if not expert and scores.spent >= seconds(self.spec.budget) and not scores.complete(road, "valid"):
            return {"status": "left out"}
        try:
            self._score(scores, road, "valid")
        except BadInput as error:
            if expert or self.named in (error.where or ""):
                raise
            return {"status": "failed", "error": str(error)}
        return {"status": "done"}

    def _score(self, scores: RoadScores, road: RoadSpec, split: str) -> None:
        """Ask the evaluator about every task of a road that has no scores yet."""
        missing = [t for t in self.paths if not scores.file(road, t, split).is_file()]
        if not missing and scores.described(road):
            return
        start = time.process_time()

        def spend() -> None:
            nonlocal start
            now = time.process_time()
            scores.spend(now - start)
            start = now

        with torch.no_grad():
            container = self._container(road)
            if not scores.described(road):
                stored = container.bytes()
                latency = self._latency(container)
                about = {"method": road.method, "settings": road.settings, "bytes": sum(stored.values()), "parts": stored}
                scores.describe(road, {**about, "latency": latency})
            spend()
            for task in missing:
                frame = self._asked(container, scores, road, task, split)
                with atomic_file(scores.file(road, task, split)) as aside:
                    frame.to_parquet(aside, index=False)
                spend()

    def _container(self, road: RoadSpec) -> MergeContainer:
        """The road's model."""
        return bundle(self.spec.base, self.paths, road.method, heads=self.heads, **road.settings)

    def _asked(self, container: MergeContainer, scores: RoadScores, road: RoadSpec, task: str, split: str) -> pd.DataFrame:
        """The evaluator's answer about one task: the same rows as of the experts."""
        where = f"{self.named}, {road.name}, task {task!r}, {split}"
        state = container.state(task)
        model = filled(config(self.homes[task]), state, f"task {task!r} ({self.homes[task]})") if self.homes else state
        found = asked(self.evaluate, model, task, getattr(self.spec.experts[task], split), where=where)
        if road.name != EXPERTS:
            check_same_rows(found, scores.of(RoadSpec(method=EXPERTS), task, split), where=where)
        return found

    @torch.no_grad()
    def _latency(self, container: MergeContainer) -> dict[str, float] | None:
        """p50 and p99 in milliseconds of one row of one task, the tasks taking turns; None where the module is not known."""
        if not self.homes:
            return None
        first = config(next(iter(self.homes.values())))
        model = skeleton(first, self.spec.base)
        stored = [*container.shared, *(n for head in container.heads.values() for n in head)]
        tasks = container.tasks
        served = container.renamed(names_in(model, stored, self.spec.base)).serve(model, example=example(first, 2 * len(tasks)))
        row, spent = example(first, 1), []
        for i in range(REQUESTS + 5):
            begin = time.perf_counter()
            served(row, [tasks[i % len(tasks)]])
            spent.append(1e3 * (time.perf_counter() - begin))
        p50, p99 = np.quantile(spent[5:], [0.5, 0.99]).tolist()
        return {"p50": p50, "p99": p99}

    def choose(self, results: Walked) -> dict[str, Any]:
        """By the valid split alone."""
        scores, roads = results.scores, results.roads
        losses = {name: self._losses(results, road, "valid") for name, road in roads.items() if name != EXPERTS}
        good = [name for name, lost in losses.items() if max(lost.values()) <= MOST_LOST]
        if good:
            winner = min(good, key=lambda name: (scores.about(roads[name])["bytes"], float(np.mean(list(losses[name].values())))))
            reason = f"{winner} stores the least of what loses at most {MOST_LOST:.0%} of any expert's valid score"
        else:
            winner = min(losses, key=lambda name: float(np.mean(list(losses[name].values())))) if losses else ""
            reason = f"every road loses more than {MOST_LOST:.0%} of some expert's valid score"
        rule = f"fewest bytes among those that lose at most {MOST_LOST:.0%} on every task of the valid split"
        return {
            "recommended": "one model" if good else "specialists",
            "winner": winner,
            "reason": reason,
            "deployed": winner if good else EXPERTS,
            "lost": losses,
            "rule": rule,
        }

    def _losses(self, results: Walked, road: RoadSpec, split: str) -> dict[str, float]:
        """Task → the share of the expert's score that a road loses; negative where it gains."""
        found = {}
        for task, expert in self.spec.experts.items():
            sign = 1 if expert.direction == "max" else -1
            value, base = (results.scores.mean(each, task, split) for each in (road, results.roads[EXPERTS]))
            found[task] = sign * (base - value) / max(abs(base), 1e-12)
        return found

    def test_split(self) -> str:
        """The hash of what the study file says under `test`."""
        return hashlib.sha256(json.dumps([[t, e.test] for t, e in self.spec.experts.items()]).encode()).hexdigest()

    def judge(self, folder: RunFolder, results: Walked, choice: Mapping[str, Any]) -> Verdict | None:
        """Score every road on the test split, and judge the winner against the experts and the average."""
        scores, roads = results.scores, results.roads
        for road in roads.values():
            self._score(scores, road, "test")
        if not choice["winner"]:
            return None
        challenger, unit = {}, "row"
        for task, expert in self.spec.experts.items():
            frame = scores.of(roads[choice["winner"]], task, "test")
            unit = "group" if "group" in frame else unit
            units = frame["group" if "group" in frame else "id"].to_numpy()
            challenger[task] = Scored(expert.metric, expert.direction, units, frame["score"].to_numpy(float))
        others = [EXPERTS, *(["average"] if "average" in roads and choice["winner"] != "average" else [])]
        references = {
            name: {t: scores.of(roads[name], t, "test")["score"].to_numpy(float) for t in self.paths} for name in others
        }
        return compare_scores(
            challenger,
            references,
            name=choice["winner"],
            unit=unit,
            level=self.spec.level,
            repeats=self.spec.repeats,
            seed=self.spec.seed,
            notes=self.plan.notes,
        )

    def deploy(self, folder: RunFolder, results: Walked, choice: Mapping[str, Any], verdict: Verdict | None) -> None:
        """Write the recommended model, or the experts side by side, as one folder that `pluribus serve` takes."""
        if not (folder.path / "model" / "pluribus.json").is_file():
            self._container(results.roads[choice["deployed"]]).save(folder.path / "model", self.homes or None)

    def rows(self, folder: RunFolder, results: Walked, choice: Mapping[str, Any]) -> list[Row]:
        """Every road's score of every task on the test split."""
        return [
            Row(
                method=name,
                seed=self.spec.seed,
                task=task,
                metric=expert.metric,
                value=results.scores.mean(road, task, "test"),
                direction=expert.direction,
                selection=choice["rule"],
                memory=float(results.scores.about(road)["bytes"]),
            )
            for name, road in results.roads.items()
            for task, expert in self.spec.experts.items()
        ]

    def summary(self, folder: RunFolder, results: Walked, choice: Mapping[str, Any], verdict: Verdict | None) -> dict[str, Any]:
        """What the report says of a study of checkpoints."""
        scores, roads = results.scores, results.roads
        told = f"No verdict: {choice['reason']}." if verdict is None else verdict.headline
        advice = {"one model": f"Recommended: {choice['winner']}", "specialists": "Recommended: keep your experts"}
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.spec.kind,
            "name": folder.path.name,
            "headline": f"{told.rstrip('.')}. {advice[choice['recommended']]} ({choice['reason']}).",
            "tasks": [
                {"name": t, "role": "main", "metric": e.metric, "direction": e.direction} for t, e in self.spec.experts.items()
            ],
            "candidates": {
                name: {
                    **scores.about(road),
                    "valid": {t: scores.mean(road, t, "valid") for t in self.paths},
                    "test": {t: scores.mean(road, t, "test") for t in self.paths},
                    "delta": -100 * float(np.mean(list(self._losses(results, road, "test").values()))),
                }
                for name, road in roads.items()
            },
            "parts": {s: sum(len(scores.of(roads[EXPERTS], t, s)) for t in self.paths) for s in ("valid", "test")},
            "warnings": [],
            "notes": self.plan.notes,
            "heads": {t: list(names) for t, names in self.plan.heads.items()},
            "left_out": results.left_out,
            "failed": results.failed,
            "settings": self.spec.model_dump(),
            "evaluate": self.named,
            "seconds": scores.spent,
            "versions": {"pluribus": pluribus.__version__, "python": platform.python_version(), "torch": torch.__version__},
        }
