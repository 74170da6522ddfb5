"""Twin-Merging: shared knowledge in one merged model, exclusive knowledge in compressed parts, mixed by a router for each input.

Lu, Fan, Wei, Qu, Chen, Cheng. "Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging", NeurIPS 2024,
https://arxiv.org/abs/2406.15479.

    θ* = θ0 + α Σ_t τ_t                     (α = 0.3; any merged weights may take its place)
    v_t = C_r(θ_t − θ*)                     (minus θ*, not minus θ0), rank-r truncated SVD of every matrix
    w(x) = softmax(router(h(x))),  h(x) = features of θ*;      θ(x) = θ* + Σ_t w_t(x) v_t

Paper and public code
1. The code serves one example at a time with a full set of weights; here the batch goes through in factored form (`Served`).
2. The code's discriminative road prunes by magnitude in place of the SVD; here the SVD of the paper. Kernels are factored as
   [out, in·kh·kw]; vectors (biases, norms), and matrices that r would not shrink, are kept whole.
3. In evaluation the code takes the classifier of the true data set; here a row's head follows the router unless its task is
   named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.merging.coefficients import Coefficients, TaskVectors
from pluribus.merging.container import MergeContainer
from pluribus.merging.router import train_router
from pluribus.merging.source import open_source


def twin(
    base: Any,
    experts: Mapping[str, Any],
    *,
    rank: int | None = 16,
    energy: float | None = None,
    alpha: float = 0.3,
    shared: Any = None,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    keep: Sequence[str] = (),
    model: nn.Module | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    features: Callable[[nn.Module, Any], Tensor] | None = None,
    epochs: int = 50,
    seed: int = 0,
) -> MergeContainer:
    """A container with θ*, a part of rank `rank` for each expert, and a router.

    base, experts: state dicts, modules or safetensors folders; experts by task name.
    rank: of the exclusive parts (None: all of it); or `energy`, the fraction of ‖·‖² each matrix keeps.
    alpha: of the task arithmetic that gives θ*; or `shared`, other merged weights.
    heads: by task, tensors served with it. keep: name patterns that are not merged; an expert's tensors of these names, and those
    the base lacks, become its head.
    model, inputs: where given, a router is trained on each task's (unlabelled) inputs through `model` with the shared weights, at
    `features(model, inputs)` (default: the model's output), for `epochs` epochs. Without them rows must name their task.
    """
    if (model is None) != (inputs is None):
        raise BadInput("a router needs both a model and inputs", where="model, inputs", remedy="give both or neither")
    vectors = TaskVectors(base, experts, heads=keep, resident_bytes=0)
    if shared is None:
        merged = Coefficients(vectors, granularity="task", init=alpha, clamp=None).state()
    else:
        source = open_source(shared)
        merged = {n: source.tensor(n) for n in source.names()}
    trunk = {n: t for n, t in merged.items() if n in vectors.names or not t.is_floating_point()}
    container = MergeContainer(trunk, method="twin")
    for task, source in zip(vectors.tasks, vectors.experts):
        state = {n: source.tensor(n) for n in source.names()}
        container.add_expert(
            task,
            {n: state.get(n, trunk[n]) for n in trunk} | {n: t for n, t in state.items() if n not in trunk},
            rank=rank,
            energy=energy,
            head=(heads or {}).get(task),
        )
    if model is not None and inputs is not None:
        missing = [t for t in inputs if t not in container.parts]
        if missing:
            raise BadInput(f"there is no expert for task {missing[0]!r}", where="inputs", remedy="name the experts' tasks")
        container.router = train_router(shared_features(container, model, inputs, features), epochs=epochs, seed=seed)
    return container


@torch.no_grad()
def shared_features(
    container: MergeContainer,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    features: Callable[[nn.Module, Any], Tensor] | None = None,
    batch: int = 512,
) -> dict[str, Tensor]:
    """h(x) of every task's inputs under the container's shared weights, which `model` is given."""
    look = features or (lambda m, x: m(x))
    container.serve(model)
    return {task: torch.cat([look(model, part) for part in torch.split(x, batch)]) for task, x in inputs.items()}
