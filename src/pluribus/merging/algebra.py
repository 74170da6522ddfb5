"""The algebra of merging: transforms of the task vectors → consensus → scale → finish.

    τ_t = θ_t − θ0;     τ̂ = transform_k(… transform_1(τ));     τ_M = combine(τ̂) [n];     θ = θ0 + scale · τ_M

A `Method` is a few stages. A `MergeStage` is called on task vectors [T, n] of a stretch of one tensor and declares what it needs:

    "elementwise"  entry by entry: any stretch will do
    "rows"         whole rows of the tensor (its last dimension)
    "statistic"    `observe` walks the tensor once or more beforehand; its finding is handed to every call
    "tensor"       the whole tensor at once
    "all"          `survey` walks all tensors beforehand
The engine (`stream`) picks chunked, row-wise, two-pass or whole-tensor execution from the declarations.

Conventions (they hold for every method): sums in float32, in float64 where an input is; sign(0) = 0, a zero never votes; the
density ρ keeps exactly max(1, round(ρ n)) of n entries (none for ρ = 0), ties in magnitude go to the lower flat index; sums
over a tensor are taken in float64 over fixed blocks, so that no result depends on chunks or threads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown

Need = Literal["elementwise", "rows", "statistic", "tensor", "all"]
BLOCK = 1 << 15  # below torch's own threshold for splitting a reduction over threads


@dataclass(frozen=True)
class Span:
    """Entries start to stop of tensor `name` (its flat order), and what holds for the whole merge."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    tasks: tuple[str, ...]
    weights: Tensor  # [T]
    seed: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Length of a row: the last dimension (the whole of a tensor with at most one dimension)."""
        return self.shape[-1] if len(self.shape) > 1 else self.numel


class View(Protocol):
    """One tensor as an observer sees it: `chunks` starts a new pass. The tensors it gives must not be changed or kept."""

    name: str
    shape: tuple[int, ...]

    def chunks(self) -> Iterator[tuple[Span, Tensor]]: ...


class MergeStage:
    """A transform ([T, n] → [T, n], in place where it likes) or, last in a method, the consensus ([T, n] → [n])."""

    needs: ClassVar[Need] = "elementwise"

    @property
    def need(self) -> Need:
        """What this instance needs; by default what its class declares."""
        return self.needs

    def observe(self, view: View) -> Any:
        """For "statistic": what later calls on this tensor are told."""
        return None

    def survey(self, views: Sequence[View]) -> Any:
        """For "all": what every later call is told."""
        return None

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    """A merge: stages and how their result is finished.

    combine: the last stage. transforms: those before it. scale: θ = θ0 + scale · τ_M.
    space: "task_vectors", or "weights" (the stages see θ_t and the consensus gives θ; no base is read).
    experts: the least and the most experts it takes. positive: whether weights must be above 0; weighted: whether it has any.
    task: the expert whose own model is asked for, where the method gives one per task.
    """

    combine: MergeStage
    transforms: tuple[MergeStage, ...] = ()
    scale: float = 1.0
    space: Literal["task_vectors", "weights"] = "task_vectors"
    experts: tuple[int, int] = (1, 1 << 30)
    weighted: bool = True
    positive: bool = False
    task: str | None = None
    stages: tuple[MergeStage, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", (*self.transforms, self.combine))
        if not math.isfinite(self.scale):
            raise BadInput(f"scale is {self.scale}", where="scale", remedy="use a finite number")


# What parameters may be ----------------------------------------------------------------------------------------------------


def fraction(name: str, value: float, *, low: float = 0.0, high: float = 1.0) -> float:
    """`value` if it lies in [low, high], else an error naming the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadInput(f"{name} is {value!r}", where=name, remedy=f"use a number from {low:g} to {high:g}")
    return float(value)


def one_of(name: str, value: str, options: Sequence[str]) -> str:
    """`value` if it is among `options`, else an error with the nearest."""
    if value not in options:
        raise unknown(name, str(value), options, where=name)
    return value


def keep_count(density: float, n: int) -> int:
    """How many of n entries a density keeps: max(1, round(ρ n)), none for ρ = 0, all for ρ = 1."""
    return 0 if density == 0 or n == 0 else min(n, max(1, round(density * n)))


# Randomness that depends on nothing but seed, tensor, task and position -----------------------------------------------------

RANDOM_BLOCK = 1 << 16


