"""HoME's third claim: rare tasks gain. Measured on so many test rows that the AUC of a rare task is known.

The world is that of `tables.funnel6`: six binary tasks in two categories, positive rates from 30 % to 0.5 %. Every seed
draws 16,000 training rows of its own (and what is drawn at random in a fit), so that the intervals hold for other training rows
of this world too; all fits are tested on the same 200,000 further rows, some 1,000 of them positive in the rarest task. The
variance of a difference is that between seeds, and that of the test rows by DeLong, DeLong and Clarke-Pearson (1988): an AUC is
a mean over positives and over negatives of their placements, and each row's share in it is known. Cells are kept in
build/sharing_claims/rare_tasks; `sharing_claims` runs what is missing and puts the section on its page.
"""

from __future__ import annotations

import json
import math
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import CATEGORIES, RATES, funnel6

ROWS, SECONDS, SEEDS, TEST = 16_000, 60.0, 5, 200_000
CELLS = Path(__file__).parents[1] / "build" / "sharing_claims" / "rare_tasks"
HOME, SINGLE = "home", "single_networks"
PLAIN_HOME = "home, norm=False"  # what the batch norms do to the rare tasks
RIVALS = ("mmoe", "cgc", "ple")
CANDIDATES = (HOME, PLAIN_HOME, *RIVALS, SINGLE)
RARE = tuple(sorted(RATES, key=lambda task: RATES[task])[:2])
Array = NDArray[np.float64]


def place(candidate: str, seed: int) -> Path:
    """Where a finished cell is kept: AUC of all tasks here, the rare tasks' scores beside it (.npy)."""
    return CELLS / f"{candidate.replace(', ', '-')}-{ROWS}-{seed}-{SECONDS:g}.json"


@cache
def test() -> Any:
    return funnel6(ROWS, fresh=TEST)[0]


def cell(candidate: str, seed: int) -> dict[str, Any]:
    import torch
    from sklearn.metrics import roc_auc_score

    from pluribus import catalog
    from pluribus.data.prepared import prepare
    from pluribus.data.splitting import split
    from pluribus.data.table import Table
    from pluribus.modeling import Budget

    path = place(candidate, seed)
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    torch.set_num_threads(1)
    frame, targets = funnel6(ROWS, fresh=ROWS, draw=1 + seed)
    table = Table(frame, targets, split="random")
    data = prepare(table, split(table, 0))
    settings: dict[str, Any] = {"categories": CATEGORIES} if candidate.startswith("home") else {}
    if candidate == PLAIN_HOME:
        settings["norm"] = False
    start = time.process_time()
    fitted = catalog.get("candidate", candidate.split(",")[0]).resolve()(**settings).fit(data, Budget(SECONDS), seed)
    spent = time.process_time() - start
    scores = fitted.scores(fitted.columns.prepare(test(), data.tasks), np.arange(TEST), [task.name for task in data.tasks])
    row = {
        "auc": {name: float(roc_auc_score(test()[name], value)) for name, value in scores.items()},
        "positives": {name: int(frame[name].sum()) for name in RARE},
        "seconds": spent,
        "undertrained": fitted.record["undertrained"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), np.stack([scores[name] for name in RARE]).astype(np.float32))
    path.write_text(json.dumps(row), "utf-8")
    return row


def shares(scores: Array, positive: NDArray[np.bool_]) -> Array:
    """Each row's share in the error of an AUC [N]: its placement less the AUC, over the number of its kind. The sum of squares is
    DeLong's variance, and shares of several AUCs on the same rows add up."""
    from scipy.stats import rankdata

    ranks, found = rankdata(scores), np.zeros(len(scores))
    for own, sign in ((positive, 1.0), (~positive, -1.0)):
        below = (ranks[own] - rankdata(scores[own])) / (~own).sum()  # share of the other kind that lies below
        placed = below if sign > 0 else 1 - below
        found[own] = (placed - placed.mean()) / own.sum()
    return found


def measure() -> None:
    for seed in range(SEEDS):
        for candidate in CANDIDATES:
            row = cell(candidate, seed)
            told = ", ".join(f"{task} {row['auc'][task]:.4f}" for task in RARE)
            print(f"rare_tasks {candidate} {seed}: {row['seconds']:.1f} s, {told}", flush=True)


