"""Speed and memory of the boosters, side by side with a plain implementation of R-MTGB and with LightGBM.

Default: the reference run (20,000 rows, 5 tasks, 8 features, 50 + 50 + 50 stumps) against `plain_rmtgb`, cost over rows
(10^4, 10^5), prediction rates, and the pooled LightGBM at 10^5 rows. FULL=1 adds 10^6 rows x 20 features x 10 tasks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np

from benchmarks.ratio import RESULTS, Ratio, machine, ratio, table


def plain_rmtgb(
    X: Any, y: Any, task: Any, rounds: tuple[int, int, int], *, nu: float = 0.1, theta: Any, n_classes: int = 0, **tree: Any
) -> Callable[[Any, Any], Any]:
    """R-MTGB word for word with scikit-learn's trees; tasks are 0 .. T - 1; returns predict(X, task) -> scores [n, K]."""
    from sklearn.tree import DecisionTreeRegressor

    K, T = max(n_classes, 1), int(task.max()) + 1
    theta = np.array(theta, dtype=float)
    parts: dict[str, list[Any]] = {"shared": [], "out": [], "non": [], "task": []}
    P = {name: np.zeros((len(X), K)) for name in parts}

    def residual(F: Any) -> Any:
        if n_classes == 0:
            return y[:, None] - F
        p = np.exp(F - F.max(axis=1, keepdims=True))
        return np.eye(K)[y] - p / p.sum(axis=1, keepdims=True)

    def fit(rows: Any, target: Any) -> Any:
        return DecisionTreeRegressor(random_state=0, **tree).fit(X[rows], target[rows])

    def read(model: Any, X: Any) -> Any:
        return model.predict(X).reshape(len(X), K)

    everyone = np.arange(len(X))
    for _ in range(rounds[0]):
        parts["shared"].append(fit(everyone, residual(P["shared"])))
        P["shared"] += nu * read(parts["shared"][-1], X)
    for _ in range(rounds[1]):
        s = 1 / (1 + np.exp(-theta))
        w = s[task][:, None]
        r = residual(P["shared"] + (1 - w) * P["non"] + w * P["out"])
        A, B = fit(everyone, w * r), fit(everyone, (1 - w) * r)
        old = P["out"] - P["non"]
        P["out"] += nu * read(A, X)
        P["non"] += nu * read(B, X)
        parts["out"].append(A)
        parts["non"].append(B)
        for t in range(T):
            own = task == t
            theta[t] -= nu * -(r[own] * old[own]).sum() * s[t] * (1 - s[t])
    s = 1 / (1 + np.exp(-theta))
    w = s[task][:, None]
    for _ in range(rounds[2]):
        r = residual(P["shared"] + (1 - w) * P["non"] + w * P["out"] + P["task"])
        trees = [fit(np.flatnonzero(task == t), r) for t in range(T)]
        for t, own in enumerate(trees):
            P["task"][task == t] += nu * read(own, X[task == t])
        parts["task"].append(trees)

    def predict(X: Any, task: Any) -> Any:
        w = s[task][:, None]
        F = np.zeros((len(X), K))
        for name, factor in (("shared", 1.0), ("non", 1 - w), ("out", w)):
            for model in parts[name]:
                F += factor * nu * read(model, X)
        for trees in parts["task"]:
            for t, own in enumerate(trees):
                rows = np.flatnonzero(task == t)
                if len(rows):
                    F[rows] += nu * read(own, X[rows])
        return F

    predict.theta = theta  # type: ignore[attr-defined]
    return predict


def reference_data(seed: int = 0, n: int = 20_000) -> tuple[Any, Any, Any]:
    """20,000 rows, 5 tasks, 8 features; four tasks share a smooth function for the most part, the fifth has another."""
    rng = np.random.default_rng(seed)
    X, task = rng.uniform(-1, 1, (n, 8)), rng.integers(0, 5, n)
    common, other = np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2], np.cos(3 * X[:, 3]) - X[:, 4]
    own = np.sin(2 * X[:, 5] + task)
    return X, task, 0.9 * np.where(task == 4, other, common) + 0.1 * own + 0.1 * rng.standard_normal(n)


