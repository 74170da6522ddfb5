"""aTLAS: learned anisotropic scaling, one coefficient for each task vector and parameter block, in five settings.

Zhang, Albert, Rodriguez-Opazo, van den Hengel, Abbasnejad. "Knowledge Composition using Task Vectors with Learned Anisotropic
Scaling", NeurIPS 2024, https://arxiv.org/abs/2407.02880.

    θ_b = θ0_b + Σ_i c_{i,b} τ_{i,b},  c = 0 at the start (the pretrained model), blocks b = named tensors
    × K:  the entries of each tensor fall at random, once, into K parts: c_{i,b,k}
    addition    Σ_t CE_t + γ · mean_b ‖c_{·,b}‖_p
    negation    −CE_target + CE_control
    few-shot    CE on k shots a class, with a pool of foreign task vectors
    test-time   trusted = the k most confident of each class, k = min(n/(10 C), 100), with their first pseudo-label;
                the others: the label of a weak view teaches a strong view where its confidence passes a threshold
    AdamW, weight decay 0.1 on c (a pull to the pretrained model), gradient norm clipped at 1

Paper and public code
1. The code's × K returns no update for tensors that are not matrices; here every tensor is partitioned.
2. The code's test-time adaptation trusts every sample (it marks the whole sorted list of the last class), and its sharpening
   is the identity; here the trusted set is the paper's and the confidence threshold acts.
3. The code sums a batch over all tasks and takes 20 epochs; here `steps` steps of one batch a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.errors import BadInput, unknown
from pluribus.merging.coefficients import (
    Batches,
    Coefficients,
    Forward,
    Learned,
    Objective,
    TaskVectors,
    cross_entropy_objective,
    fit,
    forward_with,
    split_batch,
)

Heads = Mapping[str, Callable[[Tensor], Tensor]]


def atlas(
    base: Any,
    experts: Mapping[str, Any],
    model: nn.Module,
    batches: Batches,
    objective: Objective | None = None,
    *,
    heads: Heads | None = None,
    forward: Forward | None = None,
    isotropic: bool = False,
    partitions: int = 1,
    gamma: float = 0.0,
    p: float = 1.0,
    keep: Sequence[str] = (),
    init: float = 0.0,
    steps: int = 300,
    lr: float = 1e-2,
    weight_decay: float = 0.1,
    max_norm: float | None = 1.0,
    score: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
) -> Learned:
    """Learn c on `batches` (by task) with `objective`; without one: cross-entropy, which is task addition and few-shot.

    In the few-shot setting `batches` holds the one target task and `experts` the foreign pool.
    heads: by task, a frozen module from features to logits; or `forward(model, task, inputs) -> logits`.
    isotropic: one c a task vector. partitions: K of aTLAS × K. gamma, p: the penalty of the addition setting.
    keep: name patterns that are not merged. lr 1e-2: the code's 1e-3 is for thousands of steps.
    score: higher is better; keeps the best coefficients seen instead of the last.
    """
    if isotropic and partitions > 1:
        raise BadInput("isotropic coefficients have no partitions", where="partitions", remedy="drop one of the two")
    granularity = "task" if isotropic else "partition" if partitions > 1 else "tensor"
    vectors = TaskVectors(base, experts, heads=keep)
    coefficients = Coefficients(vectors, granularity=granularity, partitions=partitions, init=init, clamp=None, seed=seed)
    penalty = (lambda c: gamma * c.transpose(0, 1).flatten(1).norm(p=p, dim=1).mean()) if gamma else None
    return fit(
        coefficients,
        model,
        objective or cross_entropy_objective(forward or forward_with(heads)),
        batches,
        steps=steps,
        optimiser=lambda trained: torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay),
        max_norm=max_norm,
        penalty=penalty,
        score=score,
    )


def negation(forward: Forward, *, target: str, control: str) -> Objective:
    """−CE on the task `target`, +CE on the task `control`: unlearn one, keep the other.

    Select by a `score` that is −accuracy(target) where accuracy(control) keeps 95 % of its first value, else −inf.
    """
    cross_entropy = cross_entropy_objective(forward)

    def objective(model: nn.Module, task: str, batch: Any) -> Tensor:
        if task not in (target, control):
            raise unknown("task", task, (target, control), where="negation")
        return -cross_entropy(model, task, batch) if task == target else cross_entropy(model, task, batch)

    return objective


def trusted(logits: Tensor, most: int = 100) -> tuple[Tensor, Tensor]:
    """The trusted samples of the test-time setting: (indices, pseudo-labels) of the k most confident of each predicted class."""
    n, classes = logits.shape
    k = int(min(n / (10 * classes), most))
    confidence, label = logits.softmax(-1).max(-1)
    chosen = []
    for c in range(classes):
        mine = (label == c).nonzero()[:, 0]
        chosen.append(mine[confidence[mine].argsort(descending=True, stable=True)[:k]])
    index = torch.cat(chosen)
    return index, label[index]


def adaptation(forward: Forward, *, strong: Callable[[Any], Any], threshold: float = 0.9) -> Objective:
    """The test-time objective, on batches from `adaptation_batches`: trusted samples teach with their first pseudo-label, the
    others with the weak view's label where its confidence passes `threshold`; both are learned on the `strong` view."""

    def objective(model: nn.Module, task: str, batch: Any) -> Tensor:
        inputs, first = split_batch(batch)
        with torch.no_grad():
            confidence, label = forward(model, task, inputs).softmax(-1).max(-1)
        known = first >= 0
        label = torch.where(known, first, label)
        use = (known | (confidence > threshold)).to(torch.float32)
        losses = F.cross_entropy(forward(model, task, strong(inputs)), label, reduction="none")
        mean: Tensor = (losses * use).sum() / max(1, len(losses))
        return mean

    return objective


@torch.no_grad()
def adaptation_batches(
    model: nn.Module, forward: Forward, task: str, inputs: Tensor, *, size: int = 128, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Batches (inputs, first pseudo-label or −1) of unlabelled inputs; `model` as it is gives the labels: load the base first."""
    model.eval()
    logits = torch.cat([forward(model, task, part) for part in torch.split(inputs, size)])
    first = torch.full((len(inputs),), -1, dtype=torch.long)
    index, label = trusted(logits)
    first[index] = label
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    return [(inputs[i], first[i]) for i in torch.split(order, size)]
