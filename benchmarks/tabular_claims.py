"""Encoders of tables, joint and one per task. Writes docs/results/tables.md; runs the recommenders' claims where there are any.

Data: `bench_0.2`, `bench_0.9`, MultiTab-Bench with 8 regression tasks (degrees 1 to 4) on 32 numbers at two correlations; `adult`
and `census` (income, never married); `flights` (four tasks with holes, split by time); `enb` and `wq`, multi-target regression.
Nothing is tuned: every candidate runs its documented defaults once a seed, is stopped on validation, and is tested once. Δm
compares seed with seed. A finished cell is kept in build/tabular_claims and not run again.
"""

from __future__ import annotations

import datetime
import gzip
import importlib
import importlib.util
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratio import DATA, RESULTS, machine
from benchmarks.tables import adult, census

CELLS = Path(__file__).parents[1] / "build" / "tabular_claims"
MULTITAB = {
    "MultiTab-Net, single token": {"tokens": "single"},
    "MultiTab-Net, T↛T": {"mask": "task_to_task"},
    "MultiTab-Net, 2 layers, no mask": {"mask": "none", "depth": 2},  # in one layer F↛T changes nothing
    "MultiTab-Net, 2 layers, T↛T": {"mask": "task_to_task", "depth": 2},
    "MultiTab-Net, 2 layers, F↛T": {"mask": "feature_to_task", "depth": 2},
    "MultiTab-Net, 2 layers, both masks": {"mask": "both", "depth": 2},
}
# shown as → (candidate, settings, the same encoder's specialists)
CANDIDATES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "MLP, one per task": ("single_networks", {}, None),
    "MLP, shared bottom": ("shared_bottom_equal", {}, "MLP, one per task"),
    "FT-Transformer, one per task": ("single_ft_transformer", {}, None),
    "FT-Transformer": ("ft_transformer", {}, "FT-Transformer, one per task"),
    "TabM, one per task": ("single_tabm", {}, None),
    "TabM, multi-task": ("tabm", {}, "TabM, one per task"),
    "MultiTab-Net, one per task": ("single_multitab_net", {}, None),
    **{name: ("multitab_net", settings, "MultiTab-Net, one per task") for name, settings in MULTITAB.items()},
    "RealMLP, one per task": ("realmlp_single", {}, None),
    "RealMLP": ("realmlp", {}, "RealMLP, one per task"),
    "LightGBM, one per task": ("lightgbm_per_task", {}, None),
}
FIRST = "MLP, one per task"


def bench(correlation: float) -> Callable[[int], Any]:
    def made(rows: int) -> Any:
        from pluribus.data.table import Table
        from pluribus.tabular import multitab_bench

        frame = multitab_bench(rows, tasks=8, correlation=correlation, degrees=[1, 3, 2, 3, 4, 2, 3, 1], seed=12)
        return Table(frame, [f"y{t}:regression" for t in range(8)], split="random")

    return made


def people(source: Callable[[int], tuple[Any, list[str]]]) -> Callable[[int], Any]:
    def made(rows: int) -> Any:
        from pluribus.data.table import Table

        frame, targets = source(rows)
        return Table(frame, targets, split="random")

    return made


def flown(rows: int) -> Any:
    from pluribus.data.flights import flights

    return flights(max(1000, rows))


def mulan(name: str, targets: int) -> Callable[[int], Any]:
    """A multi-target set: ARFF, numbers, the targets last."""

    def made(rows: int) -> Any:
        import pandas as pd

        from pluribus.data.table import Table

        with gzip.open(DATA / "mulan_multitarget" / f"{name}.arff.gz", "rt", encoding="utf-8") as handle:
            body = handle.read().lower().split("@data", 1)[1]
        lines = [line for line in body.splitlines() if line.strip() and not line.startswith("%")]
        frame = pd.read_csv(io.StringIO("\n".join(lines)), header=None, na_values="?", skipinitialspace=True)
        inputs = frame.shape[1] - targets
        frame.columns = [f"x{j}" if j < inputs else f"y{j - inputs}" for j in range(frame.shape[1])]
        frame = frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)
        return Table(frame, [f"y{t}:regression" for t in range(targets)], split="random")

    return made


SETS: dict[str, Callable[[int], Any]] = {
    "bench_0.2": bench(0.2),
    "bench_0.9": bench(0.9),
    "adult": people(adult),
    "census": people(census),
    "flights": flown,
    "enb": mulan("enb", 2),
    "wq": mulan("wq", 14),
}


def prepared(name: str, rows: int) -> Any:
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split

    table = SETS[name](rows)
    return prepare(table, split(table, 0))


