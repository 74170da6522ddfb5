"""The trainer: stages of optimiser steps over a prepared table, evaluated and stopped on its validation part.

The loop is plain: batches → losses as (sum, count) → one scalar (balanced) → backward → AdamW on what took part. Everything
else a run needs hangs on it: early stopping by a declared rule, resuming bit for bit, several processes, callbacks.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pluribus import balancing
from pluribus.balancing import Diagnostics
from pluribus.data import Batch
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Losses, MultiTaskModel
from pluribus.training import processes
from pluribus.training.balanced import balanced_backward, batches_of, hears_the_step
from pluribus.training.callbacks import Callback
from pluribus.training.judging import Judge, predict, rule
from pluribus.training.optimizer import SliceAdamW
from pluribus.training.running import Running
from pluribus.training.snapshot import read_snapshot, write_snapshot
from pluribus.training.stage import Stage

CHECK_EVERY = 20
WINDOW = 8  # comparisons of the tasks' gradients in each map over time


@dataclass
class History:
    """What a run leaves behind.

    scores, losses: task → one value per epoch: its main metric on validation, its mean training loss.
    rule: the rule's value per epoch; best_epoch: the epoch whose weights were kept.
    stopped: task → whether its training ended by an early stop (not by the last epoch or the deadline).
    reason: "patience", "epochs", "deadline" or "tasks" (all tasks stopped), of the last stage.
    weights: task → the balancer's weight, mean over each epoch (empty without a balancer).
    times: seconds since the beginning at the end of each epoch, by the trainer's clock.
    diagnostics: what `Diagnostics.record` says of the tasks' gradients (empty unless the stage listens).
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    rule: list[float] = field(default_factory=list)
    weights: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: int = -1
    stopped: dict[str, bool] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def undertrained(self) -> list[str]:
        """Tasks whose training the deadline cut short."""
        return [name for name, stopped in self.stopped.items() if not stopped] if self.reason == "deadline" else []


