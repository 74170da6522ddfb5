"""One optimiser step: losses → balancer → clip → slices → all processes.

The trainer takes its steps with it, and so does any loop that owns its data (a stream, an environment, points drawn anew):

    step = Step(model, balancer=NashMTL(), lr=3e-4)
    for batch in stream:
        result = step(batch)

Losses come as (sum, count). Counts are summed over micro-batches and processes before anything is divided, so that a step on
parts of a batch is the step on the batch. What only absent tasks own rests: weights, moments and step counts stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from pluribus import balancing
from pluribus.balancing import Balancer, Diagnostics
from pluribus.balancing.torchjd import as_balancer
from pluribus.data import Batch
from pluribus.errors import BadInput, unknown
from pluribus.modeling import Losses, Objective, Supervised
from pluribus.modeling.model import Slices
from pluribus.tasks import Task
from pluribus.training import processes
from pluribus.training.balanced import balanced_backward
from pluribus.training.stage import Regulariser, Stage
from pluribus.training.update import Rate, Update


class Trainable(Protocol):
    """What a step asks of a model beside its objective; a `MultiTaskModel` is one."""

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that every task's loss reaches."""
        ...

    def parameters_of(self, task: str) -> Slices:
        """Parameters that only serve `task`, whole or as a slice of the first dimension of a stacked one."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step has computed; tensors stay on their device, so that nothing waits for them.

    Parameters
    ----------
    losses : mapping of str to Tensor
        Task present in the step → its mean loss (scalar). Of several processes each has its own part, and the parts add up.
    weights : mapping of str to Tensor
        Task → the weight that the balancer gave it (empty without one, or where it gives a direction only).
    norm : Tensor or None
        Norm of the gradient before it was clipped; None where nothing clips.
    """

    losses: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    norm: Tensor | None = None