def cell(data: Any, name: str, rows: int, shown: str, seed: int, seconds: float) -> dict[str, Any]:
    """Test scores by task and the cost; kept, and read where it was run before."""
    import torch

    from pluribus import catalog
    from pluribus.evaluation import metrics
    from pluribus.modeling import Budget

    candidate, settings, _ = CANDIDATES[shown]
    which = "-".join(f"{key}={value}" for key, value in settings.items())
    path = CELLS / f"{name}-{rows}-{candidate}-{which}-{seed}-{seconds:g}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    torch.set_num_threads(1)
    learnt = data.with_parts(train=data.parts["train"], valid=data.parts["valid"])
    start = time.process_time()
    fitted = catalog.get("candidate", candidate).resolve()(**settings).fit(learnt, Budget(seconds), seed)
    spent = time.process_time() - start
    scores = {}
    for task in data.tasks:
        cells = data.labelled(task.name, "test")
        value = fitted.scores(data, cells.rows, [task.name])[task.name]
        metric = task.main_metric.name
        scores[task.name] = {metric: float(metrics.compute(metric, value, cells.values))}
    row = {
        "scores": scores,
        "seconds": spent,
        "parameters": fitted.costs().parameters,
        "undertrained": fitted.record["undertrained"],
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), "utf-8")
    return row


Cells = dict[tuple[str, int], dict[str, Any]]
Found = tuple[Any, Cells, float]  # the data, what was run on it, and core-seconds a fit


def gain(cells: Cells, tasks: Any, shown: str, reference: str) -> str:
    """Δm in per cent against a reference of the same seed: mean over seeds, with a 95 % t interval over seeds."""
    found = interval(cells, tasks, shown, reference)
    if found is None:
        return "not run"
    between = f"{found.low:+.2f} … {found.high:+.2f}" if math.isfinite(found.low) else "one seed"
    return f"{found.value:+.2f} ({between})"


def interval(cells: Cells, tasks: Any, shown: str, reference: str) -> Any:
    """The same as an interval, not finite for one seed; None where no seed has both."""
    from pluribus.evaluation.delta_m import delta
    from pluribus.evaluation.intervals import seeds_component, t_interval

    directions = {task.main_metric.name: task.main_metric.direction for task in tasks}
    values = [
        delta("mean-relative", row["scores"], cells[reference, seed]["scores"], directions)
        for (who, seed), row in cells.items()
        if who == shown and (reference, seed) in cells
    ]
    if not values:
        return None
    part = seeds_component(values)
    return t_interval(float(np.mean(values)), [part] if part is not None else [])


def verdict(found: Any) -> str:
    """What an interval says of a claim that one is above the other."""
    if found is None:
        return "not run"
    if not math.isfinite(found.low):
        return "one seed"
    return "holds" if found.low > 0 else "contradicted" if found.high < 0 else "open"


def section(name: str, data: Any, cells: Cells, seconds: float) -> list[str]:
    seeds = len({seed for _, seed in cells})
    metric = ", ".join(dict.fromkeys(task.main_metric.name for task in data.tasks))
    lines = [
        f"## {name}: {len(data.tasks)} tasks, {data.n_rows} rows, {seeds} seeds, at most {seconds:g} core-seconds a fit",
        "",
        "| candidate | Δm to MLPs, % | Δm to its own kind, one per task, % "
        f"| {metric}, mean | core-seconds | parameters | cut short |",
        "|---|---|---|---|---|---|---|",
    ]
    for shown, (_, _, alone) in CANDIDATES.items():
        own = [row for (who, _), row in cells.items() if who == shown]
        if not own:
            continue
        mean = np.mean([value for row in own for one in row["scores"].values() for value in one.values()])
        first = "(reference)" if shown == FIRST else gain(cells, data.tasks, shown, FIRST)
        same = "" if alone is None or not any(who == alone for who, _ in cells) else gain(cells, data.tasks, shown, alone)
        cut = sum(bool(row["undertrained"]) for row in own)
        spent = np.mean([row["seconds"] for row in own])
        lines.append(
            f"| {shown} | {first} | {same} | {mean:.4f} | {spent:.1f} | {own[0]['parameters']:,} | {cut} of {len(own)} |"
        )
    return [*lines, ""]


