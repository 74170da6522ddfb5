"""What an epoch adds up while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, stack

from pluribus.errors import NonFinite


class Running:
    """Sums over an epoch, kept on the device; NaN spreads through them, so that looking now and then is enough."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.weights: dict[str, Tensor] = {}
        self.norms: Tensor | None = None

    def loss(self, name: str, value: Tensor | None, count: Tensor) -> None:
        if value is not None:
            mean = value.detach() / count
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean
            self.steps[name] = self.steps.get(name, 0) + 1

    def weight(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self.weights[name] = self.weights[name] + value if name in self.weights else value

    def norm(self, value: Tensor) -> None:
        self.norms = value.detach() if self.norms is None else self.norms + value.detach()

    def check(self) -> None:
        """Raise `NonFinite` with the task's name if anything has overflowed since the epoch began."""
        watched = [*self.sums.values(), *([] if self.norms is None else [self.norms])]
        if not watched or bool(stack(watched).isfinite().all()):
            return
        for name, value in self.sums.items():
            if not math.isfinite(value.item()):
                raise NonFinite("its loss became NaN or infinite", where=f"task {name!r}", remedy="lower the learning rate")
        raise NonFinite("the gradient became NaN or infinite", remedy="lower the learning rate or clip harder")

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        losses = {name: value.item() / self.steps[name] for name, value in self.sums.items()}
        weights = {name: float(value) / self.steps.get(name, 1) for name, value in self.weights.items()}
        return losses, weights
