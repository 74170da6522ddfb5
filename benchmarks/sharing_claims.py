"""Does sharing beat specialists of the same encoder? Same settings, budget and seeds for all. Writes docs/results/sharing.md.

Data: the tables of `tables`; of the schools the default set takes the largest. Rare tasks are measured by `rare_tasks`, on more
rows. Nothing is tuned: every candidate runs its documented defaults once a seed, is stopped on validation, and is tested once. A
finished cell is kept in build/sharing_claims and not run again; the page is written after every set, so that a run can be broken
off.
"""

from __future__ import annotations

import datetime
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rare_tasks
from benchmarks.rare_tasks import PLAIN_HOME
from benchmarks.ratio import RESULTS, machine
from benchmarks.tables import CATEGORIES, prepared

CELLS = Path(__file__).parents[1] / "build" / "sharing_claims"
REFERENCE = "single_networks"
WOVEN = ("star", "pepnet", "stem", "cross_stitch_networks")  # from the columns' embeddings on
CANDIDATES = (
    REFERENCE,
    "shared_bottom_equal",
    "mmoe",
    "cgc",
    "ple",
    "cross_stitch",
    "dselect_k",
    "mtan",
    "adatt",
    "home",
    *WOVEN,
)
NAMES = ("enb", "wq", "census", "flights", "school", "adult", "funnel6", "bench_0.9", "bench_0.2")


def place(name: str, rows: int, candidate: str, seed: int, seconds: float) -> Path:
    """Where a finished cell is kept."""
    return CELLS / f"{name}-{rows}-{candidate.replace(', ', '-')}-{seed}-{seconds:g}.json"


def cell(data: Any, name: str, rows: int, candidate: str, seed: int, seconds: float) -> dict[str, Any]:
    """Test scores by task, cost, and the experts' health where there are experts; kept, and read where it was run before."""
    import torch

    from pluribus import catalog
    from pluribus.evaluation import metrics
    from pluribus.modeling import Budget
    from pluribus.sharing import health

    path = place(name, rows, candidate, seed, seconds)
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"categories": CATEGORIES} if candidate.startswith("home") and name == "funnel6" else {}
    if candidate == PLAIN_HOME:
        settings["norm"] = False
    shown = data.with_parts(train=data.parts["train"], valid=data.parts["valid"])
    start = time.process_time()
    fitted = catalog.get("candidate", candidate.split(",")[0]).resolve()(**settings).fit(shown, Budget(seconds), seed)
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
    if "expert_health" in fitted.record:
        batch = data.batch(torch.from_numpy(data.parts["test"][:2000]), tasks=())
        row["health"] = health(fitted.model, batch.inputs).to_dict()
    CELLS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), "utf-8")
    return row


Cells = dict[tuple[str, int], dict[str, Any]]  # candidate, seed → what `cell` kept


def gains(cells: Cells, tasks: Any, candidate: str, names: list[str] | None = None) -> Any:
    """Δm in per cent against the specialists of the same seed: mean over seeds, with a t interval."""
    from pluribus.evaluation.delta_m import delta
    from pluribus.evaluation.intervals import seeds_component, t_interval

    directions = {task.main_metric.name: task.main_metric.direction for task in tasks}
    values = []
    for (who, seed), row in cells.items():
        if who == candidate and (REFERENCE, seed) in cells:
            pair = [
                {name: one for name, one in each["scores"].items() if names is None or name in names}
                for each in (row, cells[REFERENCE, seed])
            ]
            values.append(delta("mean-relative", pair[0], pair[1], directions))
    part = seeds_component(values)
    return t_interval(float(np.mean(values)), [part] if part is not None else [])


def decided(gain: Any) -> int:
    """1 better, −1 worse, 0 undecided."""
    return 1 if gain.low > 0 else -1 if gain.high < 0 else 0  # NaN with one seed: undecided


def shown(gain: Any) -> str:
    between = f"{gain.low:+.2f} … {gain.high:+.2f}" if math.isfinite(gain.low) else "one seed"
    text = f"{gain.value:+.2f} ({between})"
    return f"**{text}**" if decided(gain) else text


