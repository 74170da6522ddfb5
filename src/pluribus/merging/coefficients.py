"""Learned merging coefficients by contraction: one engine under AdaMerging, aTLAS, Self Positioning and Concrete.

    θ(λ)[l] = θ0[l] + Σ_t λ_t[block of l] · τ_t[l],      τ_t = θ_t − θ0,      ∂L/∂λ_t[b] = Σ_{l in b} < ∂L/∂θ[l], τ_t[l] >

The merged weights are written into one ordinary module without a graph, every task's loss runs backward once into the same
gradient, and one pass over the task vectors contracts it. What is held is one model, its gradient and a chunk; the task vectors
may stay on disk. Public implementations instead build the merged weights inside the graph and hold T copies.

`TaskVectors` reads the vectors, `Coefficients` holds λ (granularity task, tensor, block or partition), `fit` is the trainer,
`entropy_objective`, `cross_entropy_objective` and `distillation_objective` are its objectives; any callable
`(model, task, batch) -> loss` is another one.

Tensors without a gradient (running statistics of a batch norm) move with the task's mean coefficient, and a variance is
kept at or above 0; re-estimate them on data where you can. Integer tensors stay the base's.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.errors import BadInput, NonFinite, unknown
from pluribus.merging.source import Source, accumulator, float_names, is_statistic, open_source, spans

GRANULARITIES = ("task", "tensor", "block", "partition")
CHUNK = 1 << 21  # entries of all experts together: 8 MB in float32

Batches = Mapping[str, Iterable[Any]]
Objective = Callable[[nn.Module, str, Any], Tensor]
Forward = Callable[[nn.Module, str, Any], Tensor]


class TaskVectors:
    """τ_t = θ_t − θ0 of several experts, read a chunk at a time.

    base, experts: a state dict, a module or a folder/file of safetensors each; experts by task name.
    heads: name patterns (`fnmatch`) of tensors that are not merged, besides those that look like classifiers.
    resident_bytes: task vectors are stacked in memory up to this total (default 256 MiB); beyond it they are read at each use.

    Raises `BadInput` for a tensor that is missing or has another shape in an expert, before any data is read.
    """

    def __init__(
        self, base: Any, experts: Mapping[str, Any], *, heads: Sequence[str] = (), resident_bytes: int = 256 << 20
    ) -> None:
        if not isinstance(experts, Mapping):
            remedy = "give {task: weights}: batches and coefficients go by task"
            raise BadInput(f"is a {type(experts).__name__}", where="experts", remedy=remedy)
        if not experts:
            raise BadInput("there is no expert", remedy="name at least one task and its fine-tuned weights")
        self.base: Source = open_source(base)
        self.experts: list[Source] = [open_source(e) for e in experts.values()]
        self.tasks: tuple[str, ...] = tuple(experts)
        self.names: tuple[str, ...] = float_names(self.base, dict(zip(self.tasks, self.experts)), heads)
        self.dtype = accumulator(s.dtype(n) for s in (self.base, *self.experts) for n in self.names)
        self._left = resident_bytes
        self._stacks: dict[str, Tensor] = {}

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self.base.shape(name))

    def numel(self, name: str) -> int:
        return self.shape(name).numel()

    def spans(self, name: str) -> Iterator[tuple[int, int]]:
        """The chunks of a tensor as (start, stop) in its flat order."""
        return spans(self.numel(name), max(1, CHUNK // (len(self.tasks) + 1)))

    def origin(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """θ0[name] from start to stop, flat."""
        return self.base.read(name, start, stop).to(dtype or self.dtype)

    def compute(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """The task vectors of one chunk, freshly computed. Subclasses that transform task vectors override this."""
        origin = self.origin(name, start, stop, dtype)
        tau = torch.empty(len(self.experts), stop - start, dtype=dtype)
        for row, expert in zip(tau, self.experts):
            row.copy_(expert.read(name, start, stop)).sub_(origin)
        return tau

    def chunk(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """The task vectors of one chunk, [T, stop − start], in float32 (float64 where an input is)."""
        if dtype is not None and dtype != self.dtype:
            return self.compute(name, start, stop, dtype)
        if name not in self._stacks:
            size = self.numel(name) * len(self.tasks) * self.dtype.itemsize
            if size > self._left:
                return self.compute(name, start, stop, self.dtype)
            self._left -= size
            self._stacks[name] = self.compute(name, 0, self.numel(name), self.dtype)
        return self._stacks[name][:, start:stop]


def layer_of(name: str) -> str:
    """The default block of a tensor: its name up to and including the first number ("encoder.layer.3"), else its module."""
    found = re.match(r"(.*?\.\d+)(?:\.|$)", name)
    return found.group(1) if found else name.rpartition(".")[0] or name


class Coefficients(nn.Module):
    """λ of every task and block: `raw` is trained, `forward()` is what acts.

    granularity: "task" one scalar a task; "tensor" one a task and named tensor; "block" one a task and `block(name)`;
        "partition" the entries of every tensor fall at random, once, into `partitions` parts with a scalar each.
    init: the starting value everywhere (λ or a tensor [T, B, K]).
    clamp: (low, high) between which λ acts, or None. A value outside has gradient 0 and stays there.
    """

    def __init__(
        self,
        vectors: TaskVectors,
        *,
        granularity: str = "tensor",
        init: float | Tensor = 0.3,
        clamp: tuple[float, float] | None = None,
        partitions: int = 1,
        block: Callable[[str], str] = layer_of,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if granularity not in GRANULARITIES:
            raise unknown("granularity", granularity, GRANULARITIES)
        if partitions < 1 or (partitions > 1 and granularity != "partition"):
            what = f"{partitions} partitions with granularity {granularity!r}"
            raise BadInput(what, where="partitions", remedy="use granularity='partition'")
        keys: dict[str, Callable[[str], str]] = {"task": lambda n: "all", "tensor": str, "partition": str, "block": block}
        key = keys[granularity]
        self.vectors, self.granularity, self.seed = vectors, granularity, seed
        self.blocks: tuple[str, ...] = tuple(dict.fromkeys(key(n) for n in vectors.names))
        where = {b: i for i, b in enumerate(self.blocks)}
        self.block_of: dict[str, int] = {n: where[key(n)] for n in vectors.names}
        self.clamp = clamp
        shape = (len(vectors.tasks), len(self.blocks), partitions)
        start = torch.full(shape, float(init), dtype=torch.float64) if not isinstance(init, Tensor) else init.double()
        self.raw = nn.Parameter(start.expand(shape).clone())
        self.alias: dict[str, str] = {}
        self._parts: dict[str, Tensor] = {}

    @property
    def partitions(self) -> int:
        return int(self.raw.shape[-1])

    def forward(self) -> Tensor:
        """λ, [T, B, K]."""
        return self.raw if self.clamp is None else self.raw.clamp(*self.clamp)

    def tie(self, model: nn.Module) -> None:
        """Give names that are one tensor in `model` the coefficient of the first of them."""
        every = dict(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        for name in self.vectors.names:
            if name in every:
                self.alias[name] = first.setdefault(id(every[name]), name)

    def parts(self, name: str, start: int, stop: int) -> Tensor:
        """The partition of every entry of a chunk; drawn once from (seed, name), whatever the chunking."""
        name = self.alias.get(name, name)
        if name not in self._parts:
            generator = torch.Generator().manual_seed(seed_of(self.seed, name))
            ids = torch.randint(self.partitions, (self.vectors.numel(name),), generator=generator)
            self._parts[name] = ids.to(torch.uint8 if self.partitions <= 256 else torch.int32)
        return self._parts[name][start:stop].long()

    @torch.no_grad()
    def merged(self, name: str, lam: Tensor, *, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        """θ(λ)[name], into `out` where given. Arithmetic in `dtype` (default: the vectors')."""
        vectors = self.vectors
        kind = dtype or vectors.dtype
        if out is None:
            out = torch.empty(vectors.shape(name), dtype=vectors.base.dtype(name))
        flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
        mine = lam[:, self.block_of[self.alias.get(name, name)]].to(kind)
        for start, stop in vectors.spans(name):
            tau = vectors.chunk(name, start, stop, kind)
            if self.partitions == 1:
                move = mine[:, 0] @ tau
            else:
                move = (mine[:, self.parts(name, start, stop)] * tau).sum(0)
            flat[start:stop] = move.add_(vectors.origin(name, start, stop, kind)).to(flat.dtype)
        if flat.data_ptr() != out.data_ptr():
            out.copy_(flat.view_as(out))
        return out

    @torch.no_grad()
    def write(self, model: nn.Module, lam: Tensor | None = None) -> None:
        """θ(λ) into the tensors of `model`, in place and without a graph."""
        lam = self().detach() if lam is None else lam.detach()
        mean = lam.mean(dim=(1, 2), keepdim=True).expand_as(lam)
        for name, tensor in targets(model, self.vectors).items():
            self.merged(name, mean if is_statistic(name) else lam, out=tensor.data)
            _mend_variance(name, tensor.data)

    @torch.no_grad()
    def contract(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """∂L/∂λ [T, B, K] from ∂L/∂θ by name: one pass over the task vectors, summed in float64."""
        found = torch.zeros_like(self.raw)
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            flat = gradient.reshape(-1).to("cpu", self.vectors.dtype)
            for start, stop in self.vectors.spans(name):
                tau = self.vectors.chunk(name, start, stop)
                g = flat[start:stop]
                if self.partitions == 1:
                    found[:, self.block_of[name], 0] += (tau @ g).double()
                else:
                    each = (tau * g).double()
                    found[:, self.block_of[name]].index_add_(1, self.parts(name, start, stop), each)
        return found

    def state(self, lam: Tensor | None = None) -> dict[str, Tensor]:
        """The merged tensors by name, in the base's dtype; computed in float64, so that one-hot λ gives the expert's bits."""
        lam = self().detach() if lam is None else lam
        mean = lam.mean(dim=(1, 2), keepdim=True).expand_as(lam)
        found = {}
        for name in self.vectors.base.names():
            if name not in self.block_of:
                found[name] = self.vectors.base.tensor(name)
                continue
            statistic = is_statistic(name)
            found[name] = self.merged(name, mean if statistic else lam, dtype=torch.float64)
            if statistic:
                _mend_variance(name, found[name])
        return found


def seed_of(seed: int, name: str) -> int:
    """A seed for one named tensor, so that a draw does not depend on the order of the tensors."""

    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")


def _mend_variance(name: str, tensor: Tensor) -> None:
    if name.endswith("running_var"):
        tensor.clamp_(min=0)


def targets(model: nn.Module, vectors: TaskVectors) -> dict[str, Tensor]:
    """The model's tensors to write, by name: a `Parameter` is one that a gradient reaches. Tied tensors appear once."""
    every: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in vectors.names:
        if name not in every:
            raise BadInput(
                f"the model has no tensor {name!r}, the checkpoints have", remedy="give the module the checkpoints belong to"
            )
        if every[name].shape != vectors.shape(name):
            shapes = f"{tuple(every[name].shape)} in the model, {tuple(vectors.shape(name))} in the base"
            raise BadInput(f"tensor {name!r} is {shapes}", remedy="give the module the checkpoints belong to")
        if id(every[name]) not in seen:
            seen.add(id(every[name]))
            found[name] = every[name]
    return found


# Objectives ---------------------------------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """H = −Σ_c p_c log p_c in nats, mean over all rows; logits [..., C]."""
    log_p = F.log_softmax(logits.flatten(0, -2) if logits.dim() > 1 else logits[None], dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def split_batch(batch: Any) -> tuple[Any, Any]:
    """(inputs, labels) of a batch: a pair, a mapping with "labels", or bare inputs (labels None)."""
    if isinstance(batch, Mapping):
        return {k: v for k, v in batch.items() if k != "labels"}, batch.get("labels")
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def forward_with(heads: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> Forward:
    """The usual forward: the model on the inputs (keywords for a mapping), `.logits` where it has them, then the task's head."""

    def forward(model: nn.Module, task: str, inputs: Any) -> Tensor:
        out = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        out = getattr(out, "logits", out)
        if heads is not None and task not in heads:
            raise unknown("task", task, heads, where="heads")
        return out if heads is None else heads[task](out)

    return forward


def entropy_objective(forward: Forward) -> Objective:
    """The prediction entropy on unlabelled inputs; a label in the batch is not read."""
    return lambda model, task, batch: entropy(forward(model, task, split_batch(batch)[0]))


def cross_entropy_objective(forward: Forward) -> Objective:
    """Cross-entropy against the labels of the batch."""

    def objective(model: nn.Module, task: str, batch: Any) -> Tensor:
        inputs, labels = split_batch(batch)
        if labels is None:
            raise BadInput("the batch has no labels", where=f"task {task!r}", remedy="give (inputs, labels) pairs")
        logits = forward(model, task, inputs)
        return F.cross_entropy(logits.flatten(0, -2), labels.reshape(-1))

    return objective


def distillation_objective(forward: Forward, teacher: Callable[[str, Any], Tensor], temperature: float = 1.0) -> Objective:
    """T² · KL(expert ‖ merged) on unlabelled inputs; `teacher(task, inputs)` gives the expert's logits."""

    def objective(model: nn.Module, task: str, batch: Any) -> Tensor:
        inputs = split_batch(batch)[0]
        with torch.no_grad():
            wanted = F.log_softmax(teacher(task, inputs) / temperature, -1)
        given = F.log_softmax(forward(model, task, inputs) / temperature, -1)
        return temperature**2 * F.kl_div(given.flatten(0, -2), wanted.flatten(0, -2), log_target=True, reduction="batchmean")

    return objective


OBJECTIVES: dict[str, Callable[[Forward], Objective]] = {"entropy": entropy_objective, "cross_entropy": cross_entropy_objective}


def objective_of(objective: str | Objective, forward: Forward) -> Objective:
    """An objective by name, or the callable itself."""
    if callable(objective):
        return objective
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective](forward)


# The trainer --------------------------------------------------------------------------------------------------------------


@dataclass
class Learned:
    """What learning gave: coefficients λ [T, B, K] (tasks × blocks × partitions) and the losses of every step by task.

    `state()` computes the merged tensors; `model` (the module given) already holds them. `masks`: those of Concrete, by tensor.
    """

    coefficients: Tensor
    tasks: tuple[str, ...]
    blocks: tuple[str, ...]
    losses: list[dict[str, float]]
    model: nn.Module
    state: Callable[[], dict[str, Tensor]] = field(repr=False)
    masks: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def table(self) -> list[dict[str, Any]]:
        """One row a task and block: {task, block, coefficient} (a list of K where there are partitions)."""
        rows = []
        for t, task in enumerate(self.tasks):
            for b, block in enumerate(self.blocks):
                value = self.coefficients[t, b].tolist()
                rows.append({"task": task, "block": block, "coefficient": value if len(value) > 1 else value[0]})
        return rows


@contextmanager
def workspace(model: nn.Module, vectors: TaskVectors) -> Iterator[dict[str, nn.Parameter]]:
    """The model as a place for merged weights: evaluation mode, gradients for the merged parameters only. Restored at the end."""
    modes = {m: m.training for m in model.modules()}
    needs = {p: p.requires_grad for p in model.parameters()}
    model.eval()
    for p in needs:
        p.requires_grad_(False)
        p.grad = None
    mine = {n: t for n, t in targets(model, vectors).items() if isinstance(t, nn.Parameter)}
    for p in mine.values():
        p.requires_grad_(True)
    try:
        yield mine
    finally:
        for p, need in needs.items():
            p.grad = None
            p.requires_grad_(need)
        for m, mode in modes.items():
            m.training = mode


def cycle(batches: Batches) -> dict[str, Iterator[Any]]:
    """Endless batches a task; an iterable is started again when it ends (a loader shuffles anew)."""

    def again(task: str, of: Iterable[Any]) -> Iterator[Any]:
        for turn in itertools.count():
            empty = True
            for batch in of:
                empty = False
                yield batch
            if empty:
                problem = "gives no batch" if turn == 0 else "can be walked only once"
                raise BadInput(f"the iterable of task {task!r} {problem}", remedy="give a list or a DataLoader")

    if not batches:
        raise BadInput("there are no batches to learn from", remedy="give an iterable of batches for each task")
    return {task: again(task, of) for task, of in batches.items()}


def accumulate(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], objective: Objective, batches: Mapping[str, Any]
) -> dict[str, float]:
    """One backward a task into the same gradient; the losses by task. Old gradients are dropped first.

    A task's loss may leave the merged weights alone; where every task's does there is nothing to learn, and that is an error.
    """
    for p in parameters.values():
        p.grad = None
    losses, heard = {}, False
    for task, batch in batches.items():
        loss = objective(model, task, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            what = f"the loss is a {given}, not a tensor of one number"
            raise BadInput(what, where=f"objective of task {task!r}", remedy="return the mean loss as it was computed")
        heard = heard or loss.requires_grad
        losses[task] = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            remedy = "lower the learning rate or look at its data"
            raise NonFinite(f"the loss is {losses[task]}", where=f"task {task!r}", remedy=remedy)
        if loss.requires_grad:
            loss.backward(inputs=list(parameters.values()))  # type: ignore[no-untyped-call]
    if not heard:
        raise BadInput("no task's loss has a gradient", where="objective", remedy="compute it outside torch.no_grad")
    return losses


def fit(
    coefficients: Coefficients,
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    steps: int,
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    max_norm: float | None = None,
    penalty: Callable[[Tensor], Tensor] | None = None,
    score: Callable[[nn.Module], float] | None = None,
    every: int = 50,
) -> Learned:
    """Learn λ by gradient descent on the sum of the tasks' losses.

    coefficients: where λ lives. model: the workspace; it ends holding the merged weights.
    objective: `(model, task, batch) -> loss`. batches: an iterable of batches for each task, started again when it ends.
    optimiser: makes the optimiser from the trained parameters. max_norm: clip of the gradient's norm.
    penalty: a term on λ added to the loss. score: higher is better; with it the coefficients of the best of the scores taken
    every `every` steps (and at the start and the end) are kept, else the last.
    """
    if steps < 0:
        raise BadInput(f"steps is {steps}", where="steps", remedy="use 0 or more")
    trained = [p for p in coefficients.parameters() if p.requires_grad]
    try:
        optimise = optimiser(trained)
    except ValueError as error:  # a learning rate that is none
        raise BadInput(str(error), where="optimiser", remedy="give a finite lr above 0, 1e-3 say") from None
    stream, history = cycle(batches), []
    best: tuple[float, list[Tensor]] | None = None

    def judge() -> None:
        nonlocal best
        if score is not None:
            with torch.no_grad():
                value = float(score(model))
            if best is None or value > best[0]:
                best = value, [p.detach().clone() for p in trained]

    coefficients.tie(model)
    with workspace(model, coefficients.vectors) as parameters:
        coefficients.write(model)
        judge()
        for step in range(1, steps + 1):
            optimise.zero_grad()
            lam = coefficients()
            history.append(accumulate(model, parameters, objective, {t: next(b) for t, b in stream.items()}))
            signal = coefficients.contract({n: p.grad for n, p in parameters.items()})
            total = (lam * signal).sum() if penalty is None else (lam * signal).sum() + penalty(lam)
            total.backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(trained, max_norm)
            optimise.step()
            coefficients.write(model)
            if step % every == 0 or step == steps:
                judge()
        if best is not None:
            with torch.no_grad():
                for p, value in zip(trained, best[1]):
                    p.copy_(value)
            coefficients.write(model)
    lam = coefficients().detach().clone()
    return Learned(lam, coefficients.vectors.tasks, coefficients.blocks, history, model, lambda: coefficients.state(lam))
