"""Every balancer on the same small problems: Δm against single-task networks, at equal epochs and at equal time.

Default: three small sets × 3 seeds; FULL=1: all sets × 5 seeds. Each cell (set, method, learning rate, seed) is one JSON file
under runs/benchmarks/balancing_claims: an interrupted run goes on where it stopped, and the page is written from the cells there.

Protocol: one network (MLP trunk, one small head a task), Adam, the same grid of learning rates for all. The rate of a method
(mean over seeds) and the epoch (per run) are chosen on the validation part, figures come from the test part. "Equal time":
equal weighting trained on until it has used the CPU time of the method's run. Plain torch loops through the two doors.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ratio import DATA, RESULTS, machine
from pluribus import balancing as b
from pluribus.catalog import entries

CACHE = Path(__file__).parents[1] / "runs" / "benchmarks" / "balancing_claims"
RATES = (1e-3, 4e-3)
LONGER = {"equal": 4, "mgda": 4, "cagrad": 4, "upgrad": 4}  # trained on, to be compared at equal time
SHORT = ("overlay", "overlay_noisy", "atp1d")
LONG = (*SHORT, "enb", "jura", "wq", "oes10", "mnist_overlay", "mnist_overlay_noisy", "tox21", "school", "flights")


@dataclass(frozen=True)
class Problem:
    """x [N, F]; y[task] [N], NaN where unlabelled; kinds[task]: classes (an int), 2 for a binary task, 0 for a real target."""

    x: Tensor
    y: dict[str, Tensor]
    kinds: dict[str, int]
    train: Tensor
    valid: Tensor
    test: Tensor
    epochs: int
    batch: int = 128
    width: int = 64


# The sets


def _parts(n: int, seed: int, shares: tuple[float, float] = (0.6, 0.2)) -> list[Tensor]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    first, second = int(shares[0] * n), int((shares[0] + shares[1]) * n)
    return [order[:first], order[first:second], order[second:]]


def _overlays(
    images: np.ndarray, labels: np.ndarray, sizes: Iterable[int], shift: int, seed: int
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Two digits on one canvas, the larger pixel wins; the sources of the parts are disjoint."""
    rng = np.random.default_rng(seed)
    order, side = rng.permutation(len(images)), images.shape[1]
    sizes = list(sizes)
    cuts = np.cumsum([0.6 * len(order), 0.2 * len(order)]).astype(int)
    found = []
    for source, size in zip(np.split(order, cuts), sizes):
        left, right = rng.choice(source, size), rng.choice(source, size)
        canvas = np.zeros((size, side + shift, side + shift), np.float32)
        canvas[:, :side, :side] = images[left]
        canvas[:, shift:, shift:] = np.maximum(canvas[:, shift:, shift:], images[right])
        y = {"left": torch.from_numpy(labels[left]).double(), "right": torch.from_numpy(labels[right]).double()}
        found.append((torch.from_numpy(canvas.reshape(size, -1)), y))
    return found


def overlay(name: str, seed: int) -> Problem:
    """Two-digit overlays (MultiMNIST's recipe); "noisy": a fifth of the left task's training and validation labels is random."""
    if name.startswith("mnist"):
        z = np.load(DATA / "mnist" / "data.npz")
        images, labels = z["x_train"].astype(np.float32) / 255, z["y_train"].astype(np.int64)
        parts = _overlays(images, labels, (12000, 3000, 4000), 8, seed)
        epochs, width = 20, 128
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        parts = _overlays(digits.images.astype(np.float32) / 16, digits.target.astype(np.int64), (2400, 800, 1600), 4, seed)
        epochs, width = 16, 64
    if name.endswith("noisy"):
        for number, (x, y) in enumerate(parts[:2]):
            source = np.random.default_rng(1000 + 10 * seed + number)
            flip = torch.from_numpy(source.random(len(x)) < 0.2)
            y["left"] = torch.where(flip, torch.from_numpy(source.integers(0, 10, len(x))).double(), y["left"])
    lengths = [len(x) for x, _ in parts]
    at = torch.arange(sum(lengths)).split(lengths)
    y = {task: torch.cat([part[1][task] for part in parts]) for task in ("left", "right")}
    return Problem(torch.cat([x for x, _ in parts]), y, {"left": 10, "right": 10}, *at, epochs=epochs, width=width)


