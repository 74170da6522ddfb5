"""FULLER: calibrate the tasks at the last shared layer, and the modality branches below the fusion.

Source: Huang et al. (2023), FULLER: Unified Multi-modality Multi-task 3D Perception via Multi-level Gradient Calibration.
Inter-gradient calibration, with W_L the last shared layer:

    g_t = ∂ℓ_t/∂W_L,   w = balance(g_1 … g_T),   L = Σ_t w_t ℓ_t with one backward through the whole backbone

Intra-gradient calibration, at the fusion point with branch features z_m, m = 1 … M:

    n_m = ‖∂L/∂z_m‖₂,   n* = mean_m n_m,   ∂L/∂z_m ← ∂L/∂z_m · n*/(n_m + 1e-12)

so that the branches below see gradients of one size, while the fusion layer keeps its own.

No public code. Not stated in the paper as far as could be found, and chosen here: the closed form of `balance` (IMTL-G, equal
projections) and the level n* (the mean; maximum and geometric mean are offered). Branches without any gradient do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.imtl_g import IMTLG
from pluribus.errors import BadInput, unknown


class Fuller(Balancer):
    """Any balancer of the Gram (default IMTL-G), heard at the last shared layer by either door unless told otherwise."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "last"
    mutable: ClassVar[tuple[str, ...]] = ("inner",)

    def __init__(self, inner: Balancer | None = None) -> None:
        self.inner = IMTLG() if inner is None else inner
        if self.inner.signal not in ("gram", "norms"):
            raise BadInput(
                f"{type(self.inner).__name__} hears {self.inner.signal}",
                where="Fuller",
                remedy="wrap a method of the Gram matrix",
            )
        vars(self)["needs"] = self.inner.needs

    def reset(self) -> None:
        self.inner.reset()

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        return self.inner.compute(signal, tasks, losses)

    @property
    def wants_after_step(self) -> bool:
        return self.inner.wants_after_step

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        self.inner.after_step(losses)

    def epoch_end(self) -> None:
        self.inner.epoch_end()

    def __repr__(self) -> str:
        return f"Fuller({self.inner!r})"


class _Equalise(torch.autograd.Function):
    """The identity; backward gives every branch a gradient of one norm."""

    @staticmethod
    def forward(ctx: Any, level: str, *branches: Tensor) -> tuple[Tensor, ...]:
        ctx.level = level
        ctx.set_materialize_grads(False)
        return tuple(branch.view_as(branch) for branch in branches)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        given = [g for g in grads if g is not None]
        if len(given) < 2:
            return None, *grads
        norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in given])
        alive = norms > 0
        count = alive.sum().clamp_min(1)
        if ctx.level == "mean":
            target = norms.sum() / count
        elif ctx.level == "max":
            target = norms.max()
        else:
            target = (torch.where(alive, norms, 1.0).log().sum() / count).exp()
        scales = iter(target / (norms + 1e-12))
        return None, *(None if g is None else (g * next(scales)).to(g.dtype) for g in grads)


def equalise_gradients(*branches: Tensor, level: Literal["mean", "max", "geometric"] = "mean") -> Any:
    """The branches' features, to be fused: ``z_a, z_b = equalise_gradients(z_a, z_b)``; one tensor comes back as itself.

    In the backward pass all that lies below sees gradients of equal norm n* (over the whole tensor), each in its own
    direction; what comes after sees nothing of it. Values are untouched. `level`: how n* is made of the branches' norms.
    Under loss scaling n* scales with the loss, so the balance between branches is the same.
    """
    if level not in ("mean", "max", "geometric"):
        raise unknown("level", level, ("mean", "max", "geometric"), where="equalise_gradients")
    if not branches:
        raise BadInput("there is no branch", where="equalise_gradients", remedy="pass the branches' features")
    if len(branches) == 1:
        return branches[0]
    return cast(tuple[Tensor, ...], _Equalise.apply(level, *branches))  # type: ignore[no-untyped-call]
