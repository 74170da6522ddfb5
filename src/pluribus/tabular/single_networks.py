"""The T specialists as networks: one encoder per task, trained side by side as a bank.

Each task draws its own rows from its own labels, is judged on its own validation cells by its own main metric, keeps its own
best weights and stops by itself. A stopped task leaves the computation: its slices are cut out of weights and moments, so that
the step gets cheaper, and what it left behind can no longer move. Tasks of one kind whose label counts lie between the same
powers of two form a bank; a bank is bounded in memory, so that hundreds of tasks are feasible.

A task's first weights and its stream of rows depend on the seed and its own name alone, its batch and round on its own label
count: without dropout its result is the same in any company, up to rounding.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pluribus.data import Labels
from pluribus.data.prepared import Cells, Prepared
from pluribus.errors import NonFinite
from pluribus.evaluation import metrics
from pluribus.modeling import Budget, Candidate
from pluribus.modeling.candidate import in_turn
from pluribus.modeling.experts import StackedLinear
from pluribus.tabular.bank import BankEncoder
from pluribus.tabular.cost import BANK_TENSOR, EPOCHS
from pluribus.tabular.embeddings import EMBEDDINGS
from pluribus.tabular.members import mean_link, mean_loss
from pluribus.tabular.network import Network, build
from pluribus.tabular.settings import AUTO, DEFAULTS, SPACE, batch_of, check, encoder_settings, weights_of
from pluribus.tabular.specialists import Specialists
from pluribus.tasks import Task
from pluribus.tasks.forms import Ragged, joined
from pluribus.training import Update
from pluribus.training.fitting import plain_curves, reproducible

BANK_BYTES = 256 * 2**20  # weights, gradients, two moments and the best weights of one bank
MIN_STEPS = 20  # steps between two looks at the validation cells
CLIP = 1.0  # largest norm of one task's gradient
EVALUATED = 2**16  # cells evaluated at a time


class SingleNetworks(Candidate):
    """One network per task, nothing shared; the reference of "does sharing help?"."""

    name = "single_networks"
    road = "train"
    label = "Networks, one per task"
    defaults = DEFAULTS
    space = SPACE
    per_task = True
    encoder: ClassVar[str] = "tabular_mlp"
    automatic: ClassVar[tuple[str, ...]] = AUTO
    embeddings: ClassVar[tuple[str, ...]] = EMBEDDINGS

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        check(self.settings, f"candidate {self.name!r}", self.automatic, self.embeddings)

    def estimate(self, data: Prepared) -> float:
        """The tasks' FLOPs, and the steps that tasks of one kind and size take together (see `pluribus.tabular.cost`)."""
        flops = self._flops(data)
        banks = {(*_alike(task), _size(len(data.labelled(task.name, "train")))) for task in data.tasks}
        steps = sum(_steps(size, batch_of(self.settings, size)) for *_, size in banks)
        overhead = min(EPOCHS, int(self.settings["epochs"])) * steps * BANK_TENSOR * self._tensors(data)
        return overhead + sum(self._cost(data, task, flops) for task in data.tasks)

    def _tensors(self, data: Prepared) -> int:
        """That train, of one network."""
        with torch.device("meta"):
            return len(list(build(data.tasks[:1], data.columns, self.config(data)).parameters()))

    def _flops(self, data: Prepared) -> float:
        """Of one row's forward pass through one network."""
        return 2 * weights_of(self.settings, data)

    def _cost(self, data: Prepared, task: Task, flops: float) -> float:
        """Rough core-seconds of one task: 15 epochs of three forward passes a label, at 25 GFLOP/s."""
        steps = max(len(data.labelled(task.name, "train")), 16 * MIN_STEPS)
        return 15 * 3 * flops * steps / 2.5e10 + 0.05

    def config(self, data: Prepared) -> dict[str, Any]:
        """What `pluribus.tabular.network.build` makes the model of."""
        settings = encoder_settings(self.settings, data, self.encoder)
        if self.encoder != "tabular_mlp":  # the default of `Specialists`
            settings = {"encoder": self.encoder, **settings}
        return {"architecture": {"name": "specialists", "settings": settings}}

    def bank(self, model: Specialists, tasks: Sequence[Task], data: Prepared, seed: int) -> SpecialistBank:
        """Tasks of one kind and size, ready to train side by side."""
        return SpecialistBank(model, tasks, data, encoder_settings(self.settings, data, self.encoder), self.settings, seed)

    def fit(self, data: Prepared, budget: Budget, seed: int) -> Network:
        began = time.process_time()
        config = self.config(data)
        with reproducible(seed, budget.threads):
            model = cast(Specialists, build(data.tasks, data.columns, config))
            banks = _group(data, model)
            flops = self._flops(data)
            expected = [sum(self._cost(data, task, flops) for task in bank) for bank in banks]
            running: dict[int, SpecialistBank] = {}
            curves: dict[str, list[float]] = {}
            cut: dict[int, list[str]] = {}

            def go_on(i: int, deadline: float) -> bool:
                bank = running.pop(i, None) or self.bank(model, banks[i], data, seed)
                curves.update(bank.curves)
                if not bank.fit(deadline):
                    running[i] = bank
                cut[i] = bank.undertrained
                return i not in running

            in_turn(expected, go_on, began + budget.seconds)
        short = {name for names in cut.values() for name in names}
        fitted = Network(data.tasks, data.columns, config, model)
        fitted.record = {
            "settings": dict(self.settings),
            "seed": seed,
            "curves": plain_curves(curves),
            "undertrained": [task.name for task in data.tasks if task.name in short],
            "seconds": time.process_time() - began,
        }
        return fitted


