"""Auto-λ: weights that make the next step good for the primary tasks' validation loss.

Source: Liu et al. (2022), Auto-Lambda: Disentangling Dynamic Task Relationships, eq. 3–6. With θ the shared parameters, α the
learning rate, m the momentum:

    θ' = θ − α (m + ∇_θ Σ_t λ_t ℓ_t^train + wd·θ)                                the virtual step
    L  = Σ_{t primary} ℓ_t^val(θ'),   v = ∇_θ' L
    ∇_λt L = −α ∇_θ ℓ_t^train · v ≈ −α (ℓ_t(θ + εv) − ℓ_t(θ − εv))/(2ε),   ε = 0.01/‖v‖
    λ ← Adam(λ, ∇_λ L);   then the real step with Σ_t λ_t ℓ_t

The finite difference of the paper is of ∇_λ Σ λ_t ℓ_t = ℓ, so two passes forward without gradients suffice (the reference code
differentiates). λ is kept from going below 0 here, where a weight would ascend a loss. Where `shared` is given, heads get
their plain gradients and θ is the shared part; without it θ is the whole network, as in the paper, heads weighted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.decision import Decision
from pluribus.balancing.flat_regions import moved
from pluribus.balancing.graph import gradients, leaves
from pluribus.balancing.hearing import stack
from pluribus.balancing.problem import Problem, accumulate
from pluribus.balancing.state import Scalars
from pluribus.errors import BadInput


@dataclass(eq=False)
class AutoLambda(Balancer):
    """``backward(losses, AutoLambda(lr=0.1), shared=…, closure={"train": f, "validation": g})``.

    primary: the tasks whose validation loss counts (default: all that it returns). lr: α, the model's learning rate, or
    optimizer: a `torch.optim.SGD` to read rate, momentum and weight decay from at each step. start: λ at first (0.1).
    rate: Adam's learning rate for λ (1e-4).

    The closures: "train" evaluates the losses of this batch again at the parameters as they are; "validation" those of a
    validation batch.
    """

    primary: Sequence[str] | None = None
    lr: float | None = None
    optimizer: Any = None
    start: float = 0.1
    rate: float = 1e-4
    needs: ClassVar[frozenset[str]] = frozenset({"losses", "closure", "validation"})
    doors: ClassVar[tuple[str, ...]] = ("backward",)
    distributed: ClassVar[bool] = False  # the virtual step moves every head, and a process that lacks a task lacks its head
    mutable: ClassVar[tuple[str, ...]] = ("scalars",)

    @classmethod
    def for_training(cls, *, lr: float, classification: Sequence[str] = ()) -> Self:
        return cls(lr=lr)

    def validate(self) -> None:
        if (self.lr is None) == (self.optimizer is None):
            raise BadInput("the model's step is not known", where="AutoLambda", remedy="pass either lr or optimizer")
        check_positive(self, start=self.start, rate=self.rate, **({} if self.lr is None else {"lr": self.lr}))

    def reset(self) -> None:
        self.scalars = Scalars(self.start, self.rate)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        """λ of the tasks present, as it stands."""
        return self.scalars.rows(tasks, signal).clamp_min(0)

    def through_closure(self, problem: Problem) -> Decision:
        """One step of `backward`: learn λ, then write the gradients of Σ λ_t ℓ_t."""
        heard = problem.heard
        if heard.team.size > 1:
            raise BadInput(
                "AutoLambda runs in one process: its virtual step moves every head, and a process that lacks a task does not "
                "know its head",
                where="backward",
                remedy="pass processes=Processes.alone(), or take another balancer",
            )
        train, validate = _closures(problem.closure)
        whole = problem.shared_or(None)
        theta = leaves(heard.tensors) if whole is None else whole
        vector = stack(heard.tensors)
        w = self.compute(heard.values, heard.tasks, None)
        g = gradients((w.to(vector.dtype) * vector).sum(), theta)
        heads = [leaf for leaf in leaves(heard.tensors) if leaf not in set(theta)]
        plain = gradients(vector.sum(), heads) if heads else ()
        problem.write_extra()

        steps = [self._step(p, torch.zeros_like(p) if q is None else q) for p, q in zip(theta, g)]
        with moved([*theta, *heads], [*(s for s, _ in steps), *self._head_steps(heads, plain)]):
            found = validate()
            primary = list(found) if self.primary is None else list(self.primary)
            missing = [task for task in primary if task not in found]
            if missing:
                raise BadInput(f"the validation losses lack {missing[0]!r}", where="closure", remedy="return every primary task")
            v = gradients(stack([found[task] for task in primary]).sum(), theta)
        # α may differ between parameters: fold it into the direction
        direction = [torch.zeros_like(p) if q is None else rate * q for p, q, (_, rate) in zip(theta, v, steps)]
        size = torch.stack([q.norm() for q in direction]).norm()
        eps = 0.01 / size.clamp_min(1e-12)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                with moved(theta, [sign * eps * q for q in direction]):
                    again = train()
                    values.append(stack([again[task] for task in heard.tasks]))
        slope = -(values[0] - values[1]) / (2 * eps)
        self.scalars.descend(heard.tasks, slope.to(heard.values.dtype))

        w = self.compute(heard.values, heard.tasks, None)
        final = gradients((w.to(vector.dtype) * vector).sum(), theta)
        accumulate({p: q for p, q in zip([*theta, *heads], [*final, *plain]) if q is not None}, problem.scale)
        return Decision(heard.present, heard.values, w, source="closure", why="one virtual step, judged on validation losses")

    def _step(self, p: Tensor, g: Tensor) -> tuple[Tensor, float]:
        """The virtual step of a parameter, and its learning rate."""
        if self.optimizer is None:
            assert self.lr is not None
            return -self.lr * g, self.lr
        for group in self.optimizer.param_groups:
            if any(p is q for q in group["params"]):
                buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
                m = 0.0 if buffer is None else buffer * group.get("momentum", 0.0)
                return -group["lr"] * (m + g + group.get("weight_decay", 0.0) * p.detach()), group["lr"]
        return torch.zeros_like(p), 0.0  # a parameter that the optimiser does not move

    def _head_steps(self, heads: Sequence[Tensor], plain: Sequence[Tensor | None]) -> list[Tensor]:
        return [self._step(p, torch.zeros_like(p) if g is None else g)[0] for p, g in zip(heads, plain)]


def _closures(closure: Any) -> tuple[Any, Any]:
    if isinstance(closure, Mapping) and {"train", "validation"} <= set(closure):
        return closure["train"], closure["validation"]
    raise BadInput(
        "AutoLambda needs two closures",
        where="closure",
        remedy='pass closure={"train": losses_of_this_batch, "validation": losses_of_a_validation_batch}',
    )
