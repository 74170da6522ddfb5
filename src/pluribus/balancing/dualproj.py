"""DualProj: project the mean gradient on the cone where no task is hurt.

Source: Lopez-Paz and Ranzato (2017), Gradient Episodic Memory, eq. 11 (named DualProj in Quinton and Rey 2024):
w = argmin_{v ≥ p} vᵀ G v. Where public codes differ: see `upgrad`; TorchJD's ridge leaves J d = −.0034 on the small example
of the tests, ours is unregularised by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_preference, preference_of
from pluribus.balancing.upgrad import check_regularisation, project_on_dual_cone


@dataclass(eq=False)
class DualProj(Balancer):
    """w = v(p); J d ≥ 0. preference: p (default 1/T each). regularisation: ridge as a share of the trace (default 0)."""

    preference: Preference = None
    regularisation: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        check_preference(self.preference)
        check_regularisation(self, self.regularisation)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        p = preference_of(self.preference, tasks, signal, 1 / len(tasks))
        return project_on_dual_cone(signal, p, self.regularisation).to(signal.dtype)
