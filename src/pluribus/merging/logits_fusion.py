"""Dynamic logits fusion: a large model steered at each step by what small experts learned.

Fan, Lu, Wei, Tian, Qu, Chen, Cheng. "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion", NeurIPS 2024,
https://arxiv.org/abs/2406.15480.

    P̃(α) = softmax( l_L + Σ_t α_t (l_t − l_S) ),   P = softmax(l_L),  Q0 = softmax(l_S),  Q_t = softmax(l_t)
    one expert       KL(P̃(α) ‖ P) = KL(Q_1 ‖ Q0) on 0 ≤ α ≤ α_max
    several experts  α = argmin Σ_t ( KL(P̃(α) ‖ P) − KL(Q_t ‖ Q0) )²

Along a ray α = s·k the divergence f(s) = KL(P̃ ‖ P) has f(0) = 0 and f'(s) = s · Var_{P̃}(d), d = Σ_t k_t (l_t − l_S): it rises, so
the step is solved exactly by Newton's method inside a bracket instead of the paper's grid.

Paper and this file (no public code)
1. With several experts the objective fixes only the value of f (the mean of the targets), not a direction.
   `direction="divergence"` (ours) takes k_t ∝ KL(Q_t ‖ Q0); `direction="single"` lets one expert act at a step, as the paper's
   search does: the one that moved most.
2. `symmetric=True` adds the terms with the divergence reversed, (KL(P ‖ P̃(α)) − KL(Q0 ‖ Q_t))², to the objective
   (their form is our reading). Along the ray both divergences rise, so the minimum lies between the two exact solutions and is
   found by bisection of the objective's derivative.
3. Where no α ≤ α_max reaches the target, α_max is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pluribus.errors import BadInput, unknown

DIRECTIONS = ("divergence", "single")


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ softmax(reference)) of each row, in nats, ≥ 0. A token of logit −inf in both counts nothing."""
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp(min=0)


def solve(large: Tensor, shift: Tensor, target: Tensor, limit: float, iterations: int = 60) -> Tensor:
    """The s in [0, limit] with KL(softmax(large + s·shift) ‖ softmax(large)) = target, row by row (float64).

    Newton steps with f'(s) = s·Var(shift), kept inside a bracket that each step narrows; a bisection where Newton leaves it.
    `limit` where the target lies beyond it, 0 where it is 0.
    """
    base = large.log_softmax(-1)
    low, high = torch.zeros_like(target), torch.full_like(target, limit)
    s = torch.full_like(target, min(1.0, limit))
    for _ in range(iterations):
        log_p = (base + s[..., None] * shift).log_softmax(-1)
        p = log_p.exp()
        value = torch.where(p > 0, p * (log_p - base), 0.0).sum(-1)
        mean = torch.where(p > 0, p * shift, 0.0).sum(-1, keepdim=True)
        slope = s * torch.where(p > 0, p * (shift - mean) ** 2, 0.0).sum(-1)
        below = value < target
        low, high = torch.where(below, s, low), torch.where(below, high, s)
        step = s - (value - target) / slope
        inside = (step > low) & (step < high)
        new = torch.where(inside, step, (low + high) / 2)
        if bool(((new - s).abs() <= 1e-13 * (1 + s)).all()):
            break
        s = new
    at_limit = (base + limit * shift).log_softmax(-1)
    out_of_reach = divergence(at_limit, base) <= target
    return torch.where(target <= 0, 0.0, torch.where(out_of_reach, limit, s))


def solve_both(large: Tensor, shift: Tensor, target: Tensor, reverse: Tensor, limit: float, iterations: int = 60) -> Tensor:
    """The s in [0, limit] with the least (KL(P̃ ‖ P) − target)² + (KL(P ‖ P̃) − reverse)², P̃ = softmax(large + s·shift), by row.

    Below both roots the derivative is negative and above both positive: bisection between them. d/ds KL(P ‖ P̃) = E_P̃ d − E_P d.
    An infinite `reverse` (an expert that rules a token out) leaves the first term alone.
    """
    base = large.log_softmax(-1)
    q = base.exp()
    low, high = torch.zeros_like(target), torch.full_like(target, limit)
    for _ in range(iterations):
        s = (low + high) / 2
        log_p = (base + s[..., None] * shift).log_softmax(-1)
        p = log_p.exp()
        change = torch.where(p > 0, p * shift, 0.0).sum(-1)
        mean = torch.where(q > 0, q * shift, 0.0).sum(-1)
        spread = torch.where(p > 0, p * (shift - change[..., None]) ** 2, 0.0).sum(-1)
        forward = torch.where(p > 0, p * (log_p - base), 0.0).sum(-1)
        backward = torch.where(q > 0, q * (base - log_p), 0.0).sum(-1)
        second = torch.where(reverse.isfinite(), (backward - reverse) * (change - mean), 0.0)
        rising = (forward - target) * s * spread + second > 0
        low, high = torch.where(rising, low, s), torch.where(rising, s, high)
    return torch.where((target <= 0) & (reverse <= 0), 0.0, (low + high) / 2)


