"""What the claims of merging share: a bed of experts of one base, the methods over it, cells kept as files, the tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ratio import machine
from pluribus.files import atomic_file, safetensors
from pluribus.merging import merge
from pluribus.merging.adamerging import adamerging, doge_adamerging
from pluribus.merging.atlas import atlas
from pluribus.merging.coefficients import entropy
from pluribus.merging.concrete import concrete
from pluribus.merging.container import MergeContainer
from pluribus.merging.fisher import diagonal_fisher
from pluribus.merging.regmean import input_grams
from pluribus.merging.self_positioning import self_positioning
from pluribus.merging.twin import twin

State = dict[str, Tensor]
Data = Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]  # task -> part -> (inputs, labels)


# The bed: a pretrained trunk, frozen probe heads, experts, and one jointly trained model.


@dataclass
class Bed:
    """The models of one seed: the pretrained trunk, an expert a task, the jointly trained trunk; the frozen heads."""

    base: State
    experts: dict[str, State]
    joint: State
    heads: dict[str, nn.Linear]


def train(parameters: list[nn.Parameter], loss: Callable[[int], Tensor], steps: int, lr: float) -> None:
    """AdamW under one cycle of the learning rate; loss: of a step."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=max(2, steps), pct_start=0.1)
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def probe(z: Tensor, y: Tensor, classes: int) -> nn.Linear:
    """A linear head fitted to features [n, d] and frozen."""
    head = nn.Linear(z.shape[1], classes)
    train(list(head.parameters()), lambda _: F.cross_entropy(head(z), y), 200, 1e-2)
    return head.requires_grad_(False)


def kept(folder: Path, make: Callable[[], Bed], tasks: Sequence[str]) -> Bed:
    """The models of a seed, trained once and kept in `folder`."""
    if not (folder / "done").exists():
        made = make()
        for name, state in [("base", made.base), ("joint", made.joint), *made.experts.items()]:
            safetensors.save(folder / f"{name}.safetensors", state)
        for task, head in made.heads.items():
            safetensors.save(folder / f"head-{task}.safetensors", head.state_dict())
        (folder / "done").touch()
    heads = {}
    for task in tasks:
        tensors = safetensors.load(folder / f"head-{task}.safetensors")
        heads[task] = nn.Linear(tensors["weight"].shape[1], len(tensors["weight"])).requires_grad_(False)
        heads[task].load_state_dict(tensors)
    read = {name: safetensors.load(folder / f"{name}.safetensors") for name in ("base", "joint", *tasks)}
    return Bed(read["base"], {t: read[t] for t in tasks}, read["joint"], heads)


