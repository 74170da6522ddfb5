"""What follows the backward pass of a step: sum over the processes, clip, check, move what took part."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, NonFinite
from pluribus.training import processes
from pluribus.training.optimizer import SliceAdamW

Clip = Callable[[Sequence[nn.Parameter]], Tensor | None]
"""Clips the gradients of these parameters in place; returns their norm before, or None where nobody asks for it."""


@dataclass(frozen=True)
class Rate:
    """A learning rate of some parameters' own.

    Parameters
    ----------
    lr : float
        The learning rate, at its peak.
    decays : bool
        Whether they take the weight decay of the others (default: none).
    """

    lr: float
    decays: bool = False

    @classmethod
    def of(cls, rate: float | Rate) -> Rate:
        """A plain number is a rate without weight decay."""
        return rate if isinstance(rate, Rate) else cls(rate)


class Update:
    """Moves parameters along the gradients that a backward pass has left.

    `pluribus.training.Step` is a forward pass, a backward pass and one of these; a loop with gradients of its own calls it alone.

    Parameters
    ----------
    parameters : mapping of str to nn.Parameter
        Name → parameter that moves.
    stacked : iterable of nn.Parameter
        Those of them whose first dimension is a stack, of which a part may rest (see `SliceAdamW`).
    lr : float
        AdamW's learning rate.
    weight_decay : float
        AdamW's; biases and other vectors do not decay.
    betas : pair of float
        AdamW's.
    rates : mapping of str to float or Rate, or None
        Glob over names → own learning rate; a plain number is one without weight decay. It follows `rate` as the others do. A
        parameter follows the first glob that it matches.
    clip : float, callable or None
        Largest norm of the whole gradient, None for no limit, or a rule of one's own.

    Attributes
    ----------
    optimizer : SliceAdamW
        The optimiser, with its moments.
    parameters : list of nn.Parameter
        Those that move, in the order of their names.

    Raises
    ------
    BadInput
        A glob matches no parameter.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        stacked: Iterable[nn.Parameter] = (),
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        rates: Mapping[str, float | Rate] | None = None,
        clip: float | Clip | None = None,
    ) -> None:
        self.parameters = list(parameters.values())
        self.clip = clip
        own = {glob: Rate.of(rate) for glob, rate in (rates or {}).items()}
        groups = _groups(parameters, {glob: Rate(rate.lr / lr, rate.decays) for glob, rate in own.items()})
        self.optimizer = SliceAdamW(groups, stacked=stacked, lr=lr, betas=betas, weight_decay=weight_decay)
        self._set(lr)

    def __call__(
        self,
        *,
        rate: float | None = None,
        decay: float | None = None,
        active: Mapping[nn.Parameter, Tensor] | None = None,
        losses: Mapping[str, Tensor] | None = None,
    ) -> Tensor | None:
        """Move the parameters. Their gradients stay until `forget`, which a loop calls between two steps where it costs least.

        Parameters
        ----------
        rate : float or None
            Learning rate of this step; None: as it was.
        decay : float or None
            Weight decay of this step, of the parameters that take any; None: as it was.
        active : mapping of nn.Parameter to Tensor or None
            Stacked parameter → the indices that move (see `SliceAdamW.step`).
        losses : mapping of str to Tensor or None
            Task → its loss, to be named where the step is not finite. Nothing moves then. They are looked at on the CPU only:
            elsewhere a look would make the device wait (see `check_finite`).

        Returns
        -------
        Tensor or None
            The norm of the gradient before it was clipped, on its device; None where nothing clips.
        """
        processes.sum_gradients(self.parameters)
        norm = None
        if callable(self.clip):
            norm = self.clip(self.parameters)
        elif self.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if losses is not None and self.parameters[0].device.type == "cpu":
            check_finite(losses, norm)
        if rate is not None:
            self._set(rate)
        if decay is not None:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = decay if group["decays"] else 0.0
        self.optimizer.step(active=active)
        return norm

    def _set(self, rate: float) -> None:
        """The learning rate, from which those of the globs follow."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("times", 1.0)

    def forget(self) -> None:
        """Drop the gradients."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[int, Any]:
        """A copy of the optimiser's moments and step counts, by the parameter's place."""
        state: dict[int, dict[str, Tensor]] = self.optimizer.state_dict()["state"]
        return {place: {name: value.clone() for name, value in held.items()} for place, held in state.items()}

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Take up what `state_dict` of the same parameters gave."""
        held = self.optimizer.state_dict()
        held["state"] = {int(key): value for key, value in state.items()}
        self.optimizer.load_state_dict(held)


def _groups(parameters: Mapping[str, nn.Parameter], rates: Mapping[str, Rate]) -> list[dict[str, Any]]:
    """Parameter groups: what decays, what does not, and each glob of `rates`, whose `lr` is a factor on the learning rate."""
    own: dict[str, list[nn.Parameter]] = {glob: [] for glob in rates}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in parameters.items():
        glob = next((glob for glob in own if fnmatch.fnmatchcase(name, glob)), None)
        (own[glob] if glob is not None else decayed if p.ndim > 1 and not name.endswith("bias") else plain).append(p)
    for glob, matched in own.items():
        if not matched:
            raise BadInput(f"{glob!r} matches no parameter that trains", where="stage, rates", remedy="check the name")
    kinds: dict[tuple[float | None, bool], list[nn.Parameter]] = {(None, True): decayed, (None, False): plain}
    for glob, rate in rates.items():  # globs of one rate make one group: a group is one call of the optimiser's kernel
        kinds.setdefault((rate.lr, rate.decays), []).extend(own[glob])
    groups: list[dict[str, Any]] = []
    for (times, decays), params in kinds.items():
        factor = {} if times is None else {"times": times}
        groups.append({"params": params, "decays": decays, **factor, **({} if decays else {"weight_decay": 0.0})})
    return [group for group in groups if group["params"]]


def check_finite(losses: Mapping[str, Tensor], norm: Tensor | None = None) -> None:
    """Raise `NonFinite`, with the task's name where its loss is the reason, unless all numbers are finite.

    Parameters
    ----------
    losses : mapping of str to Tensor
        Task → a loss, or a sum of losses: NaN and infinity stay in a sum.
    norm : Tensor or None
        The norm of a gradient, or a sum of norms.
    """
    watched = [*losses.values(), *([] if norm is None else [norm])]
    if not watched or bool(torch.stack(watched).isfinite().all()):
        return
    for name, value in losses.items():
        if not bool(value.isfinite()):
            raise NonFinite("its loss became NaN or infinite", where=f"task {name!r}", remedy="lower the learning rate")
    raise NonFinite("the gradient became NaN or infinite", remedy="lower the learning rate or clip harder")