def gain(of: str, over: str, rows: dict[tuple[str, int], dict[str, Any]], parts: dict[str, Array]) -> Any:
    """Difference of the mean AUC of the rare tasks, with the variance between seeds and that of the test rows."""
    from pluribus.evaluation.intervals import Component, seeds_component, t_interval

    seeds = [seed for who, seed in rows if who == of and (over, seed) in rows]
    mean = {key: float(np.mean([row["auc"][task] for task in RARE])) for key, row in rows.items()}
    values = [mean[of, seed] - mean[over, seed] for seed in seeds]
    variance = float(((parts[of] - parts[over]) ** 2).sum())
    rarest = min(int(test()[task].sum()) for task in RARE)
    between = seeds_component(values)
    return t_interval(float(np.mean(values)), [Component(variance, rarest - 1), between] if between else [])


def section() -> list[str]:
    """The part of the page, from all finished cells; nothing where a candidate has none."""
    found = {(c, s): place(c, s) for c in CANDIDATES for s in range(SEEDS)}
    rows = {key: json.loads(path.read_text("utf-8")) for key, path in found.items() if path.exists()}
    seeds = [s for s in range(SEEDS) if all((c, s) in rows for c in CANDIDATES)]
    rows = {key: row for key, row in rows.items() if key[1] in seeds}
    if not seeds:
        return []
    positive = [test()[task].to_numpy() == 1 for task in RARE]
    parts = {}
    for c in CANDIDATES:
        saved = [np.load(place(c, s).with_suffix(".npy")).astype(float) for s in seeds]
        parts[c] = np.mean([shares(one[i], y) for one in saved for i, y in enumerate(positive)], 0)
    names = " and ".join(f"`{task}` ({100 * RATES[task]:g} % positive)" for task in RARE)
    few = " and ".join(f"{np.mean([rows[HOME, s]['positives'][task] for s in seeds]):.0f}" for task in RARE)
    home = {c: gain(HOME, c, rows, parts) for c in CANDIDATES if c != HOME}
    single = {c: gain(c, SINGLE, rows, parts) for c in CANDIDATES if c != SINGLE}
    lines = [
        "## Rare tasks, on test rows enough",
        "",
        f"The world of funnel6; {len(seeds)} times {ROWS:,} new rows to train on, and {TEST:,} others to test on. The rare tasks",
        f"are {names}; a fit sees {few} positive cells of them, validation included.",
        "",
        f"| candidate | AUC of {', '.join(RARE)} | of all six | rare: gain over specialists | rare: HoME's gain over it | s |",
        "|---|---|---|---|---|---|",
    ]
    for c in CANDIDATES:
        own = [rows[c, s] for s in seeds]
        each = ", ".join(f"{np.mean([row['auc'][task] for row in own]):.4f}" for task in RARE)
        every = np.mean([np.mean(list(row["auc"].values())) for row in own])
        told = [shown(gains[c]) if c in gains else "" for gains in (single, home)]
        lines.append(f"| {c} | {each} | {every:.4f} | {' | '.join(told)} | {np.mean([row['seconds'] for row in own]):.1f} |")
    words = {c: "gains over" if home[c].low > 0 else "loses to" if home[c].high < 0 else "is not told apart from" for c in RIVALS}
    groups = [(word, [c for c in RIVALS if words[c] == word]) for word in dict.fromkeys(words.values())]
    shows = "gains over" in words.values() and "loses to" not in words.values()
    helped = [c for c, g in single.items() if g.low > 0]
    lines += [
        "",
        "On the rare tasks HoME " + "; ".join(f"{word} {', '.join(who)}" for word, who in groups) + ".",
        f"That they gain more by it than by other mixtures of experts is {'' if shows else 'not '}shown here.",
        f"Over specialists of the same encoder {len(helped)} of {len(single)} gain: {'; '.join(helped) or 'none'}.",
        "The intervals (95 %) hold the variance between fits, training rows and start together, and that of the test rows; they",
        "are not adjusted for being several. s: core-seconds a fit.",
        "",
    ]
    return lines


def shown(gain: Any) -> str:
    if not math.isfinite(gain.low):
        return f"{gain.value:+.4f} (one seed)"
    text = f"{gain.value:+.4f} ({gain.low:+.4f} … {gain.high:+.4f})"
    return f"**{text}**" if gain.low > 0 or gain.high < 0 else text


def run(full: bool) -> None:
    """Measure what is missing; `sharing_claims` writes the page."""
    measure()