class LogitsFusion:
    """Fuse next-token logits: large model, its small base, and small experts, all of one vocabulary.

    limit: the largest α (the paper's search ends at 2). direction: how several experts share the step, see the module.
    symmetric: match the reversed divergences too.
    Rows are independent, each with its own α. Computed in float64 on the logits' device.
    """

    def __init__(self, *, limit: float = 2.0, direction: str = "divergence", symmetric: bool = False) -> None:
        if not limit > 0:
            raise BadInput(f"limit is {limit}", where="limit", remedy="use a positive number")
        if direction not in DIRECTIONS:
            raise unknown("direction", direction, DIRECTIONS)
        self.limit, self.direction, self.symmetric = float(limit), direction, symmetric

    def weights(self, large: Tensor, small: Tensor, experts: Sequence[Tensor] | Tensor) -> Tensor:
        """α, [..., T], of logits large, small [..., V] and experts (T tensors [..., V])."""
        l_large, l_small, l_experts = _checked(large, small, experts)
        difference = _differences(l_experts, l_small)  # [T, ..., V]
        targets = divergence(l_experts, l_small.expand_as(l_experts))  # [T, ...]
        wanted = targets.mean(0)
        if len(targets) == 1:
            share = torch.ones_like(targets)
        elif self.direction == "divergence":
            total = targets.sum(0)
            share = torch.where(total > 0, targets / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        else:
            share = torch.nn.functional.one_hot(targets.argmax(0), len(targets)).movedim(-1, 0).to(targets)
        shift = (share[..., None] * difference).sum(0)
        # α_t = s·share_t must stay within the limit for every expert.
        largest = share.amax(0).clamp(min=torch.finfo(share.dtype).tiny)
        if self.symmetric:
            reverse = divergence(l_small.expand_as(l_experts), l_experts).mean(0)
            s = solve_both(l_large, shift / largest[..., None], wanted, reverse, self.limit)
        else:
            s = solve(l_large, shift / largest[..., None], wanted, self.limit)
        return (s * share / largest).movedim(0, -1)

    def __call__(self, large: Tensor, small: Tensor, experts: Sequence[Tensor] | Tensor) -> Tensor:
        """The fused logits l_L + Σ_t α_t (l_t − l_S), of the shape and dtype of `large`."""
        alpha = self.weights(large, small, experts)
        _, l_small, l_experts = _checked(large, small, experts)
        shift = (alpha.movedim(-1, 0)[..., None] * _differences(l_experts, l_small)).sum(0)
        return (large.double() + shift).to(large.dtype)

    def processor(self, small: Any, experts: Sequence[Any], **inputs: Any) -> FusionProcessor:
        """A logits processor for `large.generate(..., logits_processor=[...])` of Hugging Face transformers.

        small, experts: causal language models of the large model's vocabulary. inputs: `attention_mask` of the prompt, where
        it is padded. Each small model steps along with its own cache; one processor serves one call of `generate`.
        """
        return FusionProcessor(self, [small, *experts], inputs.get("attention_mask"))


class FusionProcessor:
    """`processor(input_ids, scores) -> fused scores`; made by `LogitsFusion.processor`."""

    def __init__(self, fusion: LogitsFusion, models: Sequence[Any], attention_mask: Tensor | None) -> None:
        self.fusion, self.models, self.mask = fusion, list(models), attention_mask
        self.caches: list[Any] = [None] * len(self.models)
        self.seen: Tensor | None = None
        self.weights: list[Tensor] = []  # α of every step, [B, T]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """One step: the small models read what is new, then the scores are fused."""
        new = input_ids
        if self.seen is not None and input_ids.shape[1] > self.seen.shape[1]:
            if torch.equal(input_ids[:, : self.seen.shape[1]], self.seen):
                new = input_ids[:, self.seen.shape[1] :]
            else:  # beams were reordered: the caches no longer belong to the rows
                self.caches = [None] * len(self.models)
        elif self.seen is not None:
            self.caches = [None] * len(self.models)
        self.seen = input_ids.clone()
        mask = torch.ones_like(input_ids)
        if self.mask is not None:
            mask[:, : self.mask.shape[1]] = self.mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits = []
        for i, model in enumerate(self.models):
            out = model(
                input_ids=new.to(model.device),
                attention_mask=mask.to(model.device),
                position_ids=positions.to(model.device),
                past_key_values=self.caches[i],
                use_cache=True,
            )
            self.caches[i] = out.past_key_values
            logits.append(out.logits[:, -1].to(scores.device))
        self.weights.append(self.fusion.weights(scores, logits[0], logits[1:]))
        return self.fusion(scores, logits[0], logits[1:])


def _differences(experts: Tensor, small: Tensor) -> Tensor:
    """l_t − l_S; a token that both rule out (−inf) is left where the large model has it."""
    difference = experts - small
    return torch.where(torch.isneginf(experts) & torch.isneginf(small), 0.0, difference)


def _checked(large: Tensor, small: Tensor, experts: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    experts = list(experts)
    if not experts:
        raise BadInput("there is no expert", where="experts", remedy="give the logits of at least one")
    for name, logits in [("small", small), *((f"experts[{i}]", e) for i, e in enumerate(experts))]:
        if logits.shape != large.shape:
            raise BadInput(
                f"has shape {tuple(logits.shape)}, the large model's logits {tuple(large.shape)}",
                where=name,
                remedy="use models of one vocabulary and one batch",
            )
        if bool(logits.isnan().any()):
            raise BadInput("holds NaN", where=name, remedy="check that model")
    if bool(large.isnan().any()):
        raise BadInput("holds NaN", where="large", remedy="check that model")
    return large.double(), small.double(), torch.stack([e.double() for e in experts])


__all__ = ["FusionProcessor", "LogitsFusion", "divergence", "solve", "solve_both"]
