"""A study of checkpoints: experts of one base against every road to one model, judged by somebody's own evaluation.

    read → check headers → score every candidate on valid → choose (choice.json) → score on test, once → verdict → model, report

The evaluator is code and therefore never named in a file: it is handed over. `evaluate(model, task, split)` gets the model of one
task (the transformers module where the experts' folders have configurations, else the tensors by name), the task's name, and
what the study file says under `valid` or `test`; it gives a DataFrame of `id`, `score` and perhaps `group`, whose mean score is
the metric. Every candidate is asked about the same rows.

The choice looks at the valid split only: among the roads that lose at most 2 % of the expert's score on every task, the one that
stores the fewest bytes; where there is none, the experts stay. What is finished stays on disk, and the same call goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

import pluribus
from pluribus import catalog
from pluribus.errors import BadInput, unknown
from pluribus.evaluation.verdict import TOLERANCE, Verdict
from pluribus.files import atomic_file, file_lock, read_json, read_yaml, sha256
from pluribus.files.plain import plain
from pluribus.merging.bundle import ROADS, bundle, homes_of
from pluribus.merging.checkpoints import config
from pluribus.merging.container import MergeContainer
from pluribus.merging.modules import example, filled, names_in, skeleton
from pluribus.merging.run import is_static, prepare
from pluribus.study.paired import Scored, compare_scores
from pluribus.study.spec import SCHEMA_VERSION, checked, seconds
from pluribus.study.study import OPENINGS, StudyResult, open_run

EXPERTS = "experts"
METHODS = ("average", "task_arithmetic", "ties", "tsv_m", "emr", "lora")
COLUMNS = ("id", "score", "group")
REQUESTS = 60  # forwards of one row that the latencies are taken from

Evaluate = Callable[[Any, str, str], Any]


class Expert(BaseModel):
    """One task: its fine-tuned model, its metric, and what the evaluator is told for each split."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["max", "min"]
    valid: str
    test: str
    head: str | None = None