@dataclass
class _Progress:
    """Where a stage stands; all of it is saved."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    since: int = 0
    task_best: dict[str, float] = field(default_factory=dict)
    task_since: dict[str, int] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)


class Trainer:
    """Trains a model through its stages.

    Parameters
    ----------
    model: encoder, sharing and heads; heads begin at the best constant predictor unless `start_heads=False`.
    stages: what to do, in order.
    seed: of shuffling and dropout (`torch.manual_seed` is called).
    callbacks: listeners (see `pluribus.training.callbacks`).
    deadline: seconds this run may take; then the best weights so far are restored.
    clock: what those seconds are counted by: `time.monotonic` (default), or `time.process_time` for core-seconds.
    folder: where a snapshot is kept after every epoch; `fit` goes on from one that belongs to the same run. On one CPU
        thread count the resumed run is bit for bit the uninterrupted one.
    device: where to train.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        stages: Sequence[Stage],
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        folder: str | Path | None = None,
        device: str | torch.device = "cpu",
        start_heads: bool = True,
    ) -> None:
        self.model = model.to(device)
        self.stages = list(stages)
        self.seed = seed
        self.callbacks = list(callbacks)
        self.deadline, self.clock = deadline, clock
        self.folder = None if folder is None else Path(folder)
        self.device = torch.device(device)
        self.start_heads = start_heads
        self.diagnostics = Diagnostics(window=WINDOW)
        self._slices: dict[frozenset[str], dict[nn.Parameter, Tensor]] = {}

    def fit(self, data: Prepared) -> History:
        """Train on `data.parts["train"]`, watch `data.parts["valid"]`, leave the best weights in the model.

        Under `torch.distributed` every rank calls this with the same arguments; where another rank ends, `Gone` is raised.
        """
        with processes.together():
            return self._fit(data)

    def _fit(self, data: Prepared) -> History:
        began = self.clock()
        history = History()
        torch.manual_seed(self.seed)
        if self.start_heads:
            self.model.heads.start(data.batch(torch.from_numpy(data.parts["train"])).labels)
        first, resume = self._resume(data, history)
        for index in range(first, len(self.stages)):
            self._stage(index, self.stages[index], data, history, began, resume)
            resume = None
        history.seconds += self.clock() - began
        history.diagnostics = self.diagnostics.record()
        return history

    # -- one stage ------------------------------------------------------------------------------------------------

    def _stage(
        self, index: int, stage: Stage, data: Prepared, history: History, began: float, resume: dict[str, Any] | None
    ) -> None:
        tasks = stage.check(self.model)
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * index)
        trained = self._trainable(stage)
        optimizer = self._optimizer(stage, trained)
        progress = _Progress()
        best = _copy(self.model.state_dict())
        if resume is not None:
            best = self._restore(resume, stage, optimizer, generator, progress)
        judges = [Judge(self.model.tasks[name], data) for name in tasks]
        steps = max(1, math.ceil(len(data.parts["train"]) / (stage.batch_size * stage.accumulate)))
        plan = {"stage": index, "epochs": stage.epochs, "tasks": list(tasks), "parameters": sum(p.numel() for p in trained)}
        self._tell("start", plan)
        reason = "epochs"
        while progress.epoch < stage.epochs:
            live = {name for name in tasks if name not in progress.frozen}
            sums, weights, complete = self._epoch(index, stage, data, generator, optimizer, trained, progress, live, steps, began)
            scores, skills = self._evaluate(data, judges)
            self._note(history, sums, scores, weights)
            history.times.append(history.seconds + self.clock() - began)
            value = rule(stage.rule, skills, self.model.tasks)
            history.rule.append(value)
            if value > progress.best or progress.epoch == 0:
                progress.best, progress.since = value, 0
                history.best_epoch = len(history.rule) - 1
                best = _copy(self.model.state_dict())
            else:
                progress.since += 1
            self._freeze(stage, skills, progress, live)
            record = {
                "stage": index,
                "epoch": progress.epoch,
                "losses": sums,
                "scores": scores,
                "rule": value,
                "weights": weights,
                "seconds": self.clock() - began,
                "diagnostics": self.diagnostics.scalars(),
            }
            self._tell("epoch", record)
            progress.epoch += 1
            if stage.balancer is not None:
                stage.balancer.epoch_end()
            if self.folder is not None and processes.world()[0] == 0:
                self._snapshot(index, stage, data, optimizer, generator, progress, best, history, began)
            if not complete:
                reason = "deadline"
                break
            if set(tasks) <= set(progress.frozen):
                reason = "tasks"
                break
            if stage.patience is not None and progress.since >= stage.patience:
                reason = "patience"
                break
        self.model.load_state_dict(best)
        history.reason = reason
        history.stopped = {name: reason != "deadline" or name in progress.frozen for name in tasks}
        for p in self.model.parameters():
            p.requires_grad_(True)
        end = {"stage": index, "reason": reason, "best_epoch": history.best_epoch, "seconds": self.clock() - began}
        self._tell("end", end)

    def _epoch(
        self,
        index: int,
        stage: Stage,
        data: Prepared,
        generator: torch.Generator,
        optimizer: SliceAdamW,
        trained: list[nn.Parameter],
        progress: _Progress,
        live: set[str],
        steps: int,
        began: float,
    ) -> tuple[dict[str, float], dict[str, float], bool]:
        """One epoch: mean training loss per task, mean balancer weight per task, and whether it ran to its end."""
        self.model.train()
        running = Running()
        batches = self._batches(stage, data, generator, live)
        per_step = stage.accumulate * batches_of(stage.balancer)
        complete, done = True, 0
        whole = batches_of(stage.balancer)
        while group := list(islice(batches, per_step)):
            if len(group) < whole and done:
                break  # too few batches are left for a step of a balancer that takes several
            group += group[: max(0, whole - len(group))]
            for parameters in optimizer.param_groups:
                parameters["lr"] = stage.rate(progress.step, steps * stage.epochs) * parameters.get("times", 1.0)
            self._step(stage, group, optimizer, trained, running, stage.listens(progress.step, len(live)))
            progress.step += 1
            done += 1
            if done % CHECK_EVERY == 0:
                running.check()
                self._tell("step", {"stage": index, "epoch": progress.epoch, "step": done, "of": steps})
            if self.deadline is not None and processes.agree(self.clock() - began > self.deadline):
                complete = False
                break
        running.check()
        means, weights = running.means()
        return means, weights, complete

    def _step(
        self,
        stage: Stage,
        group: list[Batch],
        optimizer: SliceAdamW,
        trained: list[nn.Parameter],
        running: Running,
        listening: bool,
    ) -> None:
        counts = _add([stage.objective.counts(batch) for batch in group])
        counts = processes.sum_counts(counts, list(self.model.tasks), self.device)
        if not counts:
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast(stage)):
            if stage.balancer is None:
                for i, batch in enumerate(group):
                    losses = stage.objective.losses(self.model, batch)
                    if listening and i == 0:
                        self._listen(losses, counts)
                    total = self._total(stage, losses, counts, len(group), running)
                    if total is not None:
                        total.backward()  # type: ignore[no-untyped-call]
            else:
                self._balanced(stage, group, counts, running, listening)
        processes.sum_gradients(trained)
        if stage.clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(trained, stage.clip)
            running.norm(norm)
        if self.device.type == "cpu":  # elsewhere a look would make the device wait; the epoch's loop looks now and then
            running.check()
        optimizer.step(active=self._active(frozenset(counts)))
        optimizer.zero_grad(set_to_none=True)
        if stage.balancer is not None and hears_the_step(stage.balancer):
            with torch.no_grad():
                stage.balancer.after_step(self._means(stage.objective.losses(self.model, group[0]), counts))

    def _total(self, stage: Stage, losses: Losses, counts: Mapping[str, Tensor], parts: int, running: Running) -> Tensor | None:
        """Σ weight·mean loss + penalties, of one micro-batch's share; None where this process has no label."""
        total: Tensor | None = None
        for name, loss in self._means(losses, counts).items():
            running.loss(name, losses.sums[name], counts[name])
            total = loss if total is None else total + loss
        extra = _extra(stage, losses)
        if extra is not None:
            share = extra / (parts * processes.world()[1])
            total = share if total is None else total + share
        return total

    def _means(self, losses: Losses, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task → weight·sum/count of the tasks that this process has labels for."""
        found = {}
        for name, value in losses.sums.items():
            weight = self.model.tasks[name].weight
            found[name] = value / counts[name] if weight == 1.0 else value * (weight / counts[name])
        return found

    def _listen(self, losses: Losses, counts: Mapping[str, Tensor]) -> None:
        """Compare the tasks' gradients at the features, before the backward pass frees the graph."""
        if losses.shared:
            self.diagnostics.observe(
                balancing.at_features(
                    self._means(losses, counts), losses.shared, processes=balancing.Processes.running(reduction="sum")
                )
            )

    def _balanced(
        self, stage: Stage, group: list[Batch], counts: Mapping[str, Tensor], running: Running, listening: bool
    ) -> None:
        """Micro-batches share the union's counts; batches that a balancer wants independent have each its own."""
        independent = batches_of(stage.balancer) > 1
        each = [stage.objective.counts(batch) for batch in group] if independent else [counts] * len(group)
        balanced = group[: stage.balancer.batches] if independent else group
        passes = [stage.objective.losses(self.model, batch) for batch in balanced]
        for losses, own in zip(passes, each):
            for name, value in losses.sums.items():
                running.loss(name, value, own[name])
        if listening:
            self._listen(passes[0], each[0])
        parts = len(balanced) * processes.world()[1]
        extras = [None if (extra := _extra(stage, losses)) is None else extra / parts for losses in passes]

        def again(batch: Batch, own: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
            return lambda: self._means(stage.objective.losses(self.model, batch), own)

        weights = balanced_backward(
            self.model,
            stage.balancer,
            [self._means(losses, own) for losses, own in zip(passes, each)],
            passes,
            extras,
            [again(batch, own) for batch, own in zip(group, each)],
        )
        running.weight(weights)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _batches(self, stage: Stage, data: Prepared, generator: torch.Generator, live: set[str]) -> Iterator[Batch]:
        if stage.sampler is not None:
            source: Iterator[Batch] = iter(stage.sampler(data, generator))
        else:
            rows = torch.from_numpy(data.parts["train"])
            rows = rows[torch.randperm(len(rows), generator=generator)]
            names = [name for name in self.model.tasks if name in live]
            source = (
                data.batch(processes.share(rows[i : i + stage.batch_size]), names) for i in range(0, len(rows), stage.batch_size)
            )
        for batch in source:
            if stage.sampler is not None:
                batch = batch.only(live)
            if batch.labels or processes.world()[1] > 1:
                yield batch if self.device.type == "cpu" else batch.to(self.device)

    def _trainable(self, stage: Stage) -> list[nn.Parameter]:
        trained = []
        for name, p in self.model.named_parameters():
            p.requires_grad_(stage.trainable is None or name.startswith(stage.trainable))
            if p.requires_grad:
                trained.append(p)
        if not trained:
            raise BadInput("no parameter trains", where="stage, trainable", remedy="name the beginning of a parameter's name")
        return trained

    def _optimizer(self, stage: Stage, trained: list[nn.Parameter]) -> SliceAdamW:
        stacked = [p for name in self.model.tasks for p, where in self.model.parameters_of(name) if where is not None]
        named = {id(p): name for name, p in self.model.named_parameters()}
        own: dict[str, list[nn.Parameter]] = {glob: [] for glob in stage.rates}
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for p in trained:
            name = named[id(p)]
            glob = next((glob for glob in own if fnmatch.fnmatchcase(name, glob)), None)
            (own[glob] if glob is not None else decayed if p.ndim > 1 and not name.endswith("bias") else plain).append(p)
        for glob, matched in own.items():
            if not matched:
                raise BadInput(f"{glob!r} matches no parameter that trains", where="stage, rates", remedy="check the name")
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": plain, "weight_decay": 0.0},
            *({"params": own[glob], "weight_decay": 0.0, "times": rate / stage.lr} for glob, rate in stage.rates.items()),
        ]
        return SliceAdamW(
            [group for group in groups if group["params"]],
            stacked=stacked,
            lr=stage.lr,
            betas=stage.betas,
            weight_decay=stage.weight_decay,
        )

    def _active(self, present: frozenset[str]) -> dict[nn.Parameter, Tensor]:
        """Stacked parameter → the indices that the present tasks own (cached per set of tasks)."""
        if present not in self._slices:
            found: dict[nn.Parameter, set[int]] = {}  # a set: tasks may share a slice
            for name in self.model.tasks:
                for p, where in self.model.parameters_of(name):
                    if where is not None:
                        owned = found.setdefault(p, set())
                        if name in present:
                            owned.update(range(*where.indices(len(p))))
            self._slices[present] = {
                p: torch.tensor(sorted(owned), dtype=torch.int64, device=p.device) for p, owned in found.items()
            }
        return self._slices[present]

    def _autocast(self, stage: Stage) -> bool:
        return stage.precision == "bfloat16" or (stage.precision == "auto" and self.device.type == "cuda")

    def _evaluate(self, data: Prepared, judges: list[Judge]) -> tuple[dict[str, float], dict[str, float]]:
        """Main metric and skill of every judged task on validation; rows are shared out over processes and gathered."""
        predictions = predict(self.model, data, {j.task.name: processes.share(torch.from_numpy(j.cells.rows)) for j in judges})
        scores, skills = {}, {}
        for judge in judges:
            order = processes.gather(processes.share(torch.arange(len(judge.cells))).numpy().astype(np.float64)).astype(int)
            value = np.empty_like(gathered := processes.gather(predictions[judge.task.name]))
            value[order] = gathered
            scores[judge.task.name] = judge.score(value)
            skills[judge.task.name] = judge.skill(scores[judge.task.name])
        return scores, skills

    def _freeze(self, stage: Stage, skills: Mapping[str, float], progress: _Progress, live: set[str]) -> None:
        if stage.task_patience is None:
            return
        for name in sorted(live):
            if skills[name] > progress.task_best.get(name, -math.inf):
                progress.task_best[name], progress.task_since[name] = skills[name], 0
            else:
                progress.task_since[name] = progress.task_since.get(name, 0) + 1
            if progress.task_since[name] >= stage.task_patience:
                progress.frozen.append(name)

    def _note(self, history: History, losses: dict[str, float], scores: dict[str, float], weights: dict[str, float]) -> None:
        for store, values in ((history.losses, losses), (history.scores, scores), (history.weights, weights)):
            for name, value in values.items():
                store.setdefault(name, []).append(value)

    def _tell(self, event: str, record: dict[str, Any]) -> None:
        if processes.world()[0] == 0:
            for callback in self.callbacks:
                getattr(callback, event)(record)

    # -- snapshots ------------------------------------------------------------------------------------------------

    def _identity(self, data: Prepared) -> str:
        """What a snapshot must agree with: the stages, the model's shapes, the seed and the rows."""
        parts = [repr([_plain(stage) for stage in self.stages]), str(self.seed), str(data.n_rows)]
        parts += [f"{name}{tuple(p.shape)}" for name, p in self.model.named_parameters()]
        digest = hashlib.sha256("|".join(parts).encode())
        for name in ("train", "valid"):
            digest.update(np.ascontiguousarray(data.parts[name]).tobytes())
        return digest.hexdigest()

    def _snapshot(
        self,
        index: int,
        stage: Stage,
        data: Prepared,
        optimizer: SliceAdamW,
        generator: torch.Generator,
        progress: _Progress,
        best: dict[str, Tensor],
        history: History,
        began: float,
    ) -> None:
        assert self.folder is not None
        past = {**vars(history), "seconds": history.seconds + self.clock() - began}
        state = {
            "identity": self._identity(data),
            "stage": index,
            "progress": vars(progress),
            "history": past,
            "model": self.model.state_dict(),
            "best": best,
            "optimizer": optimizer.state_dict()["state"],
            "diagnostics": self.diagnostics.state_dict(),
            "generator": generator.get_state(),
            "torch": torch.get_rng_state(),
            "balancer": None if stage.balancer is None else stage.balancer.state_dict(),
        }
        write_snapshot(self.folder, state)

    def _resume(self, data: Prepared, history: History) -> tuple[int, dict[str, Any] | None]:
        state = None if self.folder is None else read_snapshot(self.folder)
        if state is None or state["identity"] != self._identity(data):
            return 0, None
        for name, value in state["history"].items():
            setattr(history, name, value)
        return int(state["stage"]), state

    def _restore(
        self, state: dict[str, Any], stage: Stage, optimizer: SliceAdamW, generator: torch.Generator, progress: _Progress
    ) -> dict[str, Tensor]:
        self.model.load_state_dict(state["model"])
        held = optimizer.state_dict()
        held["state"] = {int(key): value for key, value in state["optimizer"].items()}
        optimizer.load_state_dict(held)
        self.diagnostics.load_state_dict(state["diagnostics"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        for name, value in state["progress"].items():
            setattr(progress, name, value)
        if stage.balancer is not None and state["balancer"] is not None:
            stage.balancer.load_state_dict(state["balancer"])
        best: dict[str, Tensor] = state["best"]
        return best


def _extra(stage: Stage, losses: Losses) -> Tensor | None:
    terms = [*losses.penalties.values(), *(term(losses) for term in stage.regularisers)]
    return None if not terms else torch.stack([term.reshape(()) for term in terms]).sum()


def _add(counts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for each in counts:
        for name, value in each.items():
            total[name] = total[name] + value if name in total else value
    return total


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _plain(stage: Stage) -> dict[str, Any]:
    """A stage's settings as plain values, objects by their type's name."""
    return {
        name: value if isinstance(value, (str, int, float, tuple, type(None))) else type(value).__qualname__
        for name, value in vars(stage).items()
    }
