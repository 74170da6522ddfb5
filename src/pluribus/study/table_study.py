"""What a study of a table compares: several roads to one model, and the specialists.

read → split → prepare → plan → screen → finals → choose → open the test split → verdict → model, report
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pluribus
from pluribus.data import ItemTable, leakage
from pluribus.data.cells import Cells, feed
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import Split, split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.evaluation import calibration
from pluribus.evaluation.ledger import Row
from pluribus.evaluation.verdict import TaskTruth, Verdict, judge
from pluribus.files import atomic_file
from pluribus.files.linked import link_equal
from pluribus.files.plain import plain
from pluribus.modeling import Fitted, load
from pluribus.modeling.artefact.average import Average
from pluribus.modeling.artefact.committee import Committee
from pluribus.options import ROLES
from pluribus.study import generated, selection, table_slices, table_summary
from pluribus.study import spec as specs
from pluribus.study.champion import Champion, read_champion
from pluribus.study.crews import Crew
from pluribus.study.folds import FEWEST_UNITS, FOLDS, whole, why_not
from pluribus.study.journal import Journal
from pluribus.study.kept_plan import kept
from pluribus.study.leaderboard import leaderboard
from pluribus.study.plan import Plan, chosen_candidates, plan
from pluribus.study.progress import Reporter
from pluribus.study.run_folder import RunFolder
from pluribus.study.selection import CHAMPION, Finalist, StudyChoice
from pluribus.study.training import Trained, Training
from pluribus.study.trial import Predictions, averaged, best_threshold, by_terms, cell_scores, constants
from pluribus.tasks import Task
from pluribus.tasks.metrics import Additive

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Compared:
    """What the steps of a table's study leave to later ones.

    Parameters
    ----------
    journal : Journal
        The trials.
    trained : Trained
        Finalists, second rows, and what failed.
    findings : list of Finding
        What would make the study lie.
    notes : tuple of str
        What was inferred and what a reader must know.
    slices : list of dict
        What each slice of the test part says (`--slice`); filled by `judge`.
    scores, deployed_scores : dict
        Every metric on the test part, of each fit and of their average; filled by `judge`.
    options : list of dict
        What each option does on the test part; filled by `judge`.
    model : Fitted
        The recommended model; set by `deploy`.
    """

    journal: Journal
    trained: Trained
    findings: list[leakage.Finding]
    notes: tuple[str, ...]
    scores: table_summary.Scores = field(default_factory=dict)
    slices: list[dict[str, Any]] = field(default_factory=list)
    deployed_scores: table_summary.Scores = field(default_factory=dict)
    options: list[dict[str, Any]] = field(default_factory=list)
    model: Fitted = field(init=False)


class TableArena:
    """The roads to one model of a table, and the specialists.

    Parameters
    ----------
    spec : TableStudy
        The settings.
    given : DataFrame or Table, optional
        The table itself, where the settings only name it.
    """

    about = "settings or data"

    def __init__(self, spec: specs.TableStudy, given: pd.DataFrame | Table | None = None) -> None:
        self.spec, self._given = spec, given

    # -- the data -------------------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> Table:
        """The table with its roles; kinds are inferred where none was given."""
        spec, given = self.spec, self._given
        if isinstance(given, Table):
            table = given
        elif given is not None:
            table = Table(given, spec.tasks(), **self._roles())
        elif isinstance(spec.table, str):
            table = Table.read(spec.table, spec.tasks(), **spec.reading, **self._roles())
        else:
            names = [t.rsplit(":", 1)[0] if isinstance(t, str) else t.name for t in spec.tasks()]
            frame = generated.make(spec.table.model_dump(), names)
            table = Table(frame, spec.tasks(), source=spec.table.generator, **self._roles())
        table.tasks = specs.tolerances_of(spec, specs.metrics_of(spec, table.tasks))
        return table

    def _roles(self) -> dict[str, Any]:
        """The roles of the table's columns, as `Table` takes them."""
        spec = self.spec
        items = {
            name: ItemTable.read(i.path, i.key, i.columns, ignore=i.ignore, text=i.text, max_length=spec.max_length)
            for name, i in spec.items.items()
        }
        names = [role.name for role in ROLES]
        named = {**spec.model_dump(include=set(names)), "max_length": spec.max_length, "items": items}
        return {**named, "kinds": specs.kinds_of(spec)}

    @cached_property
    def split(self) -> Split:
        """The rows of the three parts."""
        return split(self.table, self.spec.seed)

    @cached_property
    def data(self) -> Prepared:
        """Everything encoded, test rows included; candidates are handed a copy without the test part's labels.

        What is learnt of the columns is learnt from the rows that fits learn from: with folds, those of train and valid.
        """
        if self.folds is None:
            return self._encoded
        parts = self.split.parts
        rows = np.sort(np.concatenate([parts["train"], parts["valid"]]))
        return prepare(self.table, replace(self.split, parts={**parts, "train": rows})).with_parts(**parts)

    @cached_property
    def _encoded(self) -> Prepared:
        """Everything encoded by what the train part says of the columns."""
        return prepare(self.table, self.split)

    @cached_property
    def folds(self) -> int | None:
        """How many folds take the place of one valid part; None: there is one valid part.

        Raises
        ------
        BadInput
            Folds that were asked for cannot be had.
        """
        spec, table, data = self.spec, self.table, self._without_test_labels(self._encoded)
        if spec.folds == 1:
            return None
        why = None
        if table.split != "random":
            why = "a split by time or by a column has one valid part"
        elif spec.champion is not None:
            why = "a champion has no out-of-fold predictions"
        elif spec.balancers:
            why = "balancers are compared on one valid part"
        elif any(by_terms(task) for task in table.tasks):
            why = "lists and maps are not averaged"
        if spec.folds is not None:
            why = why or why_not(data, spec.folds, spec.seed)
            if why is not None:
                raise BadInput(why, where="folds", remedy="leave folds out, or give fewer of them; 1 keeps one valid part")
            return spec.folds
        held = np.concatenate([data.parts["train"], data.parts["valid"]])
        few = len(np.unique(data.units[held])) < FEWEST_UNITS
        return FOLDS if few and not table.text and (why or why_not(data, FOLDS, spec.seed)) is None else None

    @cached_property
    def learnable(self) -> Prepared:
        """What trials see: the train and valid parts, and no label of a test row."""
        return self._without_test_labels(self.data)

    def _without_test_labels(self, data: Prepared) -> Prepared:
        seen = {name: self.split.parts[name] for name in ("train", "valid")}
        rows = np.sort(np.concatenate(list(seen.values())))
        cells: dict[str, Cells] = {name: each.within(rows) for name, each in data.cells.items()}
        return replace(data, parts=seen, cells=cells)

    @cached_property
    def judged(self) -> Prepared:
        """What is chosen on: its valid part holds the judged rows."""
        return self.learnable if self.plan.folds is None else whole(self.learnable)

    @cached_property
    def champion(self) -> Champion | None:
        """The user's own model, where the settings name its predictions."""
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
    def plan(self) -> Plan:
        """What will be trained, and at what cost."""
        return plan(self.spec, self.learnable, self.folds)

    # -- the steps of the arena -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Read and plan everything; see `Arena`."""
        for task in self.table.tasks:
            ranked = [m.name for m in task.metrics if by_terms(task) and not isinstance(m, Additive)]
            if ranked:
                what = f"metric {ranked[0]!r} needs all predictions at once, and a study keeps only the terms of lists and maps"
                raise BadInput(what, where=f"task {task.name!r}", remedy="give it additive metrics alone")
        table_slices.check(self.table, self.spec.slices)
        _ = self.plan, self.champion

    def configuration(self) -> str:
        """Every setting but the name, and the data."""
        return specs.configuration_hash(self.spec, self.data_hash)

    def settings(self) -> dict[str, Any]:
        """The study file, with what was inferred written out."""
        targets = [specs.row_of(task) for task in self.table.tasks]
        return {**self.spec.model_dump(), "targets": targets, "split": self.table.split, "data": self.data_hash}

    def goes_on(self, held: Mapping[str, Any]) -> bool:
        """Whether a run with the same data and settings has only fewer candidates, or other slices: its trials are taken as they
        are. What was set for its candidates must be the same."""
        mine: dict[str, Any] = plain(self.settings())
        free = {"candidates", "slices", "settings", "name", "table", "configuration"}
        if any(held.get(key) != mine.get(key) for key in {*held, *mine} - free):
            return False
        inputs = {source.type for source in self.learnable.columns.inputs}
        before = chosen_candidates(self.spec.model_copy(update={"candidates": held.get("candidates")}), inputs)
        theirs, ours = held.get("settings") or {}, mine["settings"]
        bases = {*before, *(name.partition("+")[0] for name in before)}
        alike = all(theirs.get(name) == ours.get(name) for name in bases)
        return alike and set(before) <= set(chosen_candidates(self.spec, inputs))

    def write_split(self, folder: RunFolder) -> None:
        """`split.parquet`: the part of every row."""
        with atomic_file(folder.path / "split.parquet") as aside:
            self.split.to_frame(self.table).to_parquet(aside)

    def trials(self, folder: RunFolder, crew: Crew, report: Reporter) -> Compared:
        """Look for what would make the study lie, then train every road."""
        vars(self).update(plan=kept(self.plan, folder.work / "roads.json"))
        report.event("plan", text=self.plan.text())
        self.write_split(folder)
        findings = leakage.check(self.table, self.split, self.learnable, seed=self.spec.seed)
        for finding in findings:
            report.warn(finding.text)
        prepared = folder.work / "prepared"
        if not (prepared / "prepared.json").is_file():
            self.learnable.save(prepared)
        with Journal(folder.work / "trials") as journal, report.running(self.plan):
            training = Training(prepared, self.learnable, journal, self.plan, report, crew, self.spec.seed)
            trained = training.run(balancers=bool(self.spec.balancers))
        return Compared(journal, trained, findings, self._notes(crew.processes))

    def _notes(self, processes: int) -> tuple[str, ...]:
        """What was inferred and what a reader must know: kinds, the split, the champion, how joint networks were trained."""
        notes = [*self.table.notes, *self.split.notes]
        if self.champion is not None:
            notes.append(f"{self.champion.path} must have been fitted on the train part only; this cannot be checked here")
        if processes > 1:
            notes.append(f"Joint networks were trained by {processes} processes each, one thread a process")
        return tuple(notes)

    def choose(self, results: Compared) -> dict[str, Any]:
        """The winner, its references and the recommendation; see `selection`."""
        spec, finalists = self.spec, results.trained.finalists
        return selection.choose(
            self.judged,
            finalists,
            None if self.champion is None else self.champion.on(self.judged, "valid"),
            costs={f.candidate: table_summary.costs_of(results.journal, f) for f in finalists},
            judging=selection.Judging(spec.level, spec.repeats, spec.seed, self.split.unit),
            prefer=spec.prefer,
            allow_committee=spec.allow_committee,
            judged_on="valid" if self.plan.folds is None else "out of fold",
        ).to_dict()

    def test_split(self) -> str:
        """The hash of the test part's labels."""
        digest = hashlib.sha256()
        test = self.split.parts["test"]
        for task in self.table.tasks:
            cells = self.data.cells[task.name].within(test)
            digest.update(task.name.encode())
            feed(digest, cells.values, task.size or 0)
        return digest.hexdigest()

    def judge(self, folder: RunFolder, results: Compared, choice: Mapping[str, Any]) -> Verdict | None:
        """Predict the test part with every finalist (only winner against reference is claimed), and judge."""
        chosen, finalists = StudyChoice.from_dict(choice), results.trained.finalists
        test = self._predictions(results)
        deployed = {name: averaged(self.data.tasks, draws, self._best(results, name)) for name, draws in test.items()}
        results.scores = table_summary.scores_on_test(self.data, test)
        results.deployed_scores = table_summary.scores_on_test(self.data, {name: [said] for name, said in deployed.items()})
        if not chosen.specialists:
            return None
        tasks = [task for task in self.table.tasks if task.name in chosen.specialists]
        truth, units = selection.truth_of(self.data, "test", {task.name for task in tasks})
        best = "best specialists"
        sides = {best: {t.name: deployed[chosen.specialists[t.name]][t.name] for t in tasks}}
        settings: dict[str, Any] = {
            "constants": constants(self.data),
            "unit": self.split.unit,
            "level": self.spec.level,
            "repeats": self.spec.repeats,
            "seed": self.spec.seed,
        }
        results.options = self._options(chosen, deployed, tasks, truth, units, sides[best], settings)
        if chosen.winner is None:
            return None
        label = next(f.label for f in finalists if f.candidate == chosen.winner)
        references: dict[str, dict[str, list[Any]]] = {
            best: {t.name: [p[t.name] for p in test[chosen.specialists[t.name]]] for t in tasks}
        }
        if chosen.same_encoder is not None:
            same = "same-encoder specialists"
            references[same] = {t.name: [p[t.name] for p in test[chosen.same_encoder]] for t in tasks}
            sides[same] = {t.name: deployed[chosen.same_encoder][t.name] for t in tasks}
        sides[label] = {t.name: deployed[chosen.winner][t.name] for t in tasks}
        challenger = {t.name: [p[t.name] for p in test[chosen.winner]] for t in tasks}
        settings |= {"challenger_name": label, "doubts": self._doubts(finalists, chosen)}
        one, other = ({t.name: [sides[side][t.name]] for t in tasks} for side in (label, best))
        results.slices = table_slices.of_study(
            self.table, self.split, self.spec.slices, tasks, truth, units, one, other, **settings
        )
        notes = [*results.notes, *self._new_groups(tasks, truth, units, sides[label], sides[best], settings)]
        return judge(tasks, truth, units, challenger, references, deployed=sides, notes=notes, **settings)

    @staticmethod
    def _best(results: Compared, name: str) -> int:
        return next((f.best for f in (*results.trained.finalists, *results.trained.beside) if f.candidate == name), 0)

    def _options(
        self,
        chosen: StudyChoice,
        deployed: Mapping[str, Predictions],
        tasks: Sequence[Task],
        truth: Mapping[str, TaskTruth],
        units: Any,
        reference: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """What each option would do on the test part against the best specialists. Of all but the recommended one exploratory."""
        found = []
        for option in chosen.options:
            said = {}
            for task in tasks:
                each = option["answers"][task.name]
                parts = [(weight, deployed[name][task.name]) for name, weight in each.items()]
                said[task.name] = [parts[0][1] if len(parts) == 1 else sum(weight * p for weight, p in parts)]
            against = {name: [p] for name, p in reference.items()}
            verdict = judge(tasks, truth, units, said, {"best specialists": against}, **settings)
            overall, counts = verdict.comparisons[0].overall, verdict.comparisons[0].counts()
            delta = overall.delta.file
            figures = {"delta": delta.value, "low": delta.low, "high": delta.high, "word": overall.word, "words": counts}
            found.append({"name": option["name"], **figures, "recommended": option["name"] == chosen.recommended})
        return found

    def _predictions(self, results: Compared) -> dict[str, list[Predictions]]:
        """Candidate → its predictions of the test part, one entry a seed; the champion's among them."""
        found = {
            f.candidate: [cell_scores(load(results.journal.model(t)), self.data, "test", calibrated=True) for t in f.trials]
            for f in (*results.trained.finalists, *results.trained.beside)
        }
        if self.champion is not None:
            found[CHAMPION] = [self.champion.on(self.data, "test")]
        return found

    def _new_groups(
        self,
        tasks: Sequence[Task],
        truth: Mapping[str, TaskTruth],
        units: Any,
        challenger: Mapping[str, Any],
        reference: Mapping[str, Any],
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

        def cut(side: Mapping[str, Any]) -> dict[str, list[Any]]:
            return {t.name: [side[t.name][kept[t.name]]] for t in left}

        seen = {
            name: TaskTruth(
                one.rows[at := kept[name]],
                one.target[at],
                None if one.weight is None else one.weight[at],
                None if one.groups is None else one.groups[at],
            )
            for name, one in truth.items()
        }
        verdict = judge(left, seen, units, cut(challenger), {"best specialists": cut(reference)}, **settings)
        return [lead + verdict.headline]

    def _doubts(self, finalists: Sequence[Finalist], choice: StudyChoice) -> dict[str, dict[str, str]]:
        """Task → the side that the budget cut short, with the reason; it blocks the words that the longer training could undo."""
        by_name = {f.candidate: f for f in finalists}
        found: dict[str, dict[str, str]] = {}
        for task in self.table.tasks:
            for side, name in (("challenger", choice.winner), ("reference", choice.specialists.get(task.name))):
                if name in by_name and task.name in by_name[name].undertrained:
                    why = f"{by_name[name].label} is undertrained: the budget ended before its early stop"
                    found.setdefault(task.name, {})[side] = why
        return found

    def deploy(self, folder: RunFolder, results: Compared, choice: Mapping[str, Any], verdict: Verdict | None) -> None:
        """Write the winner, or a committee, with everything that travels with it."""
        chosen, journal = StudyChoice.from_dict(choice), results.journal
        weights = chosen.member_weights()
        members = {name: load(journal.model(name)) for name in dict.fromkeys(t for each in weights.values() for t in each)}
        model: Fitted
        if len(members) == 1:
            (model,) = members.values()
        elif all(len(each) == 1 for each in weights.values()):
            answers = {task: next(iter(each)) for task, each in weights.items()}
            model = Committee(self.table.tasks, self.data.columns, members, answers)
        else:
            model = Average(self.table.tasks, self.data.columns, members, weights)
            model.thresholds |= self._thresholds(results.trained.finalists, chosen)
        model.tasks = self.table.tasks
        model.record = {
            **(model.record if len(members) == 1 else {}),
            "study": self.spec.run_name,
            "recommended": chosen.recommended,
            "answers": chosen.answers,
            "hashes": {"data": self.data_hash, "code": code_hash(), "tasks": leakage.lineage(self.table)},
            "versions": {"pluribus": pluribus.__version__, "python": platform.python_version()},
            "reliability": self._reliability(results.trained.finalists, chosen),
            "metrics": None if verdict is None else verdict.to_dict()["comparisons"][0]["tasks"],
        }
        model.save(folder.path / "model")
        kept = [journal.model(name) for name in members]
        for file in sorted(path for path in (folder.path / "model").rglob("*") if path.is_file()):  # weights are stored once
            link_equal(file, [twin for member in kept for twin in sorted(member.rglob(file.name))])
        results.model = model

    def _deployed(self, finalists: Sequence[Finalist], choice: StudyChoice, task: str) -> NDArray[np.float64]:
        """What `model/` says of a task's judged cells."""
        option = next((each for each in choice.options if each["name"] == choice.recommended), None)
        each = {choice.answers[task]: 1.0} if option is None else option["answers"][task]
        by_name = {f.candidate: f for f in finalists}
        return np.asarray(sum(weight * by_name[name].valid[task] for name, weight in each.items()), np.float64)

    def _thresholds(self, finalists: Sequence[Finalist], choice: StudyChoice) -> dict[str, float]:
        """Task with a positive class → the threshold with the best F1 on the judged rows."""
        return {
            task.name: best_threshold(
                self._deployed(finalists, choice, task.name), self.judged.labelled(task.name, "valid").numbers
            )
            for task in self.table.tasks
            if task.record.positive
        }

    def _reliability(self, finalists: Sequence[Finalist], choice: StudyChoice) -> dict[str, Any]:
        """Task with a positive class → reliability of what `model/` says of the judged rows."""
        found = {}
        for task in self.table.tasks:
            if not task.record.positive:
                continue
            cells = self.judged.labelled(task.name, "valid")
            table = calibration.reliability(self._deployed(finalists, choice, task.name), cells.numbers, cells.weight)
            found[task.name] = [vars(row) for row in table]
        return found

    def rows(self, folder: RunFolder, results: Compared, choice: Mapping[str, Any]) -> list[Row]:
        """Every metric of every method on the test part."""
        return table_summary.rows(results.journal, self.table.tasks, self._everyone(results), results.scores)

    def summary(self, folder: RunFolder, results: Compared, choice: Mapping[str, Any], verdict: Verdict | None) -> dict[str, Any]:
        """What the report says of a table's study."""
        unsliced = ["No slices: they compare one model with specialists"] if self.spec.slices and not results.slices else []
        return {
            "notes": [*(results.notes if verdict is None else verdict.notes), *results.trained.notes, *unsliced],
            "slices": results.slices,
            "warnings": [finding.to_dict() for finding in results.findings],
            "failed": results.trained.failed,
            "test": results.scores,
            "importance": table_summary.importance(
                results.model, self.learnable, budget=self.spec.core_seconds, seed=self.spec.seed
            ),
            "leaderboard": leaderboard(
                self.data, results.journal, self._everyone(results), StudyChoice.from_dict(choice), results.deployed_scores
            ),
            "test_deployed": {name: each[0] for name, each in results.deployed_scores.items()},
            "options": results.options,
            **table_summary.of_data(self.table, self.split, self.learnable, seed=self.spec.seed),
            **table_summary.of_methods(
                results.journal, self._everyone(results), StudyChoice.from_dict(choice), verdict, results.model, results.options
            ),
            **table_summary.of_settings(self.spec, self.plan),
        }

    @staticmethod
    def _everyone(results: Compared) -> list[Finalist]:
        return [*results.trained.finalists, *results.trained.beside]


def code_hash() -> str:
    """SHA-256 over the package's own sources."""
    root = Path(pluribus.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