TARGETS = {"wq": 14, "enb": 2, "jura": 3, "atp1d": 6, "oes10": 16}


def multi_target(name: str, seed: int) -> Problem:
    """A multi-target regression set (the targets are the last columns), inputs and targets standardised on the training part."""
    import io

    from scipy.io import arff

    text = gzip.decompress((DATA / "mulan_multitarget" / f"{name}.arff.gz").read_bytes()).decode("utf-8", "replace")
    rows, _ = arff.loadarff(io.StringIO(text))
    table = torch.from_numpy(np.array([list(map(float, row)) for row in rows]))
    train, valid, test = _parts(len(table), seed)
    table = torch.nan_to_num(table)
    table = (table - table[train].mean(0)) / table[train].std(0).clamp_min(1e-6)
    number = TARGETS[name]
    y = {f"t{i}": table[:, -number + i] for i in range(number)}
    return Problem(table[:, :-number].float(), y, dict.fromkeys(y, 0), train, valid, test, epochs=40, batch=64)


def tox21(seed: int) -> Problem:
    """12 assays with holes; inputs: hashed counts of the SMILES strings' 1- to 4-grams (no chemistry package is used)."""
    import csv
    import io
    import zlib

    text = gzip.decompress((DATA / "tox21" / "tox21.csv.gz").read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    tasks = [c for c in rows[0] if c not in ("mol_id", "smiles")]
    x = np.zeros((len(rows), 1024), np.float32)
    for i, row in enumerate(rows):
        s = row["smiles"]
        for n in range(1, 5):
            for j in range(len(s) - n + 1):
                x[i, zlib.crc32(s[j : j + n].encode()) % 1024] += 1
    y = {t: torch.tensor([float(r[t]) if r[t] else math.nan for r in rows], dtype=torch.float64) for t in tasks}
    parts = _parts(len(rows), seed, (0.8, 0.1))
    return Problem(torch.from_numpy(np.log1p(x)), y, dict.fromkeys(y, 2), *parts, epochs=15, width=128)


def school(seed: int) -> Problem:
    """139 schools, one regression each: a row belongs to one task."""
    x = np.loadtxt(DATA / "school" / "school_data.csv.gz", delimiter=",", skiprows=1)
    t = torch.from_numpy(np.loadtxt(DATA / "school" / "school_target.csv.gz", skiprows=1))
    task = x[:, -1].astype(int)
    train, valid, test = _parts(len(x), seed)
    z = torch.from_numpy(x[:, :-1]).float()
    z = (z - z[train].mean(0)) / z[train].std(0).clamp_min(1e-6)
    t = (t - t[train].mean()) / t[train].std()
    y = {f"school{k}": torch.where(torch.from_numpy(task == k), t, math.nan) for k in range(task.max() + 1)}
    return Problem(z, y, dict.fromkeys(y, 0), train, valid, test, epochs=20, batch=512)


def flights(seed: int) -> Problem:
    """The New York flights: two binary and two real targets, with holes; numbers and hashed categories as inputs."""
    from pluribus.data.flights import flights as load

    table = load(12_000, seed=seed)
    frame, names = table.frame, [t.name for t in table.tasks]
    y = {n: torch.from_numpy(frame[n].astype(float).to_numpy(copy=True)) for n in names}
    rest = frame.drop(columns=[*names, "flight_id"])
    columns = []
    for name in rest.columns:
        if rest[name].dtype.kind in "iufb":
            v = rest[name].astype(float).to_numpy(copy=True)
            columns += [np.nan_to_num(v, nan=np.nanmedian(v)), np.isnan(v).astype(float)]
        elif rest[name].dtype.kind != "M":
            code = rest[name].astype(object).map(lambda s: hash_of(str(s)) % 16).to_numpy()  # missing ones too
            columns += list(np.eye(16)[code].T)
    x = torch.from_numpy(np.stack(columns, 1)).float()
    train, valid, test = _parts(len(x), seed)
    x = ((x - x[train].mean(0)) / x[train].std(0).clamp_min(1e-6)).clamp(-5, 5)
    kinds = {t.name: 2 if t.kind == "binary" else 0 for t in table.tasks}
    for n, kind in kinds.items():
        if kind == 0:
            known = y[n][train][~y[n][train].isnan()]
            y[n] = (y[n] - known.mean()) / known.std()
    return Problem(x, y, kinds, train, valid, test, epochs=15, width=128)


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    import zlib

    return zlib.crc32(text.encode())


def problem(name: str, seed: int) -> Problem:
    """The set of that name, split by the seed."""
    if "overlay" in name:
        return overlay(name, seed)
    if name in TARGETS:
        return multi_target(name, seed)
    return {"tox21": tox21, "school": school, "flights": flights}[name](seed)


# The network and its losses


class Net(nn.Module):
    """A shared trunk of two layers and a head of one hidden layer a task."""

    def __init__(self, given: Problem, tasks: Iterable[str]) -> None:
        super().__init__()
        width = given.width
        self.trunk = nn.Sequential(nn.Linear(given.x.shape[1], 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
        self.heads = nn.ModuleDict(
            {
                t: nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, given.kinds[t] if given.kinds[t] > 2 else 1))
                for t in tasks
            }
        )


def loss_of(kind: int, out: Tensor, y: Tensor) -> Tensor:
    if kind > 2:
        return F.cross_entropy(out, y.long())
    if kind == 2:
        return F.binary_cross_entropy_with_logits(out.squeeze(-1), y.float())
    return F.mse_loss(out.squeeze(-1), y.float())


def losses_at(given: Problem, net: Net, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of the tasks labelled in these rows, and the shared features."""
    z = net.trunk(given.x[rows])
    losses = {}
    for task, head in net.heads.items():
        y = given.y[task][rows]
        known = ~y.isnan()
        if bool(known.all()):
            losses[task] = loss_of(given.kinds[task], head(z), y)
        elif bool(known.any()):
            losses[task] = loss_of(given.kinds[task], head(z[known]), y[known])
    return losses, z


@torch.no_grad()
def scores(given: Problem, net: Net, rows: Tensor) -> dict[str, float]:
    """The main metric of each task: accuracy, AUC (as is) or RMSE with a minus sign."""
    from sklearn.metrics import roc_auc_score

    z, found = net.trunk(given.x[rows]), {}
    for task, head in net.heads.items():
        y = given.y[task][rows]
        known = ~y.isnan()
        if not bool(known.any()):
            continue
        out, y, kind = head(z[known]), y[known], given.kinds[task]
        if kind > 2:
            found[task] = float((out.argmax(1) == y).double().mean())
        elif kind == 2:
            found[task] = float(roc_auc_score(y.numpy(), out.squeeze(-1).numpy())) if len(y.unique()) == 2 else 0.5
        else:
            found[task] = -float(F.mse_loss(out.squeeze(-1), y.float()).sqrt())
    return found


# The methods

Maker = Callable[[Problem, int, float], Any]


def methods(tasks: int, full: bool) -> dict[str, Maker]:
    """Name → a maker of (problem, steps an epoch, learning rate).

    Settings are the defaults; where a paper counts a warm-up in epochs, its epochs.
    """

    def plain(entry: Any) -> Maker:
        return lambda given, steps, rate: entry.resolve()()

    listed = entries(family="balancer")
    made = {e.name: plain(e) for e in listed if "closure" not in e.signal}
    made["excess"] = lambda given, steps, rate: b.ExcessMTL(warmup=3 * steps)
    made["ema(upgrad)"] = lambda given, steps, rate: b.EMA(b.UPGrad())
    made["rep_mtl"] = lambda given, steps, rate: b.EqualWeighting()
    for name, inner in (("equal", b.EqualWeighting), ("mgda", b.MGDA), ("cagrad", b.CAGrad), ("upgrad", b.UPGrad)):
        made[f"flat({name})"] = lambda given, steps, rate, inner=inner: b.FlatRegions(inner())
    made["flat(cagrad, samo)"] = lambda given, steps, rate: b.FlatRegions(b.CAGrad(), how="samo")
    made["auto_lambda"] = lambda given, steps, rate: b.AutoLambda(lr=rate)
    names = range(4)
    for k in names:  # a grid of fixed weights: for two tasks a line, else random points of the simplex
        made[f"fixed{k}"] = lambda given, steps, rate, k=k: b.EqualWeighting("mean", preference=fixed(given, k))
    if not full:
        made.pop("mgda_ub")  # with features it is mgda
    return made


def fixed(given: Problem, k: int) -> dict[str, float]:
    """The k-th point of the grid of fixed weights."""
    tasks = list(given.y)
    if len(tasks) == 2:
        share = (0.15, 0.35, 0.65, 0.85)[k]
        return dict(zip(tasks, (share, 1 - share)))
    drawn = np.random.default_rng(k).dirichlet(np.ones(len(tasks)))
    return {t: float(v) for t, v in zip(tasks, drawn)}


def step(name: str, balancer: Any, given: Problem, net: Net, rows: list[Tensor], aside: Tensor) -> None:
    """One step's gradients through the door that serves the balancer."""
    losses, z = losses_at(given, net, rows[0])
    trunk = list(net.trunk.parameters())

    def again(at: Tensor = rows[0]) -> dict[str, Tensor]:
        return losses_at(given, net, at)[0]

    if balancer.batches > 1:
        others = [losses_at(given, net, r) for r in rows[1:]]
        common = [t for t in losses if all(t in found for found, _ in others)]
        parts = [{t: found[t] for t in common} for found, _ in ((losses, z), *others)]
        b.backward(parts, balancer, shared=trunk)
    elif name == "auto_lambda":
        b.backward(losses, balancer, shared=trunk, closure={"train": again, "validation": lambda: again(aside)})
    elif name.startswith("flat"):
        b.backward(losses, balancer, shared=trunk, closure=again)
    elif "combine" not in balancer.doors:
        b.backward(losses, balancer, shared=trunk)
    elif name == "rep_mtl":
        b.combine(losses, balancer, features=z, extra=b.RepMTL()(losses, features=z)).backward()
    else:
        b.combine(losses, balancer, features=z).backward()


def train(given: Problem, tasks: list[str], name: str, make: Maker, rate: float, seed: int, epochs: int) -> dict[str, Any]:
    """One run: per epoch the validation and test scores and the CPU seconds used so far in steps."""
    torch.manual_seed(seed)
    net = Net(given, tasks)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    per_epoch = max(1, len(given.train) // given.batch)
    balancer = make(given, per_epoch, rate)
    source = torch.Generator().manual_seed(seed)
    curve, used, times = [], 0.0, []
    for _ in range(epochs):
        orders = [given.train[torch.randperm(len(given.train), generator=source)] for _ in range(balancer.batches)]
        for i in range(per_epoch):
            rows = [o[i * given.batch : (i + 1) * given.batch] for o in orders]
            aside = given.train[torch.randint(len(given.train), (given.batch,), generator=source)]
            start = time.process_time()
            optimiser.zero_grad()
            step(name, balancer, given, net, rows, aside)
            optimiser.step()
            if name == "famo":
                with torch.no_grad():
                    balancer.after_step(losses_at(given, net, rows[0])[0])
            times.append(time.process_time() - start)
            used += times[-1]
        balancer.epoch_end()
        curve.append({"seconds": used, "valid": scores(given, net, given.valid), "test": scores(given, net, given.test)})
    finite = all(math.isfinite(v) for v in curve[-1]["test"].values())
    return {"curve": curve, "ms": 1e3 * float(np.median(times)), "finite": finite}


# Cells


def path_of(where: str, name: str, rate: float, seed: int) -> Path:
    return CACHE / f"{where}~{name}~{rate:g}~{seed}.json"


def cell(where: str, name: str, rate: float, seed: int, make: Maker | None) -> dict[str, Any]:
    """Run a cell, or read it where it has been run. ``make`` None: the single-task networks."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = path_of(where, name, rate, seed)
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    given = problem(where, seed)
    found: dict[str, Any] = {"set": where, "method": name, "rate": rate, "seed": seed}
    try:
        if make is None:
            alone = lambda given, steps, rate: b.EqualWeighting()  # noqa: E731
            runs = {t: train(given, [t], "single", alone, rate, seed, given.epochs) for t in given.y}
            found |= {"single": {t: run["curve"] for t, run in runs.items()}, "ms": sum(run["ms"] for run in runs.values())}
        else:
            epochs = given.epochs * LONGER.get(name, 1)
            found |= train(given, list(given.y), name, make, rate, seed, epochs)
    except Exception as error:  # a method that fails on a set is a result, not the end of the table
        found |= {"failed": f"{type(error).__name__}: {error}"}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(found), "utf-8")
    temporary.replace(path)
    return found


def mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def best(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of the best mean validation score."""
    usable = [point for point in curve if all(math.isfinite(v) for v in point["valid"].values())]
    return max(usable or curve, key=lambda point: mean(point["valid"]))


def single(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scores of the single-task networks, each at its own best epoch."""
    at = {t: max(curve, key=lambda p, t=t: p["valid"].get(t, -math.inf)) for t, curve in found["single"].items()}
    return {part: {t: point[part][t] for t, point in at.items() if t in point[part]} for part in ("valid", "test")}


def delta(method: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Δm = 100/T Σ_t (M_t − B_t)/|B_t| with scores that are better when higher: mean relative change, higher is better."""
    tasks = [t for t in reference if t in method]
    return 100 * sum((method[t] - reference[t]) / abs(reference[t]) for t in tasks) / len(tasks)


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % t interval over seeds."""
    from scipy.stats import t

    if not all(map(math.isfinite, values)):
        return "diverged"
    centre = sum(values) / len(values)
    if len(values) < 2:
        return f"{centre:+.2f}"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{centre:+.2f} ± {half:.2f}"


def section(where: str, names: list[str], cells: dict[tuple[str, float, int], dict[str, Any]], seeds: range) -> list[str]:
    """The table of one set."""
    given = problem(where, 0)
    horizon = given.epochs

    def ended(name: str, rate: float) -> bool:
        return all((name, rate, s) in cells for s in seeds)

    def complete(name: str, rate: float) -> bool:
        return ended(name, rate) and all("curve" in cells[name, rate, s] for s in seeds)

    begun = [name for name in ["single", *names] if any(ended(name, r) for r in RATES)]
    grid = [r for r in RATES if all(ended(name, r) for name in begun)]  # the same rates for all that ran
    if not grid or "single" not in begun or "equal" not in begun:
        return []
    reference = {}
    for seed in seeds:
        runs = [single(cells["single", rate, seed]) for rate in grid]
        chosen = {t: max(runs, key=lambda r, t=t: r["valid"][t]) for t in runs[0]["valid"]}  # per task the better rate
        reference[seed] = {t: run["test"][t] for t, run in chosen.items() if t in run["test"]}

    def on_validation(name: str, rate: float) -> float:
        return sum(mean(best(cells[name, rate, s]["curve"][:horizon])["valid"]) for s in seeds)

    def chosen_rate(name: str) -> float | None:
        rates = [r for r in grid if complete(name, r)]
        return max(rates, default=None, key=lambda r: on_validation(name, r))

    base = chosen_rate("equal")
    if base is None:
        return []
    equal = {s: cells["equal", base, s] for s in seeds}
    plain = {s: delta(best(equal[s]["curve"][:horizon])["test"], reference[s]) for s in seeds}
    rows = []
    for name in [n for n in names if not n.startswith("fixed")] + ["fixed grid"]:
        pool = [n for n in names if n.startswith("fixed")] if name == "fixed grid" else [name]
        options = [(n, r) for n in pool if (r := chosen_rate(n)) is not None]
        if not options:
            reason = next((c["failed"] for (n, _, _), c in cells.items() if n == name and "failed" in c), "not run")
            rows.append((-math.inf, f"| {name} | – | – | – | – | – | – | {reason[:80]} |"))
            continue
        which, rate = max(options, key=lambda o: on_validation(*o))
        test, gap, late, worst = [], [], [], []
        for s in seeds:
            run = cells[which, rate, s]
            point = best(run["curve"][:horizon])
            test.append(delta(point["test"], reference[s]))
            gap.append(test[-1] - plain[s])
            worst.append(min(100 * (point["test"][t] - v) / abs(v) for t, v in reference[s].items() if t in point["test"]))
            budget = max(run["curve"][:horizon][-1]["seconds"], equal[s]["curve"][horizon - 1]["seconds"])
            within = [p for p in equal[s]["curve"] if p["seconds"] <= budget]
            late.append(test[-1] - delta(best(within)["test"], reference[s]))
        ms = float(np.median([cells[which, rate, s]["ms"] for s in seeds]))
        ratio = ms / float(np.median([equal[s]["ms"] for s in seeds]))
        note = which if name == "fixed grid" else ""
        figures = [interval(test), interval(gap), interval(late), f"{np.mean(worst):+.1f}", f"{ms:.2f}", f"{ratio:.2f}"]
        rows.append((float(np.mean(test)), f"| {' | '.join([name, *figures, note])} |"))
    rows.sort(key=lambda r: -r[0])
    flat = []
    for name in [n for n in names if n.startswith("flat")]:
        base, mine = name[5:].split(",")[0].rstrip(")"), chosen_rate(name)
        theirs = chosen_rate(base)
        if mine is None or theirs is None:
            continue
        same, timed = [], []
        for s in seeds:
            curve, other = cells[name, mine, s]["curve"][:horizon], cells[base, theirs, s]["curve"]
            test_ = delta(best(curve)["test"], reference[s])
            within = [p for p in other if p["seconds"] <= curve[-1]["seconds"]] or other[:1]
            same.append(test_ - delta(best(other[:horizon])["test"], reference[s]))
            timed.append(test_ - delta(best(within)["test"], reference[s]))
        flat.append(f"| {name} | {interval(same)} | {interval(timed)} |")
    steps = max(1, len(given.train) // given.batch)
    rates = ", ".join(f"{r:g}" for r in grid)
    doc = f"{len(given.y)} tasks, {len(given.train)} training rows, {horizon} epochs of {steps} steps, rates {rates}"
    scores_of = ", ".join(f"{t} {abs(np.mean([reference[s][t] for s in seeds])):.3f}" for t in list(reference[0])[:4])
    return [
        f"## {where}",
        "",
        f"{doc}; seeds {', '.join(map(str, seeds))}. Single-task test scores: {scores_of}"
        + (" …" if len(reference[0]) > 4 else "")
        + ".",
        "",
        "| method | Δm, % | minus equal | minus equal at equal time | worst task, % | ms a step | × equal | note |",
        "|---|---|---|---|---|---|---|---|",
        *(line for _, line in rows),
        "",
        "| flat regions | minus its own base at equal epochs | minus its own base at equal time |",
        "|---|---|---|",
        *flat,
        "",
    ]


def run(full: bool) -> None:
    """Run the missing cells and write docs/results/balancing.md; SETS=a,b runs these sets, RUN=0 writes from the cells there."""
    torch.set_num_threads(1)
    seeds = range(5 if full else 3)
    sets = LONG if full else SHORT
    if os.environ.get("SETS"):
        sets = tuple(os.environ["SETS"].split(","))
    sections = {}
    for where in sets:
        made = methods(len(problem(where, 0).y), full)
        cells = {}
        for name, make in [("single", None), *made.items()]:
            start = time.perf_counter()
            for rate in RATES:
                for seed in seeds:
                    if os.environ.get("RUN") != "0" or path_of(where, name, rate, seed).exists():
                        cells[name, rate, seed] = cell(where, name, rate, seed, make)
            print(f"{where} {name} {time.perf_counter() - start:.1f} s", flush=True)
        sections[where] = section(where, list(made), cells, seeds)
        write(sections)


def write(sections: Mapping[str, list[str]]) -> None:
    """The page, with a summary over the sets that ran."""
    page = RESULTS / "balancing.md"
    kept = page.read_text("utf-8") if page.exists() else ""
    reading = kept.split("## Reading\n", 1)[1].split("\n## ", 1)[0] if "## Reading\n" in kept else "\n(not written yet)\n"
    lines = [
        "# Balancing: every method on the same problems",
        "",
        "Written by `python -m benchmarks --only balancing_claims` (`--full` for all sets and 5 seeds) on "
        f"{time.strftime('%Y-%m-%d')};",
        f"{machine()}, one thread on a shared machine: times are rough.",
        "",
        "Δm: mean over tasks of the relative change of the main metric (accuracy, AUC, RMSE with its sign) against single-task",
        "networks of the same size, higher is better; ± is the 95 % t interval over seeds. *Minus equal*: less equal",
        "weighting, paired.",
        "*At equal time*: against equal weighting trained on for the method's CPU time (at most four times its epochs);",
        "flat regions against their own base likewise, which a method of several passes a step must beat.",
        f"Learning rate ({', '.join(f'{r:g}' for r in RATES)}; Adam), epoch and fixed weights are chosen on validation.",
        "Gradients are heard at the shared features where `combine` serves the method, else at all shared parameters.",
        "",
        "## Reading",
        reading.rstrip("\n"),
        "",
    ]
    for section_ in sections.values():
        lines += section_
    RESULTS.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip("\n") + "\n", "utf-8")
