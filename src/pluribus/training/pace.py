"""How far a training is, and how it ends in time: the share that is done, and what each step adds to it."""

from __future__ import annotations

from dataclasses import dataclass

RESERVE = 0.03  # of the deadline, kept back for what follows the last step
FIRST_LOOK = 0.1  # of the deadline, before which an epoch that is not finished says little
DONE = 1 - 1e-9


@dataclass
class Pace:
    """The share of a training that is done, and what a step adds to it.

    Without a deadline every step adds 1/steps. With one, `hurry` raises what the steps that are left add, so that the share is 1
    just before the deadline: schedules of the share run to their ends, faster. Where the planned steps fit, nothing changes.

    Parameters
    ----------
    steps : int
        How many steps are planned.
    share : float
        What is done already, in [0, 1].

    Attributes
    ----------
    each : float
        What a step adds.
    hurried : bool
        Whether steps were dropped, so that `done` ends the training and not the number of epochs.
    """

    steps: int
    share: float = 0.0

    def __post_init__(self) -> None:
        self.least = 1 / max(1, self.steps)
        self.each = self.least
        self.taken, self.evaluations, self.evaluating = 0, 0, 0.0

    @property
    def hurried(self) -> bool:
        return self.each > self.least

    @property
    def done(self) -> bool:
        """Whether the schedule has come to its end before the planned steps were taken."""
        return self.hurried and self.share >= DONE

    def step(self) -> None:
        """A step was taken."""
        self.share = min(1.0, self.share + self.each)
        self.taken += 1

    def evaluated(self, seconds: float) -> None:
        """An epoch was evaluated in so many seconds."""
        self.evaluations += 1
        self.evaluating = max(self.evaluating, seconds)

    def hurry(self, spent: float, deadline: float) -> None:
        """Make what is left end before the deadline.

        Parameters
        ----------
        spent : float
            Seconds since this run began, which has taken the steps that `step` was told of.
        deadline : float
            Seconds that it may take.
        """
        if not self.taken or self.share >= DONE or (not self.evaluations and spent < FIRST_LOOK * deadline):
            return
        last = self.evaluating if self.evaluations else FIRST_LOOK * spent
        left = deadline * (1 - RESERVE) - spent - last
        steps = left / (spent / self.taken)  # evaluations are spread over the steps
        needed = (1 - self.share) / max(1.0, steps)
        self.each = max(self.least, needed)