@dataclass
class Case:
    """One seed: models and data, and what every method of it shares.

    model: a place for weights, inputs [B, …] → features [B, d]. The parts of a task are disjoint: "valid" gives labels to the
    methods that choose or learn by them, "adapt" unlabelled inputs, "test" the figures.
    """

    bed: Bed
    data: Data
    model: nn.Module
    step: ClassVar[int] = 500  # rows of a forward without gradient

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.data)

    def head(self, task: str) -> nn.Linear:
        return self.bed.heads[task]

    def load(self, state: Mapping[str, Tensor]) -> nn.Module:
        self.model.load_state_dict(dict(state))
        return self.model

    @torch.no_grad()
    def features(self, task: str, part: str) -> Tensor:
        return torch.cat([self.model(b) for b in self.data[task][part][0].split(self.step)])

    def accuracy(self, task: str, part: str) -> float:
        """Of the weights that are in the model."""
        return self.right(self.features(task, part), task, part)

    def right(self, z: Tensor, task: str, part: str) -> float:
        return float(self.head(task)(z).argmax(-1).eq(self.data[task][part][1]).float().mean())

    def of(self, state: Mapping[str, Tensor], part: str) -> dict[str, float]:
        """Accuracy of one set of weights on every task."""
        self.load(state)
        return {t: self.accuracy(t, part) for t in self.tasks}

    def mean(self, state: Mapping[str, Tensor], part: str = "valid") -> float:
        return sum(self.of(state, part).values()) / len(self.tasks)

    def unlabelled(self, size: int = 16) -> dict[str, list[Tensor]]:
        """Batches with a row block of every task at once: one forward for all tasks. The key is the one pseudo-task "all"."""
        return {"all": [torch.cat(rows) for rows in zip(*(self.data[t]["adapt"][0].split(size)[:-1] for t in self.tasks))]}

    def labelled(self, size: int = 16) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """The same from the validation part, with its labels."""
        x = zip(*(self.data[t]["valid"][0].split(size)[:-1] for t in self.tasks))
        y = zip(*(self.data[t]["valid"][1].split(size)[:-1] for t in self.tasks))
        return {"all": [(torch.cat(a), torch.cat(b)) for a, b in zip(x, y)]}

    def entropy(self, model: nn.Module, task: str, batch: Tensor) -> Tensor:
        """Σ_t H_t over the row blocks."""
        blocks = model(batch).chunk(len(self.tasks))
        return torch.stack([entropy(self.head(t)(z)) for t, z in zip(self.tasks, blocks)]).sum()

    def cross_entropy(self, model: nn.Module, task: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Σ_t CE_t over the row blocks."""
        blocks = zip(self.tasks, model(batch[0]).chunk(len(self.tasks)), batch[1].chunk(len(self.tasks)))
        return torch.stack([F.cross_entropy(self.head(t)(z), y) for t, z, y in blocks]).sum()

    def whole(self, task: str) -> list[Tensor]:
        """The adaptation inputs in batches without padding, for Gram matrices."""
        return [self.data[task]["adapt"][0]]

    def single(self, model: nn.Module, x: Tensor) -> Tensor:
        """The features where each row is a graph of its own (under `vmap`)."""
        z: Tensor = model(x)
        return z


# Methods. A method gets the case and gives a `Result`; what it may look at is in its row of the table.


@dataclass
class Result:
    """test, adapt: accuracy by task (adapt: on the inputs that were adapted to, None where there was no adaptation)."""

    test: dict[str, float]
    adapt: dict[str, float] | None = None
    extra_bytes: int = 0
    note: str = ""


Run = Callable[[Case], Result]


@dataclass(frozen=True)
class Entry:
    """A row of the table. data: what it consumed beyond the weights. task_id: whether inference is told the task."""

    name: str
    run: Run
    data: str = "nothing"
    task_id: bool = False
    free: bool = False  # merges weights without data or choices: a candidate for the default of `pluribus merge`
    full: bool = False  # runs only with FULL=1


def one(state: Mapping[str, Tensor], case: Case, adapted: bool = False, note: str = "") -> Result:
    return Result(case.of(state, "test"), case.of(state, "adapt") if adapted else None, note=note)


def static(method: str, **settings: Any) -> Run:
    return lambda case: one(merge(case.bed.base, case.bed.experts, method, **settings), case)


def tuned(method: str, **settings: Any) -> Run:
    """The scale on a grid 0, 0.05 … 1 (times 2 for methods whose usual scale is above 1), by validation accuracy."""

    def run(case: Case) -> Result:
        whole = merge(case.bed.base, case.bed.experts, method, scale=1.0, **settings)
        most = 2.0 if method in ("ties", "iso_c", "tsv_m") else 1.0
        grid = [round(most * i / 20, 3) for i in range(21)]

        def at(scale: float) -> State:
            return {n: t + scale * (whole[n] - t) for n, t in case.bed.base.items()}

        best = max(grid, key=lambda scale: case.mean(at(scale)))
        return one(at(best), case, note=f"scale {best:g}")

    return run


def _bytes(state: State) -> int:
    return sum(t.numel() * t.element_size() for t in state.values())


def experts(case: Case) -> Result:
    found = {}
    for task in case.tasks:
        case.load(case.bed.experts[task])
        found[task] = case.accuracy(task, "test")
    return Result(found, extra_bytes=(len(case.tasks) - 1) * _bytes(case.bed.base))


def ensemble(case: Case) -> Result:
    """The mean of all experts' features under the task's head: the ensemble of outputs, as heads are linear."""
    z: dict[str, Tensor] = {}
    for expert in case.bed.experts.values():
        case.load(expert)
        for task in case.tasks:
            mine = case.features(task, "test") / len(case.tasks)
            z[task] = z[task] + mine if task in z else mine
    found = {task: case.right(z[task], task, "test") for task in case.tasks}
    return Result(found, extra_bytes=(len(case.tasks) - 1) * _bytes(case.bed.base))


def soup(case: Case) -> Result:
    return one(merge(case.bed.base, case.bed.experts, "greedy_soup", score=lambda s: case.mean(s)), case)


def regmean(case: Case) -> Result:
    grams = {task: input_grams(case.load(case.bed.experts[task]), case.whole(task)) for task in case.tasks}
    return one(merge(case.bed.base, case.bed.experts, "regmean", grams=grams), case, adapted=True)


def fisher(rows: int | None = None) -> Run:
    """rows: of a task's adaptation inputs that are looked at (default: all)."""

    def run(case: Case) -> Result:
        fishers = {}
        for task in case.tasks:
            case.load(case.bed.experts[task])
            batches = list(case.data[task]["adapt"][0][:rows].split(50))
            forward = lambda m, x, t=task: case.head(t)(case.single(m, x))  # noqa: E731
            fishers[task] = diagonal_fisher(case.model, batches, forward=forward)
        return one(merge(case.bed.base, case.bed.experts, "fisher", fishers=fishers), case, adapted=True)

    return run


def contained(case: Case, container: MergeContainer) -> Result:
    found = {}
    for task in case.tasks:
        case.load(container.state(task))
        found[task] = case.accuracy(task, "test")
    counted = container.bytes()
    return Result(found, extra_bytes=sum(counted.values()) - counted["shared"])


def masked(method: str) -> Run:
    return lambda case: contained(case, MergeContainer.masked(case.bed.base, case.bed.experts, method=method))


def tall_tuned(case: Case) -> Result:
    """The threshold of each task by validation accuracy, as in the paper."""
    chosen, best = dict.fromkeys(case.tasks, 0.4), dict.fromkeys(case.tasks, -1.0)
    for threshold in (0.2, 0.3, 0.4, 0.5, 0.6):
        container = MergeContainer.masked(case.bed.base, case.bed.experts, method="tall_masks", threshold=threshold)
        for task in case.tasks:
            case.load(container.state(task))
            got = case.accuracy(task, "valid")
            if got > best[task]:
                chosen[task], best[task] = threshold, got
    made = MergeContainer.masked(case.bed.base, case.bed.experts, method="tall_masks", threshold=chosen)
    return contained(case, made)


def twinned(rank: int, by_id: bool) -> Run:
    def run(case: Case) -> Result:
        inputs = None if by_id else {t: case.data[t]["adapt"][0] for t in case.tasks}
        container = twin(case.bed.base, case.bed.experts, rank=rank, model=None if by_id else case.model, inputs=inputs)
        if by_id:
            return contained(case, container)
        served = container.serve(case.model, example=case.data[case.tasks[0]]["adapt"][0][:8])
        found: dict[str, dict[str, float]] = {}
        without: list[float] = []
        for part in ("test", "adapt"):
            found[part] = {}
            for task in case.tasks:
                x, y = case.data[task][part]
                right = own = 0.0
                for a, b in zip(x.split(case.step), y.split(case.step)):
                    out = served(a)
                    # The weights follow the router; the head is the task's, as in the paper's evaluation, or the router's too.
                    right += float((case.head(task)(out.stacked()).argmax(-1) == b).sum())
                    if task in out.rows:
                        own += float((case.head(task)(out.outputs[task]).argmax(-1) == b[out.rows[task]]).sum())
                found[part][task] = right / len(y)
                without += [own / len(y)] if part == "test" else []
        for module in served._hooked:
            module.remove()
        counted = container.bytes()
        extra = sum(counted.values()) - counted["shared"]
        routed = 100 * sum(without) / len(case.tasks)
        return Result(found["test"], found["adapt"], extra, f"head by the router too: {routed:.1f}, plan {served.plan}")

    return run


def learned(method: str, supervised: bool = False, batch: int = 16, **settings: Any) -> Run:
    """Coefficients learned from batches with `batch` rows of every task."""

    def run(case: Case) -> Result:
        labelled = supervised or method in ("atlas", "self_positioning")
        goal = case.cross_entropy if labelled else case.entropy
        batches: Any = case.labelled(batch) if labelled else case.unlabelled(batch)
        made: Any = {
            "adamerging": adamerging,
            "doge_adamerging": doge_adamerging,
            "atlas": atlas,
            "concrete": concrete,
            "self_positioning": self_positioning,
        }[method]
        name = {"atlas": "objective", "self_positioning": "loss"}.get(method, "objective")
        found = made(case.bed.base, case.bed.experts, case.model, batches, **{name: goal}, **settings)
        c = found.coefficients
        first, last = (sum(row.values()) for row in (found.losses[0], found.losses[-1]))
        note = f"loss {first:.2f} → {last:.2f}; λ mean {float(c.mean()):.2f}, from {float(c.min()):.2f} to {float(c.max()):.2f}"
        return one(found.state(), case, adapted=not labelled, note=note)

    return run


# Cells, kept as files, and the tables of a page

Cells = dict[str, dict[int, Any]]  # entry -> seed -> what its file holds


def cell(folder: Path, seed: int, entry: Entry) -> Path:
    slug = "".join(c if c.isalnum() else "-" for c in entry.name)
    return folder / f"seed-{seed}" / "cells" / f"{slug}.json"


def fill(folder: Path, seeds: Sequence[int], entries: Sequence[Entry], case_of: Callable[[int], Case], full: bool) -> None:
    """Run every cell (method × seed) that is not on file; `full` adds the slower methods."""
    for seed in seeds:
        mine = [e for e in entries if (full or not e.full) and not cell(folder, seed, e).exists()]
        if not mine:
            continue
        case = case_of(seed)
        for entry in mine:
            torch.manual_seed(seed)
            start = time.process_time()
            got = entry.run(case)
            seconds = time.process_time() - start
            mean = sum(got.test.values()) / len(got.test)
            print(f"seed {seed}  {entry.name:28s} {100 * mean:.2f}  {seconds:6.1f} s  {got.note}", flush=True)
            row = {"when": time.strftime("%Y-%m-%d"), "seconds": seconds, "machine": machine(), **vars(got)}
            with atomic_file(cell(folder, seed, entry)) as aside:
                aside.write_text(json.dumps(row, indent=1), "utf-8")


def on_file(folder: Path, seeds: Sequence[int], entries: Sequence[Entry]) -> Cells:
    """The cells that have run, best method first."""
    found = {}
    for entry in entries:
        have = [s for s in seeds if cell(folder, s, entry).exists()]
        if have:
            found[entry.name] = {s: json.loads(cell(folder, s, entry).read_text("utf-8")) for s in have}
    return dict(sorted(found.items(), key=lambda item: -float(np.mean([mean(c["test"]) for c in item[1].values()]))))


def mean(row: Mapping[str, float]) -> float:
    return sum(row.values()) / len(row)


def tables(cells: Cells, entries: Sequence[Entry]) -> dict[str, Any]:
    """What every page of claims shows: the table, accuracies by task, notes of the runs, best and worst without data, the run."""
    by_name = {e.name: e for e in entries}
    order = [by_name[name] for name in cells]
    expert = cells["experts (one a task)"]
    tasks = list(next(iter(expert.values()))["test"])

    def relative(name: str, s: int) -> float:
        return mean({t: cells[name][s]["test"][t] / expert[s]["test"][t] for t in tasks})

    def spread(values: list[float]) -> str:
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return f"{100 * np.mean(values):.1f}" + (f" ± {100 * sd:.1f}" if len(values) > 1 else "")

    lines = [
        "| method | test accuracy | of its expert | on the adapted inputs | data consumed | extra bytes | task id "
        "| CPU s | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in order:
        mine = cells[e.name]
        adapt = [mean(c["adapt"]) for c in mine.values() if c["adapt"]]
        lines.append(
            f"| {e.name} | {spread([mean(c['test']) for c in mine.values()])} | {spread([relative(e.name, s) for s in mine])} "
            f"| {spread(adapt) if adapt else ''} | {e.data} | {next(iter(mine.values()))['extra_bytes'] or ''} "
            f"| {'yes' if e.task_id else ''} | {np.mean([c['seconds'] for c in mine.values()]):.1f} "
            f"| {', '.join(map(str, mine))} |"
        )
    by_task = ["| method | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for e in order:
        rows = [np.mean([c["test"][t] for c in cells[e.name].values()]) for t in tasks]
        by_task.append(f"| {e.name} | " + " | ".join(f"{100 * r:.1f}" for r in rows) + " |")
    notes = [
        f"- {e.name}: " + "; ".join(f"seed {s}: {c['note']}" for s, c in cells[e.name].items())
        for e in order
        if any(c["note"] for c in cells[e.name].values())
    ]
    free = [e.name for e in order if e.free]
    dates = sorted({c["when"] for row in cells.values() for c in row.values()})
    machines = sorted({c["machine"] for row in cells.values() for c in row.values()})
    return {
        "table": "\n".join(lines),
        "by_task": "\n".join(by_task),
        "notes": "\n".join(notes),
        "best": free[0],
        "second": free[1],
        "worst": free[-1],
        "cells": sum(map(len, cells.values())),
        "dates": " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        "machine": "; ".join(machines),
    }


def claims(cells: Cells, names: Sequence[str], other: str) -> str:
    """A line each: the differences to `other`, seed by seed."""
    lines = []
    for name in names:
        seeds = [s for s in cells.get(name, {}) if s in cells[other]]
        if not seeds:
            continue
        gaps = [mean(cells[name][s]["test"]) - mean(cells[other][s]["test"]) for s in seeds]
        verdict = "above on every seed" if min(gaps) > 0 else "below on every seed" if max(gaps) < 0 else "mixed"
        lines.append(f"- {name} − {other}: " + ", ".join(f"{100 * g:+.1f}" for g in gaps) + f" points: {verdict}.")
    return "\n".join(lines)
