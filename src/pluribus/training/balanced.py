"""Where a training step meets a balancer: through the one-scalar door where it serves, else through the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pluribus import balancing
from pluribus.balancing.balancer import Balancer
from pluribus.balancing.processes import Processes
from pluribus.modeling import Losses, MultiTaskModel


def balanced_backward(
    model: MultiTaskModel,
    balancer: Any,
    means: Sequence[Mapping[str, Tensor]],
    passes: Sequence[Losses],
    extras: Sequence[Tensor | None],
    again: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Leave balanced gradients in the model and return the weights by task (empty where the balancer gives none).

    means, passes, extras: one per forward pass: losses divided by the union's counts, where they came from, and what is
        added unbalanced. again: evaluates the first pass's losses afresh (for balancers that look elsewhere).
    """
    team = Processes.running(reduction="sum")
    if getattr(balancer, "batches", 1) == 1 and "combine" in getattr(balancer, "doors", ("combine",)):
        found: dict[str, Tensor] = {}
        for losses, forward, extra in zip(means, passes, extras):
            scalar = balancing.combine(
                losses, balancer, features=forward.shared, extra=extra, processes=team, on_nonfinite="unchecked"
            )
            scalar.backward()  # type: ignore[no-untyped-call]
            found = _weights(balancer)
        return found
    balancing.backward(
        means if len(means) > 1 else means[0],
        balancer,
        shared=model.shared_parameters(),
        features=passes[0].shared,
        closure=again,
        processes=team,
        on_nonfinite="unchecked",
    )
    terms = [extra for extra in extras if extra is not None]
    if terms:
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    return _weights(balancer)


def hears_the_step(balancer: Any) -> bool:
    """Whether the balancer wants the losses after the optimiser's step (FAMO)."""
    return isinstance(balancer, Balancer) and type(balancer).after_step is not Balancer.after_step


def _weights(balancer: Any) -> dict[str, Tensor]:
    step = getattr(balancer, "last", None)
    if step is None or step.weights is None:
        return {}
    return dict(zip(step.tasks, step.weights.detach().unbind()))
