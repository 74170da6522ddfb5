"""Spherical interpolation: `slerp` of two models, `nuslerp` with weights and by rows, `multislerp` of several.

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; as mergers: mergekit.

    u = a/‖a‖, v = b/‖b‖, Ω = acos <u, v>:    SLERP(t; a, b) = (sin((1 − t)Ω) a + sin(tΩ) b) / sin Ω,    tensor by tensor

Where |cos Ω| > 0.9995 it is the straight line (1 − t) a + t b, at cos Ω = −1 too, where the arc is undefined.
Two fine-tunes of one base nearly always have cos Ω > 0.9995, so on weights SLERP *is* the straight line;
`space="task_vectors"` subtracts the base first and differs.
Only inner products are needed beforehand: everything lies in the span of the inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pluribus.merging.algebra import MergeStage, Method, Need, Span, View, affine, fraction, gram, one_of
from pluribus.merging.karcher import Karcher

SPACES = ("weights", "task_vectors")
Space = Literal["weights", "task_vectors"]


def arc(t: float, products: Tensor, straight: float) -> list[float]:
    """The coefficients of a and b, from their inner products [2, 2]; the straight line where |cos Ω| > `straight`."""
    aa, bb, ab = float(products[0, 0]), float(products[1, 1]), float(products[0, 1])
    cosine = ab / (math.sqrt(aa) * math.sqrt(bb)) if aa > 0 and bb > 0 else 1.0
    if abs(cosine) > straight:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


@dataclass(frozen=True)
class Slerp(MergeStage):
    """The arc from the first input to the second. t None: from the experts' weights."""

    t: float | None
    straight: float
    by_rows: bool = False

    @property
    def need(self) -> Need:
        return "rows" if self.by_rows else "statistic"

    def observe(self, view: View) -> Any:
        return gram(view)

    def __call__(self, tau: Tensor, span: Span, seen: Any) -> Tensor:
        t = float(span.weights[1] / span.weights.sum()) if self.t is None else self.t
        if not self.by_rows:
            return affine(tau, arc(t, seen, self.straight))
        a, b = tau.view(2, -1, span.columns)
        aa, bb, ab = ((x.double() * y.double()).sum(1, keepdim=True) for x, y in ((a, a), (b, b), (a, b)))
        norm = aa.sqrt() * bb.sqrt()
        cosine = torch.where(norm > 0, ab / norm.masked_fill(norm == 0, 1), 1.0)
        line = cosine.abs() > self.straight
        angle = cosine.clamp(-1, 1).acos()
        sine = angle.sin().masked_fill(line, 1.0)
        first = torch.where(line, 1 - t, ((1 - t) * angle).sin() / sine)
        second = torch.where(line, t, (t * angle).sin() / sine)
        whole = torch.where(line, 1.0, first + second)
        found: Tensor = whole.to(a.dtype) * a + second.to(a.dtype) * (b - a)
        return found.view(-1)


def slerp(*, t: float = 0.5, space: Space = "weights") -> Method:
    """t: 0 gives the first expert, 1 the second. space: "weights" or "task_vectors"."""
    one_of("space", space, SPACES)
    return Method(Slerp(fraction("t", t), 0.9995), space=space, experts=(2, 2), weighted=False)


def nuslerp(*, by_rows: bool = False, space: Space = "weights") -> Method:
    """SLERP at t = w_2/(w_1 + w_2), on whole tensors or row by row; straight only where sin Ω < 1e-3."""
    one_of("space", space, SPACES)
    return Method(Slerp(None, math.cos(1e-3), by_rows), space=space, experts=(2, 2), positive=True)


def multislerp(*, space: Space = "weights") -> Method:
    """Tangent-space mean at the normalised weighted mean, mapped back once; norm Σ w ‖·‖. One step of `karcher`.

    mergekit projects on the tangent plane instead of taking the logarithm; its tangent mean is then always 0.
    """
    one_of("space", space, SPACES)
    return Method(Karcher(1, 0.0), space=space, experts=(1, 1 << 30), positive=True)
