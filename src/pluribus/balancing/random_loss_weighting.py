"""Random loss weighting: each step fresh random weights on the simplex.

Source: Lin, Ye, Zhang, Tsang (2022), Reasonable Effectiveness of Random Weighting: λ = softmax(z), z ~ N(0, I_T); L = Σ λ_t ℓ_t.
E[λ_t] = 1/T. As in LibMTL and TorchJD there is no factor T. The other laws are the paper's variants, each normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.state import generator
from pluribus.errors import unknown

LAWS = ("normal", "uniform", "dirichlet", "bernoulli")


@dataclass(eq=False)
class RandomLossWeighting(Balancer):
    """Random weights that sum to 1.

    law: "normal" (softmax of standard normals; default), "uniform" (normalised U(0,1)), "dirichlet" (Dirichlet(1)),
    "bernoulli" (normalised fair coins; equal weights when all fall on 0). seed: of its own generator, saved in the state.
    """

    law: Literal["normal", "uniform", "dirichlet", "bernoulli"] = "normal"
    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    mutable: ClassVar[tuple[str, ...]] = ("generator",)

    def validate(self) -> None:
        if self.law not in LAWS:
            raise unknown("law", self.law, LAWS, where="RandomLossWeighting")

    def reset(self) -> None:
        self.generator = generator(self.seed)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        size = len(tasks)
        if self.law == "normal":
            drawn = torch.randn(size, generator=self.generator, dtype=torch.float64).softmax(0)
        else:
            u = torch.rand(size, generator=self.generator, dtype=torch.float64)
            mass = {"uniform": u, "dirichlet": -u.clamp_min(1e-30).log(), "bernoulli": (u < 0.5).double()}[self.law]
            drawn = mass / mass.sum() if float(mass.sum()) > 0 else torch.full_like(u, 1 / size)
        return drawn.to(signal.dtype).to(signal.device, non_blocking=True)