def _size(cells: int) -> int:
    """The power of two at or below a task's label count: what its batch and its round are made of."""
    return 1 << max(0, cells.bit_length() - 1)


def _alike(task: Task) -> tuple[Any, ...]:
    """What tasks of one bank have in common: their loss and the number of their outputs."""
    return task.kind, len(task.classes), task.levels


def _steps(size: int, batch: int) -> int:
    """Steps of a round."""
    return max(MIN_STEPS, math.ceil(1.5 * size / batch))


def _group(data: Prepared, model: Specialists) -> list[list[Task]]:
    """Banks of tasks with one kind, one size, and at most `BANK_BYTES` together."""
    each = sum(p.numel() for p in model.parameters()) / len(model.tasks)
    most = max(1, int(BANK_BYTES / (5 * 4 * each)))
    banks: dict[tuple[Any, ...], list[list[Task]]] = {}
    for task in data.tasks:
        alike = banks.setdefault((*_alike(task), _size(len(data.labelled(task.name, "train")))), [[]])
        if len(alike[-1]) == most:
            alike.append([])
        alike[-1].append(task)
    return [bank for alike in banks.values() for bank in alike]


@dataclass
class _StackedCells:
    """The cells of A tasks one after another: task a owns [starts[a], starts[a + 1]). Lists [m, L] are padded with −1."""

    rows: Tensor
    values: Tensor
    weight: Tensor
    starts: list[int]

    @classmethod
    def of(cls, cells: Sequence[Cells]) -> _StackedCells:
        weight = [np.ones(len(c)) if c.weight is None else c.weight for c in cells]
        return cls(
            torch.from_numpy(np.concatenate([c.rows for c in cells])),
            torch.from_numpy(np.asarray(joined([c.values for c in cells]))).float(),
            torch.from_numpy(np.concatenate(weight)).float(),
            [0, *np.cumsum([len(c) for c in cells]).tolist()],
        )


