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
        self._even: dict[int, Tensor] = {}  # stacked parameters whose indices have taken equally many steps → how many

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
                if id(p) not in self.stacked:
                    whole.append(p)
                    continue
                index = None if active is None else active.get(p)
                if (index is None or index.shape[0] == p.shape[0]) and self._counted_alike(p):
                    whole.append(p)
                else:
                    self._even.pop(id(p), None)
                    self._slices(p, group, index)
            if whole:
                self._move(whole, group)
        return loss

    def _move(self, whole: list[Tensor], group: dict[str, Any]) -> None:
        """One step of parameters that move at every index, by one kernel for all of them."""
        states = [self.state[p] for p in whole]
        steps = [self._even.get(id(p), s["step"]) for p, s in zip(whole, states)]
        for p, s in zip(whole, states):
            if id(p) in self._even:
                s["step"].add_(1)
        gradients = [p.grad for p in whole if p.grad is not None]
        m, v = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]
        numbers: Any = {"lr": group["lr"], "weight_decay": group["weight_decay"], "eps": group["eps"], "maximize": False}
        numbers |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "grad_scale": None, "found_inf": None}
        if _alike(whole):  # what torch's own wrapper comes to, which takes longer than the kernel where networks are small
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(whole, gradients, m, v, [], steps, **numbers)
            return
        how: Any = {"foreach": None, "capturable": False, "differentiable": False, "has_complex": False, "fused": False}
        adamw(whole, gradients, m, v, [], steps, **how, **numbers)

    def _counted_alike(self, p: nn.Parameter) -> bool:
        """Whether all indices of a stacked parameter have taken the same number of steps, so that one number counts for all. This
        is looked at on the CPU only: elsewhere a look would make the device wait."""
        if id(p) not in self._even and p.device.type == "cpu":
            step = self.state[p]["step"]
            if len(step) and bool((step == step[0]).all()):
                self._even[id(p)] = step[0].clone()
        return id(p) in self._even

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up moments and step counts."""
        super().load_state_dict(state_dict)
        self._even = {}

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


def _alike(params: list[Tensor]) -> bool:
    """Whether one call of the fused kernel takes them all: floating-point numbers of one type on one CPU or CUDA device."""
    first = params[0]
    if first.device.type not in ("cpu", "cuda") or not first.is_floating_point():
        return False
    return all([p.device == first.device and p.dtype == first.dtype for p in params])  # noqa: C419 (a list is half the time)
