"""The trainer: stages of optimiser steps over a data set, evaluated and stopped on its validation part.

The loop is plain: an epoch's batches → `Step` on each group of them → scores on validation → stop, or go on. Everything else
that a run needs hangs on it: early stopping by a declared rule, resuming bit for bit, several processes, callbacks.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.balancing import Diagnostics
from pluribus.data import Batch, Dataset, Labels
from pluribus.modeling import MultiTaskModel
from pluribus.modeling.pieces import FEW, LIMIT, bytes_of
from pluribus.training import processes
from pluribus.training.callbacks import Callback
from pluribus.training.history import EpochSums, History
from pluribus.training.judging import Judge, predict, row_bytes, rule, watched
from pluribus.training.snapshot import read_snapshot, write_snapshot
from pluribus.training.stage import Stage
from pluribus.training.state import StageState

CHECK_EVERY = 20  # steps between two looks at the losses on a device, and between two reports to the callbacks
STARTING = 65_536  # labels of a task that its head begins from, at most
WINDOW = 8  # comparisons of the tasks' gradients in each map over time


class Trainer:
    """Trains a model through its stages.

    Parameters
    ----------
    model : MultiTaskModel
        Encoder, sharing and heads.
    stages : sequence of Stage
        What to do, in order.
    seed : int
        Of shuffling and dropout (`torch.manual_seed` is called).
    callbacks : sequence of Callback
        What is told of the run (see `pluribus.training.callbacks`).
    deadline : float or None
        Seconds that this run may take; then the best weights so far are restored.
    clock : callable
        What those seconds are counted by: `time.monotonic` (default), or `time.process_time` for core-seconds.
    folder : path or None
        Where a snapshot is kept after every epoch; `fit` goes on from one that belongs to the same run. On one CPU thread count
        the resumed run is bit for bit the uninterrupted one.
    device : str or torch.device
        Where to train.
    start_heads : bool
        Whether the heads begin at the best constant predictor.
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
        self._began = clock()

    def fit(self, data: Dataset) -> History:
        """Train, and leave the best weights in the model.

        Parameters
        ----------
        data : Dataset
            Its part "train" is learnt from, its part "valid" is watched.

        Returns
        -------
        History
            What happened, epoch by epoch.

        Raises
        ------
        NonFinite
            A loss or gradient is NaN or infinite.
        Gone
            Under `torch.distributed`, where every rank calls this with the same arguments: another rank has ended.
        """
        self._began = self.clock()
        with processes.together():
            return self._fit(data)

    def _fit(self, data: Dataset) -> History:
        history, diagnostics = History(), Diagnostics(window=WINDOW)
        torch.manual_seed(self.seed)
        if self.start_heads:
            self.model.heads.start({task.name: first_labels(data, task.name) for task in data.tasks})
        saved = self._saved(data)
        for index in range(saved["stage"] if saved else 0, len(self.stages)):
            stage = self.stages[index]
            of = {"steps": steps_of(stage, len(data.parts["train"])) * stage.epochs, "seed": self.seed}
            state = StageState.begin(index, stage, self.model, history=history, diagnostics=diagnostics, **of)
            if saved is not None:
                state.load_state_dict(saved)
                saved = None
            self._run(state, data)
        history.seconds += self._seconds()
        history.diagnostics = diagnostics.record()
        return history

    def _run(self, state: StageState, data: Dataset) -> None:
        """Train a stage to its end."""
        stage, history = state.stage, state.history
        judges = [Judge(watched(self.model.tasks[name]), data) for name in state.tasks]
        bytes_each = row_bytes(self.model, data, _rows(judges))
        parameters = sum(p.numel() for p in state.stepper.update.parameters)
        plan = {"stage": state.index, "epochs": stage.epochs, "tasks": list(state.tasks), "parameters": parameters}
        self._call("start", plan)
        reason = state.stopped()
        while reason is None:
            losses, weights, complete = self._epoch(state, data)
            began = self._seconds()
            scores, skills = self._evaluate(data, judges, bytes_each)
            state.pace.evaluated(self._seconds() - began)
            value = rule(stage.rule, skills, self.model.tasks)
            history.add(losses=losses, scores=scores, weights=weights)
            history.times.append(history.seconds + self._seconds())
            state.judge(value, skills)
            record = {
                "stage": state.index,
                "epoch": state.epoch - 1,
                "losses": losses,
                "scores": scores,
                "rule": value,
                "weights": weights,
                "seconds": self._seconds(),
                "diagnostics": state.diagnostics.scalars(),
            }
            self._call("epoch", record)
            self._save(state, data)
            reason = state.stopped() if complete else "deadline"
        state.end(reason)
        end = {"stage": state.index, "reason": reason, "best_epoch": history.best_epoch, "seconds": self._seconds()}
        self._call("end", end)

    def _epoch(self, state: StageState, data: Dataset) -> tuple[dict[str, float], dict[str, float], bool]:
        """One epoch: mean training loss per task, mean balancer weight per task, and whether it ran to its end."""
        self.model.train()
        stage, step, sums, pace = state.stage, state.stepper, EpochSums(), state.pace
        of = steps_of(stage, len(data.parts["train"]))
        complete, done = True, 0
        for group in _groups(self._batches(state, data), stage.accumulate * step.batches, step.batches):
            compare = state.diagnostics if stage.compares(state.step, len(state.live)) else None
            if stage.paced and self.deadline is not None and done % CHECK_EVERY == 0:
                pace.hurry(processes.total(self._seconds()) / processes.world()[1], self.deadline)
            for part in state.annealed:
                part.anneal(pace.share)
            rate = stage.rate(state.step, of * stage.epochs, pace.share)
            sums.add(step(group, rate=rate, decay=stage.decay(pace.share), compare=compare))
            pace.step()
            state.step += 1
            done += 1
            if done % CHECK_EVERY == 0:
                sums.check()
                self._call("step", {"stage": state.index, "epoch": state.epoch, "step": done, "of": of})
            if pace.done:
                break
            if self.deadline is not None and processes.agree(self._seconds() > self.deadline):
                complete = False
                break
        sums.check()
        return *sums.means(self.model.tasks, self.device), complete

    def _batches(self, state: StageState, data: Dataset) -> Iterator[Batch]:
        """This process's share of one epoch, with the labels of the tasks that still train."""
        stage, generator, live = state.stage, state.generator, state.live
        if stage.sampler is not None:
            source = (batch.only(set(live)) for batch in stage.sampler(data, generator))
        else:
            rows = torch.from_numpy(data.parts["train"])
            rows = rows[torch.randperm(len(rows), generator=generator)]
            size = stage.batch_size
            if stage.drop_last and len(rows) > size:
                rows = rows[: len(rows) // size * size]
            source = (data.batch(processes.share(rows[i : i + size]), live) for i in range(0, len(rows), size))
        return (batch for batch in source if batch.labels or processes.world()[1] > 1)

    def _evaluate(self, data: Dataset, judges: list[Judge], bytes_each: float) -> tuple[dict[str, float], dict[str, float]]:
        """Main metric and skill of every judged task on validation; rows are shared out over processes and gathered."""
        shares = {judge.task.name: processes.share(torch.arange(len(judge.cells))).numpy() for judge in judges}
        keep = {j.task.name: _terms(j, shares[j.task.name]) for j in judges if j.by_terms}
        kept = predict(self.model, data, _rows(judges), bytes_each=bytes_each, keep=keep)
        scores, skills = {}, {}
        for judge in judges:
            name = judge.task.name
            order = processes.gather(shares[name].astype(np.float64)).astype(int)
            value = processes.gather(kept[name])[np.argsort(order)]
            scores[name] = judge.score_of(value) if judge.by_terms else judge.score(value)
            skills[name] = judge.skill(scores[name])
        return scores, skills

    def _call(self, event: str, record: dict[str, Any]) -> None:
        """Call this method of every callback, in the first process."""
        if processes.world()[0] == 0:
            for callback in self.callbacks:
                getattr(callback, event)(record)

    def _seconds(self) -> float:
        """How long `fit` has run, by the trainer's clock."""
        return self.clock() - self._began

    # -- snapshots ------------------------------------------------------------------------------------------------

    def _save(self, state: StageState, data: Dataset) -> None:
        if self.folder is not None and processes.world()[0] == 0:
            found = state.state_dict()
            found["history"]["seconds"] += self._seconds()
            write_snapshot(self.folder, {"identity": self._identity(data), **found})

    def _saved(self, data: Dataset) -> dict[str, Any] | None:
        """The snapshot to go on from; None where there is none, or another run's."""
        found = None if self.folder is None else read_snapshot(self.folder)
        return found if found is not None and found["identity"] == self._identity(data) else None

    def _identity(self, data: Dataset) -> str:
        """What a snapshot must agree with: the stages, the model's shapes, the seed and the rows."""
        parts = [repr([_plain(stage) for stage in self.stages]), str(self.seed), str(data.n_rows)]
        parts += [f"{name}{tuple(p.shape)}" for name, p in self.model.named_parameters()]
        digest = hashlib.sha256("|".join(parts).encode())
        for name in ("train", "valid"):
            digest.update(np.ascontiguousarray(data.parts[name]).tobytes())
        return digest.hexdigest()


YOUNGER = {"decay_schedule": "constant", "paced": False, "drop_last": False, "ties": "first"}
"""Settings of a stage that the first edition did not have, and their defaults."""


def steps_of(stage: Stage, rows: int) -> int:
    """Steps of an epoch over so many training rows, where the stage has no sampler of its own."""
    size = stage.batch_size
    batches = max(1, rows // size) if stage.drop_last else math.ceil(rows / size)
    return max(1, math.ceil(batches / stage.accumulate))


def _terms(judge: Judge, share: NDArray[np.int64]) -> Callable[[Any, NDArray[np.int64]], NDArray[np.float64]]:
    """What is kept of predictions of this process's share of the cells."""
    return lambda prediction, at: judge.terms(prediction, share[at])


def _rows(judges: Sequence[Judge]) -> dict[str, torch.Tensor]:
    """This process's share of the rows that each task is judged on."""
    return {judge.task.name: processes.share(torch.from_numpy(judge.cells.rows)) for judge in judges}


def first_labels(data: Dataset, task: str, most: int = STARTING) -> Labels:
    """The training labels that a head begins from.

    Parameters
    ----------
    data : Dataset
        The table; only its labels are read.
    task : str
        The task's name.
    most : int
        How many labels to take, and no more than 64 MB of them; of more, so many that lie evenly over all.

    Returns
    -------
    Labels
        Their rows count from 0; cells of weight 0 are left out.
    """
    cells = data.labelled(task, "train").counted()

    def spread(count: int) -> Labels:
        at = np.arange(len(cells)) if len(cells) <= count else np.linspace(0, len(cells) - 1, count).astype(np.int64)
        return cells.labels(at, torch.arange(len(at)))

    few = spread(FEW)
    each = bytes_of([few.values, few.mask]) / max(1, len(few))
    return spread(min(most, int(LIMIT // max(1.0, each))))


def _groups(batches: Iterator[Batch], size: int, least: int) -> Iterator[list[Batch]]:
    """Batches in groups of `size`, one per step. Fewer than `least` at the end are left out; an epoch that has no more repeats
    them."""
    first = True
    while group := list(islice(batches, size)):
        if len(group) < least:
            if not first:
                return
            group = (group * least)[:least]
        yield group
        first = False


def _plain(stage: Stage) -> dict[str, Any]:
    """A stage's settings as plain values, objects by their type's name.

    Settings that stages did not always have are left out at their defaults: snapshots of before them are still this run's.
    """
    return {
        name: value if isinstance(value, (str, int, float, tuple, type(None))) else type(value).__qualname__
        for name, value in vars(stage).items()
        if YOUNGER.get(name, stage) != value
    }
