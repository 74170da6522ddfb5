"""A parametric activation, dropout and a factor in one step of the graph: y = m ⊙ (z + α ⊙ (φ(z) − z)), m ∈ {0, c/(1 − p)}.

    SELU    φ(z) = λ z for z > 0, else λ a (eᶻ − 1)                                        (Klambauer et al., NeurIPS 2017)
    Mish    φ(z) = z tanh(ln(1 + eᶻ)) = z n/(n + 2), n = e²ᶻ + 2eᶻ;
            φ'(z) = n/(n + 2) + 4 z eᶻ (1 + eᶻ)/(n + 2)²                                   (Misra, BMVC 2020)

The forward pass leaves the derivative of every unit, m (1 + α (φ' − 1)), so that the backward pass is one product, and one more
with a sum over the rows for α: fewer operations than one by one, which is what small batches on a CPU spend their time on.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["selu", "mish"]
ACTIVATIONS: tuple[Activation, ...] = ("selu", "mish")
_FAR = 20.0  # from here on Mish is z itself in float32; e²ᶻ still is a number
_SELU, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def activated(z: Tensor, activation: Activation, alpha: Tensor | None = None, mask: Tensor | float = 1.0) -> Tensor:
    """The units of a layer.

    Parameters
    ----------
    z : Tensor
        Pre-activations [A, B, d].
    activation : {"selu", "mish"}
        φ.
    alpha : Tensor or None
        [A, d]; None: 1.
    mask : Tensor or float
        m [A, B, d], 0 at dropped units and c/(1 − p) at the others; a number where nothing is dropped.
    """
    if torch.compiler.is_compiling():
        h = {"selu": F.selu, "mish": F.mish}[activation](z)
        return (h if alpha is None else torch.lerp(z, h, alpha[:, None])) * mask
    if torch.is_grad_enabled():
        found: Tensor = _Activated.apply(z, activation, alpha, mask)  # type: ignore[no-untyped-call]
        return found
    h = F.selu(z) if activation == "selu" else _mish(z)
    return (h if alpha is None else torch.lerp(z, h, alpha[:, None])).mul_(mask)


def _mish(z: Tensor) -> Tensor:
    """φ(z), for what is not trained: torch's own takes several times as long on a CPU."""
    e = z.clamp_max(_FAR).exp_()
    n = e.mul_(e + 2)
    return (n + 2).reciprocal_().mul_(n).mul_(z)


def _value_and_slope(z: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """φ(z) and φ'(z)."""
    if activation == "selu":
        h = F.selu(z)
        return h, torch.where(z > 0, _SELU_SCALE, h + _SELU * _SELU_SCALE)
    e = z.clamp_max(_FAR).exp_()
    n = e * (e + 2)
    below = (n + 2).reciprocal_()
    t = n.mul_(below)
    h = z * t
    slope = e.addcmul_(e, e).mul_(4).mul_(below).mul_(below).mul_(z).add_(t)
    return h, slope


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, activation: Activation, alpha: Tensor | None, mask: Tensor | float) -> Tensor:
        h, slope = _value_and_slope(z, activation)
        change = None
        if alpha is not None:
            change = h.sub_(z)
            h = torch.addcmul(z, change, alpha[:, None])
            slope = slope.sub_(1).mul_(alpha[:, None]).add_(1)
        h.mul_(mask)
        slope.mul_(mask)
        change = None if change is None else change.mul_(mask)
        ctx.save_for_backward(slope, *([] if change is None else [change]))
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        slope, *change = ctx.saved_tensors
        alpha = (gradient * change[0]).sum(1) if change else None
        return gradient * slope, None, alpha, None
