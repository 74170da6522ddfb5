"""Fisher merging: every entry is weighted by how sharply its own model's predictions depend on it.

Matena, Raffel. "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, https://arxiv.org/abs/2111.09832.

    θ = Σ_t w_t F_t ⊙ θ_t / Σ_t w_t F_t;     F_t = E_x E_{y ~ p_t(y|x)} (∂ log p_t(y|x) / ∂θ)², floored at 1e-6

`diagonal_fisher` takes the squares example by example (the square of a batch's mean gradient is another thing) and the
expectation over y exactly, by a sum over the classes; with `observed=True` it takes the labels' own gradient (the "empirical"
Fisher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, unknown
from pluribus.merging.algebra import MergeStage, Method, Span
from pluribus.merging.source import Source, open_source


@dataclass(frozen=True)
class FisherMean(MergeStage):
    fishers: Mapping[str, Source]
    floor: float

    def __call__(self, theta: Tensor, span: Span, seen: Any) -> Tensor:
        found: Tensor = theta[0]
        mass = torch.zeros_like(found)
        for t, task in enumerate(span.tasks):
            source = self.fishers.get(task)
            if source is None:
                raise unknown("task", task, self.fishers, where="fishers")
            if span.name in source.names():
                f = source.read(span.name, span.start, span.stop).to(theta.dtype).clamp(min=self.floor)
            else:
                f = torch.full_like(found, self.floor)  # a buffer, which no gradient reaches
            f = f * float(span.weights[t])
            mass = mass + f
            if t:
                found.lerp_(theta[t], f / mass)
        return found


def fisher(*, fishers: Mapping[str, Any], floor: float = 1e-6) -> Method:
    """fishers: by task, the diagonal Fisher information by tensor name (a state dict or safetensors). floor: its least value."""
    if not isinstance(fishers, Mapping):
        raise BadInput(f"fishers is {type(fishers).__name__}", where="fishers", remedy="give {task: {tensor name: F}}")
    sources = {task: open_source(given) for task, given in fishers.items()}
    return Method(FisherMean(sources, floor), space="weights", positive=True)


def diagonal_fisher(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Tensor] | None = None, observed: bool = False
) -> dict[str, Tensor]:
    """F by parameter name, the mean over all examples.

    batches: inputs [B, …], or pairs (inputs, labels [B]) where `observed`. forward: (model, inputs) → logits [B, C].
    """
    run = forward or (lambda m, x: m(x))
    was = model.training
    model.eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    buffers = {n: b.detach() for n, b in model.named_buffers()}
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    count = 0

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return run(self.inner, x)

    call = Call()

    def log_p(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        named = {f"inner.{n}": v for n, v in {**weights, **buffers}.items()}
        logits = torch.func.functional_call(call, named, (x[None],))
        return torch.log_softmax(logits, -1)[0].gather(0, y[None])[0]

    per_example = torch.func.vmap(torch.func.grad(log_p), in_dims=(None, 0, 0))
    try:
        for batch in batches:
            x, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
            with torch.no_grad():
                p = torch.softmax(run(model, x), -1)
            if observed and labels is None:
                raise BadInput("the batch has no labels", where="batches", remedy="give (inputs, labels) pairs")
            choices = [(labels, None)] if observed else [(torch.full((len(x),), c), p[:, c]) for c in range(p.shape[1])]
            for y, share in choices:
                for n, g in per_example(parameters, x, y).items():
                    squares = g.detach().double().square()
                    total[n] += (squares if share is None else squares * share.view(-1, *[1] * (g.dim() - 1))).sum(0)
            count += len(x)
    finally:
        model.train(was)
    if not count:
        raise BadInput("there are no examples", where="batches", remedy="give at least one batch")
    return {n: (f / count).to(parameters[n].dtype) for n, f in total.items()}
