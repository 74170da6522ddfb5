"""LightGBM as a user would run it: one model per task, or one model for all tasks of a long table.

Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017, through the `lightgbm` package. What is
decided here:

- rows without a label are left out of a task's data: LightGBM would take a missing label for 0 without a word;
- numbers go in as they are encoded (trees do not mind the scale), missing as NaN; categories go in natively, a missing one
  as NaN, the ones not in training as a category of their own;
- objectives: binary, multiclass (also for ordinal tasks), regression (squared error), poisson (counts);
- a task stops by its own main metric on its validation cells (by its loss where these hold one class only), after `patience`
  rounds without a better value, and keeps its best round;
- a budget is shared by the sizes of the tasks, and what one does not need goes to those that it stopped too early;
- one model is built, trained and dropped at a time, and tasks with labels in the same rows share the binned rows; models that
  were cut short wait for more time while all that wait fit into `HELD` bytes;
- of a category only the `MOST` most frequent levels are told apart, the others are one: each level is a bin in every histogram,
  and a bit in every split of the saved model.

`lightgbm_td` runs the defaults that Holzmüller, Grinsztajn and Steinwart tuned on many tables ("Better by Default", NeurIPS 2024;
pytabkit), other ones for classes than for numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.data.prepared import Cells, Prepared
from pluribus.data.statistics import FIRST, UNSEEN
from pluribus.errors import BadInput, unknown
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, Candidate, Costs, FitRecord, Fitted, IntRange, LogUniform, SearchSpace, Uniform
from pluribus.modeling.artefact.fitted import Array, Wanted, alike
from pluribus.modeling.artefact.importance import Importance, by_shapley
from pluribus.modeling.budget import in_turn
from pluribus.tasks import METRICS, Metric, Task

if TYPE_CHECKING:
    from lightgbm import Booster, Dataset

    from pluribus.data.columns import FittedColumns

# LightGBM's objectives by the likelihood of a kind of task
OBJECTIVES: dict[str | None, str] = {
    "bernoulli": "binary",
    "categorical": "multiclass",
    "normal": "regression",
    "poisson": "poisson",
}
# what stops a task whose main metric is not defined; else logloss
LOSSES: dict[str | None, str] = {"normal": "rmse", "poisson": "poisson_deviance"}
ROUNDS = 450  # to an early stop at the default rate, roughly: 100 to 1,300 on tables of 400 to 60,000 rows
VISIT, SEARCH = 8e-9, 2e-6  # seconds of a label in a column, and of a leaf in a column with its 255 bins
MOST = 4096
HELD = 1_000_000_000
OURS = ("objective", "metric", "num_class", "seed", "data", "valid", "categorical_feature", "task", "num_threads")


class _LightGBMCandidate(Candidate):
    libraries = ("lightgbm",)

    road = "boost"
    loop: ClassVar[tuple[str, ...]] = ("rounds", "patience", "params")
    """Settings that are no LightGBM parameters."""
    tuned: ClassVar[Mapping[bool, Mapping[str, Any]]] = {True: {}, False: {}}
    """Of classes (True) and of numbers (False): the value of each setting that is None."""
    defaults = {  # noqa: RUF012
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 20,
        "feature_fraction": 0.9,
        "lambda_l2": 0.0,
        "rounds": 2000,
        "patience": 50,
        "params": {},  # any further LightGBM parameters, by their own names; they win over the ones above
    }
    space = SearchSpace(
        {
            "num_leaves": IntRange(7, 127),
            "learning_rate": LogUniform(0.02, 0.2),
            "min_data_in_leaf": IntRange(5, 100),
            "feature_fraction": Uniform(0.5, 1.0),
            "lambda_l2": LogUniform(1e-3, 10.0),
        }
    )

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        given = self.settings["params"]
        where = f"candidate {self.name!r}, params"
        if not isinstance(given, Mapping):
            raise BadInput("must be a mapping of LightGBM parameters", where=where)
        self.own: dict[str, Any] = {}
        if given:
            aliases = _aliases()
            for key, value in given.items():
                if key not in aliases:
                    raise unknown("LightGBM parameter", str(key), aliases, where=where)
                if aliases[key] in OURS:
                    raise BadInput(f"{key!r} follows from the task and the study", where=where, remedy="remove it")
                self.own[aliases[key]] = value
        for theirs, setting in (("num_iterations", "rounds"), ("early_stopping_round", "patience")):
            if theirs in self.own:
                self.settings[setting] = self.own.pop(theirs)
        for setting in ("rounds", "patience"):
            if not (isinstance(self.settings[setting], int) and self.settings[setting] >= 1):
                raise BadInput(f"{setting} must be a whole number of at least 1", where=f"candidate {self.name!r}")

    def unfit(self, data: Prepared) -> str | None:
        other = [task.name for task in data.tasks if task.record.likelihood not in OBJECTIVES]
        return f"LightGBM has no objective for task {other[0]!r}" if other else None

    def estimate(self, data: Prepared) -> float:
        """`ROUNDS` rounds of a tree an output: a visit of every label and column, a search of every leaf and column."""
        columns = len(data.columns.names)
        rounds, found = min(ROUNDS, self.settings["rounds"]), 0.0
        for task in data.tasks:
            set_ = self._set(task)
            labels = len(data.labelled(task.name, "train"))
            leaves = min(float(set_["num_leaves"]), 1 + labels / max(1, set_["min_data_in_leaf"]))
            tree = columns * (VISIT * labels + SEARCH * leaves)
            found += rounds * max(1, _outputs(task)) * tree + 0.1
        return found

    def _set(self, task: Task) -> dict[str, Any]:
        """The LightGBM parameters of a task that are set, by name."""
        tuned = self.tuned[bool(task.classes)]
        own = {key: value for key, value in self.settings.items() if key not in self.loop}
        return {key: tuned.get(key) if value is None else value for key, value in own.items()} | self.own

    def _params(self, task: Task, seed: int, threads: int) -> dict[str, Any]:
        params: dict[str, Any] = {"verbosity": -1, "deterministic": True, "force_row_wise": True} | self._set(task)
        objective = OBJECTIVES[task.record.likelihood]
        params |= {"objective": objective, "metric": "None", "seed": seed % 2**31, "num_threads": threads}
        if _outputs(task) > 1:
            params["num_class"] = _outputs(task)
        return params

    def _record(self, fitted: Trees, began: float, seed: int, grown: Mapping[str, _Growing]) -> Trees:
        fitted.record = FitRecord(
            settings=dict(self.settings),
            seed=seed,
            curves={name: values for each in grown.values() for name, values in each.judge.curves.items()},
            undertrained=[name for name, each in grown.items() if not each.ended],
            seconds=time.process_time() - began,
        )
        return fitted


class LightGBMPerTask(_LightGBMCandidate):
    """One model per task, on the rows that carry its label."""

    name = "lightgbm_per_task"
    label = "LightGBM, one per task"
    per_task = True

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Trees:
        began = time.process_time()
        size = [len(data.labelled(task.name, "train")) * max(1, _outputs(task)) for task in data.tasks]
        binned = _Binned(data, features(data, most=MOST))
        grown: dict[str, _Growing] = {}
        boosters: dict[str, Booster] = {}
        waiting: dict[str, int] = {}  # cut short and held → bytes

        def go_on(i: int, deadline: float) -> bool:
            task = data.tasks[i]
            if task.name not in grown:
                grown[task.name] = self._growing(task, binned, data, budget.threads, seed)
            growing = grown[task.name]
            held = waiting.pop(task.name, growing.bytes)
            if not growing.until(deadline) and sum(waiting.values()) + held <= HELD:
                waiting[task.name] = held
                binned.lend()
                return False
            boosters[task.name] = growing.finish()
            return True

        in_turn(size, go_on, began + budget.seconds)
        boosters |= {name: grown[name].finish() for name in waiting}
        found = {task.name: boosters[task.name] for task in data.tasks}
        return self._record(
            Trees(data.tasks, data.columns, found, MOST), began, seed, {task.name: grown[task.name] for task in data.tasks}
        )

    def _growing(self, task: Task, binned: _Binned, data: Prepared, threads: int, seed: int) -> _Growing:
        train, valid = data.labelled(task.name, "train"), data.labelled(task.name, "valid")
        judge = _ValidationMetrics({task.name: (task, slice(0, len(valid)))}, valid, data.units)
        return _Growing(self._params(task, seed, threads), binned, train, judge, self.settings, f"task {task.name!r}")


class LightGBMTuned(LightGBMPerTask):
    """The same with the defaults of LightGBM-TD, for classes and for numbers."""

    name = "lightgbm_td"
    label = "LightGBM, tuned defaults, one per task"
    tuned = {  # noqa: RUF012
        True: {"learning_rate": 0.04, "num_leaves": 50, "min_data_in_leaf": 40, "bagging_fraction": 0.75},
        False: {"learning_rate": 0.05, "num_leaves": 100, "min_data_in_leaf": 3, "bagging_fraction": 0.7},
    }
    defaults = {  # noqa: RUF012
        "learning_rate": None,  # None: as `tuned` says, by what the task predicts
        "num_leaves": None,
        "min_data_in_leaf": None,
        "bagging_fraction": None,
        "bagging_freq": 1,
        "feature_fraction": 1.0,
        "lambda_l2": 0.0,
        "min_sum_hessian_in_leaf": 1e-7,
        "rounds": 1000,
        "patience": 300,
        "params": {},
    }
    space = SearchSpace()


class LightGBMPooled(_LightGBMCandidate):
    """One model for all tasks of a long table; the task is one of its categories. Stops by the mean skill over tasks."""

    name = "lightgbm_pooled"
    label = "LightGBM, pooled"

    def unfit(self, data: Prepared) -> str | None:
        if data.columns.task_column is None:
            return "pooling needs the long layout (--task-column): in a wide table the tasks' targets are not one quantity"
        if len({(task.kind, task.classes) for task in data.tasks}) > 1:
            return "the tasks are of different kinds"
        return super().unfit(data)

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Trees:
        reason = self.unfit(data)
        if reason:
            raise BadInput(reason, where=f"candidate {self.name!r}")
        began = time.process_time()
        parts: dict[str, tuple[Task, slice]] = {}
        start = 0
        for task in data.tasks:
            count = len(data.labelled(task.name, "valid"))
            parts[task.name] = (task, slice(start, start + count))
            start += count
        train, valid = (_joined([data.labelled(t.name, part) for t in data.tasks]) for part in ("train", "valid"))
        params = self._params(data.tasks[0], seed, budget.threads)
        judge = _ValidationMetrics(parts, valid, data.units)
        binned = _Binned(data, features(data, most=MOST))
        grown = _Growing(params, binned, train, judge, self.settings, f"candidate {self.name!r}")
        grown.until(began + budget.seconds)
        fitted = Trees(data.tasks, data.columns, {"": grown.finish()}, MOST)
        return self._record(fitted, began, seed, dict.fromkeys(parts, grown))


class _Growing:
    """A booster that grows until its early stop, its last round or a deadline, and can go on behind a deadline.

    It stops `patience` rounds after its best one by `judge`; without validation cells it grows all its rounds.
    """

    def __init__(
        self,
        params: dict[str, Any],
        binned: _Binned,
        train: Cells,
        judge: _ValidationMetrics,
        settings: Mapping[str, Any],
        where: str,
    ) -> None:
        import lightgbm

        self.judge, self.rounds, self.patience, self.where = judge, settings["rounds"], settings["patience"], where
        self.highest, self.best_round, self.ended = -math.inf, 0, False
        leaves = params.get("num_leaves") or 31
        self.bytes = binned.columns * (len(train) + len(judge.cells) + 255 * 16 * leaves)  # codes, and a histogram a leaf
        try:
            whole, valid = binned.take(train, judge.cells if judge.judges else None, params)
            self.booster: Booster | None = lightgbm.Booster(params, whole)
            if valid is not None:
                self.booster.add_valid(valid, "valid")
        except lightgbm.basic.LightGBMError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> BadInput:
        return BadInput(f"LightGBM refuses ({error})", where=self.where, remedy="check --lgbm-params")

    def until(self, deadline: float) -> bool:
        """Grow, one round at the least, to the end (True) or until this process has spent `deadline` CPU seconds."""
        import lightgbm

        assert self.booster is not None
        while not self.ended:
            try:
                self.booster.update()
            except lightgbm.basic.LightGBMError as error:
                raise self._refused(error) from error
            done = self.booster.current_iteration()
            if self.judge.judges:
                value = self.booster.eval_valid(self.judge.judge)[0][2]
                if value > self.highest:
                    self.highest, self.best_round = value, done
                self.ended = done - self.best_round >= self.patience
            self.ended = self.ended or done >= self.rounds
            if time.process_time() > deadline:
                break
        return self.ended

    def finish(self) -> Booster:
        """The booster at its best round, without its data; saved and read back, so that what predicts now is what a saved model
        predicts. It grows no further."""
        import lightgbm

        assert self.booster is not None
        text = self.booster.model_to_string(num_iteration=self.best_round or -1)
        self.booster = None
        return lightgbm.Booster(model_str=text)


class _Binned:
    """The rows of a table, binned once for all tasks that are labelled in the same rows: such tasks put their labels in, one
    after another. A booster that is kept while others train keeps what it was given (`lend`)."""

    def __init__(self, data: Prepared, matrix: NDArray[np.float32]) -> None:
        self.matrix, self.columns = matrix, matrix.shape[1]
        self.categorical = list(range(data.numeric.shape[1], data.numeric.shape[1] + data.categorical.shape[1]))
        self.last: tuple[NDArray[np.int64], NDArray[np.int64] | None, Dataset, Dataset | None] | None = None

    def take(self, train: Cells, valid: Cells | None, params: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
        """The data to train on and to validate on, valid until the next call unless lent."""
        held = None if valid is None else valid.rows
        if self.last is not None and np.array_equal(self.last[0], train.rows) and _same(self.last[1], held):
            _, _, whole, other = self.last
            for dataset, cells in ((whole, train), (other, valid)):
                if dataset is not None and cells is not None:
                    dataset.set_label(cells.numbers)
                    dataset.set_weight(cells.weight)
        else:
            self.last = None
            whole = self._dataset(train, params)
            other = None if valid is None else self._dataset(valid, params, whole)
            self.last = train.rows, held, whole, other
        return whole, other

    def lend(self) -> None:
        """Leave what was taken last to its booster."""
        self.last = None

    def _dataset(self, cells: Cells, params: dict[str, Any], reference: Dataset | None = None) -> Dataset:
        import lightgbm

        return lightgbm.Dataset(
            self.matrix[cells.rows],
            cells.numbers,
            weight=cells.weight,
            reference=reference,
            free_raw_data=True,
            categorical_feature=self.categorical,
            params=dict(params),
        )


class _ValidationMetrics:
    """The tasks' own metrics on validation cells, as LightGBM's evaluation function.

    parts: task name → (task, its cells among the validation cells). One task: its main metric. Several: the mean over tasks of
    1 − metric/first value, so that no task's scale decides alone.
    """

    def __init__(self, parts: Mapping[str, tuple[Task, slice]], cells: Cells, units: NDArray[np.int64]) -> None:
        self.cells = cells
        self.groups = units[cells.rows]
        self.parts = {name: part for name, part in parts.items() if part[1].stop > part[1].start}
        self.metric = {name: self._metric(task, cells.numbers[place]) for name, (task, place) in self.parts.items()}
        self.judges = bool(self.parts)
        self.curves: dict[str, list[float]] = {name: [] for name in parts}

    def _metric(self, task: Task, values: Array) -> Metric:
        return METRICS["logloss"] if task.classes and len(np.unique(values)) < 2 else task.main_metric

    def judge(self, predictions: Array, _: Any) -> tuple[str, float, bool]:
        """What is maximised. Called by LightGBM with P(positive) [n], P(class) [n, C] or the mean [n]."""
        total = 0.0
        for name, (task, place) in self.parts.items():
            metric = self.metric[name]
            weight = None if self.cells.weight is None else self.cells.weight[place]
            groups = self.groups[place] if metric.grouped else None
            value = float(metrics.compute(metric, predictions[place], self.cells.values[place], weight, groups=groups))
            if not math.isfinite(value):
                fallback = LOSSES.get(task.record.likelihood, "logloss")
                value = float(metrics.compute(fallback, predictions[place], self.cells.values[place], weight))
                signed = -value
            else:
                signed = metric.sign * float(metric.judged(np.array(value)))
            self.curves[name].append(value)
            first = self.curves[name][0]
            total += signed / max(abs(first), 1e-3) if len(self.parts) > 1 else signed
        return "rule", total / len(self.parts), True


class Trees(Fitted):
    """LightGBM models: one per task by name, or one called "" for all tasks of a long table. most: how many levels of a category
    they tell apart (None: all)."""

    artefact = "trees"
    columns: FittedColumns

    def __init__(
        self, tasks: Sequence[Task], columns: FittedColumns, boosters: Mapping[str, Booster], most: int | None = None
    ) -> None:
        super().__init__(tasks, columns)
        self.boosters, self.most = dict(boosters), most

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Array]:
        outputs = {task.name: _outputs(task) for task in self.tasks}
        found = {}
        for rows, names in alike(wanted):
            matrix = features(data, rows, most=self.most)
            for name in names:
                booster = self.boosters.get(name)
                if booster is None:
                    booster = self.boosters[""]
                    matrix[:, -1] = self._code(name)
                value = np.asarray(booster.predict(matrix, num_threads=torch.get_num_threads()), dtype=np.float64)
                found[name] = value.reshape(len(rows), outputs[name]) if outputs[name] > 1 else value
        return {name: found[name] for name in wanted}

    def importance(self, data: Prepared, wanted: Wanted, seconds: float = 10.0) -> dict[str, Importance]:
        """TreeSHAP of each task's raw score."""

        def values(name: str, rows: NDArray[np.int64]) -> Array:
            matrix, booster = features(data, rows, most=self.most), self.boosters.get(name)
            if booster is None:
                booster = self.boosters[""]
                matrix[:, -1] = self._code(name)
            phi = np.asarray(booster.predict(matrix, pred_contrib=True, num_threads=torch.get_num_threads()), np.float64)
            return phi.reshape(len(rows), -1, matrix.shape[1] + 1)[:, :, :-1].transpose(0, 2, 1)  # the last is the mean score

        each = seconds / max(1, len(wanted))
        return {name: by_shapley(partial(values, name), data, rows, each) for name, rows in wanted.items()}

    def _code(self, task: str) -> int:
        """The code of a task in the long layout's task column, which is the last feature."""
        column = self.columns.task_column
        assert column is not None
        return 2 + self.columns.categories[column].categories.index(task)

    def costs(self) -> Costs:
        """A comparison a level, log2(leaves) levels a tree. Rows per second are timed here, on one thread."""
        leaves = [np.array(_leaves(booster)) for booster in self.boosters.values()]
        rows = np.zeros((1024, len(self.columns.names)), np.float32)
        start = time.perf_counter()
        for booster in self.boosters.values():
            booster.predict(rows, num_threads=1)
        seconds = time.perf_counter() - start
        pooled = len(self.tasks) if "" in self.boosters else 1
        return Costs(
            parameters=int(sum(2 * (2 * each - 1).sum() for each in leaves)),
            flops_per_row=float(pooled * sum(np.log2(np.maximum(each, 1)).sum() for each in leaves)),
            bytes=sum(len(booster.model_to_string()) for booster in self.boosters.values()),
            train_seconds=float(self.record.get("seconds", 0.0)),
            rows_per_second=len(rows) / (seconds * pooled),
        )

    def write(self, folder: Path) -> dict[str, Any]:
        files = {}
        for i, (name, booster) in enumerate(self.boosters.items()):
            files[name] = f"trees_{i}.txt"
            (folder / files[name]).write_text(booster.model_to_string(), "utf-8")
        return {"models": files, "most": self.most}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Trees:
        import lightgbm

        remedy = "the trees belong to another model; restore the folder"
        names = list(manifest["models"])
        if names != [""] and set(names) != {task.name for task in tasks}:
            raise BadInput("the models are not those of the tasks", where="pluribus.json, own, models", remedy=remedy)
        if names == [""] and columns.task_column is None:
            raise BadInput("a pooled model needs a task column", where="pluribus.json, own, models", remedy=remedy)
        boosters = {}
        for name, file in manifest["models"].items():
            path = folder / Path(file).name
            try:
                boosters[name] = lightgbm.Booster(model_str=path.read_text("utf-8"))
            except (lightgbm.basic.LightGBMError, UnicodeDecodeError, OSError) as error:
                raise BadInput(f"is not a LightGBM model ({error})", where=path.name, remedy="restore the folder") from error
            if boosters[name].num_feature() != len(columns.names):
                what = f"takes {boosters[name].num_feature()} features, but the columns give {len(columns.names)}"
                raise BadInput(what, where=path.name, remedy=remedy)
        return cls(tasks, columns, boosters, manifest.get("most"))  # folders of earlier versions tell all levels apart


