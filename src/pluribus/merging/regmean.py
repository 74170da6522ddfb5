"""RegMean: every linear layer becomes the least-squares fit to the experts' outputs on their own inputs.

Jin, Ren, Preotiuc-Pietro, Cheng. "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023,
https://arxiv.org/abs/2212.09849.

    y = W x,  G_t = Σ x xᵀ over the inputs under expert t;   G̃ = α G + (1 − α) diag(G)
    W = (Σ_t w_t W_t G̃_t)(Σ_t w_t G̃_t)⁻¹;     biases, norms and embeddings are averaged

α = 1 minimises Σ_t ‖(W − W_t) X_t‖² exactly; 0.9 is the paper's usual value. A ridge of 1e-6 · tr/d is added where the sum is
singular. `input_grams` collects the G_t by hooks.

RegMean++ takes the inputs through the merged layers below (`progressive_grams`), one pass over the data for each linear layer:
Nguyen, Huu-Tien, Suzuki, Nguyen. "RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging",
TMLR 2026, https://arxiv.org/abs/2508.03121.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, unknown
from pluribus.merging.algebra import MergeStage, Method, Need, Span, fraction, mean


@dataclass(frozen=True)
class RegMean(MergeStage):
    grams: Mapping[str, Mapping[str, Tensor]]
    alpha: float
    needs: ClassVar[Need] = "tensor"

    def __call__(self, theta: Tensor, span: Span, seen: Any) -> Tensor:
        for task in span.tasks:
            if task not in self.grams:
                raise unknown("task", task, self.grams, where="grams")
        have = [span.name in self.grams[task] for task in span.tasks]
        if not any(have) or len(theta) == 1 or bool((theta[1:] == theta[0]).all()):
            return mean(theta, span.weights.tolist())
        left, right = torch.zeros(span.shape, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for t, task in enumerate(span.tasks):
            g = self.grams[task].get(span.name)
            if g is None or tuple(g.shape) != (span.shape[1], span.shape[1]):
                found = None if g is None else tuple(g.shape)
                what = f"the Gram matrix of {span.name!r} has the shape {found}, its inputs have {span.shape[1]} entries"
                raise BadInput(what, where=f"grams of task {task!r}", remedy="collect it with input_grams")
            g = g.double() * float(span.weights[t])
            g = self.alpha * g + (1 - self.alpha) * torch.diag(g.diagonal())
            left, right = left + theta[t].view(span.shape).double() @ g, right + g
        scale = float(right.trace()) / len(right)
        factor, info = torch.linalg.cholesky_ex(right)
        if int(info) or float(factor.diagonal().min()) ** 2 < 1e-12 * scale:
            factor = torch.linalg.cholesky(right + 1e-6 * max(scale, 1e-30) * torch.eye(len(right), dtype=right.dtype))
        return torch.cholesky_solve(left.T, factor).T.to(theta.dtype).reshape(-1)


def regmean(*, grams: Mapping[str, Mapping[str, Tensor]], alpha: float = 0.9) -> Method:
    """grams: by task, G [in, in] by the name of a linear layer's weight (see `input_grams`). alpha: α."""
    if not isinstance(grams, Mapping):
        raise BadInput(f"grams is {type(grams).__name__}", where="grams", remedy="give {task: {weight name: G}}")
    return Method(RegMean(grams, fraction("alpha", alpha)), space="weights", positive=True)


@torch.no_grad()
def progressive_grams(
    experts: Mapping[str, Mapping[str, Tensor]], model: nn.Module, batches: Mapping[str, Sequence[Any]], *, alpha: float = 0.9
) -> dict[str, dict[str, Tensor]]:
    """The G_t of RegMean++, by task, for `regmean` with the same `alpha`.

    experts: state dicts by task. model: of their architecture; it ends holding the merged weights (what is no linear layer's
    weight: the experts' mean; what they lack, its own). batches: by task, inputs that can be walked once for each layer.
    """
    tasks = tuple(experts)
    for task in tasks:
        if task not in batches:
            raise unknown("task", task, batches, where="batches")
    own = dict(model.state_dict())
    for name, tensor in own.items():
        theirs = [e[name] for e in experts.values() if name in e and e[name].shape == tensor.shape]
        if tensor.is_floating_point() and len(theirs) == len(tasks):
            tensor.copy_(torch.stack([t.to(tensor.dtype) for t in theirs]).mean(0))
    found: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    stage, weights = RegMean(found, fraction("alpha", alpha)), torch.ones(len(tasks), dtype=torch.float64)
    for name in input_grams(model, list(batches[tasks[0]])[:1]):  # in the order in which the layers run
        for task in tasks:
            found[task][name] = input_grams(model, batches[task], only=name)[name]
        if all(name in e for e in experts.values()):
            theta = torch.stack([e[name].float().reshape(-1) for e in experts.values()])
            span = Span(name, 0, theta.shape[1], tuple(own[name].shape), tasks, weights, 0)
            own[name].copy_(stage(theta, span, None).view_as(own[name]))
    return found


@torch.no_grad()
def input_grams(model: nn.Module, batches: Iterable[Any], *, only: str | None = None) -> dict[str, Tensor]:
    """G = Σ x xᵀ [in, in] (float64) of every `nn.Linear` by its weight's name, or of `only` one; batches: inputs (keywords for a
    mapping). In the order in which the layers first run."""
    found: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            found[name] = found[name].add_(x.T @ x) if name in found else x.T @ x

        return hook

    was = model.training
    model.eval()
    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and only in (None, f"{name}.weight" if name else "weight"):
                handles.append(module.register_forward_pre_hook(watch(f"{name}.weight" if name else "weight")))
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was)
    return found