def summary(found: dict[str, tuple[Any, Cells]]) -> list[str]:
    """Architecture × set: Δm with its interval, and how many sets it is better, worse, undecided on."""
    lines = ["| Δm, % | better, worse, undecided | " + " | ".join(found) + " |", "|---|---|" + "---|" * len(found)]
    words: list[int] = []  # of all intervals
    for candidate in (*CANDIDATES[1:], PLAIN_HOME):
        told: dict[str, str] = {}
        verdicts: list[int] = []
        for name, (tasks, cells) in found.items():
            if own := [row for (c, _), row in cells.items() if c == candidate]:
                gain = gains(cells, tasks, candidate)
                verdicts.append(decided(gain))
                words += verdicts[-1:] if math.isfinite(gain.low) else []
                reach = f" ± {(gain.high - gain.low) / 2:.1f}" if math.isfinite(gain.low) else " (one seed)"
                text = f"{gain.value:+.1f}{reach}"
                told[name] = (f"**{text}**" if verdicts[-1] else text) + "†" * any(row["undertrained"] for row in own)
        if told:
            count = ", ".join(str(verdicts.count(word)) for word in (1, -1, 0))
            lines.append(f"| {candidate} | {count} | " + " | ".join(told.get(name, "") for name in found) + " |")
    out = words.count(1) + words.count(-1)
    lines += [
        "",
        f"Of {len(words)} intervals {out} leave out 0 ({words.count(1)} better, {words.count(-1)} worse); "
        f"chance alone would make that some {len(words) / 20:.0f}.",
        "",
    ]
    return lines


def section(name: str, data: Any, cells: Cells, seconds: float) -> list[str]:
    tasks, rows, seeds = data.tasks, data.n_rows, len({seed for _, seed in cells})
    present = [c for c in who(name) if any(key[0] == c for key in cells)]
    metric = ", ".join(dict.fromkeys(task.main_metric.name for task in tasks))
    lines = [
        f"## {name}: {len(tasks)} tasks, {rows} rows, {seeds} seed{'s' * (seeds > 1)}, {seconds:g} core-seconds a fit at most",
        "",
        f"| candidate | Δm, % (95 % over seeds) | {metric}, mean | core-seconds | parameters | cut short |",
        "|---|---|---|---|---|---|",
    ]
    for candidate in present:
        own = [row for (c, _), row in cells.items() if c == candidate]
        mean = np.mean([value for row in own for one in row["scores"].values() for value in one.values()])
        change = "(reference)" if candidate == REFERENCE else shown(gains(cells, tasks, candidate))
        cut = sum(bool(row["undertrained"]) for row in own)
        spent = np.mean([row["seconds"] for row in own])
        lines.append(f"| {candidate} | {change} | {mean:.4f} | {spent:.1f} | {own[0]['parameters']:,} | {cut} of {len(own)} |")
    lines.append("")
    return lines + experts(cells) if name == "funnel6" else lines


def experts(cells: Cells) -> list[str]:
    """What HoME promises of its experts, beside other mixtures: units that never answer, scales, who occupies the shared ones."""
    lines = [
        "The experts after training, on test rows (means over seeds; the spread is the largest of any seed):",
        "",
        "| candidate | dead units, % | zero activations, % | scale spread, at most | highest occupancy |",
        "|---|---|---|---|---|",
    ]
    dead, spreads, occupied = {}, {}, {}
    for candidate in ("mmoe", "cgc", "ple", "adatt", "home", PLAIN_HOME):
        own = [row["health"] for (c, _), row in cells.items() if c == candidate]
        if not own:
            continue
        dead[candidate], zero = (
            100 * float(np.mean([np.mean(list(row[key].values())) for row in own])) for key in ("dead_units", "zero_share")
        )
        each = [v for row in own for v in row["scale_spread"].values()]
        spreads[candidate] = math.inf if None in each else max(each)
        occupied[candidate] = float(np.mean([max(v for v in row["occupancy"] if v is not None) for row in own]))
        spread = "∞" if math.isinf(spreads[candidate]) else f"{spreads[candidate]:.1f}"
        lines.append(f"| {candidate} | {dead[candidate]:.1f} | {zero:.1f} | {spread} | {occupied[candidate]:.2f} |")
    lines.append("")
    rivals = [c for c in dead if not c.startswith("home")]
    if "home" in dead and rivals:
        others = [(min(each[c] for c in rivals), max(each[c] for c in rivals)) for each in (dead, spreads, occupied)]
        within = "within" if spreads["home"] <= 2 else "not within"
        lines += [
            "HoME promises experts that all answer, on one scale, and shared ones that no task occupies. Dead units: "
            f"{dead['home']:.1f} %, in the others {others[0][0]:.1f} to {others[0][1]:.1f} %.",
            f"Scales: {within} a factor of 2 ({spreads['home']:.1f}; the others up to {others[1][1]:.1f}). The largest share",
            f"of one task in a shared expert: {occupied['home']:.2f}, in the others {others[2][0]:.2f} to {others[2][1]:.2f}.",
            "What it promises rare tasks is measured in the last section.",
            "",
        ]
    return lines