class Road(BaseModel):
    """A candidate: a merger, or "emr", "tall_masks", "twin", "lora"; with its settings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: str
    settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.settings.items())])


class CheckpointStudy(BaseModel):
    """A study of checkpoints (`kind: checkpoints`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    kind: Literal["checkpoints"] = "checkpoints"
    base: str
    experts: Annotated[dict[str, Expert], Field(min_length=1)]
    methods: list[str | Road] | None = None
    name: str | None = None
    budget: str | float = "1h"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    repeats: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: int = 0

    def roads(self) -> list[Road]:
        return [Road(method=m) if isinstance(m, str) else m for m in (METHODS if self.methods is None else self.methods)]


def parse(row: Any, *, where: str, beside: Path | None = None) -> CheckpointStudy:
    """Check settings; relative paths that are not there are looked for in `beside`."""
    if not isinstance(row, Mapping):
        raise BadInput("holds no settings", where=where, remedy="write `key: value` lines")
    if any(key in ("evaluate", "evaluator", "code") for key in row):
        remedy = "leave it out and write --evaluate FILE.py:FUNCTION on the command line"
        raise BadInput("names code, which no file may", where=where, remedy=remedy)
    spec = checked(CheckpointStudy, row, where=where, nested=(Expert, Road), schema="pluribus schema --kind checkpoints")
    seconds(spec.budget, where=f"{where}, budget")
    seen: set[str] = set()
    for road in spec.roads():
        known = [*ROADS[1:], *(e.name for e in catalog.entries(family="merger") if is_static(e.name))]
        if road.method not in known:
            raise unknown("method", road.method, known, where=f"{where}, methods")
        if road.name in seen:
            raise BadInput(f"names {road.name!r} twice", where=f"{where}, methods", remedy="leave one out")
        seen.add(road.name)

    def place(name: str) -> str:
        return name if beside is None or Path(name).is_absolute() or Path(name).exists() else str(beside / name)

    def told(text: str) -> str:  # a split may be any word; where it is a file, the file's place
        return place(text) if beside is not None and (beside / text).exists() else text

    experts = {
        task: e.model_copy(update={"path": place(e.path), "valid": told(e.valid), "test": told(e.test)})
        for task, e in spec.experts.items()
    }
    return spec.model_copy(update={"base": place(spec.base), "experts": experts})


def load(path: str | Path) -> CheckpointStudy:
    """A study file. Relative paths are looked for beside the file."""
    spec = parse(read_yaml(path, what="study file"), where=str(path), beside=Path(path).parent)
    return spec if spec.name else spec.model_copy(update={"name": Path(path).stem})


class CheckpointsStudy:
    """Walk the roads. folder: where runs are kept. evaluate: see the module; `named` is what it is called in messages and what
    identifies it (a changed evaluator is another run). say: called with a line after each step.

    Raises `BadInput` for checkpoints that do not fit together, before anything is written, and for an evaluator whose answer
    is not what it must be.
    """

    def __init__(
        self,
        spec: CheckpointStudy,
        evaluate: Evaluate,
        *,
        folder: str | Path = "runs",
        named: str = "evaluate",
        code: str = "",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.spec, self.evaluate, self.named, self.code, self.say = spec, evaluate, named, code, say
        self.folder = Path(folder) / (spec.name or "checkpoints")
        self.paths = {task: expert.path for task, expert in spec.experts.items()}
        for who, path in (("base", spec.base), *self.paths.items()):
            if not Path(path).exists():
                raise BadInput("no such file or folder", where=f"{who}: {path}", remedy="check the path")
        self.heads = [expert.head for expert in spec.experts.values() if expert.head]
        self.plan, _, _ = prepare(spec.base, self.paths, "average", heads=self.heads)
        homes = homes_of(self.paths)
        self.homes = homes if len(homes) == len(self.paths) else {}
        self.work = self.folder / "work"

    # -- the steps ------------------------------------------------------------------------------------------------

    def run(self) -> StudyResult:
        """All of it; what is finished is not done again."""
        configuration = self.configuration()
        self._claim(configuration)
        with file_lock(self.folder / ".lock"):
            if (self.folder / "report.json").is_file():
                return open_run(self.folder)
            roads, left_out, failed = self._validate()
            choice = self._choose(roads)
            openings = self._open(configuration)
            verdict = self._judge(roads, choice)
            self._deploy(roads, choice)
            self._report(roads, choice, verdict, left_out, failed, openings)
        return open_run(self.folder)

    def configuration(self) -> str:
        """What a run is identified by: settings, the evaluator's code, and the checkpoints' files, sizes and dates."""
        files: list[Any] = []
        for path in (self.spec.base, *self.paths.values()):
            root = Path(path)
            for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
                if file.is_file():
                    about = file.stat()
                    files.append([file.name, about.st_size, about.st_mtime_ns])
        row = [self.spec.model_dump(exclude={"name", "budget"}), self.code, files]
        return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()

    def _claim(self, configuration: str) -> None:
        import yaml

        path = self.folder / "study.yaml"
        if path.is_file():
            held = read_yaml(path)
            if isinstance(held, dict) and held.get("configuration") == configuration:
                return
            what = "holds a run with other settings, checkpoints or evaluation"
            raise BadInput(what, where=str(self.folder), remedy="choose another --name")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise BadInput("exists and is not a run", where=str(self.folder), remedy="choose another --name")
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            row = {**self.spec.model_dump(), "evaluate": self.named, "configuration": configuration}
            aside.write_text(yaml.safe_dump(row, sort_keys=False, allow_unicode=True), "utf-8")

    def _validate(self) -> tuple[dict[str, Road], list[str], dict[str, str]]:
        """Valid scores of experts and roads within the budget: what has them all, what the budget left out, what failed."""
        budget = seconds(self.spec.budget)
        done: dict[str, Road] = {}
        left_out: list[str] = []
        failed: dict[str, str] = {}
        for road in [Road(method=EXPERTS), *self.spec.roads()]:
            if road.name != EXPERTS and self._spent() >= budget and not self._finished(road):
                left_out.append(road.name)
                continue
            try:
                self._score(road, "valid")
            except BadInput as error:
                if road.name == EXPERTS or self.named in (error.where or ""):
                    raise
                failed[road.name] = str(error)
                self.say(f"{road.name}: left out, {error}")
                continue
            done[road.name] = road
            if road.name != EXPERTS:
                values = ", ".join(f"{t} {self._mean(road, t, 'valid'):.4g}" for t in self.paths)
                self.say(f"{road.name}: {values}; {self._about(road)['bytes'] / 1e6:.3g} MB")
        return done, left_out, failed

    def _score(self, road: Road, split: str) -> None:
        """Ask the evaluator about every task of a road that has no scores yet."""
        missing = [t for t in self.paths if not self._file(road, t, split).is_file()]
        if not missing and (self._place(road) / "about.json").is_file():
            return
        start = time.process_time()

        def spend() -> None:
            nonlocal start
            now = time.process_time()
            self._spend(now - start)
            start = now

        with torch.no_grad():
            container = self.container(road)
            if not (self._place(road) / "about.json").is_file():
                about = {
                    "method": road.method,
                    "settings": road.settings,
                    "bytes": sum(container.bytes().values()),
                    "parts": container.bytes(),
                    "latency": self._latency(container),
                }
                self._place(road).mkdir(parents=True, exist_ok=True)
                with atomic_file(self._place(road) / "about.json") as aside:
                    aside.write_text(json.dumps(about), "utf-8")
            spend()
            for task in missing:
                frame = self._asked(container, road, task, split)
                with atomic_file(self._file(road, task, split)) as aside:
                    frame.to_parquet(aside, index=False)
                spend()

    def container(self, road: Road) -> MergeContainer:
        """The road's model."""
        return bundle(self.spec.base, self.paths, road.method, heads=self.heads, **road.settings)

    def _asked(self, container: MergeContainer, road: Road, task: str, split: str) -> Any:
        """The evaluator's answer about one task, checked."""
        import pandas as pd

        expert = self.spec.experts[task]
        where = f"{self.named}, {road.name}, task {task!r}, {split}"
        state = container.state(task)
        model = filled(config(self.homes[task]), state, f"task {task!r} ({self.homes[task]})") if self.homes else state
        try:
            frame = self.evaluate(model, task, getattr(expert, split))
        except Exception as error:
            what = f"raised {type(error).__name__}: {str(error)[:300]}"
            raise BadInput(what, where=where, remedy="mend the evaluator") from error
        remedy = "give a DataFrame with one row a test row: id, score, and group where rows belong together"
        if not isinstance(frame, pd.DataFrame):
            raise BadInput(f"gave {type(frame).__name__}, not a DataFrame", where=where, remedy=remedy)
        for name in ("id", "score"):
            if name not in frame.columns:
                raise BadInput(f"gave no column {name!r}", where=where, remedy=remedy)
        for name in frame.columns:
            if name not in COLUMNS:
                raise unknown("column", str(name), COLUMNS, where=where)
        frame = frame.reset_index(drop=True)
        if not len(frame):
            raise BadInput("gave no row", where=where, remedy=remedy)
        if frame["id"].isna().any() or frame["id"].duplicated().any():
            shown = frame["id"][frame["id"].duplicated() | frame["id"].isna()].iloc[0]
            raise BadInput(f"gave the id '{shown}' twice, or none", where=where, remedy="give each row an id of its own")
        score = pd.to_numeric(frame["score"], errors="coerce").astype(float)
        if not np.isfinite(score).all():
            shown = frame["id"][~np.isfinite(score)].iloc[0]
            raise BadInput(f"gave no finite score for id '{shown}'", where=where, remedy="leave that row out for every model")
        found = pd.DataFrame({"id": frame["id"].astype(str), "score": score})
        if "group" in frame.columns:
            if frame["group"].isna().any():
                raise BadInput("gave rows without a group", where=where, remedy="give every row one, or leave the column out")
            found["group"] = frame["group"].astype(str)
        found = found.sort_values("id", kind="stable", ignore_index=True)
        if road.name != EXPERTS:
            known = self._scores(Road(method=EXPERTS), task, split)
            if not known["id"].equals(found["id"]):
                odd = sorted(set(known["id"]) ^ set(found["id"]))
                what = f"gave other rows than for the expert ({len(odd)} ids differ, {odd[0]!r} among them)"
                raise BadInput(what, where=where, remedy="score the same rows for every model")
            if not known.get("group", known["id"]).equals(found.get("group", found["id"])):
                raise BadInput("gave other groups than for the expert", where=where, remedy="a row's group is the row's own")
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

    def _choose(self, roads: Mapping[str, Road]) -> dict[str, Any]:
        """By the valid split alone; what is written stays."""
        path = self.folder / "choice.json"
        if path.is_file():
            found: dict[str, Any] = read_json(path)
            return found
        base = {t: self._mean(roads[EXPERTS], t, "valid") for t in self.paths}
        losses: dict[str, dict[str, float]] = {}
        for name, road in roads.items():
            if name != EXPERTS:
                losses[name] = {t: self._lost(t, self._mean(road, t, "valid"), base[t]) for t in self.paths}
        good = [name for name, lost in losses.items() if max(lost.values()) <= TOLERANCE]
        if good:
            winner = min(good, key=lambda name: (self._about(roads[name])["bytes"], float(np.mean(list(losses[name].values())))))
            reason = f"{winner} stores the least of what loses at most {TOLERANCE:.0%} of any expert's valid score"
        else:
            winner = min(losses, key=lambda name: float(np.mean(list(losses[name].values())))) if losses else ""
            reason = f"every road loses more than {TOLERANCE:.0%} of some expert's valid score"
        rule = f"fewest bytes among those that lose at most {TOLERANCE:.0%} on every task of the valid split"
        choice = {
            "recommended": "one model" if good else "specialists",
            "winner": winner,
            "reason": reason,
            "deployed": winner if good else EXPERTS,
            "lost": losses,
            "rule": rule,
        }
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(plain(choice), indent=1), "utf-8")
        return choice

    def _lost(self, task: str, value: float, expert: float) -> float:
        """The share of the expert's score that is lost; negative where it is gained."""
        sign = 1 if self.spec.experts[task].direction == "max" else -1
        return sign * (expert - value) / max(abs(expert), 1e-12)

    def _open(self, configuration: str) -> int:
        """Count the openings of this test split: once a run."""
        mine = self.folder / "opened.json"
        path = self.folder.parent / OPENINGS
        key = hashlib.sha256(json.dumps([[t, e.test] for t, e in self.spec.experts.items()]).encode()).hexdigest()
        with file_lock(self.folder.parent / ".lock"):
            counts: dict[str, int] = read_json(path) if path.is_file() else {}
            if not mine.is_file():
                counts[key] = counts.get(key, 0) + 1
                with atomic_file(path) as aside:
                    aside.write_text(json.dumps(counts, indent=1), "utf-8")
                with atomic_file(mine) as aside:
                    aside.write_text(json.dumps({"configuration": configuration}), "utf-8")
        return counts.get(key, 1)

    def _judge(self, roads: Mapping[str, Road], choice: Mapping[str, Any]) -> Verdict | None:
        for road in roads.values():
            self._score(road, "test")
        if not choice["winner"]:
            return None
        challenger, unit = {}, "row"
        for task, expert in self.spec.experts.items():
            frame = self._scores(roads[choice["winner"]], task, "test")
            unit = "group" if "group" in frame else unit
            units = frame["group" if "group" in frame else "id"].to_numpy()
            challenger[task] = Scored(expert.metric, expert.direction, units, frame["score"].to_numpy(float))
        others = [EXPERTS, *(["average"] if "average" in roads and choice["winner"] != "average" else [])]
        references = {
            name: {t: self._scores(roads[name], t, "test")["score"].to_numpy(float) for t in self.paths} for name in others
        }
        verdict = compare_scores(
            challenger,
            references,
            name=choice["winner"],
            unit=unit,
            level=self.spec.level,
            repeats=self.spec.repeats,
            seed=self.spec.seed,
            notes=self.plan.notes,
        )
        with atomic_file(self.folder / "verdict.json") as aside:
            aside.write_text(json.dumps(verdict.to_dict(), indent=1), "utf-8")
        return verdict

    def _deploy(self, roads: Mapping[str, Road], choice: Mapping[str, Any]) -> None:
        """The recommended model, or the experts side by side, as one folder that `pluribus serve` takes."""
        if not (self.folder / "model" / "pluribus.json").is_file():
            self.container(roads[choice["deployed"]]).save(self.folder / "model", self.homes or None)

    def _report(
        self,
        roads: Mapping[str, Road],
        choice: dict[str, Any],
        verdict: Verdict | None,
        left_out: list[str],
        failed: dict[str, str],
        openings: int,
    ) -> None:
        import pandas as pd

        from pluribus.study.report import write_report

        rows = []
        for name, road in roads.items():
            for task, expert in self.spec.experts.items():
                rows.append(
                    {
                        "method": name,
                        "seed": self.spec.seed,
                        "task": task,
                        "metric": expert.metric,
                        "value": self._mean(road, task, "test"),
                        "direction": expert.direction,
                        "selection": choice["rule"],
                        "seconds": None,
                        "memory": float(self._about(road)["bytes"]),
                        "main": True,
                    }
                )
        with atomic_file(self.folder / "results.parquet") as aside:
            pd.DataFrame(rows).astype({"seconds": "float64", "memory": "float64"}).to_parquet(aside, index=False)
        told = f"No verdict: {choice['reason']}." if verdict is None else verdict.headline
        advice = {"one model": f"Recommended: {choice['winner']}", "specialists": "Recommended: keep your experts"}
        summary = {
            "schema_version": SCHEMA_VERSION,
            "kind": "checkpoints",
            "name": self.folder.name,
            "headline": f"{told.rstrip('.')}. {advice[choice['recommended']]} ({choice['reason']}).",
            "choice": choice,
            "verdict": None if verdict is None else verdict.to_dict(),
            "tasks": [
                {"name": t, "role": "main", "metric": e.metric, "direction": e.direction} for t, e in self.spec.experts.items()
            ],
            "candidates": {
                name: {
                    **self._about(road),
                    "valid": {t: self._mean(road, t, "valid") for t in self.paths},
                    "test": {t: self._mean(road, t, "test") for t in self.paths},
                    "delta": -100
                    * float(
                        np.mean(
                            [
                                self._lost(t, self._mean(road, t, "test"), self._mean(roads[EXPERTS], t, "test"))
                                for t in self.paths
                            ]
                        )
                    ),
                }
                for name, road in roads.items()
            },
            "parts": {s: sum(len(self._scores(roads[EXPERTS], t, s)) for t in self.paths) for s in ("valid", "test")},
            "warnings": [],
            "notes": self.plan.notes,
            "heads": {t: list(names) for t, names in self.plan.heads.items()},
            "left_out": left_out,
            "failed": failed,
            "openings": openings,
            "settings": self.spec.model_dump(),
            "evaluate": self.named,
            "seconds": self._spent(),
            "versions": {"pluribus": pluribus.__version__, "python": platform.python_version(), "torch": torch.__version__},
        }
        with atomic_file(self.folder / "report.json") as aside:
            aside.write_text(json.dumps(plain(summary), allow_nan=False), "utf-8")
        write_report(self.folder)

    # -- files ----------------------------------------------------------------------------------------------------

    def _place(self, road: Road) -> Path:
        return self.work / (hashlib.sha256(road.name.encode()).hexdigest()[:12] if road.settings else road.method)

    def _file(self, road: Road, task: str, split: str) -> Path:
        return self._place(road) / f"{split}-{list(self.paths).index(task)}.parquet"

    def _finished(self, road: Road) -> bool:
        return all(self._file(road, t, "valid").is_file() for t in self.paths)

    def _scores(self, road: Road, task: str, split: str) -> Any:
        import pandas as pd

        return pd.read_parquet(self._file(road, task, split))

    def _mean(self, road: Road, task: str, split: str) -> float:
        return float(self._scores(road, task, split)["score"].mean())

    def _about(self, road: Road) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self._place(road) / "about.json")
        return found

    def _spent(self) -> float:
        path = self.work / "spent.json"
        return float(read_json(path)["seconds"]) if path.is_file() else 0.0

    def _spend(self, more: float) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        before = self._spent()
        with atomic_file(self.work / "spent.json") as aside:
            aside.write_text(json.dumps({"seconds": before + max(0.0, more)}), "utf-8")


def code_of(place: str, option: str = "--evaluate") -> tuple[Callable[..., Any], str]:
    """`FILE.py:FUNCTION` as the function and its file's hash: code named by the one who types the command."""
    import importlib.util
    import sys

    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not path.is_file():
        raise BadInput("is not FILE.py:FUNCTION", where=f"{option} {place}", remedy="name a Python file and a function in it")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.fspath(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadInput(f"cannot be run ({type(error).__name__}: {str(error)[:200]})", where=file, remedy="mend it") from error
    if not callable(getattr(module, name, None)):
        raise unknown("function", name, [n for n in vars(module) if not n.startswith("_")], where=file)
    return getattr(module, name), sha256(path)
