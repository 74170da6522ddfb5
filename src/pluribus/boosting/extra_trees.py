"""Extremely randomised trees with several outputs: one forest for all tasks with numbers, one for all tasks with classes.

Geurts, Ernst and Wehenkel, "Extremely Randomized Trees", Machine Learning 2006; several outputs as in Kocev, Vens, Struyf and
Džeroski, "Tree ensembles for predicting structured outputs", Pattern Recognition 2013. Grown by scikit-learn's
`ExtraTreesRegressor` without bootstrap, kept and read as arrays of our own. What is decided here:

- each number is standardised and the indicators of each task's classes are divided by the root of their summed variances, so that
  every task weighs the same in a split; the squared error of indicators is the Gini criterion, and leaves hold shares of classes;
- a hole takes part in the search of splits as its task's mean (a split gains nothing by it), so that a row counts for the tasks
  that label it and none is thrown away; the leaves' values are then the means of what is labelled there, and a leaf without a
  label of a task has its parent's value;
- numbers as encoded, categories as their codes (the most frequent first), missing values as NaN: scikit-learn learns where they
  go; where training had none they follow the larger child.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.boosting.baselines import features
from pluribus.boosting.histogram import Floats
from pluribus.boosting.objectives import BY_LIKELIHOOD
from pluribus.boosting.tree import TreeArrays
from pluribus.data.columns import FittedColumns
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.evaluation import metrics
from pluribus.files.plain import plain
from pluribus.modeling import Budget, Candidate, Costs, FitRecord, Fitted
from pluribus.modeling.artefact.fitted import Array, Wanted, alike
from pluribus.modeling.budget import in_turn
from pluribus.tasks import Task

CHUNK = 10  # trees between two looks at the clock
VISIT = 1.2e-8  # seconds of a row, a column and a level of a tree
KEPT = ("first", "feature", "threshold", "missing_left", "left", "right", "value", "cover")


class ExtraTrees(Candidate):
    """Extra-trees with several outputs: all numbers in one forest, all classes in another."""

    name = "extra_trees"
    road = "boost"
    label = "extra-trees with several outputs"
    defaults = {"trees": 300, "min_samples_leaf": 5, "max_leaf_nodes": 4096, "max_features": None}  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, least in (("trees", 1), ("min_samples_leaf", 1), ("max_leaf_nodes", 2)):
            value = self.settings[name]
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                raise BadInput(f"{name} must be a whole number of at least {least}", where=f"candidate {self.name!r}")
        share = self.settings["max_features"]
        if share is not None and not (isinstance(share, int | float) and 0 < share <= 1):
            raise BadInput("max_features must be a share of the columns above 0, up to 1", where=f"candidate {self.name!r}")

    def unfit(self, data: Prepared) -> str | None:
        other = [task.name for task in data.tasks if task.record.likelihood not in BY_LIKELIHOOD]
        return f"the forest has no leaf value for task {other[0]!r}" if other else None

    def estimate(self, data: Prepared) -> float:
        """A visit of every row, column and level of each tree, and a second for the leaves of a forest with holes."""
        found = 0.5
        for tasks in _groups(data.tasks).values():
            rows = max(2, max(len(data.labelled(task.name, "train")) for task in tasks))
            outputs = sum(_outputs(task) for task in tasks)
            columns = len(data.columns.names) * self._share(bool(tasks[0].classes), len(data.columns.names))
            level = rows * (columns + 0.5 * outputs) * math.log2(rows / self.settings["min_samples_leaf"] + 1)
            found += self.settings["trees"] * (2e-3 + VISIT * level)
        return found

    def _share(self, classes: bool, columns: int) -> float:
        """The share of the columns that a split chooses among: all for numbers, their root for classes, unless it is set."""
        given = self.settings["max_features"]
        return float(given) if given is not None else columns**-0.5 if classes else 1.0

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Forests:
        """Grow the trees of both forests, `CHUNK` at a time, until all are there or the budget is spent."""
        reason = self.unfit(data)
        if reason:
            raise BadInput(reason, where=f"candidate {self.name!r}")
        began = time.process_time()
        growing = {group: _GrowingForest(self, data, tasks, budget.threads, seed) for group, tasks in _groups(data.tasks).items()}
        parts = list(growing.values())
        sizes = [float(len(part.rows) * part.Y.shape[1]) for part in parts]
        in_turn(sizes, lambda i, deadline: parts[i].until(self.settings["trees"], deadline), began + budget.seconds)
        fitted = Forests(data.tasks, data.columns, {group: part.trees() for group, part in growing.items()})
        late = {task.name for part in parts if not part.ended for task in part.tasks}
        fitted.record = FitRecord(
            settings=dict(self.settings),
            seed=seed,
            curves={task.name: [_score(fitted, data, task)] for task in data.tasks},
            undertrained=[task.name for task in data.tasks if task.name in late],
            seconds=time.process_time() - began,
        )
        return fitted


class _GrowingForest:
    """One forest while it grows, on the rows that carry a label of one of its tasks."""

    def __init__(self, candidate: ExtraTrees, data: Prepared, tasks: Sequence[Task], threads: int, seed: int) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self.tasks, self.ended = tasks, False
        cells = [data.labelled(task.name, "train").counted() for task in tasks]
        for task, own in zip(tasks, cells):
            if not len(own):
                raise BadInput(
                    "has no label that counts in the training part", where=f"task {task.name!r}", remedy="drop the task"
                )
        self.rows = np.unique(np.concatenate([own.rows for own in cells]))
        widths = [_outputs(task) for task in tasks]
        self.span = np.cumsum([0, *widths])
        self.Y = np.zeros((len(self.rows), self.span[-1]))  # standardised; 0, the mean, in holes
        self.W = np.zeros((len(self.rows), len(tasks)))  # weights of the cells; 0 in holes
        self.mean, self.scale = np.zeros(self.span[-1]), np.ones(self.span[-1])
        for t, (task, own) in enumerate(zip(tasks, cells)):
            place, w = np.searchsorted(self.rows, own.rows), np.ones(len(own)) if own.weight is None else own.weight
            columns = slice(self.span[t], self.span[t + 1])
            values = np.eye(len(task.classes))[own.numbers.astype(np.int64)] if widths[t] > 1 else own.numbers[:, None]
            centre = np.average(values, axis=0, weights=w)
            spread = math.sqrt(float(np.average((values - centre) ** 2, axis=0, weights=w).sum())) or 1.0
            self.mean[columns], self.scale[columns] = centre, spread
            self.Y[place, columns] = (values - centre) / spread
            self.W[place, t] = w
        self.even = bool((self.W[:, :1] == self.W).all())  # all tasks count alike in every row: the leaves' values are right
        self.X = features(data, self.rows)
        self.weight = None if (self.W == 1).all() else self.W.mean(axis=1)
        self.forest = ExtraTreesRegressor(
            n_estimators=0,
            warm_start=True,
            bootstrap=False,
            min_samples_leaf=candidate.settings["min_samples_leaf"],
            max_leaf_nodes=candidate.settings["max_leaf_nodes"],
            max_features=max(1e-9, candidate._share(bool(tasks[0].classes), self.X.shape[1])),
            n_jobs=threads,
            random_state=seed % 2**32,
        )

    def until(self, trees: int, deadline: float) -> bool:
        """Grow, one chunk at the least, to the end (True) or until this process has spent `deadline` CPU seconds."""
        y = self.Y[:, 0] if self.Y.shape[1] == 1 else self.Y
        while not self.ended:
            self.forest.set_params(n_estimators=min(trees, self.forest.n_estimators + CHUNK))
            self.forest.fit(self.X, y, sample_weight=self.weight)
            self.ended = self.forest.n_estimators == trees
            if time.process_time() > deadline:
                break
        return self.ended

    def trees(self) -> TreeArrays:
        """The forest as arrays, its leaves in the units of the labels."""
        parts: dict[str, list[Any]] = {name: [] for name in KEPT if name != "first"}
        known = ~np.isnan(self.X).any(axis=0)  # columns without a missing value in training
        sizes = [0]
        for estimator in self.forest.estimators_:
            tree = estimator.tree_
            inner = tree.children_left >= 0
            feature = np.where(inner, tree.feature, -1).astype(np.int32)
            left, right = (np.where(inner, child, 0).astype(np.int32) for child in (tree.children_left, tree.children_right))
            cover = tree.n_node_samples.astype(np.float64)
            larger = cover[left] >= cover[right]
            value = tree.value[:, :, 0] if self.even else self._values(estimator, left, right)
            parts["feature"].append(feature)
            parts["threshold"].append(np.where(inner, tree.threshold, 0.0))
            parts["missing_left"].append(inner & np.where(known[feature], larger, tree.missing_go_to_left.astype(bool)))
            parts["left"].append(left + sizes[-1] * inner.astype(np.int32))
            parts["right"].append(right + sizes[-1] * inner.astype(np.int32))
            parts["value"].append(self.mean + self.scale * value)
            parts["cover"].append(cover)
            sizes.append(sizes[-1] + len(feature))
        return _arrays({name: np.concatenate(each) for name, each in parts.items()} | {"first": np.array(sizes, np.int64)})

    def _values(self, estimator: Any, left: Any, right: Any) -> Floats:
        """The weighted means of what is labelled in every node; of a task without a label there the parent's."""
        path = estimator.decision_path(self.X).T  # [nodes, rows]
        count = path @ self.W
        wide = np.repeat(self.W, np.diff(self.span), axis=1)
        total, count = path @ (wide * self.Y), np.repeat(count, np.diff(self.span), axis=1)
        value: Floats = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        parent = np.zeros(len(left), np.int64)
        inner = np.flatnonzero(left > 0)
        parent[left[inner]], parent[right[inner]] = inner, inner
        for node in np.flatnonzero((count <= 0).any(axis=1)):  # parents come before their children
            empty = count[node] <= 0
            value[node, empty] = value[parent[node], empty]
        return value


