"""Concrete subspace learning: one shared soft mask over all parameters, learned without labels, under which merging hurts less.

Tang, Shen, Luo, Ding, Hu, Du, Tao. "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion", 2023,
https://arxiv.org/abs/2312.06173.

    m = sigmoid( (x + log u − log(1 − u)) / temperature ),  u ~ U(0, 1),  x = 0 at the start, temperature 0.5
    m ← m / mean(m) in every tensor;   τ'_t = m ⊙ τ_t
    Concrete TA           θ = θ0 + 0.3 Σ_t τ'_t;  min_x Σ_t H_t, Adam, lr 1e-3
    Concrete AdaMerging   each step: λ ← λ_init; m sampled; λ ← λ − step of ∇_λ H on one batch with m fixed;
                          x ← x − Adam(∇_x H) on new batches at that λ (its dependence on x is ignored);
                          then the mask is fixed and AdaMerging learns λ from λ_init

Both gradients are contractions of one ∂L/∂θ: ∂L/∂m[l] = ∂L/∂θ[l] ⊙ Σ_t λ_t[l] τ_t[l], ∂L/∂λ_t[l] = < ∂L/∂θ[l], m[l] ⊙ τ_t[l] >.
Held: the model, its gradient, x and Adam's two moments, a tensor's chunk of the vectors.

Paper and public code
1. The code merges before it resets λ, so the inner step's graph is the last step's; here λ is reset first.
2. The code's inner step is Adam with lr 1, whose first step is ±1 for every λ whatever its gradient; here it is `inner_lr` times
   the gradient divided by its largest entry, so no λ moves by more than `inner_lr` (0.1).
3. The code's final mask is a random sample; here E[m] = sigmoid(x) by default, or a seeded sample (`final="sample"`, `"binary"`).
4. A mask whose mean is 0 (a binary sample of a tiny tensor) leaves the tensor at the base instead of dividing by 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, unknown
from pluribus.merging.coefficients import (
    Batches,
    Coefficients,
    Forward,
    Learned,
    Objective,
    TaskVectors,
    accumulate,
    cycle,
    fit,
    forward_with,
    objective_of,
    seed_of,
    targets,
    workspace,
)
from pluribus.merging.source import is_statistic

FINALS = ("expected", "sample", "binary")


def relaxed(x: Tensor, u: Tensor, temperature: float = 0.5) -> Tensor:
    """The Gumbel-sigmoid of logits x with uniform noise u."""
    return ((x + u.log() - (-u).log1p()) / temperature).sigmoid()


def rescaled(m: Tensor) -> Tensor:
    """m / mean(m): the expected size of a masked task vector is kept. A mask of zeros stays zero."""
    mean = m.mean()
    return torch.where(mean > 0, m / mean.clamp(min=torch.finfo(m.dtype).tiny), m)


class Masked(TaskVectors):
    """m ⊙ τ_t with one mask for all experts, by tensor name; a name without a mask is left whole."""

    def __init__(self, base: Any, experts: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(base, experts, **settings)
        self.masks: dict[str, Tensor] = {}

    def compute(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        tau = super().compute(name, start, stop, dtype)
        mask = self.masks.get(name)
        return tau if mask is None else tau.mul_(mask.reshape(-1)[start:stop].to(dtype))


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    tiny = torch.finfo(torch.float32).eps
    return torch.rand(shape, generator=generator).clamp(tiny, 1 - tiny)


def learn_mask(
    vectors: TaskVectors,
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    adapt: bool,
    granularity: str = "tensor",
    init: float = 0.3,
    temperature: float = 0.5,
    steps: int = 2000,
    lr: float = 1e-3,
    inner_lr: float = 0.1,
    seed: int = 0,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The mask logits x by tensor name, and the losses of every step.

    adapt: False for Concrete TA (λ stays `init`), True for the bi-level form of Concrete AdaMerging.
    """
    coefficients = Coefficients(vectors, granularity=granularity, init=init, clamp=None)
    coefficients.tie(model)
    start = coefficients().detach()
    places = {n: p for n, p in targets(model, vectors).items() if not is_statistic(n)}
    x = {n: torch.zeros(vectors.shape(n), requires_grad=True) for n in places}
    optimiser = torch.optim.Adam(x.values(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    stream, history = cycle(batches), []

    def summed(name: str, lam: Tensor) -> Tensor:
        """Σ_t λ_t[name] τ_t[name], in the tensor's shape."""
        mine = lam[:, coefficients.block_of[name], 0].to(vectors.dtype)
        parts = [mine @ vectors.chunk(name, *span) for span in vectors.spans(name)]
        return torch.cat(parts).view(vectors.shape(name))

    def write(lam: Tensor, masks: Mapping[str, Tensor]) -> None:
        for name, place in places.items():
            origin = torch.cat([vectors.origin(name, *span) for span in vectors.spans(name)])
            place.data.copy_(origin.view_as(place) + masks[name].detach() * summed(name, lam))

    with workspace(model, vectors) as parameters:
        coefficients.write(model)  # the running statistics
        for _ in range(steps):
            masks = {n: rescaled(relaxed(v, _uniform(v.shape, generator), temperature)) for n, v in x.items()}
            lam = start
            if adapt:
                write(lam, masks)
                accumulate(model, parameters, objective, {t: next(b) for t, b in stream.items()})
                fixed = {n: None if p.grad is None else p.grad * masks[n].detach() for n, p in parameters.items()}
                slope = coefficients.contract(fixed)
                lam = start - inner_lr * slope / slope.abs().max().clamp(min=torch.finfo(slope.dtype).tiny)
            write(lam, masks)
            history.append(accumulate(model, parameters, objective, {t: next(b) for t, b in stream.items()}))
            optimiser.zero_grad()
            for name, p in parameters.items():
                if p.grad is not None:
                    masks[name].backward(p.grad.to(masks[name].dtype) * summed(name, lam).to(masks[name].dtype))  # type: ignore[no-untyped-call]
            optimiser.step()
    return {n: v.detach() for n, v in x.items()}, history


def final_mask(x: Mapping[str, Tensor], final: str = "expected", *, temperature: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    """The mask that is served, rescaled: E[m] of the hard mask, a seeded continuous sample, or a seeded binary one."""
    if final not in FINALS:
        raise unknown("final mask", final, FINALS)
    found = {}
    for name, logits in x.items():
        generator = torch.Generator().manual_seed(seed_of(seed, name))
        u = _uniform(logits.shape, generator)
        if final == "sample":
            found[name] = rescaled(relaxed(logits, u, temperature))
        else:
            p = logits.sigmoid()
            found[name] = rescaled(p if final == "expected" else (u < p).to(p.dtype))
    return found


def concrete(
    base: Any,
    experts: Mapping[str, Any],
    model: nn.Module,
    batches: Batches,
    *,
    form: str = "adamerging",
    granularity: str = "tensor",
    objective: str | Objective = "entropy",
    heads: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    forward: Forward | None = None,
    keep: Sequence[str] = (),
    init: float = 0.3,
    temperature: float = 0.5,
    mask_steps: int | None = None,
    steps: int = 1000,
    lr: float = 1e-3,
    inner_lr: float = 0.1,
    final: str = "expected",
    seed: int = 0,
) -> Learned:
    """Learn one mask for all experts on unlabelled inputs, then merge: both forms of the paper.

    form: "task_arithmetic" (θ = θ0 + init·Σ m ⊙ τ_t) or "adamerging" (bi-level mask, then λ learned under it).
    mask_steps: default 2000 for task arithmetic, 1000 for AdaMerging. steps: of the final AdaMerging. lr: of x and of λ.
    final: "expected", "sample" or "binary". Other arguments as in `adamerging`.
    """
    if form not in ("task_arithmetic", "adamerging"):
        raise unknown("form", form, ("task_arithmetic", "adamerging"))
    if temperature <= 0:
        raise BadInput(f"temperature is {temperature}", where="temperature", remedy="use a positive number")
    adapt = form == "adamerging"
    goal = objective_of(objective, forward or forward_with(heads))
    vectors = TaskVectors(base, experts, heads=keep)
    x, history = learn_mask(
        vectors,
        model,
        goal,
        batches,
        adapt=adapt,
        granularity=granularity,
        init=init,
        temperature=temperature,
        steps=mask_steps if mask_steps is not None else 1000 if adapt else 2000,
        lr=lr,
        inner_lr=inner_lr,
        seed=seed,
    )
    masked = Masked(base, experts, heads=keep)
    masked.masks = final_mask(x, final, temperature=temperature, seed=seed)
    coefficients = Coefficients(masked, granularity=granularity, init=init, clamp=(0.0, 1.0) if adapt else None)
    learned = fit(coefficients, model, goal, batches, steps=steps if adapt else 0, optimiser=lambda p: torch.optim.Adam(p, lr=lr))
    learned.losses = history + learned.losses
    learned.masks = masked.masks
    return learned
