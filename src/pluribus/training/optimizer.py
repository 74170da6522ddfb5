"""AdamW that leaves alone what took no part in a step.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, Algorithm 2:

    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   θ ← θ − η ( m̂ / (√v̂ + ε) + λ θ )

Two differences from `torch.optim.AdamW`, both for tasks that are absent: a parameter without a gradient is not touched (as
there), and a *stacked* parameter, whose first dimension belongs to several tasks or experts, moves only at the active
indices: weights, moments and decay of the others stay bit-identical, and each index counts its own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class SliceAdamW(torch.optim.Optimizer):
    """AdamW over parameters, some of them stacked.

    Parameters
    ----------
    params : iterable of nn.Parameter or of dict
        Parameters or parameter groups, as for any optimiser.
    stacked : iterable of nn.Parameter
        Those of them whose first dimension is a stack (heads, banks).
    lr : float
        Learning rate η.
    betas : pair of float
        β₁ and β₂.
    eps : float
        ε.
    weight_decay : float
        λ; biases and other vectors take none where their group sets `weight_decay=0`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        stacked: Iterable[nn.Parameter] = (),
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.stacked = {id(p) for p in stacked}

    @overload
    def step(self, closure: None = None, *, active: Mapping[nn.Parameter, Tensor] | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, active: Mapping[nn.Parameter, Tensor] | None = None) -> float: ...

    @torch.no_grad()
    def step(
        self, closure: Callable[[], float] | None = None, *, active: Mapping[nn.Parameter, Tensor] | None = None
    ) -> float | None:
        """One step.

        Parameters
        ----------
        closure : callable or None
            Evaluates the loss again, as for any optimiser.
        active : mapping of nn.Parameter to Tensor or None
            Stacked parameter → the indices (int64 [k]) that move; a stacked parameter that is not named moves at every index.
            A parameter whose gradient is None does not move.

        Returns
        -------
        float or None
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            whole: list[Tensor] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                self._prepare(p)
                if id(p) in self.stacked:
                    self._slices(p, group, None if active is None else active.get(p))
                else:
                    whole.append(p)
            if whole:
                states = [self.state[p] for p in whole]
                adamw(
                    whole,
                    [p.grad for p in whole if p.grad is not None],
                    [s["exp_avg"] for s in states],
                    [s["exp_avg_sq"] for s in states],
                    [],
                    [s["step"] for s in states],
                    foreach=None,
                    capturable=False,
                    differentiable=False,
                    fused=_fused(whole),
                    grad_scale=None,
                    found_inf=None,
                    has_complex=False,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
        return loss

    def _prepare(self, p: nn.Parameter) -> None:
        if not self.state[p]:
            shape = p.shape[:1] if id(p) in self.stacked else ()
            self.state[p] = {
                "step": torch.zeros(shape, dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def _slices(self, p: nn.Parameter, group: dict[str, Any], index: Tensor | None) -> None:
        assert p.grad is not None
        if index is not None and len(index) == 0:
            return
        state, (beta1, beta2) = self.state[p], group["betas"]
        if index is not None and len(index) == len(p):
            index = None  # all of them: no gather, no scatter

        def rows(tensor: Tensor) -> Tensor:
            return tensor if index is None else tensor[index]

        step = rows(state["step"]).add_(1)
        gradient, weight = rows(p.grad), rows(p.data)
        m = rows(state["exp_avg"]).lerp_(gradient, 1 - beta1)
        v = rows(state["exp_avg_sq"]).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        per_row = (-1,) + (1,) * (p.ndim - 1)
        unbias1 = (1 - beta1**step).reshape(per_row)
        unbias2 = (1 - beta2**step).sqrt_().reshape(per_row)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(m / unbias1 / (v.sqrt() / unbias2).add_(group["eps"]), alpha=group["lr"])
        if index is not None:
            for whole, part in ((state["step"], step), (state["exp_avg"], m), (state["exp_avg_sq"], v), (p.data, weight)):
                whole.index_copy_(0, index, part)


def _fused(params: list[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
