"""Where a training step meets a balancer: through the one-scalar door where it serves, else through the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pluribus import balancing
from pluribus.balancing.balancer import Balancer
from pluribus.balancing.processes import Processes
from pluribus.modeling import Losses, MultiTaskModel

Means = Mapping[str, Tensor]


def batches_of(balancer: Any) -> int:
    """How many independent batches one step takes: what the balancer says, and one more to validate on for AutoLambda."""
    independent: int = getattr(balancer, "batches", 1)
    return independent + isinstance(balancer, balancing.AutoLambda)


def balanced_backward(
    model: MultiTaskModel,
    balancer: Any,
    means: Sequence[Means],
    passes: Sequence[Losses],
    extras: Sequence[Tensor | None],
    again: Sequence[Callable[[], Means]],
) -> dict[str, Tensor]:
    """Leave balanced gradients in the model and return the weights by task (empty where the balancer gives none).

    means, passes, extras: one per forward pass: losses divided by the union's counts, where they came from, and what is added
        unbalanced. Micro-batches are balanced one by one; independent batches (`batches` > 1) together.
    again: for every batch of the step, a function that evaluates its losses at the parameters as they then are.
    """
    team = Processes.running(reduction="sum")
    shared = model.shared_parameters()
    if getattr(balancer, "batches", 1) > 1:
        balancing.backward(
            means,
            balancer,
            shared=shared,
            features=[one.shared for one in passes],
            extra=_sum(extras),
            processes=team,
            on_nonfinite="unchecked",
        )
        return _weights(balancer)
    for i, (losses, forward, extra) in enumerate(zip(means, passes, extras)):
        if "combine" in getattr(balancer, "doors", ("combine",)) and not _reduces(balancer, team):
            scalar = balancing.combine(
                losses, balancer, features=forward.shared, extra=extra, processes=team, on_nonfinite="unchecked"
            )
            scalar.backward()  # type: ignore[no-untyped-call]
            continue
        closure: Any = again[i]
        if isinstance(balancer, balancing.AutoLambda):
            closure = {"train": again[i], "validation": again[-1]}
        balancing.backward(
            losses,
            balancer,
            shared=shared,
            features=forward.shared,
            closure=closure,
            extra=extra,
            processes=team,
            on_nonfinite="unchecked",
        )
    return _weights(balancer)


def _reduces(balancer: Any, team: Processes) -> bool:
    """Whether the balancer needs a Jacobian that only the other door puts together over the processes."""
    return team.size > 1 and getattr(balancer, "signal", "") == "jacobian" and not hasattr(balancer, "on_features")


def hears_the_step(balancer: Any) -> bool:
    """Whether the balancer wants the losses after the optimiser's step (FAMO)."""
    return isinstance(balancer, Balancer) and type(balancer).after_step is not Balancer.after_step


def _sum(extras: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for extra in extras:
        if extra is not None:
            total = extra if total is None else total + extra
    return total


def _weights(balancer: Any) -> dict[str, Tensor]:
    step = getattr(balancer, "last", None)
    if step is None or step.weights is None:
        return {}
    return dict(zip(step.tasks, step.weights.detach().unbind()))