# rows and core-seconds a fit, at most: the default form, and with --full
DEFAULT = {**dict.fromkeys(NAMES, (1_500, 12.0)), "adult": (6_000, 12.0), "funnel6": (16_000, 60.0)}  # where 1 in 200 is positive
FULL = dict.fromkeys(NAMES, (40_000, 240.0))


def form_of(full: bool) -> tuple[dict[str, tuple[int, float]], int]:
    """Rows and core-seconds by set, and the number of seeds."""
    return (FULL, 5) if full else (DEFAULT, 3)


def run(full: bool) -> None:
    form, seeds = form_of(full)
    data: dict[str, Any] = {}
    for seed in range(seeds):  # a seed of every set before the next, so that a run broken off has looked at all
        for name in NAMES:
            if name not in data:
                data[name] = prepared(name, form[name][0])
            for candidate in who(name):
                row = cell(data[name], name, form[name][0], candidate, seed, form[name][1])
                print(name, candidate, seed, f"{row['seconds']:.1f} s", flush=True)
            page(form, seeds, data, full)
    rare_tasks.measure()
    page(form, seeds, data, full)


def who(name: str) -> tuple[str, ...]:
    return (*CANDIDATES, PLAIN_HOME) if name == "funnel6" else CANDIDATES


def page(form: dict[str, tuple[int, float]], seeds: int, data: dict[str, Any], full: bool) -> None:
    """Write the page from all finished cells of this form."""
    body: list[str] = []
    every: dict[str, tuple[Any, Cells]] = {}
    for name in NAMES:
        rows, seconds = form[name]
        found = {(c, s): place(name, rows, c, s, seconds) for s in range(seeds) for c in who(name)}
        cells = {key: json.loads(path.read_text("utf-8")) for key, path in found.items() if path.exists()}
        if any(candidate == REFERENCE for candidate, _ in cells) and len(cells) > 1:
            if name not in data:
                data[name] = prepared(name, rows)
            every[name] = data[name].tasks, cells
            body += section(name, data[name], cells, seconds)
    write(summary(every) + body + rare_tasks.section(), full)


def write(body: list[str], full: bool) -> None:
    head = [
        "# Sharing architectures against specialists of the same settings",
        "",
        "Δm is the mean relative change of the tasks' main metric against the specialists (`single_networks`) with the same",
        "seed, up is good; behind it its 95 % interval, from the seeds of training alone: one split, one set of test rows, so",
        "that neither other rows nor the same rows split otherwise are in it. Few seeds make it wide. Bold: it leaves out 0",
        "(better or worse; else undecided); of so many intervals one in twenty does by chance. †: at least one fit was",
        "cut short. Every candidate ran its defaults once a seed; nothing was searched or tuned. `star`, `pepnet`, `stem` and",
        "`cross_stitch_networks` are woven from the columns' embeddings on: the last has exactly the specialists' networks,",
        "`star` and `pepnet` have layers of their own. Sets, candidates and seeds that are missing have not been run.",
        "",
    ]
    kind = "full" if full else "default"
    foot = [f"{machine()}; {datetime.date.today().isoformat()}; cells of the {kind} set that the headings name.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sharing.md").write_text("\n".join(head + body + foot), "utf-8")