class Step:
    """Takes optimiser steps on a model.

    Parameters
    ----------
    model : Trainable
        The model, on the device where it trains.
    objective : Objective or None
        How a batch becomes losses (default: each task's own loss at its labels). Its `counts` must name the tasks of a batch.
    balancer : Balancer or None
        How much each task weighs in the shared part; None: the sum of the tasks' mean losses times their weights. Any object of
        `pluribus.balancing`, or a TorchJD weighting, aggregator or scalarizer.
    regularisers : sequence of callable
        Terms that are added to the total and never balanced.
    trainable : tuple of str or None
        Names of the parameters that move begin with one of these (None: all that require a gradient).
    lr : float
        AdamW's learning rate (see `pluribus.training.SliceAdamW`).
    weight_decay : float
        AdamW's; biases and other vectors do not decay.
    betas : pair of float
        AdamW's.
    rates : mapping of str to float or Rate, or None
        Glob over names of parameters → their own learning rate; a plain number is one without weight decay.
    clip : float or None
        Largest norm of the gradient; None for no limit.
    precision : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 autocast on CUDA, float32 elsewhere.

    Attributes
    ----------
    batches : int
        How many batches a step takes: 1, or as many as the balancer draws.
    update : Update
        Optimiser and clipping.

    Raises
    ------
    BadInput
        No parameter moves, or a glob of `rates` matches none.
    """

    def __init__(
        self,
        model: Trainable,
        *,
        objective: Objective | None = None,
        balancer: Any = None,
        regularisers: Sequence[Regulariser] = (),
        trainable: tuple[str, ...] | None = None,
        lr: float = Stage.lr,
        weight_decay: float = Stage.weight_decay,
        betas: tuple[float, float] = Stage.betas,
        rates: Mapping[str, float | Rate] | None = None,
        clip: float | None = Stage.clip,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        self.model: Any = model
        self.objective = Supervised() if objective is None else objective
        self.balancer = None if balancer is None else as_balancer(balancer)
        self.regularisers = tuple(regularisers)
        self.batches = 1 if self.balancer is None else self.balancer.draws
        named = dict(model.named_parameters())
        moved = {name: p for name, p in named.items() if p.requires_grad and (trainable is None or name.startswith(trainable))}
        if not moved:
            raise BadInput("no parameter trains", where="trainable", remedy="name the beginning of a parameter's name")
        own = set(moved.values())
        self._others = [p for p in named.values() if p not in own]
        self._owned = {task: [(p, where) for p, where in model.parameters_of(task) if where is not None] for task in model.tasks}
        self._active: dict[frozenset[str], dict[nn.Parameter, Tensor]] = {}
        self.update = Update(
            moved,
            stacked={p for owned in self._owned.values() for p, _ in owned},
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            rates=rates,
            clip=clip,
        )
        self.device = next(iter(moved.values())).device
        self._autocast = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")

    @classmethod
    def of(cls, model: Trainable, stage: Stage) -> Step:
        """The step of a stage; parameters that it does not train must not require a gradient."""
        return cls(
            model,
            objective=stage.objective,
            balancer=stage.balancer,
            regularisers=stage.regularisers,
            trainable=stage.trainable,
            lr=stage.lr,
            weight_decay=stage.weight_decay,
            betas=stage.betas,
            rates=stage.rates,
            clip=stage.clip,
            precision=stage.precision,
        )

    def __call__(
        self,
        batches: Batch | Sequence[Batch],
        *,
        rate: float | None = None,
        decay: float | None = None,
        compare: Diagnostics | None = None,
    ) -> StepResult:
        """Take one step. Under `torch.distributed` every process calls it, each with its own rows.

        Parameters
        ----------
        batches : Batch or sequence of Batch
            One batch; or micro-batches, whose losses add up to those of one batch; or, where `self.batches` is not 1, as many
            independent batches, each with labels of the same tasks.
        rate : float or None
            The learning rate of this step (None: as it was).
        decay : float or None
            The weight decay of this step (None: as it was).
        compare : Diagnostics or None
            Notes how far the tasks' gradients at the features agree; None: they are not compared. Nothing that is trained
            depends on it.

        Returns
        -------
        StepResult
            Losses, weights and norm. Nothing moves, and the result is empty, where no process has a label.

        Raises
        ------
        NonFinite
            A loss or the gradient is NaN or infinite, and nothing has moved. This is looked at on the CPU only; elsewhere a look
            would make the device wait: call `check_finite` on the results now and then.
        """
        group = [batches] if isinstance(batches, Batch) else list(batches)
        if self.device.type != "cpu":
            group = [batch.to(self.device) for batch in group]
        counts = processes.sum_by_name(_added(self.objective.counts(batch) for batch in group), self._owned, self.device)
        if not counts:
            return StepResult()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            gradients = self._summed if self.balancer is None else self._balanced
            losses, weights = gradients(group, counts, compare)
        if losses.keys() != counts.keys():
            zero = torch.zeros((), device=self.device)
            losses = {name: losses.get(name, zero) for name in counts}
        norm = self.update(rate=rate, decay=decay, active=self._slices(frozenset(counts)), losses=losses)
        self.update.forget()
        for p in self._others:  # a pass may have gone through parameters that are somebody else's to move
            p.grad = None
        if self.balancer is not None and self.balancer.wants_after_step:
            with torch.no_grad():
                self.balancer.after_step(self._means(self.objective.losses(self.model, group[0]), counts))
        return StepResult(losses, weights, norm)

    def epoch_end(self) -> None:
        """Tell the balancer that an epoch has ended; some change their weights then."""
        if self.balancer is not None:
            self.balancer.epoch_end()

    def state_dict(self) -> dict[str, Any]:
        """What moves beside the model: {"optimizer": moments and step counts, "balancer": its state or None}."""
        return {"optimizer": self.update.state_dict(), "balancer": None if self.balancer is None else self.balancer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave; the steps that follow are those of the run that it came from, bit for bit."""
        self.update.load_state_dict(state["optimizer"])
        if self.balancer is not None and state["balancer"] is not None:
            self.balancer.load_state_dict(state["balancer"])

    # -- gradients ------------------------------------------------------------------------------------------------

    def _summed(
        self, group: Sequence[Batch], counts: Mapping[str, Tensor], compare: Diagnostics | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Backward passes of Σ weight·mean loss + penalties, a micro-batch at a time."""
        found: dict[str, Tensor] = {}
        for i, batch in enumerate(group):
            losses = self.objective.losses(self.model, batch)
            if compare is not None and i == 0:
                self._compare(compare, losses, counts)
            total: Tensor | None = None
            for loss in self._means(losses, counts).values():
                total = loss if total is None else total + loss
            extra = self._extra(losses, len(group))
            if extra is not None:
                total = extra if total is None else total + extra
            if total is not None:
                total.backward()  # type: ignore[no-untyped-call]
            _note(found, losses, counts)
        return found, {}

    def _balanced(
        self, group: Sequence[Batch], counts: Mapping[str, Tensor], compare: Diagnostics | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Balanced gradients. Micro-batches share the union's counts; independent batches have each its own."""
        independent = self.batches > 1
        each = [self.objective.counts(batch) for batch in group] if independent else [counts] * len(group)
        balancer = cast(Balancer, self.balancer)
        passes = [self.objective.losses(self.model, batch) for batch in group[: balancer.batches if independent else None]]
        if compare is not None:
            self._compare(compare, passes[0], each[0])

        def again(batch: Batch, own: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
            return lambda: self._means(self.objective.losses(self.model, batch), own)

        weights = balanced_backward(
            self.model,
            balancer,
            [self._means(losses, own) for losses, own in zip(passes, each)],
            passes,
            [self._extra(losses, len(passes)) for losses in passes],
            [again(batch, own) for batch, own in zip(group, each)],
        )
        found: dict[str, Tensor] = {}
        for losses, own in zip(passes, each):
            _note(found, losses, own)
        return {name: value / len(passes) for name, value in found.items()} if independent else found, weights

    def _means(self, losses: Losses, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task → weight·sum/count of the tasks that this process has labels for."""
        found = {}
        for name, value in losses.sums.items():
            if name not in self.model.tasks:
                raise unknown("task", name, self.model.tasks, where="losses")
            weight = self.model.tasks[name].weight
            found[name] = value / counts[name] if weight == 1.0 else value * (weight / counts[name])
        return found

    def _extra(self, losses: Losses, parts: int) -> Tensor | None:
        """This pass's share of what is added to the total and not balanced."""
        terms = [*losses.penalties.values(), *(term(losses) for term in self.regularisers)]
        if not terms:
            return None
        return torch.stack([term.reshape(()) for term in terms]).sum() / (parts * processes.world()[1])

    def _compare(self, diagnostics: Diagnostics, losses: Losses, counts: Mapping[str, Tensor]) -> None:
        """Compare the tasks' gradients at the features, before the backward pass frees the graph."""
        if losses.shared:
            team = balancing.Processes.running(reduction="sum")
            diagnostics.observe(balancing.at_features(self._means(losses, counts), losses.shared, processes=team))

    def _slices(self, present: frozenset[str]) -> dict[nn.Parameter, Tensor]:
        """Stacked parameter → the indices that the present tasks own (kept per set of tasks)."""
        if present not in self._active:
            found: dict[nn.Parameter, set[int]] = {}  # a set: tasks may share a slice
            for name, owned in self._owned.items():
                for p, where in owned:
                    indices = found.setdefault(p, set())
                    if name in present and where is not None:
                        indices.update(range(*where.indices(len(p))))
            self._active[present] = {
                p: torch.tensor(sorted(indices), dtype=torch.int64, device=p.device) for p, indices in found.items()
            }
        return self._active[present]


def _note(found: dict[str, Tensor], losses: Losses, counts: Mapping[str, Tensor]) -> None:
    """Add a pass's mean losses to those of the step."""
    for name, value in losses.sums.items():
        mean = value.detach() / counts[name]
        found[name] = found[name] + mean if name in found else mean


def _added(counts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for each in counts:
        for name, value in each.items():
            total[name] = total[name] + value if name in total else value
    return total