class Forests(Fitted):
    """Forests of trees with several outputs: "numbers" for the tasks with numbers, "classes" for those with classes."""

    artefact = "forests"
    columns: FittedColumns

    def __init__(self, tasks: Sequence[Task], columns: FittedColumns, trees: Mapping[str, TreeArrays]) -> None:
        super().__init__(tasks, columns)
        self.trees = dict(trees)

    def answer(self, data: Prepared, wanted: Wanted) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for rows, names in alike(wanted):
            table = features(data, rows, np.float64)
            for group, tasks in _groups(self.tasks).items():
                if any(task.name in names for task in tasks):
                    said = self._group(group, tasks, table)
                    found |= {name: said[name] for name in names if name in said}
        return {name: found[name] for name in wanted}

    def _group(self, group: str, tasks: Sequence[Task], table: Floats) -> dict[str, Array]:
        trees = self.trees[group]
        out = np.zeros((len(table), trees.value.shape[1]))
        trees.add_to(out, table, 1 / len(trees), threads=torch.get_num_threads())
        if tasks[0].classes:
            np.clip(out, 0.0, 1.0, out=out)  # rounding
        first = np.cumsum([0, *(_outputs(task) for task in tasks)])
        parts = {task.name: np.ascontiguousarray(out[:, a:b]) for task, a, b in zip(tasks, first, first[1:])}
        return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in parts.items()}

    def costs(self) -> Costs:
        """A comparison a level; rows per second are timed here, on one thread."""
        depth, parameters, size = 0.0, 0, 0
        for forest in self.trees.values():
            leaf = forest.feature < 0
            depth += float(np.log2(np.maximum(np.add.reduceat(leaf, forest.first[:-1]), 1)).sum())
            parameters += int(2 * (~leaf).sum() + leaf.sum() * forest.value.shape[1])
            size += sum(getattr(forest, name).nbytes for name in KEPT)
        rows, began = np.zeros((256, len(self.columns.names))), time.perf_counter()
        for group, tasks in _groups(self.tasks).items():
            self._group(group, tasks, rows)
        seconds = time.perf_counter() - began
        return Costs(parameters, max(depth, 1.0), size, float(self.record.get("seconds", 0.0)), len(rows) / seconds)

    def write(self, folder: Path) -> dict[str, Any]:
        for group, trees in self.trees.items():
            np.savez(folder / f"{group}.npz", **{name: getattr(trees, name) for name in KEPT})
        return {"forests": list(self.trees)}

    @classmethod
    def read(cls, folder: Path, manifest: dict[str, Any], tasks: tuple[Task, ...], columns: FittedColumns) -> Forests:
        groups = _groups(tasks)
        if set(manifest["forests"]) != set(groups):
            where = "pluribus.json, own, forests"
            raise BadInput("the forests are not those of the tasks", where=where, remedy="restore the folder")
        found = {}
        for group, own in groups.items():
            path = folder / f"{group}.npz"
            try:
                with np.load(path, allow_pickle=False) as held:
                    found[group] = _arrays({name: held[name] for name in KEPT})
            except (OSError, ValueError, KeyError) as error:
                raise BadInput(f"cannot be read ({error})", where=path.name, remedy="restore the folder") from error
            found[group].check(len(columns.names), sum(_outputs(task) for task in own))
        return cls(tasks, columns, found)


def _arrays(held: Mapping[str, Any]) -> TreeArrays:
    """The trees from the arrays that are kept: there are no categorical splits, and gains are not known."""
    nodes = held["value"].shape
    given = {"mask_of": np.full(nodes[0], -1, np.int32), "masks": np.empty((0, 256), bool), "gain": np.broadcast_to(0.0, nodes)}
    return TreeArrays(**{f.name: given[f.name] if f.name in given else held[f.name] for f in fields(TreeArrays)})


def _groups(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """The tasks that share a forest, by its name."""
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault("classes" if task.classes else "numbers", []).append(task)
    return found


def _outputs(task: Task) -> int:
    """How many numbers a prediction has."""
    return math.prod(task.record.shape(task))


def _score(fitted: Forests, data: Prepared, task: Task) -> Any:
    """The main metric on the validation cells, None where it is no number."""
    cells: Any = data.labelled(task.name, "valid")
    if not len(cells):
        return None
    rows: NDArray[np.int64] = cells.rows
    groups = data.units[rows] if task.main_metric.grouped else None
    said = fitted.scores(data, rows, [task.name])[task.name]
    value = float(metrics.compute(task.main_metric, said, cells.values, cells.weight, groups=groups))
    return plain(value) if math.isfinite(value) else None
