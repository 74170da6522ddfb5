"""F-MTL: seek regions that are flat for every task, around any balancer.

Source: Phan et al. (2022/2025), Improving Multi-task Learning via Seeking Task-based Flat Regions (Beyond Losses Reweighting,
ICCV 2025), algorithm 1. For each task t, with radii ρ_sh, ρ_ns:

    a_t = ∇_θ ℓ_t(θ, φ_t),  b_t = ∇_φt ℓ_t(θ, φ_t)                       plain gradients
    ε_t = ρ_sh a_t/‖a_t‖,   δ_t = ρ_ns b_t/‖b_t‖                         constants
    s_t = ∇_θ ℓ_t(θ+ε_t, φ_t+δ_t),  u_t = ∇_φt ℓ_t(θ+ε_t, φ_t+δ_t),  f_t = s_t − a_t
    d   = Agg(a_1 … a_T) + Agg(f_1 … f_T),  θ ← θ − η d,  φ_t ← φ_t − η u_t

Two instances of the balancer keep the state of the two calls apart. T extra passes forward and back.

Relatives: ``how="common"`` perturbs once, along the mean gradient (one extra forward, T gradients at that point);
``how="samo"`` is SAMO (Ban et al., ICCV 2025): ε_t along (1−β) g₀ + β ĝ_t with the mean gradient g₀ and ĝ_t a zeroth-order
estimate, brought to g₀'s norm parameter by parameter, and d = Agg(s_1 … s_T), not split.

Where they differ: no code of F-MTL was found; 1e-12 is added to norms; batch statistics do not move in perturbed passes
(where `shared`, or ``model=``, is a module). SAMO's code draws a direction a task, 2T passes; here one direction serves
all tasks, two passes forward, as the paper counts; its ``1 - beta`` is the paper's α.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pluribus.balancing import gram as engine
from pluribus.balancing.balancer import Balancer, check_between
from pluribus.balancing.decision import Decision
from pluribus.balancing.graph import gradients, leaves
from pluribus.balancing.heads import through_heads
from pluribus.balancing.hearing import Heard, stack
from pluribus.balancing.layers import gram_of, real
from pluribus.balancing.problem import Problem
from pluribus.balancing.state import generator
from pluribus.errors import BadInput, unknown

Blocks = list[Tensor]  # a Jacobian [T, *leaf] a shared leaf


class FlatRegions(Balancer):
    """F-X around the balancer X: ``backward(losses, FlatRegions(CAGrad()), shared=encoder, closure=losses_again)``.

    rho: radius in the shared part (default 0.05, the usual value of SAM; the paper calls it insensitive).
    rho_heads: radius in the heads (default: rho). how: "per-task" (the paper), "common" or "samo".
    beta, mu, seed: of SAMO: the share of the task's own part (0.1), the step of its estimate (0.01), its generator's seed.
    model: modules whose batch statistics rest in perturbed passes, beside `shared` where that is a module.

    The closure evaluates the losses of the same batch at the parameters as they are; under several processes each its own rows
    (call the plain model in it, not DistributedDataParallel's), and every step is the union batch's.
    """

    doors: ClassVar[tuple[str, ...]] = ("backward",)
    mutable: ClassVar[tuple[str, ...]] = ("inner", "flat", "generator")

    def __init__(
        self,
        inner: Balancer,
        rho: float = 0.05,
        rho_heads: float | None = None,
        *,
        how: Literal["per-task", "common", "samo"] = "per-task",
        beta: float = 0.1,
        mu: float = 0.01,
        seed: int = 0,
        model: nn.Module | None = None,
    ) -> None:
        if how not in ("per-task", "common", "samo"):
            raise unknown("way", how, ("per-task", "common", "samo"), where="FlatRegions")
        if inner.batches > 1 or "closure" in inner.needs:
            raise BadInput(
                f"{type(inner).__name__} needs more than gradients of one batch",
                where="FlatRegions",
                remedy="wrap a balancer of losses, norms, Gram or Jacobian",
            )
        self.rho, self.rho_heads = rho, rho if rho_heads is None else rho_heads
        check_between(self, 0, float("inf"), rho=self.rho, rho_heads=self.rho_heads, mu=mu)
        check_between(self, 0, 1, beta=beta)
        self.inner, self.flat = inner, copy.deepcopy(inner)
        self.how, self.beta, self.mu, self.seed, self.model = how, beta, mu, seed, model
        vars(self)["needs"] = inner.needs | {"closure"}
        self.generator = generator(seed)

    def reset(self) -> None:
        self.inner.reset()
        self.flat.reset()
        self.generator = generator(self.seed)

    @property
    def wants_after_step(self) -> bool:
        return self.inner.wants_after_step

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        self.inner.after_step(losses)
        self.flat.after_step(losses)

    def epoch_end(self) -> None:
        self.inner.epoch_end()
        self.flat.epoch_end()

    def __repr__(self) -> str:
        return f"FlatRegions({self.inner!r}, rho={self.rho}, rho_heads={self.rho_heads}, how={self.how!r})"

    def through_closure(self, problem: Problem) -> Decision:
        """One step of `backward`."""
        heard, shared = problem.heard, problem.shared
        top = _top(problem)
        top.find(shared, problem.names)
        a = _union(heard, engine.pull(top.outputs, top.rows, shared) if heard.tensors else [], shared)
        own = set(shared)
        heads = [[leaf for leaf in leaves([loss]) if leaf not in own] for loss in heard.tensors]
        b = [gradients(loss, phi) if phi else () for loss, phi in zip(heard.tensors, heads)]
        problem.write_extra()
        delta = [_ball(g, self.rho_heads) for g in _united(heard, heads, b)]
        eps = self._perturbations(a, problem)
        s, u = self._perturbed(problem, eps, heads, delta)
        step = Decision(heard.present, heard.values, source="full", why=f"plain and flat gradients, {self.how}")
        if self.how == "samo":
            d, step.weights, step.gram = _aggregate(self.inner, s, problem)
        else:
            d, step.weights, step.gram = _aggregate(self.inner, a, problem)
            f, _, _ = _aggregate(self.flat, [t - p for t, p in zip(s, a)], problem)
            d = [p + q for p, q in zip(d, f)]
        once = 1 / (heard.team.size * heard.team.share)  # every rank writes the same d: together they must give it once
        written: dict[Tensor, Tensor] = dict(zip(shared, d if once == 1 else [once * p for p in d]))
        for phi, found in zip(heads, u):
            for leaf, g in zip(phi, found):
                if g is not None:
                    written[leaf] = written[leaf] + g if leaf in written else g
        problem.write(written)
        return step

    def _perturbations(self, a: Blocks, problem: Problem) -> list[list[Tensor]]:
        """ε of each perturbed point, a tensor a shared leaf; one point where the perturbation is common."""
        T = a[0].shape[0]
        if self.how == "per-task":
            return [_ball([block[t] for block in a], self.rho) for t in range(T)]
        mean = [block.mean(0) for block in a]
        if self.how == "common":
            return [_ball(mean, self.rho)]
        z = [torch.randn(g.shape, generator=self.generator).to(g) for g in mean]
        slopes = self._slopes(z, problem)
        points = []
        for slope in slopes:
            estimate = [slope * direction for direction in z]
            mixed = [(1 - self.beta) * g + self.beta * g.norm() * e / (e.norm() + 1e-12) for g, e in zip(mean, estimate)]
            points.append(_ball(mixed, self.rho))
        return points

    @torch.no_grad()
    def _slopes(self, z: Sequence[Tensor], problem: Problem) -> Tensor:
        """(ℓ_t(θ+μz) − ℓ_t(θ−μz))/2μ of all tasks [T], from two passes forward."""
        values = []
        for sign in (1, -1):
            with moved(problem.shared, [sign * self.mu * direction for direction in z]), self._resting(problem):
                again = list(problem.losses_again().values())
                values.append(_union_losses(problem.heard, again))
        return (values[0] - values[1]) / (2 * self.mu)

    def _perturbed(
        self, problem: Problem, eps: list[list[Tensor]], heads: list[list[Tensor]], delta: list[list[Tensor]]
    ) -> tuple[Blocks, list[Sequence[Tensor | None]]]:
        """s_t (as blocks of the union's tasks) and this process's u_t at the perturbed points."""
        shared, heard = problem.shared, problem.heard
        if len(eps) == 1 and len(heard.present) > 1 and self.how == "common":
            everything = {leaf: move for phi, moves in zip(heads, delta) for leaf, move in zip(phi, moves)}
            with moved([*shared, *everything], [*eps[0], *everything.values()]), self._resting(problem):
                again = list(problem.losses_again().values())
                top = engine.Top.of_losses(heard.tasks, again)
                s = engine.pull(top.outputs, top.rows, shared) if again else []
                common = [gradients(loss, phi) if phi else () for loss, phi in zip(again, heads)]
            return _union(heard, s, shared), list(common)
        rows: list[list[Tensor]] = []
        u: list[Sequence[Tensor | None]] = []
        for t, task in enumerate(heard.tasks):
            at = eps[heard.present.index(task)]
            with moved([*shared, *heads[t]], [*at, *delta[t]]), self._resting(problem):
                loss = problem.losses_again()[task]
                found = torch.autograd.grad(loss, [*shared, *heads[t]], allow_unused=True)
            rows.append([torch.zeros_like(leaf) if g is None else g for leaf, g in zip(shared, found)])
            u.append(found[len(shared) :])
        return _union(heard, [torch.stack(column) for column in zip(*rows)], shared), u

    @contextmanager
    def _resting(self, problem: Problem) -> Iterator[None]:
        """Batch statistics do not move inside."""
        modules = [m for root in (self.model, problem.module) if root is not None for m in root.modules()]
        norms = {m: None for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats}
        before = [(m, m.momentum, m.num_batches_tracked.clone() if m.num_batches_tracked is not None else None) for m in norms]
        for m in norms:
            m.momentum = 0.0
        try:
            yield
        finally:
            for m, momentum, count in before:
                m.momentum = momentum
                if count is not None and m.num_batches_tracked is not None:
                    m.num_batches_tracked.copy_(count)


def _top(problem: Problem) -> engine.Top:
    heard, z = problem.heard, problem.features
    if not z:
        return engine.Top.of_losses(heard.tasks, heard.tensors)
    passes = through_heads(heard.tasks, heard.tensors, z)
    return engine.Top(heard.tasks, list(z), passes.rows, passes.reach)


def _union(heard: Heard, blocks: Blocks, shared: Sequence[Tensor]) -> Blocks:
    """The Jacobian of the union batch from this process's blocks (none where it has no loss)."""
    if heard.index is None:
        return blocks
    found = []
    for i, leaf in enumerate(shared):
        wide = torch.zeros(len(heard.present), *leaf.shape, dtype=leaf.dtype, device=leaf.device)
        if blocks:
            wide[heard.index] = blocks[i].to(leaf.dtype)
        found.append(heard.team.sum(wide) * heard.team.share)
    return found


def _union_losses(heard: Heard, losses: Sequence[Tensor]) -> Tensor:
    """The union batch's losses [T]."""
    if heard.index is None:
        return stack(losses)
    values = heard.values.new_zeros(len(heard.present))
    if losses:
        values[heard.index] = stack(losses).detach().to(values.dtype)
    return heard.team.sum(values) * heard.team.share


def _united(
    heard: Heard, heads: Sequence[Sequence[Tensor]], plain: Sequence[Sequence[Tensor | None]]
) -> list[list[Tensor | None]]:
    """The heads' plain gradients of the union batch, for the tasks of this process. A process that lacks a task does not know
    its head: it is told how long the gradient is and adds zeros."""
    mine = [[torch.zeros_like(p) if g is None else g for p, g in zip(phi, each)] for phi, each in zip(heads, plain)]
    if heard.index is None:
        return [list(each) for each in plain]
    sizes = dict(zip(heard.tasks, (sum(g.numel() for g in each) for each in mine)))
    known = heard.team.gather(sizes)
    lengths = {task: {ranks[task] for ranks in known if task in ranks} for task in heard.present}
    for task, each in lengths.items():
        if len(each) != 1:
            raise BadInput("its head has other parameters on another process", where=f"task {task!r}")
    found: dict[str, Tensor] = {}
    for task in heard.present:
        flat = heard.values.new_zeros(next(iter(lengths[task])))
        if task in sizes and len(flat):
            flat = torch.cat([g.reshape(-1).to(flat.dtype) for g in mine[heard.tasks.index(task)]])
        found[task] = heard.team.sum(flat) * heard.team.share
    united: list[list[Tensor | None]] = []
    for task, own in zip(heard.tasks, mine):
        parts = torch.split(found[task], [g.numel() for g in own]) if own else ()
        united.append([part.view_as(g).to(g.dtype) for part, g in zip(parts, own)])
    return united


def _ball(g: Sequence[Tensor | None], rho: float) -> list[Tensor]:
    """ρ g/‖g‖ with the norm over all parts; a missing part does not move."""
    size = torch.stack([real(part).norm() for part in g if part is not None]).norm() if any(x is not None for x in g) else 1
    return [torch.zeros(()) if part is None else part * (rho / (size + 1e-12)) for part in g]


@contextmanager
def moved(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> Iterator[None]:
    """The parameters moved by so much inside, and exactly what they were afterwards.

    Through ``.data``: graphs recorded before stay valid, since the values come back bit for bit.
    """
    kept = [p.data.clone() for p in parameters]
    try:
        for p, move in zip(parameters, moves):
            p.data.add_(move.to(device=p.device, dtype=p.dtype))
        yield
    finally:
        for p, old in zip(parameters, kept):
            p.data.copy_(old)


def _aggregate(balancer: Balancer, blocks: Blocks, problem: Problem) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Agg of a Jacobian in blocks: d a shared leaf, the weights (if it gives any) and the Gram."""
    heard, G = problem.heard, gram_of(blocks)
    if balancer.signal == "jacobian":
        flat = torch.cat([block.flatten(1) for block in blocks], 1)
        d = balancer.direction(flat, tasks=heard.present, losses=heard.values)
        parts = torch.split(d, [leaf.numel() for leaf in problem.shared])
        return [part.view_as(leaf) for part, leaf in zip(parts, problem.shared)], None, G
    signals: dict[str, Any] = {"losses": heard.values, "norms": G.diagonal().clone(), "gram": G}
    w = balancer.weights(signals[balancer.signal], tasks=heard.present, losses=heard.values)
    return [torch.tensordot(w.to(block.dtype), block, 1) for block in blocks], w, G
