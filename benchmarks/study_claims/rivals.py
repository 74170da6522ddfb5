"""The rivals of `study_claims`: other people's libraries, each on the same training rows as our study.

    PYTHON rivals.py ARM TABLE SPLIT BUDGET OUT

A process an arm. This file imports neither the benchmarks nor the product, so that a Python with other packages can run it.
TABLE holds frame.parquet, about.json and split-SPLIT.npy (0 train, 1 valid, 2 test for each row); OUT gets predictions.npz
(target → prediction of every test row) and result.json. BUDGET is core-seconds of this process, for all tasks together; final
fits are counted as far as they can be foreseen.

Every arm learns from train and valid. What it tunes or stops by is judged on train and valid alone: by five folds below 3,000
units, else on the valid part. Labels of test rows are taken out of the frame before an arm sees it. In the long layout the arms
other than LightGBM and XGBoost per task learn all tasks together, with the task's name as one more column of categories.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FEWEST_UNITS = 3000
FOLDS = 5
SPEED_ROWS = 2000


@dataclass
class Data:
    """The table as an arm sees it: inputs of all rows, labels of train and valid rows (NaN elsewhere), kinds by target."""

    x: pd.DataFrame
    y: dict[str, Any]
    kinds: dict[str, str]
    part: Any
    units: Any
    task: str | None
    grouped: bool

    @property
    def seen(self) -> Any:
        return np.flatnonzero(self.part < 2)

    @property
    def test(self) -> Any:
        return np.flatnonzero(self.part == 2)

    def labelled(self, target: str) -> Any:
        return np.flatnonzero((self.part < 2) & np.isfinite(self.y[target]))

    @property
    def small(self) -> bool:
        return len(np.unique(self.units[self.seen])) < FEWEST_UNITS

    def cuts(self, rows: Any, seed: int = 0) -> list[tuple[Any, Any]]:
        """(fit, judge) rows: five folds of whole units, or train against valid."""
        if not self.small:
            return [(rows[self.part[rows] == 0], rows[self.part[rows] == 1])]
        units = np.unique(self.units[rows], return_inverse=True)[1]
        fold = np.random.default_rng(seed).permutation(np.arange(units.max() + 1) % FOLDS)[units]
        return [(rows[fold != k], rows[fold == k]) for k in range(FOLDS) if (fold == k).any() and (fold != k).any()]


def read(folder: Path, split: int) -> Data:
    frame, about = pd.read_parquet(folder / "frame.parquet"), json.loads((folder / "about.json").read_text("utf-8"))
    part = np.load(folder / f"split-{split}.npy")
    y = {target: frame[target].to_numpy(float, copy=True) for target in about["targets"]}
    for values in y.values():
        values[part == 2] = np.nan
    group, rule = about["group"], about["split"]
    units = np.arange(len(frame))
    if group is not None:
        units = np.unique(frame[group].to_numpy(), return_inverse=True)[1]
    elif rule.startswith("time:"):
        units = np.unique(frame[rule.split(":", 1)[1]].dt.normalize(), return_inverse=True)[1]
    x = frame.drop(columns=[*about["targets"], *([] if group is None else [group])])
    grouped = group is not None or rule.startswith("time:")
    return Data(prepared(x), y, about["targets"], part, units, about["task_column"], grouped)


def prepared(x: pd.DataFrame) -> pd.DataFrame:
    """Numbers as float32, dates as hour, weekday and day of the year, everything else as categories (words)."""
    found: dict[str, Any] = {}
    for name in x.columns:
        values = x[name]
        if pd.api.types.is_datetime64_any_dtype(values):
            found |= {f"{name}.hour": values.dt.hour + values.dt.minute / 60, f"{name}.weekday": values.dt.weekday}
            found[f"{name}.day"] = values.dt.dayofyear
        elif pd.api.types.is_numeric_dtype(values):
            found[name] = values
        else:
            found[name] = values.astype(object).where(values.notna(), "(missing)").astype(str).astype("category")
    made = pd.DataFrame(found)
    numbers = {name: np.float32 for name in made.columns if made[name].dtype != "category"}
    made = made.astype(numbers)
    made.columns = (
        [f"c{i}" for i in range(made.shape[1])] if any(set(c) & set('[]{}":,<') for c in made.columns) else made.columns
    )
    return made


def one_hot(x: pd.DataFrame, most: int = 30) -> Any:
    """Categories as 0/1 columns, or as their numbers where there are more than `most`: float32 [n, d]."""
    parts = []
    for name in x.columns:
        if x[name].dtype != "category":
            parts.append(x[name].to_numpy(np.float32)[:, None])
        elif len(x[name].cat.categories) <= most:
            parts.append((x[name].cat.codes.to_numpy()[:, None] == np.arange(len(x[name].cat.categories))).astype(np.float32))
        else:
            parts.append(x[name].cat.codes.to_numpy(np.float32)[:, None])
    return np.concatenate(parts, axis=1)


# what is judged ---------------------------------------------------------------------------------------------------------------


def goodness(kind: str, y: Any, p: Any) -> float:
    """More is better: AUC of 0/1, minus RMSE of numbers; minus log loss where only one class occurs."""
    if kind != "binary":
        return -float(np.sqrt(np.mean((y - p) ** 2)))
    if len(np.unique(y)) == 2:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(y, p))
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(np.mean(np.where(y > 0, np.log(p), np.log(1 - p))))


def spent() -> float:
    """Core-seconds of this process and of its children that have ended."""
    return time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def drawn(rng: Any) -> dict[str, Any]:
    """One configuration of LightGBM at random."""
    return {
        "learning_rate": float(np.exp(rng.uniform(np.log(0.02), np.log(0.2)))),
        "num_leaves": int(np.exp(rng.uniform(np.log(4), np.log(128)))),
        "min_child_samples": int(np.exp(rng.uniform(np.log(3), np.log(60)))),
        "colsample_bytree": float(rng.uniform(0.4, 1)),
        "subsample": float(rng.uniform(0.6, 1)),
        "subsample_freq": 1,
        "reg_lambda": float(np.exp(rng.uniform(np.log(1e-3), np.log(10)))),
        "min_child_weight": 1e-7,
    }


def allowed(n: int) -> int:
    """How many configurations so many rows can tell apart (AutoGluon's curve)."""
    return round(float(np.exp(np.interp(np.log(n), np.log([100, 500, 2500, 10_000, 100_000]), np.log([4, 8, 15, 40, 100])))))


# the arms: (predict all test rows, bytes of what predicts) ----------------------------------------------------------------------

Predict = Callable[[pd.DataFrame], Mapping[str, Any]]
"""Prepared inputs → target → predictions of all rows."""


def _members(data: Data) -> Iterator[tuple[str, str | None, Any]]:
    """(target, task or None, its labelled rows): what "per task" means in both layouts."""
    for target in data.kinds:
        rows = data.labelled(target)
        if data.task is None:
            yield target, None, rows
        else:
            names = data.x[data.task].to_numpy(str)
            for name in np.unique(names):
                own = rows[names[rows] == name]
                yield target, str(name), own


def _per_task(data: Data, fit: Callable[[Any, str, Any, int], tuple[Callable[[Any], Any], Any]]) -> tuple[Predict, Any]:
    """fit(inputs, kind, (target, rows), how many tasks) → (predict, what is kept), put together over the tasks."""
    x = data.x if data.task is None else data.x.drop(columns=data.task)
    every = list(_members(data))
    made = [(target, name, *fit(x, data.kinds[target], (target, rows), len(every))) for target, name, rows in every]

    def predict(given: pd.DataFrame) -> Mapping[str, Any]:
        inputs = given if data.task is None else given.drop(columns=data.task)
        found: dict[str, Any] = {}
        for target, name, one, _ in made:
            if name is None:
                found[target] = one(inputs)
                continue
            own = (given[data.task] == name).to_numpy()
            if own.any():
                found.setdefault(target, np.full(len(given), np.nan))[own] = one(inputs[own])
        return found

    return predict, [kept for *_, kept in made]


def _lightgbm(kind: str, settings: Mapping[str, Any]) -> Any:
    import lightgbm

    plain = {"n_jobs": 1, "verbose": -1, "random_state": 0}
    make = lightgbm.LGBMClassifier if kind == "binary" else lightgbm.LGBMRegressor
    return make(**{**plain, **settings})


def _says(model: Any, kind: str) -> Callable[[Any], Any]:
    if kind == "binary":
        return lambda x: model.predict_proba(x)[:, 1]
    return lambda x: model.predict(x)


def lightgbm_default(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """The library's own defaults, one booster a task: 100 rounds, no early stop."""

    def fit(x: Any, kind: str, cells: tuple[str, Any], tasks: int) -> tuple[Callable[[Any], Any], Any]:
        target, rows = cells
        model = _lightgbm(kind, {}).fit(x.iloc[rows], data.y[target][rows])
        return _says(model, kind), model

    return *_per_task(data, fit), {}


def lightgbm_tuned(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """Random search, one booster a task: the defaults first, each configuration with an early stop (50 rounds).

    As many configurations as the task's share of the budget holds and the number of rows can tell apart. Of five folds the five
    boosters are kept and averaged; a booster that was stopped on the valid part is fitted again on all rows with its rounds.
    """
    import lightgbm

    tried: list[int] = []

    def fit(x: Any, kind: str, cells: tuple[str, Any], tasks: int) -> tuple[Callable[[Any], Any], Any]:
        target, rows = cells
        y, rng, began, share = data.y[target], np.random.default_rng(0), spent(), budget / tasks
        cuts = data.cuts(rows)
        best: tuple[float, dict[str, Any], list[Any]] = (-np.inf, {}, [])
        number, longest = 0, 0.0
        while number < allowed(len(rows)):
            ahead = longest * (1 if data.small else 2.2)  # a final fit comes after a search on the valid part
            if number and spent() - began + ahead > share:
                break
            settings = {} if number == 0 else drawn(rng)
            start, held, models = spent(), [], []
            for train, valid in cuts:
                model = _lightgbm(kind, {"n_estimators": 2000, **settings})
                stop = lightgbm.early_stopping(50, verbose=False)
                model.fit(x.iloc[train], y[train], eval_set=[(x.iloc[valid], y[valid])], callbacks=[stop])
                held.append(_says(model, kind)(x.iloc[valid]))
                models.append(model)
            found = goodness(kind, np.concatenate([y[valid] for _, valid in cuts]), np.concatenate(held))
            if found > best[0]:
                best = (found, settings, models)
            number, longest = number + 1, max(longest, spent() - start)
        tried.append(number)
        _, settings, models = best
        if not data.small:
            rounds = max(1, int(models[0].best_iteration_ or 1))
            models = [_lightgbm(kind, {**settings, "n_estimators": rounds}).fit(x.iloc[rows], y[rows])]
        each = [_says(model, kind) for model in models]
        return (lambda given: np.mean([one(given) for one in each], axis=0)), models

    predict, kept = _per_task(data, fit)
    return predict, kept, {"configurations": float(np.mean(tried))}


def _blocks(data: Data, several: Callable[[str, bool], bool]) -> list[list[str]]:
    """The targets that one model takes together: those of one kind, where it takes holes or has none; else one by one."""
    found: list[list[str]] = []
    for kind in dict.fromkeys(data.kinds.values()):
        names = [name for name, own in data.kinds.items() if own == kind]
        holes = any(not np.isfinite(data.y[name][data.seen]).all() for name in names)
        found += [names] if len(names) > 1 and several(kind, holes) else [[name] for name in names]
    return found


def extra_trees(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """300 trees with several outputs (one forest a task where labels have holes); leaf size and columns chosen."""
    from sklearn.ensemble import ExtraTreesRegressor

    x, began = one_hot(data.x), spent()
    blocks = _blocks(data, lambda kind, holes: not holes)
    if data.task is None and not any(not np.isfinite(data.y[n][data.seen]).all() for n in data.kinds):
        blocks = [list(data.kinds)]  # standardised, all kinds can share a forest
    made = []
    for number, names in enumerate(blocks):
        rows = data.labelled(names[0])
        y = np.column_stack([data.y[name] for name in names])
        mean, deviation = y[rows].mean(0), np.maximum(y[rows].std(0), 1e-12)
        z = (y - mean) / deviation
        best: tuple[float, dict[str, Any]] = (-np.inf, {})
        scale = [1.0 if data.kinds[name] == "binary" else float(d) for name, d in zip(names, deviation)]
        for leaf in (1, 3, 10):
            for columns in ("sqrt", 0.5):
                over = spent() - began > budget * (number + 0.5) / len(blocks)
                if over and best[1]:
                    break
                settings = {"min_samples_leaf": leaf, "max_features": columns}
                each = []
                for train, valid in data.cuts(rows):
                    forest = ExtraTreesRegressor(50, n_jobs=1, random_state=0, **settings).fit(x[train], z[train])
                    p = forest.predict(x[valid]).reshape(len(valid), -1) * deviation + mean
                    each += [goodness(data.kinds[n], y[valid, i], p[:, i]) / scale[i] for i, n in enumerate(names)]
                found = float(np.mean(each))
                if found > best[0]:
                    best = (found, settings)
        forest = ExtraTreesRegressor(300, n_jobs=1, random_state=0, **best[1]).fit(x[rows], z[rows])
        made.append((names, forest, mean, deviation))

    def predict(given: pd.DataFrame) -> Mapping[str, Any]:
        inputs, found = one_hot(given), {}
        for names, forest, mean, deviation in made:
            p = forest.predict(inputs).reshape(len(given), -1) * deviation + mean
            found |= {name: p[:, i] for i, name in enumerate(names)}
        return found

    return predict, made, {"models": len(made)}


class _Stop:
    """Ends a boosting when its core-seconds are spent."""

    def __init__(self, seconds: float) -> None:
        self.end = spent() + seconds

    def after_iteration(self, info: Any) -> bool:  # CatBoost
        return spent() < self.end


def catboost_multi(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """One model a kind: MultiRMSE (with missing values where labels have holes), MultiLogloss; binary with holes one by one.

    Two configurations (depth 6; 8 and faster), stopped on held-out rows; the better is fitted again on all rows with its rounds.
    """
    import catboost

    several = _blocks(data, lambda kind, holes: not (kind == "binary" and holes))
    categories = [name for name in data.x.columns if data.x[name].dtype == "category"]
    x = data.x.astype(dict.fromkeys(categories, str))
    made = []
    for names in several:
        kind, seen = data.kinds[names[0]], data.seen
        y = np.column_stack([data.y[name] for name in names])
        holes = not np.isfinite(y[seen]).all()
        rows = seen[np.isfinite(y[seen]).any(1)]
        if kind == "binary":
            loss, mean, deviation = ("MultiLogloss" if len(names) > 1 else "Logloss"), np.zeros(len(names)), np.ones(len(names))
        else:
            loss = "RMSE" if len(names) == 1 else "MultiRMSEWithMissingValues" if holes else "MultiRMSE"
            mean, deviation = np.nanmean(y[rows], 0), np.maximum(np.nanstd(y[rows], 0), 1e-12)
        z = (y - mean) / deviation
        shape = (lambda a: a[:, 0]) if len(names) == 1 else (lambda a: a)
        plain = {"loss_function": loss, "thread_count": 1, "random_seed": 0, "verbose": False, "allow_writing_files": False}
        best: tuple[float, dict[str, Any], int] = (np.inf, {}, 1)
        share, began = budget / len(several), spent()
        for settings in ({"learning_rate": 0.05}, {"learning_rate": 0.09, "depth": 8}):
            losses, rounds = [], []
            for train, valid in data.cuts(rows):
                if rounds and spent() - began > share / 2:
                    break
                model = catboost.CatBoost({**plain, **settings, "iterations": 2000})
                pool = [catboost.Pool(x.iloc[at], shape(z[at]), cat_features=categories) for at in (train, valid)]
                stop = [_Stop(share / 4)]
                model.fit(pool[0], eval_set=pool[1], early_stopping_rounds=50, use_best_model=True, callbacks=stop)
                losses.append(min(model.get_evals_result()["validation"][loss]))
                rounds.append(max(1, model.tree_count_))
            if np.mean(losses) < best[0]:
                best = (float(np.mean(losses)), settings, round(float(np.mean(rounds))))
        model = catboost.CatBoost({**plain, **best[1], "iterations": best[2]})
        model.fit(catboost.Pool(x.iloc[rows], shape(z[rows]), cat_features=categories))
        made.append((names, kind, model, mean, deviation))

    def predict(given: pd.DataFrame) -> Mapping[str, Any]:
        pool, found = catboost.Pool(given.astype(dict.fromkeys(categories, str)), cat_features=categories), {}
        for names, kind, model, mean, deviation in made:
            if kind == "binary":
                p = np.asarray(model.predict(pool, prediction_type="Probability"))
                p = p[:, 1:] if len(names) == 1 else p
            else:
                p = np.asarray(model.predict(pool)).reshape(len(given), -1) * deviation + mean
            found |= {name: p[:, i] for i, name in enumerate(names)}
        return found

    return predict, made, {"models": len(made)}


def xgboost_multi(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """`multi_output_tree`, one model a kind; labels with holes, which it refuses, one by one. Two configurations, as CatBoost."""
    import xgboost

    class Stop(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.stop = _Stop(seconds)

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return not self.stop.after_iteration(None)

    several = _blocks(data, lambda kind, holes: not holes)
    x, made = one_hot(data.x), []
    for names in several:
        kind = data.kinds[names[0]]
        rows = data.labelled(names[0])
        y = np.column_stack([data.y[name] for name in names])
        mean, deviation = (0.0, 1.0) if kind == "binary" else (y[rows].mean(0), np.maximum(y[rows].std(0), 1e-12))
        z = (y - mean) / deviation
        plain = {"objective": "binary:logistic" if kind == "binary" else "reg:squarederror", "tree_method": "hist", "nthread": 1}
        plain["eval_metric"] = "logloss" if kind == "binary" else "rmse"
        if len(names) > 1:
            plain["multi_strategy"] = "multi_output_tree"
        best: tuple[float, dict[str, Any], int] = (np.inf, {}, 1)
        share, began = budget / len(several), spent()
        for settings in ({"eta": 0.1}, {"eta": 0.05, "max_depth": 8, "subsample": 0.8, "min_child_weight": 3}):
            losses, rounds, given = [], [], {**plain, **settings}
            for train, valid in data.cuts(rows):
                if rounds and spent() - began > share / 2:
                    break
                fit, judge = (xgboost.DMatrix(x[at], label=z[at]) for at in (train, valid))
                log: dict[str, Any] = {}
                stops = [Stop(share / 4), xgboost.callback.EarlyStopping(50)]
                xgboost.train(given, fit, 2000, [(judge, "valid")], callbacks=stops, evals_result=log, verbose_eval=False)
                curve = log["valid"][str(plain["eval_metric"])]
                losses.append(min(curve))
                rounds.append(int(np.argmin(curve)) + 1)
            if np.mean(losses) < best[0]:
                best = (float(np.mean(losses)), settings, round(float(np.mean(rounds))))
        model = xgboost.train({**plain, **best[1]}, xgboost.DMatrix(x[rows], label=z[rows]), best[2])
        made.append((names, model, mean, deviation))

    def predict(given: pd.DataFrame) -> Mapping[str, Any]:
        inputs, found = xgboost.DMatrix(one_hot(given)), {}
        for names, model, mean, deviation in made:
            p = model.predict(inputs).reshape(len(given), -1) * deviation + mean
            found |= {name: p[:, i] for i, name in enumerate(names)}
        return found

    return predict, made, {"models": len(made)}


def _autogluon(data: Data, budget: float, folder: Path, *, chained: bool) -> tuple[Predict, Any, dict[str, Any]]:
    from autogluon.tabular import TabularPredictor

    epoch, zero = time.time(), spent()
    time.time = lambda: epoch + spent() - zero  # its limits read this clock: on a busy machine, too, they are core-seconds
    made: list[tuple[str, str, Any, Any]] = []
    known: dict[str, Any] = {}  # chained: what earlier targets say of each row, their true labels while training
    for number, (target, kind) in enumerate(data.kinds.items()):
        rows, inputs = data.labelled(target), data.x.assign(**known)
        label = "the label"
        frame = inputs.iloc[rows].assign(**{label: data.y[target][rows]})
        if kind == "binary":
            frame[label] = frame[label].astype(int)
        tuning = None
        if data.grouped:  # its own hold-out would cut through groups and days
            train, valid = data.cuts(rows)[0]
            place = pd.Series(np.arange(len(rows)), index=rows)
            frame, tuning = frame.iloc[place[train]], frame.iloc[place[valid]]
        metric, problem = ("roc_auc", "binary") if kind == "binary" else ("root_mean_squared_error", "regression")
        path = folder / f"autogluon-{number}"
        predictor = TabularPredictor(label=label, eval_metric=metric, problem_type=problem, path=str(path), verbosity=0)
        limit = budget / len(data.kinds)
        predictor.fit(frame, tuning_data=tuning, presets="medium_quality", time_limit=limit, num_cpus=1, num_gpus=0)
        made.append((target, kind, predictor, path))
        if chained:
            known[f"earlier {number}"] = data.y[target]

    def predict(given: pd.DataFrame) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for number, (target, kind, predictor, _) in enumerate(made):
            said = predictor.predict_proba(given)[1] if kind == "binary" else predictor.predict(given)
            found[target] = said.to_numpy(float)
            if chained:
                hard = (found[target] >= 0.5).astype(float) if kind == "binary" else found[target]
                given = given.assign(**{f"earlier {number}": hard})
        return found

    counts = [len(predictor.model_names()) for _, _, predictor, _ in made]
    return predict, [path for *_, path in made], {"models": float(np.sum(counts))}


def autogluon(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """`medium_quality`, a predictor a target; the budget is shared evenly, as its time limit in core-seconds."""
    return _autogluon(data, budget, folder, chained=False)


def autogluon_chained(data: Data, budget: float, folder: Path) -> tuple[Predict, Any, dict[str, Any]]:
    """The same in a chain, as its documentation's `MultilabelPredictor` does: true earlier labels while it learns, predicted ones
    afterwards."""
    return _autogluon(data, budget, folder, chained=True)


ARMS: dict[str, Callable[[Data, float, Path], tuple[Predict, Any, dict[str, Any]]]] = {
    "lightgbm": lightgbm_default,
    "lightgbm_tuned": lightgbm_tuned,
    "extra_trees": extra_trees,
    "catboost": catboost_multi,
    "xgboost": xgboost_multi,
    "autogluon": autogluon,
    "autogluon_chained": autogluon_chained,
}
PEERS = ("catboost", "xgboost", "autogluon", "autogluon_chained")
"""The arms whose libraries are none of ours."""


def size(kept: Any) -> int:
    """Bytes of what predicts: of folders, or of the pickled models."""
    if isinstance(kept, Sequence) and kept and all(isinstance(each, Path) for each in kept):
        return sum(file.stat().st_size for each in kept for file in each.rglob("*") if file.is_file())
    return len(pickle.dumps(kept))


def speed(predict: Callable[[Any], Any], inputs: Any) -> float:
    """Rows a core-second: the best of three calls with 2,000 rows."""
    times = []
    for _ in range(3):
        start = spent()
        predict(inputs)
        times.append(spent() - start)
    return len(inputs) / max(min(times), 1e-6)


def many(rows: Any) -> Any:
    """So many of the rows, again and again, that a speed can be measured."""
    return np.resize(rows, SPEED_ROWS)


def memory() -> float:
    """Megabytes of this process or of its largest child, whichever was more."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def main(arm: str, table: str, split: str, budget: str, out: str) -> None:
    warnings.filterwarnings("ignore")
    folder = Path(out)
    data = read(Path(table), int(split))
    cpu, wall = spent(), time.perf_counter()
    predict, kept, more = ARMS[arm](data, float(budget), folder)
    seconds, elapsed, peak = spent() - cpu, time.perf_counter() - wall, memory()
    found = predict(data.x.iloc[data.test])
    np.savez(folder / "predictions.npz", **{f"{arm}/{name}": np.asarray(p, np.float64) for name, p in found.items()})
    row = {
        "seconds": seconds,
        "wall_seconds": elapsed,
        "memory_mb": peak,
        "rows_per_second": speed(predict, data.x.iloc[many(data.test)]),
        "bytes": size(kept),
        **more,
    }
    (folder / "result.json").write_text(json.dumps(row), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
