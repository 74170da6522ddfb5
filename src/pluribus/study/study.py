"""A study: several roads walked on one table, the winner judged against the specialists, one model left to use.

    read → split → prepare → plan → screen → finals → choose (choice.json) → open the test split once → verdict → model, report

Everything lands below `runs/NAME/`. Killed at any moment, the same call goes on where it stopped: a finished trial is a folder
that is there, and each later file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pluribus
from pluribus.data import leakage
from pluribus.data.cells import Cells, feed
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import Split, split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.evaluation import calibration
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.files import atomic_file, file_lock, read_json, read_yaml
from pluribus.files.linked import link_equal
from pluribus.modeling import Fitted, load
from pluribus.study import generated, selection
from pluribus.study import spec as specs
from pluribus.study.champion import Champion, read_champion
from pluribus.study.committee import Committee
from pluribus.study.plan import Plan, plan
from pluribus.study.pool import Workers
from pluribus.study.progress import Reporter
from pluribus.study.selection import CHAMPION, Choice, Finalist
from pluribus.study.training import Training
from pluribus.study.trial import Predictions, cell_scores, constants
from pluribus.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

OPENINGS = ".test_openings.json"


@dataclass(frozen=True)
class StudyResult:
    """What a finished study left below its folder."""

    folder: Path
    choice: dict[str, Any]
    verdict: Verdict | None

    @cached_property
    def model(self) -> Fitted:
        """The recommended model, loaded."""
        return load(self.folder / "model")

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


class Study:
    """A study of one table.

    Parameters
    ----------
    table: a CSV or Parquet file, a DataFrame, or a `Table` (then the roles are the table's own).
    targets: `NAME[:KIND]` strings or `Task` objects; what is predicted.
    folder: where runs are kept; a study's own folder is `folder/NAME`.
    jobs: trainings at a time, one thread each (default: the number of cores, divided by `processes` where they count).
    processes: how many processes train one joint network together, each its share of every batch (default 1); what has no such
        training (trees, specialists) keeps one. Results agree with those of one process up to rounding and the draws of dropout.
    quiet: no progress bars.
    settings: any key of `pluribus schema`, with the same meaning and default as on the command line: id, ignore, weight,
        group, task_column, split, metrics, candidates, lgbm_params, champion, budget, seeds, allow_committee, name, …

    Raises
    ------
    BadInput: anything in the table or the settings that cannot be used; nothing is written then.
    """

    def __init__(
        self,
        table: str | Path | pd.DataFrame | Table,
        targets: Sequence[str | Task] = (),
        *,
        folder: str | Path = "runs",
        jobs: int | None = None,
        processes: int = 1,
        quiet: bool = True,
        **settings: Any,
    ) -> None:
        named = [t if isinstance(t, str) else _spec_of(t) for t in targets]
        source = str(table) if isinstance(table, (str, Path)) else getattr(table, "source", "table")
        if isinstance(table, Table):
            named = [_spec_of(task) for task in table.tasks]
        row = {"table": source, "targets": named, **settings}
        given = None if isinstance(table, (str, Path)) else table
        self._begin(specs.parse(row, where="study"), given, folder, jobs, processes, quiet)

    @classmethod
    def from_spec(
        cls,
        spec: specs.TableStudy,
        *,
        folder: str | Path = "runs",
        jobs: int | None = None,
        processes: int = 1,
        quiet: bool = True,
    ) -> Study:
        """A study from checked settings (`pluribus.study.spec.load` reads them from a file)."""
        study = cls.__new__(cls)
        study._begin(spec, None, folder, jobs, processes, quiet)
        return study

    def _begin(
        self,
        spec: specs.TableStudy,
        given: pd.DataFrame | Table | None,
        folder: str | Path,
        jobs: int | None,
        processes: int,
        quiet: bool,
    ) -> None:
        self.spec, self.quiet, self._given = spec, quiet, given
        self.folder = Path(folder) / spec.run_name
        cores = max(1, os.cpu_count() or 1)
        self.processes = processes
        self.jobs = jobs if jobs is not None else cores
        self.teams = jobs if jobs is not None else max(1, cores // max(1, processes))
        for word, value in (("jobs", self.jobs), ("processes", self.processes)):
            if value < 1:
                raise BadInput(f"is {value}; it must be at least 1", where=word, remedy="give a whole number from 1 on")

    # -- the steps ------------------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> Table:
        """The table with its roles; kinds are inferred where none was given."""
        spec = self.spec
        roles: dict[str, Any] = {
            "id": spec.id,
            "ignore": tuple(spec.ignore),
            "weight": spec.weight,
            "group": spec.group,
            "task_column": spec.task_column,
            "split": spec.split,
            "not_applicable": spec.not_applicable,
            "delayed": spec.delayed,
            "late": spec.late,
            "text": tuple(spec.text),
            "max_length": spec.max_length,
        }
        if spec.items and not isinstance(self._given, Table):
            from pluribus.data import ItemTable

            roles["items"] = {
                name: ItemTable.read(i.path, i.key, i.columns, ignore=i.ignore, text=i.text, max_length=spec.max_length)
                for name, i in spec.items.items()
            }
        if isinstance(self._given, Table):
            table = self._given
        elif self._given is not None:
            table = Table(self._given, spec.tasks(), **roles)
        elif isinstance(spec.table, str):
            table = Table.read(spec.table, spec.tasks(), **roles)
        else:
            names = [t.rsplit(":", 1)[0] if isinstance(t, str) else t.name for t in spec.tasks()]
            frame = generated.make(spec.table.model_dump(), names)
            table = Table(frame, spec.tasks(), source=spec.table.generator, **roles)
        table.tasks = specs.metrics_of(spec, table.tasks)
        return table

    @cached_property
    def split(self) -> Split:
        return split(self.table, self.spec.seed)

    @cached_property
    def data(self) -> Prepared:
        """Everything encoded, test rows included; candidates are handed a copy without the test part's labels."""
        return prepare(self.table, self.split)

    @cached_property
    def learnable(self) -> Prepared:
        """What trials see: the train and valid parts, and no label of a test row."""
        seen = {name: self.split.parts[name] for name in ("train", "valid")}
        rows = np.sort(np.concatenate(list(seen.values())))
        cells: dict[str, Cells] = {name: each.within(rows) for name, each in self.data.cells.items()}
        return replace(self.data, parts=seen, cells=cells)

    @cached_property
    def champion(self) -> Champion | None:
        if self.spec.champion is None:
            return None
        held = np.sort(np.concatenate([self.split.parts["valid"], self.split.parts["test"]]))
        needed = {name: cells.within(held).rows for name, cells in self.table.cells.items()}
        return read_champion(self.spec.champion, self.table, needed)

    @cached_property
    def data_hash(self) -> str:
        """One hash of all tasks' data and roles."""
        lineage = leakage.lineage(self.table)
        parts = hashlib.sha256(self.split.part_of().tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([lineage, parts], sort_keys=True).encode()).hexdigest()

    @cached_property
    def _plan(self) -> Plan:
        return plan(self.spec, self.learnable)

    def plan(self) -> Plan:
        """Check everything, write `split.parquet` and `study.yaml`, and return what would be trained at what cost."""
        found = self._plan
        _ = self.champion
        self._claim()
        with atomic_file(self.folder / "split.parquet") as aside:
            self.split.to_frame(self.table).to_parquet(aside)
        return found

    def run(self) -> StudyResult:
        """Train, choose, judge, save and report; goes on where an earlier call with the same settings stopped."""
        began = time.monotonic()
        planned = self.plan()
        report = Reporter(self.folder, self.jobs, quiet=self.quiet)
        report.event("plan", text=planned.text())
        done = self._finished()
        if done is not None:
            report.note("finished before; nothing is trained again")
            from pluribus.study.report import write_report

            write_report(self.folder)
            return done
        findings = leakage.check(self.table, self.split, self.learnable, seed=self.spec.seed)
        for finding in findings:
            report.warn(finding.text)
        prepared = self.folder / "work" / "prepared"
        if not (prepared / "prepared.json").is_file():
            self.learnable.save(prepared)
        with report.running(planned), Workers(self.jobs) as workers:
            training = Training(self.folder / "work", planned, report, workers, self.teams, self.processes, self.spec.seed)
            trained = training.run(len(self.table.tasks), balancers=bool(self.spec.balancers))
        finalists, everyone = trained.finalists, [*trained.finalists, *trained.longer]
        choice = self._choose(finalists)
        report.note(f"chosen on validation: {choice.recommended} ({choice.reason})")
        with atomic_file(self.folder / "choice.json") as aside:
            aside.write_text(json.dumps(choice.to_dict(), indent=1), "utf-8")
        openings = self._open_test()
        report.note(f"the test split is opened for the {_ordinal(openings)} time")
        verdict, test = self._judge(finalists, trained.longer, choice)
        model = self._deploy(finalists, choice, verdict)
        from pluribus.study.summary import scores_on_test, write_results, write_summary

        scores = scores_on_test(self.data, test)
        write_results(self.folder, self, everyone, scores)
        write_summary(
            self.folder,
            self,
            planned,
            everyone,
            trained.failed,
            choice,
            verdict,
            scores,
            model,
            findings,
            openings,
            notes=trained.notes,
            seconds=time.monotonic() - began,
        )
        from pluribus.study.report import write_report

        write_report(self.folder)
        report.event("end", seconds=time.monotonic() - began)
        return StudyResult(self.folder, choice.to_dict(), verdict)

    # -- choosing and judging -------------------------------------------------------------------------------------

    def _choose(self, finalists: Sequence[Finalist]) -> Choice:
        champion = None
        if self.champion is not None:
            champion = {
                name: self.champion.at(name, self.learnable.labelled(name, "valid").rows) for name in self.champion.values
            }
        spec = self.spec
        return selection.choose(
            self.learnable,
            finalists,
            champion,
            allow_committee=spec.allow_committee,
            level=spec.level,
            repeats=spec.repeats,
            seed=spec.seed,
            unit=self.split.unit,
        )

    def _open_test(self) -> int:
        """Count this opening of the test split, by the hash of its rows and labels, over all runs of the folder."""
        digest = hashlib.sha256()
        test = self.split.parts["test"]
        for task in self.table.tasks:
            cells = self.data.cells[task.name].within(test)
            digest.update(task.name.encode())
            feed(digest, cells.values, task.size or 0)
        key = digest.hexdigest()
        path = self.folder.parent / OPENINGS
        with file_lock(self.folder.parent / ".lock"):
            counts: dict[str, int] = read_json(path) if path.is_file() else {}
            counts[key] = counts.get(key, 0) + 1
            with atomic_file(path) as aside:
                aside.write_text(json.dumps(counts, indent=1), "utf-8")
        return counts[key]

    def _judge(
        self, finalists: Sequence[Finalist], longer: Sequence[Finalist], choice: Choice
    ) -> tuple[Verdict | None, dict[str, list[Predictions]]]:
        """Test predictions of every finalist (only winner against reference is claimed), and the verdict."""
        trials = self.folder / "work" / "trials"
        test = {
            f.candidate: [cell_scores(load(trials / t / "model"), self.data, "test", calibrated=True) for t in f.trials]
            for f in (*finalists, *longer)
        }
        if self.champion is not None:
            test[CHAMPION] = [
                {name: self.champion.at(name, self.data.labelled(name, "test").rows) for name in self.champion.values}
            ]
        if choice.winner is None or not choice.specialists:
            return None, test
        tasks = [task for task in self.table.tasks if task.name in choice.specialists]
        references: dict[str, dict[str, list[Any]]] = {
            "best specialists": {t.name: [p[t.name] for p in test[choice.specialists[t.name]]] for t in tasks}
        }
        if choice.same_encoder is not None:
            references["same-encoder specialists"] = {t.name: [p[t.name] for p in test[choice.same_encoder]] for t in tasks}
        truth, units = selection.truth_of(self.data, "test", {task.name for task in tasks})
        challenger = {t.name: [p[t.name] for p in test[choice.winner]] for t in tasks}
        settings: dict[str, Any] = {
            "constants": constants(self.data),
            "challenger_name": _label(finalists, choice.winner),
            "unit": self.split.unit,
            "level": self.spec.level,
            "repeats": self.spec.repeats,
            "seed": self.spec.seed,
            "doubts": self._doubts(finalists, choice),
        }
        notes = [*self.notes(), *self._new_groups(tasks, truth, units, challenger, references, settings)]
        verdict = judge(tasks, truth, units, challenger, references, notes=notes, **settings)
        with atomic_file(self.folder / "verdict.json") as aside:
            aside.write_text(json.dumps(verdict.to_dict(), indent=1), "utf-8")
        return verdict, test

    def _new_groups(
        self,
        tasks: Sequence[Task],
        truth: Mapping[str, TaskTruth],
        units: Any,
        challenger: Mapping[str, list[Any]],
        references: Mapping[str, Mapping[str, list[Any]]],
        settings: Mapping[str, Any],
    ) -> list[str]:
        """One line on the test rows whose group was never seen in training, where other groups were (exploratory)."""
        fresh = np.isin(self.split.parts["test"], self.split.new_groups)
        if self.table.group is None or fresh.all():
            return []
        lead = f"New groups only ({int(fresh.sum())} of {len(fresh)} test rows, exploratory): "
        kept = {name: fresh[one.rows] for name, one in truth.items()}
        left = [task for task in tasks if kept[task.name].any()]
        if not left:
            return [lead + "no labelled row"]

        def cut(side: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            return {t.name: [p[kept[t.name]] for p in side[t.name]] for t in left if t.name in side}

        seen = {
            name: TaskTruth(
                one.rows[at := kept[name]],
                one.target[at],
                None if one.weight is None else one.weight[at],
                None if one.groups is None else one.groups[at],
            )
            for name, one in truth.items()
        }
        first = next(iter(references))
        verdict = judge(left, seen, units, cut(challenger), {first: cut(references[first])}, **settings)
        return [lead + verdict.headline]

    def _doubts(self, finalists: Sequence[Finalist], choice: Choice) -> dict[str, str]:
        """Tasks about which no word is given, because a side was cut short by the budget."""
        by_name = {f.candidate: f for f in finalists}
        found = {}
        for task in self.table.tasks:
            for side in (choice.winner, choice.specialists.get(task.name)):
                if side in by_name and task.name in by_name[side].undertrained:
                    found[task.name] = f"{by_name[side].label} is undertrained: the budget ended before its early stop"
        return found

    def notes(self) -> tuple[str, ...]:
        """What was inferred and what a reader must know: kinds, the split, the champion."""
        notes = [*self.table.notes, *self.split.notes]
        if self.champion is not None:
            notes.append(f"{self.champion.path} must have been fitted on the train part only; this cannot be checked here")
        if self.processes > 1:
            notes.append(f"Joint networks were trained by {self.processes} processes each, one thread a process")
        return tuple(notes)

    # -- the model ------------------------------------------------------------------------------------------------

    def _deploy(self, finalists: Sequence[Finalist], choice: Choice, verdict: Verdict | None) -> Fitted:
        """Write `model/`: the winner, or a committee; with everything that travels with it."""
        trials = self.folder / "work" / "trials"
        members = {name: load(trials / choice.trials[name] / "model") for name in dict.fromkeys(choice.answers.values())}
        if len(members) == 1:
            (model,) = members.values()
        else:
            model = Committee(self.table.tasks, self.data.columns, members, choice.answers)
        model.tasks = self.table.tasks
        model.record = {
            **(model.record if len(members) == 1 else {}),
            "study": self.spec.run_name,
            "recommended": choice.recommended,
            "answers": choice.answers,
            "hashes": {"data": self.data_hash, "code": code_hash(), "tasks": leakage.lineage(self.table)},
            "versions": {"pluribus": pluribus.__version__, "python": platform.python_version()},
            "reliability": self._reliability(finalists, choice),
            "metrics": None if verdict is None else verdict.to_dict()["comparisons"][0]["tasks"],
        }
        model.save(self.folder / "model")
        kept = [trials / choice.trials[name] / "model" for name in members]
        for file in sorted(path for path in (self.folder / "model").rglob("*") if path.is_file()):  # weights are stored once
            link_equal(file, [twin for folder in kept for twin in sorted(folder.rglob(file.name))])
        return model

    def _reliability(self, finalists: Sequence[Finalist], choice: Choice) -> dict[str, Any]:
        """Binary task → reliability table of the answering model's validation predictions (cross-fitted calibration)."""
        by_name = {f.candidate: f for f in finalists}
        found = {}
        for task in self.table.tasks:
            if task.kind != "binary":
                continue
            f = by_name[choice.answers[task.name]]
            p = f.valid[int(np.argmax(f.rules))][task.name]
            cells = self.learnable.labelled(task.name, "valid")
            table = calibration.reliability(p, cells.values, cells.weight)
            found[task.name] = [vars(row) for row in table]
        return found

    # -- files ----------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Take the run's folder, or refuse it where another configuration holds it."""
        import yaml

        mine = specs.configuration_hash(self.spec, self.data_hash)
        path = self.folder / "study.yaml"
        if path.is_file():
            held = read_yaml(path)
            if isinstance(held, dict) and held.get("configuration") == mine:
                return
            if (self.folder / "work").exists():  # a mere plan may be planned anew
                raise BadInput("holds a run with other settings or data", where=str(self.folder), remedy="choose another --name")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise BadInput("exists and is not a run", where=str(self.folder), remedy="choose another --name")
        resolved = {
            **self.spec.model_dump(),
            "targets": [{**_spec_of(task)} for task in self.table.tasks],
            "split": self.table.split,
            "configuration": mine,
        }
        with atomic_file(path) as aside:
            aside.write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), "utf-8")

    def _finished(self) -> StudyResult | None:
        if not (self.folder / "report.json").is_file():
            return None
        return open_run(self.folder)

    def clean(self) -> None:
        """Remove the intermediate files (prepared table, trials); the results stay, and the run cannot be resumed."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)


def open_run(folder: str | Path) -> StudyResult:
    """A finished run from its folder."""
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise BadInput("holds no finished study", where=str(folder), remedy="run `pluribus study` first")
    verdict = folder / "verdict.json"
    return StudyResult(
        folder, read_json(folder / "choice.json"), Verdict.from_dict(read_json(verdict)) if verdict.is_file() else None
    )


def code_hash() -> str:
    """SHA-256 over the package's own sources."""
    root = Path(pluribus.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _label(finalists: Sequence[Finalist], name: str) -> str:
    return next(f.label for f in finalists if f.candidate == name)


def _spec_of(task: Task) -> dict[str, Any]:
    """A task as a `TaskSpec` mapping."""
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "metrics": [m.name for m in task.metrics],
        "weight": task.weight,
        "role": task.role,
        "absent": task.absent,
        "after": list(task.after),
        "tolerance": task.tolerance,
    }


def _ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"
