"""AdaMerging: coefficients learned without labels, by the entropy of the merged model's predictions.

Yang, Wang, Shen, Liu, Guo, Wang, Tao. "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024,
https://arxiv.org/abs/2310.02575.

    θ(λ)[l] = θ0[l] + Σ_t λ_t[l] τ_t[l]                        (task-wise: λ_t[l] = λ_t)
    min_λ Σ_t mean_{x in B_t} H( softmax head_t(f_{θ(λ)}(x)) )      λ = 0.3 at the start, clamp(λ, 0, 1) acts, Adam, lr 1e-3
    ++ :  τ̂_t = τ_t without its smallest 80 % (over all tensors) and without entries against the elected sign

Paper and public code
1. The code builds the merged weights inside the graph; here the gradient is contracted (see `coefficients`): equal, and lean.
2. The code adapts on the test set it reports on. Give other inputs than those you report on.
3. The code's trim keeps one entry more than the fraction says, and a column whose sum is zero takes the majority sign of the
   whole vector; here exactly round(ρ·n) entries are kept (ties by lower index) and sign(0) = 0 has no vote.
4. FusionBench does not clamp: `clamp=None`. A clamped coefficient outside [0, 1] has no gradient and stays there.
5. A batch of one class can make entropy collapse: shuffle.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.merging.algebra import fraction, keep_count
from pluribus.merging.coefficients import (
    Batches,
    Coefficients,
    Forward,
    Learned,
    Objective,
    TaskVectors,
    fit,
    forward_with,
    layer_of,
    objective_of,
)
from pluribus.merging.doge import SKIP, correction
from pluribus.merging.doge import coefficients as doge_coefficients
from pluribus.merging.matrices import matrix_shape
from pluribus.merging.select import Cut, top


class TiesResolved(TaskVectors):
    """Steps 1 and 2 of TIES on every vector, the vectors kept apart: τ̂_t = trim(τ_t) where its sign is the elected one.

    density: the fraction of entries kept of each task vector, by magnitude over the concatenation of all tensors.
    """

    def __init__(self, base: Any, experts: Mapping[str, Any], *, density: float = 0.2, **settings: Any) -> None:
        super().__init__(base, experts, **settings)
        fraction("density", density)
        self.begin = dict(zip(self.names, itertools.accumulate((self.numel(n) for n in self.names), initial=0)))
        self.cuts = _cuts(self, self.names, density)

    def compute(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        # The kept set is judged in the vectors' own dtype, so that it does not depend on the dtype asked for.
        tau = super().compute(name, start, stop, self.dtype)
        for t, cut in enumerate(self.cuts):
            tau[t] *= cut.mask(tau[t].abs(), self.begin[name] + start)
        tau *= tau.sign() == tau.sum(0).sign()
        return tau if dtype == self.dtype else super().compute(name, start, stop, dtype) * (tau != 0)


def _cuts(vectors: TaskVectors, names: Sequence[str], density: float) -> list[Cut]:
    """Of each task vector: its largest entries over the concatenation of `names`, round(density · n) of them."""
    count = sum(vectors.numel(n) for n in names)

    def chunks() -> Iterator[tuple[int, Tensor]]:
        begin = 0
        for name in names:
            for start, stop in vectors.spans(name):
                yield begin + start, TaskVectors.compute(vectors, name, start, stop, vectors.dtype).abs_()
            begin += vectors.numel(name)

    return [row[0] for row in top(chunks, len(vectors.tasks), [keep_count(density, count)], count)]


class DogeCorrected(TaskVectors):
    """The vectors that DOGE hands to AdaMerging: (τ_t + Δ) ⊙ mask_t of every matrix but embeddings; all else stays the base's.

    `start` [T, B, 1] holds DOGE's own λ_t = η / ‖τ_t‖ of each tensor, where learning begins. Δ is held in memory: one model.
    """

    def __init__(
        self,
        base: Any,
        experts: Mapping[str, Any],
        *,
        eta: float = 0.07,
        density: float = 0.3,
        subspace: int = 6,
        correction_steps: int = 400,
        correction_lr: float = 1e-4,
        skip: Sequence[str] = SKIP,
        **settings: Any,
    ) -> None:
        super().__init__(base, experts, **settings)
        fraction("density", density)
        mine = [n for n in self.names if matrix_shape(self.shape(n)) and not any(fnmatch(n, pattern) for pattern in skip)]
        if not mine:
            raise BadInput("doge finds no matrix to merge", where="skip", remedy="name fewer patterns")
        self.begin = dict(zip(mine, itertools.accumulate((self.numel(n) for n in mine), initial=0)))
        self.cuts = _cuts(self, mine, density)
        self.start = torch.zeros(len(self.tasks), len(self.names), 1, dtype=torch.float64)
        self.delta: dict[str, Tensor] = {}
        for name in mine:
            tau = super().compute(name, 0, self.numel(name), self.dtype).view(-1, *(matrix_shape(self.shape(name)) or ()))
            lam = doge_coefficients(tau, eta)
            self.start[:, self.names.index(name), 0] = lam
            found = correction(tau, lam, subspace=subspace, steps=correction_steps, lr=correction_lr)
            self.delta[name] = found.reshape(-1)

    def compute(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        if name not in self.delta:
            return torch.zeros(len(self.tasks), stop - start, dtype=dtype)
        tau = super().compute(name, start, stop, self.dtype)
        kept = torch.stack([cut.mask(row.abs(), self.begin[name] + start) for cut, row in zip(self.cuts, tau)])
        return ((tau + self.delta[name][start:stop]) * kept).to(dtype)


def doge_adamerging(
    base: Any,
    experts: Mapping[str, Any],
    model: nn.Module,
    batches: Batches,
    *,
    eta: float = 0.07,
    density: float = 0.3,
    subspace: int = 6,
    correction_steps: int = 400,
    correction_lr: float = 1e-4,
    keep: Sequence[str] = (),
    **settings: Any,
) -> Learned:
    """DOGE, then layer-wise AdaMerging on its corrected vectors from its coefficients, which may leave [0, 1].

    eta, density, subspace, correction_steps, correction_lr: as in `doge`; settings: as in `adamerging`.
    """
    corrected = DogeCorrected(
        base,
        experts,
        heads=keep,
        eta=eta,
        density=density,
        subspace=subspace,
        correction_steps=correction_steps,
        correction_lr=correction_lr,
    )
    settings = {"clamp": None, "init": corrected.start, **settings}
    return adamerging(base, experts, model, batches, vectors=corrected, **settings)


def adamerging(
    base: Any,
    experts: Mapping[str, Any],
    model: nn.Module,
    batches: Batches,
    *,
    granularity: str = "tensor",
    plus_plus: bool = False,
    density: float = 0.2,
    vectors: TaskVectors | None = None,
    objective: str | Objective = "entropy",
    heads: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    forward: Forward | None = None,
    keep: Sequence[str] = (),
    block: Callable[[str], str] = layer_of,
    init: float | Tensor = 0.3,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    steps: int = 500,
    lr: float = 1e-3,
    score: Callable[[nn.Module], float] | None = None,
) -> Learned:
    """Merge `experts` into `model` with coefficients learned on unlabelled inputs.

    base, experts: state dicts, modules or safetensors folders; experts by task name. model: the module they belong to; it ends
    holding the merged weights. batches: by task, an iterable of inputs (a label in a pair is not read by the entropy).
    granularity: "tensor" (layer-wise, the default), "task", "block". plus_plus: TIES-resolved vectors of `density`.
    vectors: other task vectors, such as `DogeCorrected(...)`, in place of those of base and experts.
    heads: by task, a frozen module from features to logits; or `forward(model, task, inputs) -> logits`.
    keep: name patterns that are not merged. init, clamp, steps, lr: the paper's defaults.
    score: higher is better; keeps the best coefficients seen instead of the last.
    """
    if vectors is not None and plus_plus:
        raise BadInput("both plus_plus and vectors are given", remedy="give one of them")
    if vectors is None:
        plain = TaskVectors(base, experts, heads=keep) if not plus_plus else None
        vectors = plain or TiesResolved(base, experts, density=density, heads=keep)
    coefficients = Coefficients(vectors, granularity=granularity, init=init, clamp=clamp, block=block)
    return fit(
        coefficients,
        model,
        objective_of(objective, forward or forward_with(heads)),
        batches,
        steps=steps,
        optimiser=lambda trained: torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.999)),
        score=score,
    )