def large_data(n: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """n rows, 20 features, 10 tasks."""
    rng = np.random.default_rng(seed)
    X, task = rng.standard_normal((n, 20)), rng.integers(0, 10, n)
    y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.5 * np.where(task > 7, -1, 1) * X[:, 3] + 0.3 * rng.standard_normal(n)
    return X, task, y


def reference_run() -> tuple[Ratio, str]:
    from pluribus.boosting import RMTGBRegressor

    X, task, y = reference_data()
    X_test, task_test, y_test = reference_data(1)
    theta = 0.1 * np.random.RandomState(0).standard_normal(5)
    fits: dict[str, Any] = {}

    def ours() -> None:
        model = RMTGBRegressor(50, 50, 50, max_leaf_nodes=2, theta_init=theta)
        fits["ours"] = model.fit(X, y, task=task)

    def theirs() -> None:
        fits["plain"] = plain_rmtgb(X, y, task, (50, 50, 50), theta=theta, max_leaf_nodes=2)

    found = ratio("R-MTGB, reference run, against scikit-learn's trees", ours, theirs, target="<= 0.10", pairs=3)
    a = np.sqrt(np.mean((fits["ours"].predict(X_test, task_test) - y_test) ** 2))
    b = np.sqrt(np.mean((fits["plain"](X_test, task_test)[:, 0] - y_test) ** 2))
    apart = 100 * abs(a / b - 1)
    line = f"Test RMSE of the reference run: {a:.5f} (ours) and {b:.5f} (plain), {apart:.2f} % apart; target <= 1 %."
    print(line, flush=True)
    return found, line


def pooled_pair(n: int, pairs: int) -> list[Ratio]:
    """R-MTGB 100 + 100 + 100 rounds of depth 6 against LightGBM pooled with 300 trees of as many leaves; and prediction."""
    import lightgbm

    from pluribus.boosting import RMTGBRegressor

    X, task, y = large_data(n)
    fits: dict[str, Any] = {}

    def ours() -> None:
        fits["ours"] = RMTGBRegressor(100, 100, 100, max_depth=6, max_leaf_nodes=None, min_samples_leaf=20).fit(X, y, task=task)

    def theirs() -> None:
        settings = {"num_leaves": 64, "max_depth": 6, "num_threads": 1, "verbose": -1, "seed": 0, "min_data_in_leaf": 20}
        fits["lightgbm"] = lightgbm.train(settings, lightgbm.Dataset(X, y), 300)

    fit = ratio(
        f"fit, {n:,} rows x 20 x 10 tasks, depth 6, 100+100+100, against LightGBM pooled x 300",
        ours,
        theirs,
        target="<= 3.5",
        pairs=pairs,
    )
    few = min(n, 50_000)

    def predict() -> None:
        fits["pooled"].predict(X[:few])

    def predict_lightgbm() -> None:
        fits["lightgbm"].predict(X[:few], num_threads=1)

    # as many trees for both: a pooled booster of 300 trees of ours
    fits["pooled"] = RMTGBRegressor(300, 0, 0, max_depth=6, max_leaf_nodes=None, min_samples_leaf=20).fit(X[:few], y[:few])
    prediction = ratio(
        f"predict, {few:,} rows, 300 trees of depth 6, against LightGBM",
        predict,
        predict_lightgbm,
        target="<= 3",
        pairs=max(pairs, 3),
    )
    return [fit, prediction]


def lightgbm_cost(n: int) -> float:
    """CPU seconds of LightGBM pooled, 300 trees of as many leaves, in a process of its own."""
    code = f"""
import time
import lightgbm
from benchmarks.boosting_speed import large_data
X, task, y = large_data({n})
settings = dict(num_leaves=64, max_depth=6, num_threads=1, verbose=-1, seed=0, min_data_in_leaf=20)
lightgbm.train(settings, lightgbm.Dataset(X[:500], y[:500]), 2)
start = time.process_time()
lightgbm.train(settings, lightgbm.Dataset(X, y), 300)
print(time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def large_pair(spent: dict[str, float], n: int = 1_000_000) -> Ratio:
    """One run each at 10^6 rows, as `cost` measured them."""
    name = f"fit, {n:,} rows x 20 x 10 tasks, depth 6, 100+100+100, against LightGBM pooled x 300 (one run each)"
    ours, theirs = spent["seconds"], spent["lightgbm"]
    found = Ratio(name, ours, theirs, ours / theirs, ours / theirs, "<= 3.5")
    print(found, flush=True)
    return found


def cost(n: int) -> dict[str, float]:
    """CPU seconds and the peak memory of one fit beyond what X and the process had before, in a process of its own."""
    code = f"""
import json, resource, time
import numpy as np
from benchmarks.boosting_speed import large_data
from pluribus.boosting import RMTGBRegressor
X, task, y = large_data({n})
settings = dict(max_depth=6, max_leaf_nodes=None, min_samples_leaf=20)
RMTGBRegressor(2, 2, 2, **settings).fit(X[:500], y[:500], task=task[:500])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
scratch = np.empty(0)
before = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
open('/proc/self/clear_refs', 'w').write('5')
start = time.process_time()
RMTGBRegressor(100, 100, 100, **settings).fit(X, y, task=task)
spent = time.process_time() - start
high = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]
print(json.dumps(dict(seconds=spent, bytes=int(high.split()[1]) * 1024 - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def own_trees_pair(n: int = 20_000, pairs: int = 3) -> Ratio:
    """What the trees of each task alone cost after the shared ones, against LightGBM with one model per task."""
    from pluribus.boosting import MultiTaskBoosting

    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 20))
    Y = {f"t{t}": np.sin(X[:, t]) + X[:, t + 1] * X[:, t + 2] + rng.normal(size=n) for t in range(4)}
    cut = 3 * n // 4
    fit, held = (X[:cut], {t: y[:cut] for t, y in Y.items()}), (X[cut:], {t: y[cut:] for t, y in Y.items()})
    spent: dict[str, float] = {}

    def alone() -> float:
        began: list[float] = []

        def watch(said: dict[str, Any]) -> None:
            if said["block"] == "trees":  # the clock starts at the last shared round
                began[:] = [time.process_time()]

        settings = {"learning_rate": 0.05, "min_samples_leaf": 20, "colsample": 0.9, "early_stopping": True}
        model = MultiTaskBoosting("regression", 1000, own_trees=True, n_iter_no_change=50, progress=watch, **settings)
        model.fit(*fit, eval_set=held)
        return time.process_time() - began[0]

    def per_task() -> float:
        import lightgbm

        began = time.process_time()
        settings = {"learning_rate": 0.05, "feature_fraction": 0.9, "num_threads": 1, "verbose": -1, "deterministic": True}
        for t, y in fit[1].items():
            whole = lightgbm.Dataset(fit[0], y, params={"verbose": -1})
            valid = lightgbm.Dataset(held[0], held[1][t], reference=whole)
            stop = [lightgbm.early_stopping(50, verbose=False)]
            lightgbm.train(settings | {"force_row_wise": True}, whole, 1000, valid_sets=[valid], callbacks=stop)
        return time.process_time() - began

    found: list[tuple[float, float]] = []
    for i in range(pairs):
        first, second = (alone, per_task) if i % 2 == 0 else (per_task, alone)
        spent[first.__name__], spent[second.__name__] = first(), second()
        found.append((spent["alone"], spent["per_task"]))
    each = np.array([a / b for a, b in found])
    ours, theirs = np.median(np.array(found), axis=0)
    name = f"own trees after the shared ones, {n:,} rows x 20 x 4 tasks, against LightGBM per task"
    line = Ratio(name, float(ours), float(theirs), *np.quantile(each, (0.25, 0.75)).tolist(), "<= 1.2")
    print(line, flush=True)
    return line


def write(ratios: list[Ratio], rmse: str, costs: dict[int, dict[str, float]], command: str, seconds: float) -> None:
    """The page, from what has been measured so far."""
    rows = [
        "| rows | CPU s | µs a row | LightGBM, µs a row | peak beyond X, MB | binned matrix + scores, MB | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for n, spent in costs.items():
        base = n * 20 + 4 * n * 8  # bytes of the binned matrix and the four parts of the score
        time_, high = spent["seconds"], spent["bytes"]
        speed = f"{time_:.2f} | {1e6 * time_ / n:.1f} | {1e6 * spent['lightgbm'] / n:.1f}"
        rows.append(f"| {n:,} | {speed} | {high / 1e6:.1f} | {base / 1e6:.1f} | {high / base:.2f} |")
    page = f"""# Speed of the boosters

CPU seconds, medians over interleaved pairs; one thread on both sides. Written by `{command}` on {date.today()}
({machine()}), {seconds:.0f} s in all. The machine was shared while this ran.

{table(ratios)}

{rmse}

R-MTGB of 100 + 100 + 100 rounds grows 100 + 2 x 100 trees on all rows and 10 x 100 on a task's rows each (as many row
visits as 400 pooled trees); LightGBM grows 300.

## Cost over rows (20 features, 10 tasks, depth 6, 100 + 100 + 100 rounds)

Memory: peak of the fit beyond X, y, task and the loaded process, in a process of its own; target at 10^6 rows <= 3 x (binned
matrix + scores). The fitted trees themselves (1,300 of up to 127 nodes) are part of it and do not grow with the rows. Every
split looks at 255 bins a feature however few rows it has: with 1,000 rows a task that is most of the cost, for LightGBM as well.

{chr(10).join(rows)}
"""
    (RESULTS / "boosting_speed.md").write_text(page, encoding="utf-8")


def run(full: bool) -> None:
    start = time.perf_counter()
    command = "make bench ONLY=boosting_speed" + (" FULL=1" if full else "")
    first, rmse = reference_run()
    ratios, costs = [first, *pooled_pair(100_000, 3), own_trees_pair()], {}
    for n in (10_000, 100_000, 1_000_000) if full else (10_000, 100_000):
        costs[n] = cost(n) | {"lightgbm": lightgbm_cost(n)}
        print(n, costs[n], flush=True)
        write(ratios, rmse, costs, command, time.perf_counter() - start)
    if full:
        ratios.append(large_pair(costs[1_000_000]))
        write(ratios, rmse, costs, command, time.perf_counter() - start)
