"""Uncertainty weighting: a learnt noise variance a task.

Source: Kendall, Gal, Cipolla (2018), Multi-Task Learning Using Uncertainty to Weigh Losses, eq. 7 and 10, s_t = log σ_t²:
regression L = Σ (½ e^{−s_t} ℓ_t + ½ s_t); classification L = Σ (e^{−s_t} ℓ_t + ½ s_t).
Optimum of the regression form: s_t = log ℓ_t, weight ½/ℓ_t.

Differences: public codes give s to the model's optimiser; here it has its own Adam (no weight decay), which moves after the
weights of the step are given, as a joint step would. Start: 0 (TorchJD); LibMTL starts at −0.5.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from pluribus.balancing.balancer import Balancer, check_positive
from pluribus.balancing.state import Scalars, constant


@dataclass(eq=False)
class UncertaintyWeighting(Balancer):
    """w_t = ½ e^{−s_t} (1 e^{−s_t} for classification tasks), s_t learnt.

    lr: of the inner Adam (default 0.01). start: s at first (default 0). classification: names of the tasks that take the
    classification form (default none: all take the form with ½, as peers do).
    """

    lr: float = 0.01
    start: float = 0.0
    classification: Collection[str] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    mutable: ClassVar[tuple[str, ...]] = ("s",)

    @classmethod
    def for_training(cls, *, lr: float, classification: Sequence[str] = ()) -> Self:
        return cls(classification=tuple(classification))

    def validate(self) -> None:
        check_positive(self, lr=self.lr)

    def reset(self) -> None:
        self.s = Scalars(self.start, self.lr)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        half = constant(tuple(1.0 if t in self.classification else 0.5 for t in tasks), signal.dtype, signal.device)
        w = half * torch.exp(-self.s.rows(tasks, signal))
        self.s.descend(tasks, 0.5 - w * signal)  # ∂L/∂s_t
        return w