def features(
    data: Prepared, rows: NDArray[np.int64] | None = None, dtype: type[Any] = np.float32, most: int | None = None
) -> NDArray[Any]:
    """[n, F + C]: numbers, then category codes; NaN where missing.

    most: of each category but the long layout's task only so many levels, the most frequent ones, keep their code; the others get
    that of words not seen in training. None: all.
    """
    numeric, codes = data.numeric, data.categorical
    found = np.empty((len(numeric) if rows is None else len(rows), numeric.shape[1] + codes.shape[1]), dtype)
    for i, column in enumerate((*numeric.T, *codes.T)):  # a column at a time: no second copy of a large table
        found[:, i] = column if rows is None else column[rows]
    for i in range(numeric.shape[1], found.shape[1]):
        column = found[:, i]
        if most is not None and data.columns.names[i] != data.columns.task_column:
            column[column >= FIRST + most] = UNSEEN  # training categories are numbered from the most frequent down
        column[column == 0] = np.nan
    return found


def _same(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _joined(cells: Sequence[Cells]) -> Cells:
    weight = None
    if any(c.weight is not None for c in cells):
        weight = np.concatenate([np.ones(len(c)) if c.weight is None else c.weight for c in cells])
    return Cells(np.concatenate([c.rows for c in cells]), np.concatenate([c.values for c in cells]), weight)


def _aliases() -> dict[str, str]:
    """Every name of a LightGBM parameter → its first name."""
    from lightgbm.basic import _ConfigAliases

    return {alias: name for name, names in _ConfigAliases._get_all_param_aliases().items() for alias in (name, *names)}


def _outputs(task: Task) -> int:
    """How many numbers a prediction has."""
    return math.prod(task.record.shape(task))


def _leaves(booster: Booster) -> list[int]:
    """Leaves of each tree, from the text."""
    return [int(line.split("=")[1]) for line in booster.model_to_string().splitlines() if line.startswith("num_leaves=")]