class _Stream:
    """One task's endless shuffled stream of its cells [start, stop)."""

    def __init__(self, seed: int, start: int, stop: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.start, self.count = start, stop - start
        self.left = torch.zeros(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        while len(self.left) < count:
            self.left = torch.cat((self.left, self.start + torch.randperm(self.count, generator=self.generator)))
        taken, self.left = self.left[:count], self.left[count:]
        return taken


class SpecialistBank:
    """Specialists in training, side by side: every parameter is stacked over the tasks that still run.

    Parameters
    ----------
    model : Specialists
        Takes the best weights of each task.
    tasks : sequence of Task
        Of one kind.
    data : Prepared
        The table.
    shape : mapping
        Settings of the encoder.
    settings : mapping
        Settings of the training.
    seed : int
        With a task's name it makes its first weights and its stream of rows.
    """

    def __init__(
        self,
        model: Specialists,
        tasks: Sequence[Task],
        data: Prepared,
        shape: Mapping[str, Any],
        settings: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.model, self.tasks, self.data, self.settings = model, list(tasks), data, settings
        self.record = tasks[0].record
        self.train = _StackedCells.of([data.labelled(task.name, "train") for task in tasks])
        self.valid = _StackedCells.of([data.labelled(task.name, "valid") for task in tasks])
        made = type(cast(BankEncoder, model.encoder))
        self.encoder = made.of(data.columns, copies=len(tasks), **shape)
        self.members = self.encoder.members or 1
        self.head = StackedLinear(len(tasks) * self.members, self.encoder.width, tasks[0].width)
        self.mean, self.scale = torch.zeros(len(tasks)), torch.ones(len(tasks))
        self.streams = []
        for i, task in enumerate(tasks):
            own = zlib.crc32(task.name.encode()) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF)
            self.streams.append(_Stream(own, self.train.starts[i], self.train.starts[i + 1]))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(own)
                one = made.of(data.columns, **shape)
                self._begin(one, task)
                heads = one.heads([task])
                mine = slice(self.train.starts[i], self.train.starts[i + 1])
                heads.start({task.name: Labels(self.train.values[mine], self.train.rows[mine])})
                for whole, part in zip(self.encoder.parameters(), one.parameters()):
                    stacked(whole, len(tasks))[i] = stacked(part, 1)[0]
                stacked(self.head.weight, len(tasks))[i] = heads.weight.reshape(task.width, self.members, -1).permute(1, 2, 0)
                stacked(self.head.bias, len(tasks))[i] = heads.bias.reshape(task.width, self.members).T
                self.mean[i], self.scale[i] = heads.mean[0], heads.scale[0]
        named = {**dict(self.encoder.named_parameters()), **{f"head.{n}": p for n, p in self.head.named_parameters()}}
        self.update = self._update(named)
        self.parameters, self.optimizer = self.update.parameters, self.update.optimizer
        self.live = list(range(len(tasks)))  # position in self.tasks of each slice that still runs
        self.curves: dict[str, list[float]] = {task.name: [] for task in tasks}
        self.best = [-math.inf] * len(tasks)
        self.since = [0] * len(tasks)
        self.rounds = 0

    def fit(self, deadline: float) -> bool:
        """Train every task to its early stop or last round (True), or to the deadline; leave the best weights in the model."""
        size = _size(max(stream.count for stream in self.streams))
        batch, steps = self._sizes(size)
        in_time = True
        while in_time and self.live and self.rounds < self.settings["epochs"]:
            in_time = self._round(steps, batch, deadline)
            self.rounds += in_time  # one that was cut short is done again, on other rows
            self._judge()
            stopped = [i for i, own in enumerate(self.live) if self.since[own] >= self.settings["patience"]]
            if stopped:
                self._drop(set(stopped))
        return in_time

    def _begin(self, one: BankEncoder, task: Task) -> None:
        """What a fresh network of one task is shown before it learns."""

    def _update(self, named: Mapping[str, nn.Parameter]) -> Update:
        """What moves the stacked parameters."""
        return Update(named, lr=self.settings["lr"], weight_decay=self.settings["weight_decay"], clip=self._clip)

    def _sizes(self, size: int) -> tuple[int, int]:
        """Rows of a step and steps of a round, for tasks of this size."""
        batch = batch_of(self.settings, size)
        return batch, _steps(size, batch)

    @property
    def undertrained(self) -> list[str]:
        """The tasks that neither stopped nor saw all their rounds."""
        return [self.tasks[own].name for own in self.live] if self.rounds < self.settings["epochs"] else []

    def _round(self, steps: int, batch: int, deadline: float) -> bool:
        """So many steps; False if the deadline came first."""
        self.encoder.train()
        places = torch.stack([self.streams[own].take(steps * batch) for own in self.live])
        sums = torch.zeros(len(self.live))
        done = True
        for step in range(steps):
            sums += self._step(places[:, step * batch : (step + 1) * batch])
            if time.process_time() > deadline:
                done = False
                break
        for own, value in zip(self.live, sums.tolist()):
            if not math.isfinite(value):
                where = f"task {self.tasks[own].name!r}"
                raise NonFinite("its loss became NaN or infinite", where=where, remedy="lower the learning rate")
        return done

    def _step(self, places: Tensor) -> Tensor:
        """One optimiser step on the cells at `places` [A, b]; the losses [A]."""
        loss = self._losses(self._outputs(self.train.rows[places]), self.train, places)
        self.update.forget()  # here and not before the forward pass: the backward pass takes the memory over while it is warm
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self._move()
        return loss.detach()

    def _move(self) -> None:
        """One optimiser step along the gradients that are there."""
        self.update()

    def _clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each task's gradient by its own norm."""
        gradients = [stacked(p.grad, len(self.live)).flatten(1) for p in parameters if p.grad is not None]
        norm = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]).norm(dim=0)
        shrink = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        if bool((shrink < 1).any()):
            for g in gradients:
                g.mul_(shrink[:, None])

    def _outputs(self, rows: Tensor) -> Tensor:
        """Outputs [A, b, width] at a batch of rows [A, b] for each task; of an ensemble [A, b, members, width]."""
        inputs = self.data.batch(rows.reshape(-1), tasks=()).inputs
        plain = {name: inputs[name].reshape(*rows.shape, inputs[name].shape[1]) for name in ("numeric", "categorical")}
        hidden = self.encoder.run(plain)
        if self.members == 1:
            return cast(Tensor, self.head(hidden.flatten(2)))
        outputs: Tensor = self.head(hidden.transpose(1, 2).flatten(0, 1))
        return stacked(outputs, len(rows)).transpose(1, 2)

    def _losses(self, outputs: Tensor, cells: _StackedCells, places: Tensor) -> Tensor:
        """Weighted mean loss [A] over the cells at `places` [A, b]; each member of an ensemble by its own loss."""
        values, weight = cells.values[places], cells.weight[places]
        if self.record.standardise:
            values = (values - self.mean[:, None]) / self.scale[:, None]
        outputs = outputs.reshape(places.numel(), self.members, -1)
        each = self._loss(outputs, values.flatten(0, 1)).reshape(places.shape)
        mean: Tensor = (each * weight).sum(1) / weight.sum(1).clamp_min(1e-12)
        return mean

    def _loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Loss of each cell [m], from outputs [m, members, width] and values [m]."""
        return mean_loss(self.record, outputs, values)

    @torch.no_grad()
    def _judge(self) -> None:
        """Every running task's main metric on its validation cells; the best weights go to the model."""
        self.encoder.eval()
        starts = torch.tensor(self.valid.starts)[self.live]
        counts = torch.tensor(self.valid.starts)[torch.tensor(self.live) + 1] - starts
        longest = int(counts.max())
        pieces = []
        width = max(1, EVALUATED // (len(self.live) * self.members))
        for start in range(0, longest, width):
            column = torch.arange(start, min(start + width, longest))
            places = (starts[:, None] + torch.minimum(column, (counts - 1).clamp_min(0)[:, None])).clamp_max(
                len(self.valid.rows) - 1
            )
            pieces.append(self._outputs(self.valid.rows[places]))
        for i, own in enumerate(self.live):
            if not counts[i]:  # nothing to stop by: some rounds, and the last weights
                self.since[own] += 1
                self._keep(i)
                continue
            cells = slice(self.valid.starts[own], self.valid.starts[own + 1])
            outputs = torch.cat([piece[i] for piece in pieces])[: int(counts[i])]
            score = self._score(own, i, outputs, cells)
            self.since[own] = 0 if score > self.best[own] else self.since[own] + 1
            if self._best(score, self.best[own]):
                self.best[own] = score
                self._keep(i)

    def _best(self, score: float, before: float) -> bool:
        """Whether weights of this score take the place of those before."""
        return score > before

    def _held(self, task: Task, predictions: Tensor) -> Tensor:
        """Predictions [m] or [m, C] as the fitted model will give them."""
        return predictions

    def _score(self, own: int, i: int, outputs: Tensor, cells: slice) -> float:
        """What is maximised: the main metric, signed; where it is not defined, minus the loss."""
        task = self.tasks[own]
        outputs = outputs.reshape(len(outputs), self.members, -1)
        linked = mean_link(self.record, outputs).double()
        if self.record.standardise:
            linked = linked * self.scale[i] + self.mean[i]
        linked = self._held(task, linked)
        values, weight, metric = self.valid.values[cells], self.valid.weight[cells], task.main_metric
        groups = self.data.units[self.valid.rows[cells].numpy()] if metric.grouped else None
        truth = Ragged.of_padded(values.numpy()) if self.record.cell == "list" else values.double().numpy()
        value = metrics.compute(metric, linked.numpy(), truth, weight.numpy(), groups=groups)
        self.curves[task.name].append(float(value))
        if math.isfinite(value):
            return metric.sign * float(metric.judged(np.array(value)))
        if self.record.standardise:
            values = (values - self.mean[i]) / self.scale[i]
        loss = mean_loss(self.record, outputs, values)
        return -float((loss * weight).sum() / weight.sum())

    @torch.no_grad()
    def _keep(self, i: int) -> None:
        """Copy slice i of the running bank to its place in the model."""
        task = self.tasks[self.live[i]]
        place, count = self.model.index[task.name], len(self.model.tasks)
        for whole, part in zip(self.model.encoder.parameters(), self.encoder.parameters()):
            stacked(whole, count)[place] = stacked(part, len(self.live))[i]
        heads = self.model.heads
        here, live = heads.place[task.name], len(self.live)
        heads.weight[here] = stacked(self.head.weight, live)[i].permute(2, 0, 1).reshape(heads.weight[here].shape)
        heads.bias[here] = stacked(self.head.bias, live)[i].T.reshape(heads.bias[here].shape)
        heads.mean[place], heads.scale[place] = self.mean[i], self.scale[i]

    @torch.no_grad()
    def _drop(self, stopped: set[int]) -> None:
        """Cut slices out of weights and moments; those of the others are not touched."""
        before = len(self.live)
        kept = torch.tensor([i for i in range(before) if i not in stopped], dtype=torch.int64)
        for p in self.parameters:
            p.grad = None
            p.data = stacked(p.data, before)[kept].flatten(0, 1)
            state = self.optimizer.state[p]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = stacked(state[name], before)[kept].flatten(0, 1)
        self.mean, self.scale = self.mean[kept], self.scale[kept]
        self.live = [own for i, own in enumerate(self.live) if i not in stopped]


def stacked(tensor: Tensor, size: int) -> Tensor:
    """A stacked tensor [size · k, …] as [size, k, …]: the slices of each of `size` networks (a view)."""
    return tensor.view(size, len(tensor) // size, *tensor.shape[1:])