def random_bits(span: Span, task: str, *, salt: str = "") -> Iterator[tuple[int, int, Tensor]]:
    """Uniform 32-bit integers (int32, all values equally likely) for the entries of `span`: (from, to, bits) within the span.

    A generator is seeded for each block of 65536 entries from (seed, tensor name, task name, block): the same entry gets the
    same bits whatever the chunks, the order or the number of the other experts. The tensor is reused from block to block.
    """
    generator = torch.Generator()
    # 64 bits at a time is the fastest that the Mersenne twister of torch fills
    buffer = torch.empty(RANDOM_BLOCK // 2, dtype=torch.int64)
    for block in range(span.start // RANDOM_BLOCK, -(-span.stop // RANDOM_BLOCK)):
        key = f"{span.seed}\0{span.name}\0{task}\0{block}\0{salt}".encode()
        generator.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True))
        first = block * RANDOM_BLOCK
        size = min(RANDOM_BLOCK, span.numel - first)
        bits = buffer[: (size + 1) // 2].random_(-(2**63), None, generator=generator).view(torch.int32)[:size]
        low, high = max(first, span.start), min(first + size, span.stop)
        yield low - span.start, high - span.start, bits[low - first : high - first]


# Statistics of a tensor -----------------------------------------------------------------------------------------------------


def total(view: View, of: Callable[[Tensor, Span], Tensor]) -> Tensor:
    """Σ over fixed blocks of `of(tau [T, b], span of the block)`, added in float64 in order of the blocks."""
    found: Tensor | None = None
    for span, tau in view.chunks():
        for start in range(0, max(1, tau.shape[1]), BLOCK):
            stop = min(start + BLOCK, tau.shape[1])
            part = Span(span.name, span.start + start, span.start + stop, span.shape, span.tasks, span.weights, span.seed)
            value = of(tau[:, start:stop], part).double()
            found = value if found is None else found.add_(value)
    assert found is not None
    return found


def gram(view: View) -> Tensor:
    """The inner products <τ_s, τ_t> [T, T] of a tensor, in float64."""

    def products(tau: Tensor, span: Span) -> Tensor:
        wide = tau.double()
        return wide @ wide.T

    return total(view, products)


def norms(view: View) -> Tensor:
    """‖τ_t‖ [T] of a tensor, in float64."""
    return total(view, lambda tau, span: tau.double().square().sum(1)).sqrt_()


# Combinations that several methods share -------------------------------------------------------------------------------------


class WeightedSum(MergeStage):
    """τ_M = Σ_t w_t τ_t."""

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return weighted_sum(tau, span.weights.tolist())


class Mean(MergeStage):
    """τ_M = Σ_t w_t τ_t / Σ_t w_t, as a running mean: equal inputs give their own bits."""

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        return mean(tau, span.weights.tolist())


def weighted_sum(tau: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_t w_t τ_t [n]. Changes tau[0]."""
    found = tau[0].mul_(weights[0])
    for t in range(1, len(tau)):
        found.add_(tau[t], alpha=weights[t])
    return found


def mean(tau: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_t w_t τ_t / Σ_t w_t [n] for weights ≥ 0, not all 0. Changes tau[0]."""
    found, sum_ = tau[0], weights[0]
    for t in range(1, len(tau)):
        if weights[t]:
            sum_ += weights[t]
            found.lerp_(tau[t], weights[t] / sum_)
    return found


def affine(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Σ_i c_i x_i [n], written as (Σ c) x_0 + Σ c_i (x_i − x_0): equal inputs with Σ c = 1 give their own bits. Changes x."""
    whole = math.fsum(coefficients)
    first = x[0]
    moves = [(x[i].sub_(first), coefficients[i]) for i in range(1, len(x)) if coefficients[i]]
    found = first if abs(whole - 1) < 1e-12 else first.mul_(whole)
    for move, c in moves:
        found.add_(move, alpha=c)
    return found


class DisjointMean(MergeStage):
    """Steps 2 and 3 of TIES: γ = sign(Σ_t w_t τ_t); τ_M = Σ_{sign τ_t = γ} w_t τ_t / Σ_{sign τ_t = γ} w_t, 0 where none does."""

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        weights = span.weights.tolist()
        elected = tau[0] * weights[0]
        for t in range(1, len(tau)):
            elected.add_(tau[t], alpha=weights[t])
        elected.sign_()
        tau.mul_(elected).clamp_(min=0)  # what agrees is positive now
        mass = (tau[0] > 0).to(tau.dtype).mul_(weights[0])
        for t in range(1, len(tau)):
            mass.add_(tau[t] > 0, alpha=weights[t])
        found = weighted_sum(tau, weights)
        # where nothing agrees the numerator is 0 and any divisor will do
        return found.div_(mass.masked_fill_(mass == 0, 1)).mul_(elected)
