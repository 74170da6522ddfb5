"""Two published claims at the size their authors would call a toy: flat regions (F-MTL) and Rep-MTL. Writes
docs/results/balancing_regularisers.md.

F-MTL: two-digit overlays of scikit-learn's digits, a small CNN, a fifth of the left task's labels random; F-X against its base
X over 5 seeds: accuracy, and how much the training loss rises under a random perturbation of the shared part. At equal epochs and
at equal gradient evaluations (the base trained 1 + T times as long: F-X takes T more passes a step).
Rep-MTL: three related targets of one table (jura); equal weights with and without it over 10 seeds, and the time of a step.

Learning rate and epoch (and Rep-MTL's strength) are chosen on validation, figures are of the test part. Each cell is one JSON
file under runs/benchmarks/balancing_regularisers: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.balancing_claims import RATES, Net, Problem, best, interval, losses_at, mean, overlay, problem, scores
from benchmarks.ratio import RESULTS, machine
from pluribus import balancing as b

CACHE = Path(__file__).parents[1] / "runs" / "benchmarks" / "balancing_regularisers"
BASES: dict[str, Callable[[], Any]] = {"equal": b.EqualWeighting, "mgda": b.MGDA, "cagrad": b.CAGrad}
STRENGTHS = (0.01, 0.1, 1.0)
RADIUS = 1.0  # of the random perturbation


class Convolutional(Net):
    """The same heads on two convolutions of the 12 × 12 canvas."""

    def __init__(self, given: Problem, tasks: list[str]) -> None:
        super().__init__(given, tasks)
        self.trunk = nn.Sequential(
            nn.Unflatten(1, (1, 12, 12)),
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 9, given.width),
            nn.ReLU(),
        )


def rise(given: Problem, net: Net, seed: int) -> float:
    """How much the mean training loss rises under random perturbations of the shared part, of norm `RADIUS`; mean of 10."""
    source, shared = torch.Generator().manual_seed(seed), list(net.trunk.parameters())

    @torch.no_grad()
    def loss() -> float:
        found, _ = losses_at(given, net, given.train)
        return float(torch.stack(list(found.values())).mean())

    before, kept, rises = loss(), [p.detach().clone() for p in shared], []
    for _ in range(10):
        step = [torch.randn(p.shape, generator=source) for p in shared]
        norm = torch.stack([s.norm() for s in step]).norm()
        with torch.no_grad():
            for p, old, s in zip(shared, kept, step):
                p.copy_(old + RADIUS * s / norm)
        rises.append(loss() - before)
    with torch.no_grad():
        for p, old in zip(shared, kept):
            p.copy_(old)
    return float(np.mean(rises))


def train(
    given: Problem,
    net: Net,
    step: Callable[[dict[str, Tensor], Tensor, Tensor], None],
    rate: float,
    seed: int,
    epochs: int,
    flat: bool,
) -> dict[str, Any]:
    """Per epoch the validation and test scores, and where `flat` the rise of the loss at the best epoch so far."""
    optimiser, source = torch.optim.Adam(net.parameters(), rate), torch.Generator().manual_seed(seed)
    curve: list[dict[str, Any]] = []
    spent = []
    for _ in range(epochs):
        order = given.train[torch.randperm(len(given.train), generator=source)]
        for rows in order[: len(order) // given.batch * given.batch].split(given.batch):
            start = time.process_time()
            optimiser.zero_grad()
            losses, z = losses_at(given, net, rows)
            step(losses, z, rows)
            optimiser.step()
            spent.append(time.process_time() - start)
        point: dict[str, Any] = {part: scores(given, net, getattr(given, part)) for part in ("valid", "test")}
        if flat:
            leading = not curve or mean(point["valid"]) > max(mean(p["valid"]) for p in curve)
            point["rise"] = rise(given, net, seed) if leading else None
        curve.append(point)
    return {"curve": curve, "ms": 1e3 * float(np.median(spent))}


def cell(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}.json"
    if not path.exists():
        found = make()
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(found), "utf-8")
        aside.replace(path)
        print(name, flush=True)
    read: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return read


def flat_cell(base: str, wrapped: bool, rate: float, seed: int) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        given = overlay("overlay_noisy", seed)
        torch.manual_seed(seed)
        net = Convolutional(given, list(given.y))
        balancer: Any = b.FlatRegions(BASES[base]()) if wrapped else BASES[base]()
        trunk = list(net.trunk.parameters())

        def step(losses: dict[str, Tensor], z: Tensor, rows: Tensor) -> None:
            if wrapped:
                b.backward(losses, balancer, shared=trunk, closure=lambda: losses_at(given, net, rows)[0])
            else:
                b.backward(losses, balancer, shared=trunk, gram="full" if base != "equal" else "auto")

        return train(given, net, step, rate, seed, given.epochs * (1 if wrapped else 1 + len(given.y)), True)

    return cell(f"flat~{base}~{wrapped}~{rate:g}~{seed}", make)


def rep_cell(strength: float, rate: float, seed: int) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        given = problem("jura", seed)
        torch.manual_seed(seed)
        net, balancer = Net(given, list(given.y)), b.EqualWeighting()

        def step(losses: dict[str, Tensor], z: Tensor, rows: Tensor) -> None:
            extra = b.RepMTL(strength, strength)(losses, features=z) if strength else None
            b.combine(losses, balancer, features=z, extra=extra).backward()

        return train(given, net, step, rate, seed, given.epochs, False)

    return cell(f"rep~{strength:g}~{rate:g}~{seed}", make)


def chosen(runs: dict[Any, list[dict[str, Any]]], horizon: int) -> list[dict[str, Any]]:
    """The runs (a seed each) of the setting with the best mean validation score within the horizon."""
    return max(runs.values(), key=lambda each: sum(mean(best(r["curve"][:horizon])["valid"]) for r in each))


def at_best(run: dict[str, Any], horizon: int) -> dict[str, Any]:
    return best(run["curve"][:horizon])


HEADS = (
    "base",
    "accuracy, base",
    "F minus base, equal epochs",
    "F minus base, equal gradient evaluations",
    "rise of the loss, base",
    "F minus base",
    "ms a step, base / F",
)


def flat_row(base: str, seeds: range) -> str:
    horizon = overlay("overlay_noisy", 0).epochs
    bare = {rate: [flat_cell(base, False, rate, s) for s in seeds] for rate in RATES}
    flat = chosen({rate: [flat_cell(base, True, rate, s) for s in seeds] for rate in RATES}, horizon)
    short, long = chosen(bare, horizon), chosen(bare, 3 * horizon)
    ours = [at_best(run, horizon) for run in flat]
    theirs, longer = [at_best(run, horizon) for run in short], [at_best(run, 3 * horizon) for run in long]

    def gap(others: list[dict[str, Any]]) -> str:
        return interval([100 * (mean(x["test"]) - mean(y["test"])) for x, y in zip(ours, others)])

    level = 100 * float(np.mean([mean(p["test"]) for p in theirs]))
    rises = interval([x["rise"] - y["rise"] for x, y in zip(ours, theirs)])
    ms = [float(np.mean([r["ms"] for r in each])) for each in (short, flat)]
    before = float(np.mean([p["rise"] for p in theirs]))
    return f"| {base} | {level:.1f} | {gap(theirs)} | {gap(longer)} | {before:.3f} | {rises} | {ms[0]:.1f} / {ms[1]:.1f} |"


def rep_table(seeds: range) -> list[str]:
    horizon = problem("jura", 0).epochs
    base = chosen({rate: [rep_cell(0.0, rate, s) for s in seeds] for rate in RATES}, horizon)
    rep = chosen({(k, rate): [rep_cell(k, rate, s) for s in seeds] for k in STRENGTHS for rate in RATES}, horizon)
    gains = []
    for ours, theirs in zip(rep, base):
        a, c = at_best(ours, horizon)["test"], at_best(theirs, horizon)["test"]
        gains.append(100 * float(np.mean([(a[t] - c[t]) / abs(c[t]) for t in c])))
    ms = [float(np.mean([r["ms"] for r in each])) for each in (base, rep)]
    return [
        "| Δm of Rep-MTL against equal weights, % | ms a step, equal | with Rep-MTL | ratio |",
        "|---|---|---|---|",
        f"| {interval(gains)} | {ms[0]:.2f} | {ms[1]:.2f} | {ms[1] / ms[0]:.2f} |",
    ]


def run(full: bool) -> None:
    torch.set_num_threads(1)
    path, rows = RESULTS / "balancing_regularisers.md", []
    rep = rep_table(range(10))
    kept = path.read_text("utf-8").partition("## Reading\n")[2] if path.exists() else "\nTo be written.\n"
    for base in ["", *BASES]:  # the page is written after each part, so that an interrupted run leaves what it has
        if base:
            rows.append(flat_row(base, range(10 if full else 5)))
        waiting = [name for name in BASES if not any(row.startswith(f"| {name} ") for row in rows)]
        note = [f"Still to run: {', '.join(waiting)}.", ""] if waiting else []
        flat = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS), *rows, ""] if rows else []
        page = [
            "# Flat regions and Rep-MTL, at toy size",
            "",
            (__doc__ or "").split("\n\n", 1)[1].strip(),
            "",
            f"{machine()}; {datetime.date.today()}; `make bench ONLY=balancing_regularisers`; ± is the 95 % t interval over "
            f"seeds, paired; radius of F-MTL 0.05, of the random perturbation {RADIUS:g}.",
            "",
            "## Flat regions",
            "",
            *flat,
            *note,
            "## Rep-MTL",
            "",
            *rep,
            "",
            "## Reading",
            kept.rstrip(),
            "",
        ]
        path.write_text("\n".join(page), "utf-8")
