"""Merging on real images: seven experts of one small convolutional network, every method against experts and joint training."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.merging_methods import (
    Bed,
    Case,
    Data,
    Entry,
    Result,
    claims,
    ensemble,
    experts,
    fill,
    fisher,
    kept,
    learned,
    masked,
    on_file,
    one,
    probe,
    regmean,
    soup,
    static,
    tables,
    tall_tuned,
    train,
    tuned,
    twinned,
)
from benchmarks.ratio import DATA, RESULTS
from pluribus.files import atomic_file, safetensors
from pluribus.merging import merge
from pluribus.merging.adamerging import adamerging
from pluribus.merging.coefficients import entropy

CACHE = Path(__file__).parents[1] / "runs" / "benchmarks" / "merging_claims"
TASKS = ("mnist", "fashion", "notmnist", "cifar10", "signs", "pneumonia", "pacs")
SIZES = {"train": 2000, "valid": 300, "adapt": 300, "test": 1000}  # images a task, at most
SEEDS = (0, 1, 2)
CLASSES = {"mnist": 10, "fashion": 10, "notmnist": 10, "cifar10": 10, "signs": 10, "pneumonia": 2, "pacs": 7}
PRETRAIN, STEPS = 600, 400

# Data: the four parts of a task are disjoint; "adapt" is where unlabelled adaptation looks, "test" where figures come from.


def _raw(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train images, labels, test images, labels) as stored."""
    if task == "notmnist":
        images = gzip.decompress((DATA / "notmnist_10k" / "t10k-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((DATA / "notmnist_10k" / "t10k-labels-idx1-ubyte.gz").read_bytes())
        x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        y = np.frombuffer(labels, np.uint8, offset=8)
        order = np.random.default_rng(0).permutation(len(x))
        return x[order[:8000]], y[order[:8000]], x[order[8000:]], y[order[8000:]]
    if task == "pneumonia":
        z = np.load(DATA / "pneumoniamnist" / "pneumoniamnist.npz")
        return z["train_images"], z["train_labels"][:, 0], z["test_images"], z["test_labels"][:, 0]
    folder = {"fashion": "fashion_mnist", "cifar10": "cifar10_subset", "signs": "sign_language_digits"}
    z = np.load(DATA / {**folder, "pacs": "pacs_subset"}.get(task, task) / "data.npz")
    if "x" not in z:
        return z["x_train"], z["y_train"], z["x_test"], z["y_test"]
    test = z["is_test"].astype(bool)
    return z["x"][~test], z["y"][~test], z["x"][test], z["y"][test]


def _images(x: np.ndarray) -> Tensor:
    """3 × 28 × 28, standardised image by image."""
    t = torch.from_numpy(x.astype(np.float32) / 255)
    t = t[:, None].expand(-1, 3, -1, -1) if t.dim() == 3 else t.permute(0, 3, 1, 2)
    if t.shape[-1] != 28:
        t = F.interpolate(t, size=(28, 28), mode="bilinear", antialias=True)
    t = t - t.mean((1, 2, 3), keepdim=True)
    return (t / t.std((1, 2, 3), keepdim=True).clamp(min=0.05)).contiguous()


def load(seed: int) -> Data:
    """task -> part -> (images, labels); the parts are drawn anew for each seed, the test images from the given test split."""
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for task in TASKS:
        x, y, x_test, y_test = _raw(task)
        rng = np.random.default_rng([seed, TASKS.index(task)])
        order, test = rng.permutation(len(x)), rng.permutation(len(x_test))[: SIZES["test"]]
        cut = np.cumsum([SIZES["valid"], SIZES["adapt"], SIZES["train"]])
        index = {"valid": order[: cut[0]], "adapt": order[cut[0] : cut[1]], "train": order[cut[1] : cut[2]]}
        parts = {k: (_images(x[i]), torch.from_numpy(y[i].astype(np.int64))) for k, i in index.items()}
        parts["test"] = (_images(x_test[test]), torch.from_numpy(y_test[test].astype(np.int64)))
        found[task] = parts
    return found


# Model


class SmallCNN(nn.Module):
    """Three strided convolutions and two dense layers, 512 256 parameters; the output is a feature vector [B, 256]."""

    def __init__(self, width: int = 24, features: int = 256) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(4, outputs), nn.GELU())

        self.body = nn.Sequential(layer(3, width), layer(width, 2 * width), layer(2 * width, 4 * width), nn.Flatten())
        self.dense = nn.Sequential(nn.Linear(64 * width, features), nn.GELU(), nn.Linear(features, features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(self.body(x))
        return out


# Training of the bed


def _shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by up to two pixels."""
    dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(x, (dx, dy), (2, 3))


def make_bed(seed: int, data: Data) -> Bed:
    """Train the models of a seed. The pooled pretraining task, no label read: which set, and turned by which quarter.

    Heads are fitted to the pretrained features and then frozen, as the text heads of the vision suite in the literature are.
    An expert sees 400 batches of 64, the joint model as many of every task.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    trunk = SmallCNN()
    pool = torch.cat([data[t]["train"][0] for t in TASKS])
    source = torch.cat([torch.full((len(data[t]["train"][0]),), i) for i, t in enumerate(TASKS)])
    pretext = nn.Linear(256, 4 * len(TASKS))

    def pretrain(_: int) -> Tensor:
        i = torch.randint(len(pool), (128,), generator=generator)
        turn = torch.randint(4, (4,), generator=generator).tolist()
        x = torch.cat([torch.rot90(part, k, (2, 3)) for part, k in zip(_shift(pool[i], generator).chunk(4), turn)])
        y = source[i] * 4 + torch.tensor(turn).repeat_interleave(32)
        return F.cross_entropy(pretext(trunk(x)), y)

    train([*trunk.parameters(), *pretext.parameters()], pretrain, PRETRAIN, 2e-3)
    base = {k: v.clone() for k, v in trunk.state_dict().items()}

    heads: dict[str, nn.Linear] = {}
    for task in TASKS:
        x, y = data[task]["train"]
        with torch.no_grad():
            z = torch.cat([trunk(part) for part in x.split(500)])
        heads[task] = probe(z, y, CLASSES[task])

    def tune(tasks: tuple[str, ...], count: int) -> dict[str, Tensor]:
        trunk.load_state_dict(base)

        def loss(step: int) -> Tensor:
            task = tasks[step % len(tasks)]
            x, y = data[task]["train"]
            i = torch.randint(len(x), (64,), generator=generator)
            return F.cross_entropy(heads[task](trunk(_shift(x[i], generator))), y[i])

        train(list(trunk.parameters()), loss, count, 5e-4)
        return {k: v.clone() for k, v in trunk.state_dict().items()}

    each = {task: tune((task,), STEPS) for task in TASKS}
    joint = tune(TASKS, STEPS * len(TASKS))
    return Bed(base, each, joint, heads)


def bed(seed: int, data: Data) -> Bed:
    return kept(CACHE / f"seed-{seed}", lambda: make_bed(seed, data), TASKS)


# Methods of this page alone


def _accurate(case: Case) -> list[str]:
    """The tasks whose expert is right on at least 80 % of its validation images."""
    found = []
    for task in TASKS:
        case.load(case.bed.experts[task])
        if case.accuracy(task, "valid") >= 0.8:
            found.append(task)
    return found


def _on_accurate_tasks(case: Case) -> Result:
    """Layer-wise AdaMerging of all experts that minimises the entropy of the accurate tasks alone, from λ = 0.1."""
    chosen = _accurate(case)

    def objective(model: nn.Module, task: str, batch: Tensor) -> Tensor:
        blocks = zip(TASKS, model(batch).chunk(len(TASKS)))
        return torch.stack([entropy(case.head(t)(z)) for t, z in blocks if t in chosen]).sum()

    made = adamerging(case.bed.base, case.bed.experts, case.model, case.unlabelled(), objective=objective, init=0.1, **LEARN)
    found = one(made.state(), case, adapted=True)
    found.note = f"on {', '.join(chosen)}: {100 * sum(found.test[t] for t in chosen) / len(chosen):.1f}"
    return found


@torch.no_grad()
def entropy_path(case: Case) -> list[dict[str, Any]]:
    """Accuracy and entropy of every task on the adapted inputs along task arithmetic's line."""
    rows = []
    for scale in (0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
        state = merge(case.bed.base, case.bed.experts, "task_arithmetic", scale=scale)
        right = case.of(state, "adapt")
        each = {t: float(entropy(case.head(t)(case.model(case.data[t]["adapt"][0])))) for t in TASKS}
        rows.append({"scale": scale, "accuracy": sum(right.values()) / len(TASKS), "entropy": each})
    return rows


UNLABELLED, LABELLED = "unlabelled inputs (300 a task)", "validation labels (300 a task)"
LEARN = {"steps": 300, "lr": 2e-3}
ENTRIES = (
    Entry("pretrained", lambda case: one(case.bed.base, case)),
    Entry("experts (one a task)", experts, task_id=True),
    Entry("joint training", lambda case: one(case.bed.joint, case), "all training data"),
    Entry("output ensemble", ensemble),
    Entry("average", static("average"), free=True),
    Entry("task_arithmetic 0.3", static("task_arithmetic"), free=True),
    Entry("task_arithmetic tuned", tuned("task_arithmetic"), LABELLED),
    Entry("greedy_soup", soup, LABELLED),
    Entry("ties", static("ties"), free=True),
    Entry("ties tuned", tuned("ties"), LABELLED),
    Entry("dare", static("dare"), free=True),
    Entry("dare with ties", static("dare", combine="ties"), free=True),
    Entry("della", static("della"), free=True),
    Entry("breadcrumbs", static("breadcrumbs"), free=True),
    Entry("karcher", static("karcher"), free=True),
    Entry("model_stock", static("model_stock"), free=True),
    Entry("sce", static("sce"), free=True),
    Entry("pcb", static("pcb"), free=True),
    Entry("codiemb", static("codiemb"), free=True),
    Entry("consensus", static("consensus"), free=True),
    Entry("consensus tuned", tuned("consensus"), LABELLED),
    Entry("tsv_m", static("tsv_m"), free=True),
    Entry("tsv_m tuned", tuned("tsv_m"), LABELLED),
    Entry("iso_c", static("iso_c"), free=True),
    Entry("iso_cts", static("iso_cts"), free=True),
    Entry("iso_c tuned", tuned("iso_c"), LABELLED),
    Entry("wudi closed form", static("wudi"), free=True),
    Entry("wudi adam", static("wudi", solver="adam"), free=True),
    Entry("knots", static("knots"), free=True),
    Entry("doge", static("doge"), free=True),
    Entry("regmean", regmean, UNLABELLED),
    Entry("fisher", fisher(), UNLABELLED, full=True),
    Entry("emr", masked("emr"), task_id=True),
    Entry("tall_masks 0.4", masked("tall_masks"), task_id=True),
    Entry("tall_masks tuned", tall_tuned, LABELLED, task_id=True),
    Entry("twin rank 4, routed", twinned(4, by_id=False), UNLABELLED),
    Entry("twin rank 16, routed", twinned(16, by_id=False), UNLABELLED),
    Entry("twin rank 1, by id", twinned(1, by_id=True), task_id=True),
    Entry("twin rank 4, by id", twinned(4, by_id=True), task_id=True),
    Entry("twin rank 16, by id", twinned(16, by_id=True), task_id=True),
    Entry("adamerging task-wise", learned("adamerging", granularity="task", **LEARN), UNLABELLED),
    Entry("adamerging layer-wise", learned("adamerging", **LEARN), UNLABELLED),
    Entry("adamerging layer-wise, accurate tasks", _on_accurate_tasks, UNLABELLED),
    Entry("layer-wise cross-entropy", learned("adamerging", supervised=True, **LEARN), LABELLED),
    Entry("adamerging++ task-wise", learned("adamerging", granularity="task", plus_plus=True, **LEARN), UNLABELLED, full=True),
    Entry("adamerging++ layer-wise", learned("adamerging", plus_plus=True, **LEARN), UNLABELLED, full=True),
    Entry("doge → adamerging", learned("doge_adamerging", **LEARN), UNLABELLED, full=True),
    Entry("concrete t. a.", learned("concrete", form="task_arithmetic", mask_steps=300, lr=1e-2), UNLABELLED, full=True),
    Entry("concrete adamerging", learned("concrete", mask_steps=150, steps=150, lr=4e-3), UNLABELLED, full=True),
    Entry("atlas", learned("atlas", steps=300), LABELLED, full=True),
    Entry("atlas × 10", learned("atlas", steps=300, partitions=10), LABELLED, full=True),
    Entry("self_positioning", learned("self_positioning", steps=150, lr=2e-2), LABELLED, full=True),
)


# Memory: what learning coefficients of eight experts holds beyond the model, against building the merge inside the graph

MEMORY = """
import sys, threading, time, torch
from torch import nn
from torch.func import functional_call
from pluribus.merging.coefficients import *
from pluribus.files import safetensors
way, folder, size, tasks = sys.argv[1], sys.argv[2], 1600, 8

def ours(model, base, experts, x, resident):
    c = Coefficients(TaskVectors(base, experts, resident_bytes=resident))
    fit(c, model, entropy_objective(forward_with()), x, steps=2, optimiser=lambda p: torch.optim.Adam(p, lr=1e-3))

def graph(model, base, experts, x, resident):
    base = safetensors.load(base) if isinstance(base, str) else base.state_dict()
    experts = [safetensors.load(e) if isinstance(e, str) else e.state_dict() for e in experts.values()]
    tau = {n: [e[n] - t for e in experts] for n, t in base.items()}
    del experts
    lam = torch.full((tasks, len(base)), 0.3, requires_grad=True)
    adam = torch.optim.Adam([lam], lr=1e-3)
    for _ in range(2):
        merged = {n: t + sum(lam[i, k] * tau[n][i] for i in range(tasks)) for k, (n, t) in enumerate(base.items())}
        sum(entropy(functional_call(model, merged, (b[0],))) for b in x.values()).backward()
        adam.step(); adam.zero_grad()

def held():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024

def run(model, base, experts, width):
    x = {str(t): [torch.randn(4, width)] for t in range(tasks)}
    {"ours": ours, "graph": graph}[way](model, base, experts, x, 0)

small = nn.Linear(4, 4)
run(small, small, {str(t): small for t in range(tasks)}, 4)  # what the first step of a process loads
model = nn.Sequential(*[nn.Linear(size, size, bias=False) for _ in range(4)])
one = sum(p.numel() * 4 for p in model.parameters())
start, peak, stop = held(), [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], held()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
clock = time.process_time()
run(model, f"{folder}/base.safetensors", {str(t): f"{folder}/{t}.safetensors" for t in range(tasks)}, size)
clock = time.process_time() - clock
stop.set(); thread.join()
print((peak[0] - start) / one, one, clock)
"""


def memory() -> dict[str, Any]:
    """Peak anonymous memory beyond the model, in models, of two AdaMerging steps with eight experts on disk."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("base", *map(str, range(8))):
            tensors = {f"{i}.weight": torch.randn(1600, 1600) * 0.01 for i in range(4)}
            safetensors.save(Path(folder) / f"{name}.safetensors", tensors)
        for way in ("ours", "graph"):
            command = [sys.executable, "-c", MEMORY, way, folder]
            printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
            found[way], found["model"], found[f"{way}_seconds"] = float(printed[0]), float(printed[1]), float(printed[2])
    return found


# Cells and the page


def _case(seed: int) -> Case:
    data = load(seed)
    return Case(bed(seed, data), data, SmallCNN())


def run(full: bool) -> None:
    """Every cell (method × seed) that is not on file, then the page. FULL=1 adds the slower methods."""
    fill(CACHE, SEEDS, ENTRIES, _case, full)
    if not (CACHE / "path.json").exists():
        with atomic_file(CACHE / "path.json") as aside:
            aside.write_text(json.dumps(entropy_path(_case(1))), "utf-8")
    if not (CACHE / "memory.json").exists():
        found = memory()
        print(f"memory beyond the model: {found['ours']:.1f} models, inside the graph {found['graph']:.1f}", flush=True)
        with atomic_file(CACHE / "memory.json") as aside:
            aside.write_text(json.dumps(found), "utf-8")
    _page()


def _page() -> None:
    cells = on_file(CACHE, SEEDS, ENTRIES)
    compared = [
        n
        for n in (
            "task_arithmetic tuned",
            "adamerging layer-wise",
            "adamerging layer-wise, accurate tasks",
            "layer-wise cross-entropy",
            "experts (one a task)",
        )
        if n in cells
    ]
    why = "\n".join(
        [f"| seed | {' | '.join(compared)} |", "|---" * (len(compared) + 1) + "|"]
        + [
            f"| {s} | "
            + " | ".join(
                f"{100 * np.mean([cells[n][s]['test'][t] for t in ACCURATE]):.1f}" if s in cells[n] else "" for n in compared
            )
            + " |"
            for s in SEEDS
        ]
    )
    size = sum(t.numel() for t in SmallCNN().state_dict().values())
    (RESULTS / "merging.md").write_text(
        PAGE.format(
            **tables(cells, ENTRIES),
            size=size,
            claims=claims(cells, CLAIMED, "task_arithmetic tuned"),
            total=len(ENTRIES) * len(SEEDS),
            path=_path_table(),
            why=why,
            five=", ".join(ACCURATE),
            held=json.loads((CACHE / "memory.json").read_text("utf-8")),
        ),
        "utf-8",
    )


CLAIMED = (
    "adamerging layer-wise",
    "adamerging task-wise",
    "adamerging layer-wise, accurate tasks",
    "layer-wise cross-entropy",
    "adamerging++ layer-wise",
    "doge → adamerging",
    "concrete adamerging",
    "twin rank 4, routed",
    "twin rank 16, routed",
    "atlas",
    "self_positioning",
    "emr",
    "tall_masks tuned",
    "tsv_m",
    "joint training",
)
ACCURATE = ("mnist", "fashion", "notmnist", "signs", "pneumonia")


def _path_table() -> str:
    rows = json.loads((CACHE / "path.json").read_text("utf-8"))
    lines = ["| λ | accuracy | summed entropy | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 3) + "|"]
    for row in rows:
        each = " | ".join(f"{row['entropy'][t]:.2f}" for t in TASKS)
        lines.append(f"| {row['scale']:g} | {100 * row['accuracy']:.1f} | {sum(row['entropy'].values()):.2f} | {each} |")
    return "\n".join(lines)


PAGE = """# Merging: what the methods give on seven image tasks

Written by `benchmarks/merging_claims.py` (`make bench ONLY=merging_claims`, `FULL=1` for every cell).
{cells} of {total} cells ran, {dates}; {machine}.

**Bed.** One small convolutional network ({size} parameters) is pretrained without labels on the pooled training images of all
tasks (which set is it, and turned by which quarter), then fine-tuned to each of seven tasks (MNIST, Fashion-MNIST, notMNIST, a
subset of CIFAR-10, sign-language digits, PneumoniaMNIST, a subset of PACS; 28 × 28, at most 2000 training images a task, given
test images) under a linear head that was fitted to the pretrained features and then frozen. Heads are not merged. The joint model
saw as many batches of each task as its expert. Four disjoint parts: *train* (fine-tuning), *valid* (300 a task: scales, labels
of the supervised methods), *adapt* (300 a task: unlabelled inputs), *test* (at most 1000 a task: every figure below but one
column). Accuracies in per cent, mean over tasks, ± the standard deviation over seeds. *Of its expert*: mean of the per-task
ratios. CPU seconds include evaluation.

{table}

Task arithmetic, and the rows called "tuned", take their scale from 0, 0.05 … 1 (0, 0.1 … 2 for TIES, TSV-M and Iso-C) by mean
validation accuracy. Without data and without a choice the best is **{best}**, then {second}; the last is {worst}.

## Against tuned task arithmetic

{claims}

## Why layer-wise AdaMerging falls short on all seven tasks

Entropy minimisation assumes that a confident model is a right one. Along task arithmetic's own line (seed 1, adapted inputs):

{path}

On CIFAR-10 and PACS, where even the experts are right on about half of the images, the entropy falls all the way to λ = 1,
where the merged model is far worse than the base, and theirs are the largest terms of the sum. On most of the other tasks the
entropy is least near the λ of the best accuracy, but flat there. So the coefficients move as the objective asks (they grow,
and the summed entropy falls by a third), towards confident errors. Unlike the text heads of the literature's vision suite, the
heads here read features that are not normalised, so longer features alone can lower the entropy too.

Mean test accuracy over the five accurate tasks ({five}), where "accurate tasks" minimises the entropy of these five alone, from
λ = 0.1, and "cross-entropy" learns the same layer-wise coefficients from labels:

{why}

Entropy on the accurate tasks alone is better than entropy on all of them, but not above tuned task arithmetic on every seed. The
coefficients are not at fault: learned from labels they are above it where that cell ran.

## By task

{by_task}

## Memory of learning coefficients

Two steps of layer-wise AdaMerging, eight experts on disk, a model of {held[model]:.0f} bytes, one process each: peak anonymous
memory beyond the model itself is **{held[ours]:.1f} models** (its gradient, one layer inside the backward, a chunk), against
{held[graph]:.1f} models when the merged weights are built inside the graph from task vectors in memory. CPU seconds:
{held[ours_seconds]:.1f} (reading the vectors from disk three times a step) against {held[graph_seconds]:.1f}.

## Notes of the runs

{notes}

Adaptation minimises the entropy of predictions on *adapt* inputs (16 a task and step); the column "on the adapted inputs" shows
what reporting on the same inputs would have claimed. "extra bytes" counts what is stored beside one set of merged weights.
Sources of the images whose licence is not stated or not commercial: CIFAR-10, PACS.
"""
