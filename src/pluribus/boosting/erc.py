"""Ensembles of chains of tasks (ERC) with out-of-fold inputs, over LightGBM.

Spyromitros-Xioufis, Tsoumakas, Groves and Vlahavas, "Multi-target regression via input space expansion", Machine Learning 2016;
for classes Read, Pfahringer, Holmes and Frank, "Classifier chains for multi-label classification", Machine Learning 2011. In a
chain with the order o the model of task o_j reads the inputs x and what the models of the earlier tasks say:

  z_j = f_j(x, z_1 .. z_{j-1}),   the answer of the ensemble is the mean of z over the chains.

What f_j is trained on has the distribution that it meets at prediction: z_i of a training row comes from a model of k folds over
units that did not see the row; a row without a label of task o_i has the mean of the k models, so that holes are filled. What
predicts, and what validation rows are read with, is a model of all training rows. True labels are never inputs. The fold models
grow as many rounds as the early stop of the whole one kept. Class tasks hand on their probabilities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.boosting.baselines import MOST, _Binned, _Growing, _LightGBMCandidate, _outputs, _ValidationMetrics, features
from pluribus.data.columns import FittedColumns
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget, Costs, FitRecord, Fitted, SearchSpace
from pluribus.modeling.artefact.fitted import Array, Wanted, alike
from pluribus.tasks import Task

if TYPE_CHECKING:
    from lightgbm import Booster


class ChainEnsemble(_LightGBMCandidate):
    """Random orders of the tasks; each task reads out-of-fold predictions of those before it."""

    name = "erc"
    label = "ensemble of chains, LightGBM"
    loop = (*_LightGBMCandidate.loop, "chains", "folds")
    defaults = {**_LightGBMCandidate.defaults, "chains": 3, "folds": 3}  # noqa: RUF012
    space = SearchSpace()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, least in (("chains", 1), ("folds", 2)):
            value = self.settings[name]
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                raise BadInput(f"{name} must be a whole number of at least {least}", where=f"candidate {self.name!r}")

    def unfit(self, data: Prepared) -> str | None:
        if data.columns.task_column is not None:
            return "a chain needs rows with labels of several tasks; in the long layout each row has one"
        if len(data.tasks) < 2:
            return "a chain needs two tasks or more"
        return super().unfit(data)

    def estimate(self, data: Prepared) -> float:
        """Each chain costs a model per task, and as many again as there are folds, on fewer rows each."""
        return float(super().estimate(data) * self.settings["chains"] * self.settings["folds"])

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Chains:
        """Grow whole chains, one at the least, while the budget lasts: a chain that could not end within it is not begun."""
        reason = self.unfit(data)
        if reason:
            raise BadInput(reason, where=f"candidate {self.name!r}")
        began = time.process_time()
        rng = np.random.default_rng([seed, 5])
        fold = rng.permutation(int(data.units.max()) + 1) % self.settings["folds"]  # of a unit
        run = _Chaining(self, data, budget.threads, seed, fold[data.units])
        orders: list[list[Task]] = []
        longest = 0.0
        for _ in range(min(self.settings["chains"], math.factorial(min(len(data.tasks), 9)))):
            start = time.process_time()
            if orders and start + longest > began + budget.seconds:
                break
            order = [data.tasks[i] for i in rng.permutation(len(data.tasks))]
            while order in orders:
                order = [data.tasks[i] for i in rng.permutation(len(data.tasks))]
            run.chain(order, began + budget.seconds)
            orders.append(order)
            longest = max(longest, time.process_time() - start)
        chains = [[(task.name, run.models[run.key(task, order[:j])]) for j, task in enumerate(order)] for order in orders]
        fitted = Chains(data.tasks, data.columns, chains, MOST)
        fitted.record = FitRecord(
            settings=dict(self.settings),
            seed=seed,
            curves=run.curves,
            undertrained=[task.name for task in data.tasks if task.name in run.late],
            seconds=time.process_time() - began,
        )
        return fitted


class _Chaining:
    """The models of the chains while they are made; those that begin chains alike are made once."""

    def __init__(self, candidate: ChainEnsemble, data: Prepared, threads: int, seed: int, fold: NDArray[np.int64]) -> None:
        self.candidate, self.data, self.threads, self.seed, self.fold = candidate, data, threads, seed, fold
        self.matrix = features(data, most=MOST)
        self.models: dict[tuple[str, ...], Booster] = {}
        self.said: dict[tuple[str, ...], Array] = {}  # what later tasks read: out-of-fold in training, else by the whole model
        self.curves: dict[str, list[float]] = {}
        self.late: set[str] = set()

    @staticmethod
    def key(task: Task, earlier: Sequence[Task]) -> tuple[str, ...]:
        """What a model depends on: the earlier tasks, in their order, and its own."""
        return (*(each.name for each in earlier), task.name)

    def chain(self, order: Sequence[Task], deadline: float) -> None:
        """Make the models of a chain, each with its share of the seconds that are left."""
        for j, task in enumerate(order):
            key = self.key(task, order[:j])
            if key in self.models:
                continue
            now = time.process_time()
            share = max(0.0, deadline - now) / (len(order) - j)
            read = [self.said[self.key(each, order[:i])] for i, each in enumerate(order[:j])]
            self._model(task, key, np.column_stack([self.matrix, *read]).astype(np.float32), now, share, j + 1 < len(order))

    def _model(
        self, task: Task, key: tuple[str, ...], matrix: NDArray[np.float32], now: float, share: float, is_read: bool
    ) -> None:
        data, settings = self.data, self.candidate.settings
        train, valid = data.labelled(task.name, "train"), data.labelled(task.name, "valid")
        if not len(train):
            raise BadInput("has no label in the training part", where=f"task {task.name!r}", remedy="drop the task")
        judge = _ValidationMetrics({task.name: (task, slice(0, len(valid)))}, valid, data.units)
        params = self.candidate._params(task, self.seed, self.threads)
        growing = _Growing(params, _Binned(data, matrix), train, judge, settings, f"task {task.name!r}")
        if not growing.until(now + (share / settings["folds"] if is_read else share)):
            self.late.add(task.name)
        whole = self.models[key] = growing.finish()
        self.curves.setdefault(task.name, judge.curves[task.name])
        if not is_read:
            return
        rounds = whole.current_iteration()
        said = _predict(whole, matrix, task, self.threads)
        rows = np.setdiff1d(data.parts["train"], train.rows)
        fill, models = np.zeros((len(rows), said.shape[1])), 0
        for k in range(settings["folds"]):
            out = self.fold[train.rows] == k
            if out.all() or not out.any():
                continue  # a fold that holds all labels, or none
            model = self._fold(params, _Binned(data, matrix), train[~out], rounds, task)
            said[train.rows[out]] = _predict(model, matrix[train.rows[out]], task, self.threads)
            fill += _predict(model, matrix[rows], task, self.threads) if len(rows) else 0.0
            models += 1
        if models and len(rows):
            said[rows] = fill / models
        self.said[key] = said

    def _fold(self, params: dict[str, Any], binned: _Binned, cells: Any, rounds: int, task: Task) -> Booster:
        none = _ValidationMetrics({}, cells[:0], self.data.units)
        settings = {**self.candidate.settings, "rounds": max(1, rounds)}
        growing = _Growing(params, binned, cells, none, settings, f"task {task.name!r}")
        growing.until(math.inf)
        return growing.finish()


class Chains(Fitted):
    """Chains of LightGBM models: each reads what the ones before it in its chain say.

    Parameters
    ----------
    tasks, columns
        As of every artefact.
    chains : sequence
        Of each chain its tasks' names in order, each with its model.
    most : int or None
        How many levels of a category the models tell apart (None: all).
    """

    artefact = "chains"
    columns: FittedColumns

    def __init__(
        self,
        tasks: Sequence[Task],
        columns: FittedColumns,
        chains: Sequence[Sequence[tuple[str, Booster]]],
        most: int | None = None,
    ) -> None:
        super().__init__(tasks, columns)
        self.chains, self.most = [list(chain) for chain in chains], most

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for rows, names in alike(wanted):
            found |= self._mean(features(data, rows, most=self.most), names)
        return {name: found[name] for name in wanted}

    def _mean(self, matrix: NDArray[np.float32], names: Sequence[str]) -> dict[str, Array]:
        """The mean over the chains, each run as far as its last task that is asked for."""
        by_name = {task.name: task for task in self.tasks}
        total = {name: np.zeros((len(matrix), max(1, _outputs(by_name[name])))) for name in names}
        for chain in self.chains if len(matrix) else ():
            last = max(j for j, (name, _) in enumerate(chain) if name in names)
            read = matrix
            for name, booster in chain[: last + 1]:
                said = _predict(booster, read, by_name[name], torch.get_num_threads())
                if name in total:
                    total[name] += said / len(self.chains)
                read = np.column_stack([read, said]).astype(np.float32)
        return {name: each if _outputs(by_name[name]) > 1 else each[:, 0] for name, each in total.items()}

    def costs(self) -> Costs:
        """A comparison a level, log2(leaves) levels a tree. Rows per second are timed here, on one thread."""
        texts = [booster.model_to_string() for chain in self.chains for _, booster in chain]
        sizes = [int(line.split("=")[1]) for text in texts for line in text.splitlines() if line.startswith("num_leaves=")]
        leaves = np.array(sizes)
        rows, began = np.zeros((256, len(self.columns.names)), np.float32), time.perf_counter()
        self._mean(rows, [task.name for task in self.tasks])
        seconds = time.perf_counter() - began
        return Costs(
            parameters=int(2 * (2 * leaves - 1).sum()),
            flops_per_row=float(max(1.0, np.log2(np.maximum(leaves, 1)).sum())),
            bytes=sum(map(len, texts)),
            train_seconds=float(self.record.get("seconds", 0.0)),
            rows_per_second=len(rows) / seconds,
        )

    def write(self, folder: Path) -> dict[str, Any]:
        listed: list[list[list[str]]] = []
        for c, chain in enumerate(self.chains):
            listed.append([[name, f"chain_{c}_{j}.txt"] for j, (name, _) in enumerate(chain)])
            for (_, file), (_, booster) in zip(listed[-1], chain):
                (folder / file).write_text(booster.model_to_string(), "utf-8")
        return {"chains": listed, "most": self.most}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Chains:
        import lightgbm

        by_name, remedy = {task.name: task for task in tasks}, "restore the folder"
        chains: list[list[tuple[str, Booster]]] = []
        for listed in manifest["chains"]:
            if sorted(name for name, _ in listed) != sorted(by_name):
                raise BadInput("a chain does not hold each task once", where="pluribus.json, own, chains", remedy=remedy)
            width, chain = len(columns.names), []
            for name, file in listed:
                path = folder / Path(file).name
                try:
                    booster = lightgbm.Booster(model_str=path.read_text("utf-8"))
                except (lightgbm.basic.LightGBMError, UnicodeDecodeError, OSError) as error:
                    raise BadInput(f"is not a LightGBM model ({error})", where=path.name, remedy=remedy) from error
                if booster.num_feature() != width:
                    what = f"takes {booster.num_feature()} features, but {width} come to its place in the chain"
                    raise BadInput(what, where=path.name, remedy=remedy)
                chain.append((name, booster))
                width += max(1, _outputs(by_name[name]))
            chains.append(chain)
        if not chains:
            raise BadInput("holds no chain", where="pluribus.json, own, chains", remedy=remedy)
        return cls(tasks, columns, chains, manifest["most"])


def _predict(booster: Booster, matrix: NDArray[np.float32], task: Task, threads: int) -> Array:
    """What later tasks read: the mean, P(positive) or P(class), [n, outputs]."""
    return np.asarray(booster.predict(matrix, num_threads=threads), dtype=np.float64).reshape(len(matrix), max(1, _outputs(task)))
