"""Where a training step meets a balancer: through the one-scalar door where it serves, else through the other.

What a step owes a balancer is asked of the balancer: how many batches it draws, which door serves it, whether its closures
need a batch to validate on, whether it wants the losses after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pluribus import balancing
from pluribus.balancing import Balancer, Processes
from pluribus.modeling import Losses, MultiTaskModel

Means = Mapping[str, Tensor]


def balanced_backward(
    model: MultiTaskModel,
    balancer: Balancer,
    means: Sequence[Means],
    passes: Sequence[Losses],
    extras: Sequence[Tensor | None],
    again: Sequence[Callable[[], Means]],
) -> dict[str, Tensor]:
    """Leave balanced gradients in the model. Micro-batches are balanced one by one, independent batches together.

    Parameters
    ----------
    model : MultiTaskModel
        Its `shared_parameters` are balanced.
    balancer : Balancer
        Who weighs the tasks.
    means : sequence of {task: scalar}
        For each forward pass the losses, divided by the union's counts.
    passes : sequence of Losses
        Where these came from.
    extras : sequence of scalar or None
        What is added to each pass unbalanced.
    again : sequence of callable
        For every batch that the step drew, a function that evaluates its losses at the parameters as they then are. A batch to
        validate on is the last.

    Returns
    -------
    dict of str to Tensor
        The weights by task; empty where the balancer gives none.
    """
    team = Processes.running(reduction="sum")
    shared = model.shared_parameters()
    if balancer.batches > 1:
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
    for losses, forward, extra, repeat in zip(means, passes, extras, again):
        if balancer.door(team.size) == "combine":
            scalar = balancing.combine(
                losses, balancer, features=forward.shared, extra=extra, processes=team, on_nonfinite="unchecked"
            )
            scalar.backward()  # type: ignore[no-untyped-call]
            continue
        closure: Any = {"train": repeat, "validation": again[-1]} if "validation" in balancer.needs else repeat
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


def _sum(extras: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for extra in extras:
        if extra is not None:
            total = extra if total is None else total + extra
    return total


def _weights(balancer: Balancer) -> dict[str, Tensor]:
    step = balancer.last
    if step is None or step.weights is None:
        return {}
    return dict(zip(step.tasks, step.weights.detach().unbind()))