def claims(found: dict[str, Found]) -> list[str]:
    """What the papers say their parts are for, and what happened here."""
    pairs = (
        ("MultiTab-Net (T↛T) above MLPs one per task", "MultiTab-Net, T↛T", FIRST),
        ("MultiTab-Net (T↛T) above its single-token form", "MultiTab-Net, T↛T", "MultiTab-Net, single token"),
        ("T↛T above no mask (2 layers)", "MultiTab-Net, 2 layers, T↛T", "MultiTab-Net, 2 layers, no mask"),
        ("T↛T above F↛T (2 layers)", "MultiTab-Net, 2 layers, T↛T", "MultiTab-Net, 2 layers, F↛T"),
        ("T↛T above both masks (2 layers)", "MultiTab-Net, 2 layers, T↛T", "MultiTab-Net, 2 layers, both masks"),
        ("TabM, one per task, above MLPs one per task", "TabM, one per task", FIRST),
        ("TabM, multi-task, above TabM one per task", "TabM, multi-task", "TabM, one per task"),
        ("FT-Transformer, one per task, above MLPs one per task", "FT-Transformer, one per task", FIRST),
    )
    each = {
        words: {name: interval(cells, data.tasks, one, other) for name, (data, cells, _) in found.items()}
        for words, one, other in pairs
    }
    lines = [
        "## The papers' claims",
        "",
        "*Holds*: all of the interval is above 0; *contradicted*: below; *open*: 0 is inside, as often with three seeds.",
        "",
        "| claim | " + " | ".join(("holds", "contradicted", "open")) + " |",
        "|---|---|---|---|",
    ]
    for words, row in each.items():
        said = {name: verdict(one) for name, one in row.items()}
        cells_ = [", ".join(name for name in said if said[name] == word) for word in ("holds", "contradicted", "open")]
        lines.append(f"| {words} | " + " | ".join(cells_) + " |")
    lines += ["", "Δm in per cent, with intervals:", "", "| claim | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for words, one, other in pairs:
        row_ = [gain(cells, data.tasks, one, other) for data, cells, _ in found.values()]
        lines.append(f"| {words} | " + " | ".join(row_) + " |")
    return [*lines, ""]


DEFAULT = {  # rows, and core-seconds a fit: many tasks need more
    "enb": (768, 12.0),
    "bench_0.9": (1600, 60.0),
    "bench_0.2": (1600, 60.0),
    "adult": (1600, 12.0),
    "census": (1600, 12.0),
    "flights": (1600, 12.0),
    "wq": (1060, 30.0),
}


def run(full: bool) -> None:
    seeds = 5 if full else 3
    found: dict[str, Found] = {}
    missing: list[str] = []
    for name, small in DEFAULT.items():
        rows, seconds = (40_000, 300.0) if full else small
        try:
            data = prepared(name, rows)
        except Exception as error:  # a data set that is not at hand is named on the page, the others go on
            missing.append(f"{name} ({error})")
            print(name, "is not at hand:", error, flush=True)
            continue
        cells: Cells = {}
        for seed in range(seeds):
            for shown in CANDIDATES:
                cells[shown, seed] = row = cell(data, name, rows, shown, seed, seconds)
                print(name, shown, seed, f"{row['seconds']:.1f} s", flush=True)
                found[name] = (data, cells, seconds)
                write(found, missing, full)
    if importlib.util.find_spec("benchmarks.recommender_claims"):
        importlib.import_module("benchmarks.recommender_claims").run(full=full)
        write(found, missing, full)  # its page can be named now


def write(found: dict[str, Found], missing: list[str], full: bool) -> None:
    head = [
        "# Encoders of tables, joint and one per task",
        "",
        "Written by `make bench ONLY=tabular_claims`. Δm is the mean relative change of the tasks' main metric, up is good,",
        "against the reference of the same seed; intervals are 95 % t intervals over seeds of training (one split): test rows",
        "are not in them. Every candidate ran its documented defaults once a seed; nothing was searched or tuned, so that a row",
        "says what the defaults do on a small table and a small budget, not what the method can do. *Cut short*: fits that ended",
        "by the budget, before their early stop; their figures are those of the best weights until then. MultiTab-Net has column",
        "layers only; in one of them F↛T changes nothing, since nobody reads what the features answer: masks are compared in",
        "two.",
        "",
    ]
    if (RESULTS / "recommendation.md").exists():
        head += ["Recommendation (sequences, funnels, items): [recommendation](recommendation.md).", ""]
    body = [line for name, one in found.items() for line in section(name, *one)]
    kind = "full" if full else "default"
    foot = [f"{machine()}; {datetime.date.today().isoformat()}; cells of the {kind} set that the headings name."]
    waiting = [name for name in DEFAULT if name not in found and not any(one.startswith(name) for one in missing)]
    if waiting:
        foot.append(f"Not run yet: {', '.join(waiting)}; `make bench ONLY=tabular_claims` goes on where it stopped.")
    if missing:
        foot.append(f"Not run, since the data are not at hand: {'; '.join(missing)}.")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "tables.md").write_text("\n".join([*head, *claims(found), *body, *foot, ""]), "utf-8")
