"""What every balancer is: weights for the tasks' losses, or a direction from their gradients, with state kept by task name.

Notation of the whole package: T tasks, losses ℓ [T], Jacobian J [T, P] with row g_t = ∇_θ ℓ_t, Gram matrix G = J Jᵀ [T, T],
weights w [T], direction d = Jᵀ w [P] along which the optimiser *descends*.

Weights are on the scale of the method's own paper (some sum to 1, some to T, some to nothing in particular).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pluribus.balancing.decision import Decision
from pluribus.balancing.state import constant
from pluribus.errors import BadInput

Preference = Mapping[str, float] | Sequence[float] | None

SIGNALS = ("losses", "norms", "gram", "cross_gram", "jacobian")


class Balancer:
    """Base of all balancers.

    A training loop asks the attributes below what a balancer needs of it, and never which method it is.

    A task that is absent from a call is not named in ``tasks``; its state does not move. ``tasks=None`` names the
    tasks "0", "1", …

    Attributes
    ----------
    needs : frozenset of str
        Subset of {"losses", "norms", "gram", "cross_gram", "jacobian", "features", "closure", "validation"}. The last of
        ``SIGNALS`` among them is what `weights` takes as `signal` (`self.signal`): losses [T]; squared gradient norms [T];
        Gram [T, T]; cross-Gram J₁J₂ᵀ [T, T] of two independent batches; "jacobian" asks for `direction` instead.
        "losses" beside another signal means that the argument ``losses`` must be given too. "features" says that
        gradients are meant with respect to the shared features; "closure" that losses must be evaluated again, at other
        parameters; "validation" that one of these closures evaluates a batch that the step does not train on:
        ``closure={"train": …, "validation": …}``.
    doors : tuple of str
        Which of ("combine", "backward") can serve it.
    batches : int
        How many independent batches a step trains on (3 for MoDo and SDMGrad).
    distributed : bool
        Whether several processes can share a step.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    doors: ClassVar[tuple[str, ...]] = ("combine", "backward")
    batches: ClassVar[int] = 1
    distributed: ClassVar[bool] = True
    mutable: ClassVar[tuple[str, ...]] = ()  # attributes that `reset` makes and `state_dict` saves
    last: Any = None  # what the doors heard and decided in their latest call (a `Decision`); no part of the state

    def __init__(self) -> None:
        self.reset()

    def __post_init__(self) -> None:  # methods are dataclasses of their hyper-parameters
        self.validate()
        self.reset()

    @classmethod
    def for_training(cls, *, lr: float, classification: Sequence[str] = ()) -> Self:
        """The method with its defaults, and with those settings that a training alone knows.

        Parameters
        ----------
        lr : float
            The learning rate of the model.
        classification : sequence of str
            Names of the tasks whose values are classes.
        """
        return cls()

    # -- what a method writes -------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise `BadInput` for a setting out of range; called once, at construction."""

    def compute(self, signal: Tensor, tasks: tuple[str, ...], losses: Tensor | None) -> Tensor:
        """The method itself. No gradients are recorded.

        Parameters
        ----------
        signal : Tensor
            What `self.signal` names, checked and detached, in float32 or float64.
        tasks : tuple of str
            The names of its rows.
        losses : Tensor or None
            [T], where the method needs them beside the signal.

        Returns
        -------
        Tensor
            The weights [T].
        """
        raise BadInput(
            f"{type(self).__name__} has no weights, only a direction", remedy="call direction(jacobian) or use backward()"
        )

    def reset(self) -> None:
        """Forget everything learnt; settings stay."""

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Hear the losses of the same batch after the optimiser's step (FAMO); does nothing elsewhere. See `wants_after_step`."""

    def epoch_end(self) -> None:
        """Hear that an epoch has ended (DWA, STCH); does nothing elsewhere."""

    # -- what a training loop asks ---------------------------------------------------------------------------------

    @property
    def draws(self) -> int:
        """How many batches one step draws: those it trains on, and one to validate on where the method needs that."""
        return self.batches + ("validation" in self.needs)

    @property
    def wants_after_step(self) -> bool:
        """Whether `after_step` is to be called with the losses of the same batch, which costs one more forward pass."""
        return type(self).after_step is not Balancer.after_step

    def door(self, processes: int = 1) -> str:
        """The cheapest of `doors` that serves a step shared by so many processes.

        A Jacobian of several processes is put together by "backward" alone, unless the method works on each row of the features.
        """
        whole = self.signal == "jacobian" and not hasattr(self, "on_features")
        return "combine" if "combine" in self.doors and not (whole and processes > 1) else "backward"

    # -- what a caller calls --------------------------------------------------------------------------------------

    @property
    def signal(self) -> str:
        """The strongest of `SIGNALS` in `needs`: what `weights` takes."""
        return [name for name in SIGNALS if name in self.needs][-1]

    @torch.no_grad()
    def weights(self, signal: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        """The weights of the tasks present.

        Parameters
        ----------
        signal : Tensor
            Losses [T], squared gradient norms [T], Gram [T, T] or cross-Gram [T, T], as `self.signal` says.
        tasks : sequence of str, optional
            Names of the rows; default "0", "1", …
        losses : Tensor, optional
            [T], where the method needs them beside the signal.

        Returns
        -------
        Tensor
            [T], detached, in float32 or float64, on the signal's device.

        Raises
        ------
        BadInput
            Shapes or names do not fit, losses are missing, or the method gives a direction and no weights.
        """
        names = self._names(signal, tasks)
        square = self.signal in ("gram", "cross_gram", "jacobian")
        if signal.shape != ((len(names), len(names)) if square else (len(names),)):
            raise BadInput(
                f"the signal has shape {tuple(signal.shape)} for {len(names)} tasks",
                where=type(self).__name__,
                remedy=f"pass {'a square matrix [T, T]' if square else 'a vector [T]'} with one row a task",
            )
        if losses is None and self.signal == "losses":
            losses = signal
        return self.compute(_real(signal), names, self._losses(losses, names)).detach()

    @torch.no_grad()
    def direction(self, jacobian: Tensor, *, tasks: Sequence[str] | None = None, losses: Tensor | None = None) -> Tensor:
        """The balanced gradient; by default Jᵀ w with w from the signal that J (and the losses) give.

        Parameters
        ----------
        jacobian : Tensor
            J [T, P], one flat gradient a task.
        tasks : sequence of str, optional
            Names of the rows; default "0", "1", …
        losses : Tensor, optional
            [T], where the method needs them.

        Returns
        -------
        Tensor
            d [P], in the type of J.

        Raises
        ------
        BadInput
            Shapes or names do not fit, losses are missing, or the method needs gradients of independent batches.
        """
        names, rows, _ = self.jacobian_of(jacobian, tasks, losses)
        if self.signal == "cross_gram":
            raise BadInput(
                f"{type(self).__name__} needs gradients of independent batches",
                remedy="call weights(J1 @ J2.T) and combine the rows of a third batch",
            )
        if self.signal == "losses":
            assert losses is not None
            w = self.weights(losses, tasks=names)
        elif self.signal == "norms":
            w = self.weights(rows.square().sum(1), tasks=names, losses=losses)
        else:
            w = self.weights(rows @ rows.T, tasks=names, losses=losses)
        return (rows.T @ w.to(rows.dtype)).to(jacobian.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves (tensors and plain values, nested); `load_state_dict` resumes bit for bit. Weights that a door
        holds for several calls (`every`) are part of it."""
        return {**{name: _freeze(getattr(self, name)) for name in self.mutable}, **self.held()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` of the same method gave."""
        self.hold(state)
        if set(state) - {"held"} != set(self.mutable):
            raise BadInput(
                f"the state holds {sorted(state)} but {type(self).__name__} keeps {sorted(self.mutable)}",
                remedy="load it into the method that wrote it",
            )
        for name in self.mutable:
            current = getattr(self, name)
            if isinstance(current, torch.Generator):
                current.set_state(state[name].cpu())
            elif hasattr(current, "load_state_dict"):
                current.load_state_dict(state[name])
            else:
                setattr(self, name, _freeze(state[name]))

    def held(self) -> dict[str, Any]:
        """The weights that a door holds, as {"held": …}; nothing where each call computes its own."""
        step = self.last
        if step is None or step.weights is None or step.every == 1:
            return {}
        return {
            "held": {
                "tasks": list(step.tasks),
                "losses": step.losses.clone(),
                "weights": step.weights.clone(),
                "age": step.age,
                "every": step.every,
            }
        }

    def hold(self, state: Mapping[str, Any]) -> None:
        """Take up what `held` gave."""
        self.last = None
        if "held" in state:
            held = dict(state["held"])
            tasks = tuple(held.pop("tasks"))
            self.last = Decision(tasks, source="held", why="taken up from a state", **held)

    # -- shared by methods ----------------------------------------------------------------------------------------

    def _names(self, rows: Tensor, tasks: Sequence[str] | None) -> tuple[str, ...]:
        if rows.ndim == 0 or rows.shape[0] == 0:
            raise BadInput("there is no task to balance", where=type(self).__name__, remedy="pass at least one loss")
        names = tuple(map(str, range(rows.shape[0]))) if tasks is None else tuple(tasks)
        if len(set(names)) != len(names):
            raise BadInput(f"two tasks have one name: {list(names)}", where=type(self).__name__, remedy="name each once")
        if len(names) != rows.shape[0]:
            raise BadInput(f"{len(names)} task names for {rows.shape[0]} rows", where=type(self).__name__)
        return names

    def jacobian_of(
        self, jacobian: Tensor, tasks: Sequence[str] | None, losses: Tensor | None
    ) -> tuple[tuple[str, ...], Tensor, Tensor | None]:
        """Checked arguments of `direction`: names, J in float32 or float64, losses."""
        names = self._names(jacobian, tasks)
        if jacobian.ndim != 2:
            raise BadInput(f"the Jacobian has shape {tuple(jacobian.shape)}", remedy="pass one flat gradient a task, [T, P]")
        return names, _real(jacobian), self._losses(losses, names)

    def _losses(self, losses: Tensor | None, names: tuple[str, ...]) -> Tensor | None:
        if losses is None:
            if "losses" in self.needs:
                raise BadInput("losses are missing", where=type(self).__name__, remedy="pass losses=, one number a task")
            return None
        if losses.shape != (len(names),):
            raise BadInput(f"losses have shape {tuple(losses.shape)} for {len(names)} tasks", where=type(self).__name__)
        return _real(losses)


def _real(x: Tensor) -> Tensor:
    """Detached, and in float32 at least: half precision cannot hold a squared gradient norm."""
    x = x.detach()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _freeze(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.state_dict() if hasattr(value, "state_dict") else value


def check_preference(preference: Preference) -> None:
    """A preference is a mapping task → number or one number a row: none negative or infinite, not all zero."""
    if preference is None:
        return
    items = list(preference.items() if isinstance(preference, Mapping) else enumerate(preference))
    for name, value in items:
        if not (math.isfinite(value) and value >= 0):
            raise BadInput(f"the preference of task {name!r} is {value}", where="preference", remedy="give numbers of 0 or more")
    if not any(value > 0 for _, value in items):
        raise BadInput("no task has a positive preference", where="preference")


def preference_of(preference: Preference, tasks: tuple[str, ...], like: Tensor, default: float) -> Tensor:
    """The preferences of the tasks present [T], as given; `default` for each where there is no preference."""
    if preference is None:
        return like.new_full((len(tasks),), default)
    if isinstance(preference, Mapping):
        missing = [task for task in tasks if task not in preference]
        if missing:
            raise BadInput(
                f"the preference does not name {', '.join(map(repr, missing))}",
                where="preference",
                remedy="give every task a number",
            )
        values = [float(preference[task]) for task in tasks]
    else:
        if len(preference) != len(tasks):
            raise BadInput(
                f"{len(preference)} preferences for {len(tasks)} tasks",
                where="preference",
                remedy="name them (a mapping task: number) when tasks may be absent",
            )
        values = [float(value) for value in preference]
    return constant(tuple(values), like.dtype, like.device)


def check_positive(owner: Balancer, **values: float) -> None:
    """Each value must be a positive finite number."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"{name} is {value}", where=type(owner).__name__, remedy="give a positive number")


def check_between(owner: Balancer, low: float, high: float, **values: float) -> None:
    """Each value must lie in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise BadInput(f"{name} is {value}", where=type(owner).__name__, remedy=f"give a number from {low} to {high}")


def check_signs(owner: Balancer, tasks: Sequence[str], losses: Tensor) -> Tensor:
    """Which losses [T] are 0, each a task that has nothing left to learn; a negative one is an error.

    For methods that take logarithms of losses or divide by them.
    """
    if bool((losses < 0).any()):
        t = int((losses < 0).nonzero()[0])
        raise BadInput(
            f"the loss of task {tasks[t]!r} is {losses[t].item():.3g}, and {type(owner).__name__} takes no negative one",
            where="losses",
            remedy="add a constant to it, or take a balancer of gradients",
        )
    zero = losses == 0
    if bool(zero.any()):
        t = int(zero.nonzero()[0])
        once(f"the loss of task {tasks[t]!r} is 0: {type(owner).__name__} weighs by the size of losses and cannot weigh it")
    return zero


_SAID: set[str] = set()


def once(message: str) -> None:
    """A warning that is given once in a process."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(message, stacklevel=2)
