"""Nash-MTL: the Nash bargaining solution between tasks.

Source: Navon et al. (2022), Multi-Task Learning as a Bargaining Game, eq. 2–3: α > 0 with G α = 1/α (elementwise), d = Jᵀα.
It is the only minimiser of ½ αᵀG α − Σ log α_t; with a preference p (asymmetric bargaining) G α = p/α.

Where public codes differ: the authors solve a sequence of convex programmes on the host whose stopping test never triggers, and
reuse the last α when the solver fails; here damped Newton steps reach the solution. ‖d‖ = √Σp by construction (√T), so the
authors' clip of the shared gradient (max_norm 1) divides by √T: it is kept, and off with ``max_norm=None``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pluribus.balancing.balancer import Balancer, Preference, check_positive, check_preference, preference_of
from pluribus.linalg.alpha_fair import alpha_fair


@dataclass(eq=False)
class NashMTL(Balancer):
    """The bargaining weights α, those of a task without gradient 0.

    max_norm: the longest ‖d‖ (default 1.0, the authors'; None leaves √T), *where the Gram matrix was measured*: at the features$
        it bounds Σ w_t ∂ℓ_t/∂z, and the gradient of the shared parameters below may be longer or shorter by whatever ∂z/∂θ does
        (28 in place of 1 was seen). ``gram="full"`` bounds the shared parameters' own gradient.
    preference: bargaining power p (default 1 each).
    """

    max_norm: float | None = 1.0
    preference: Preference = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def validate(self) -> None:
        if self.max_norm is not None:
            check_positive(self, max_norm=self.max_norm)
        check_preference(self.preference)

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        power = None if self.preference is None else preference_of(self.preference, tasks, signal, 1.0)
        w = alpha_fair(signal, 1.0, power)
        if self.max_norm is not None:
            length = (w @ signal @ w).clamp_min(0).sqrt()
            w = w * (self.max_norm / length.clamp_min(1e-30)).clamp_max(1.0)
        return w
