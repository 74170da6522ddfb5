"""How often each task is heard: mixing tasks, or sources, of unequal size.

With n_t labelled rows of task t in the part, a batch draws task t with probability p_t:

- `Proportional`: p_t ∝ n_t, as if the data were put together.
- `UniformMix`: p_t = 1/T.
- `Temperature(tau)`: p_t ∝ n_t^{1/τ} (τ = 1 proportional, τ → ∞ uniform); multilingual BERT (2019), T5 (Raffel et al. 2020).
- `Capped(limit)`: p_t ∝ min(n_t, K), T5's "examples-proportional mixing".
- `Annealed(start, end, steps)`: p_t ∝ n_t^α, α going linearly from `start` to `end`; Stickland & Murray 2019, §4.4, who take
  α = 1 − 0.8 (e − 1)/(E − 1) over epochs e = 1 … E, i.e. from 1 to 0.2.

T5 caps before it takes the root; `Temperature(tau, limit=K)` does the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pluribus.data.batch import Batch
from pluribus.data.cells import IntArray
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput

FloatArray = NDArray[np.float64]


class Mix(Protocol):
    """A rule for how often each task is drawn."""

    def probabilities(self, sizes: FloatArray, step: int) -> FloatArray:
        """The probability of each task.

        Parameters
        ----------
        sizes : ndarray of float64
            [T], the tasks' labelled rows, all positive.
        step : int
            The number of batches drawn so far.

        Returns
        -------
        ndarray of float64
            [T]
        """
        ...


def _normalised(weights: FloatArray) -> FloatArray:
    return np.asarray(weights / weights.sum())


def _power(sizes: FloatArray, exponent: float) -> FloatArray:
    return _normalised((sizes / sizes.max()) ** exponent)


@dataclass(frozen=True)
class Proportional:
    """p_t ∝ n_t."""

    def probabilities(self, sizes: FloatArray, step: int) -> FloatArray:
        return _normalised(sizes)


@dataclass(frozen=True)
class UniformMix:
    """p_t = 1/T."""

    def probabilities(self, sizes: FloatArray, step: int) -> FloatArray:
        return _normalised(np.ones_like(sizes))


@dataclass(frozen=True)
class Temperature:
    """p_t ∝ min(n_t, limit)^{1/τ}; τ ≥ 1 flattens."""

    tau: float
    limit: float = np.inf

    def __post_init__(self) -> None:
        if not self.tau > 0 or not self.limit > 0:
            raise BadInput("tau and limit must be positive", where="Temperature", remedy="tau = 1 is proportional")

    def probabilities(self, sizes: FloatArray, step: int) -> FloatArray:
        return _power(np.minimum(sizes, self.limit), 1 / self.tau)


@dataclass(frozen=True)
class Capped:
    """p_t ∝ min(n_t, limit)."""

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise BadInput("limit must be positive", where="Capped")

    def probabilities(self, sizes: FloatArray, step: int) -> FloatArray:
        return _normalised(np.minimum(sizes, self.limit))


@dataclass(frozen=True)
class Annealed:
    """p_t ∝ n_t^α with α linear in the step from `start` (step 0) to `end` (from `steps` − 1 on)."""

    steps: int
    start: float = 1.0
    end: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput("steps must be at least 1", where="Annealed")

    def probabilities(self, sizes: FloatArray, step: int) -> FloatArray:
        done = min(1.0, step / max(self.steps - 1, 1))
        return _power(sizes, self.start + (self.end - self.start) * done)


class _ShuffledRows:
    """A task's labelled rows in random order, dealt out for ever: each pass gives every row once."""

    def __init__(self, rows: IntArray, rng: np.random.Generator) -> None:
        self.rows, self.rng = rows, rng
        self.order, self.at = rng.permutation(len(rows)), 0

    def take(self, count: int) -> IntArray:
        """Positions among the task's cells [count]."""
        parts = []
        while count:
            if self.at == len(self.order):
                self.order, self.at = self.rng.permutation(len(self.rows)), 0
            part = self.order[self.at : self.at + count]
            self.at += len(part)
            count -= len(part)
            parts.append(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class TaskSampler:
    """An endless stream of batches in which each task has the share that a mix says.

    A drawn cell brings its own label only, so that the realised counts are the plan's within binomial error; a row may stand in a
    batch twice, once for each of two tasks. Every task's cells come round without repetition before any comes again.

    Parameters
    ----------
    data : Prepared
        Where the cells are.
    part : str
        The part of it.
    size : int
        Cells per batch.
    mix : Mix
        How often each task is drawn.
    homogeneous : bool
        True: all cells of a batch are of one task, drawn by the mix. False: each cell's task is drawn.
    seed : int
        Of everything drawn; the same seed gives the same stream.
    tasks : sequence of str or None
        Default: all.

    Attributes
    ----------
    drawn : dict
        Task → cells drawn so far.
    planned : dict
        Task → their expected number.
    step : int
        Batches drawn so far.

    Raises
    ------
    BadInput
        A batch would be empty, or a task has no label in the part.
    """

    def __init__(
        self,
        data: Prepared,
        part: str,
        size: int,
        mix: Mix,
        *,
        homogeneous: bool = False,
        seed: int = 0,
        tasks: Sequence[str] | None = None,
    ) -> None:
        if size < 1:
            raise BadInput(f"a batch needs at least one cell, not {size}", where="TaskSampler", remedy="raise size")
        self.data, self.size, self.mix, self.homogeneous = data, size, mix, homogeneous
        self.names = [task.name for task in data.tasks if tasks is None or task.name in tasks]
        self._cells = {name: data.labelled(name, part).counted() for name in self.names}
        empty = [name for name in self.names if not len(self._cells[name])]
        if empty or not self.names:
            what = f"task {empty[0]!r} has no label in {part}" if empty else "there is no task to sample"
            raise BadInput(what, where="TaskSampler", remedy="leave the task out")
        self._rng = np.random.default_rng(seed)
        self._sources = {name: _ShuffledRows(cells.rows, self._rng) for name, cells in self._cells.items()}
        self._sizes = np.array([len(self._cells[name]) for name in self.names], np.float64)
        self.drawn = dict.fromkeys(self.names, 0)
        self.planned = dict.fromkeys(self.names, 0.0)
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.draw()

    def draw(self) -> Batch:
        """The next batch."""
        p = self.mix.probabilities(self._sizes, self.step)
        if self.homogeneous:
            counts = np.zeros(len(p), np.int64)
            counts[self._rng.choice(len(p), p=p)] = self.size
        else:
            counts = self._rng.multinomial(self.size, p)
        self.step += 1
        rows, labels, start = [], {}, 0
        for name, count, share in zip(self.names, counts.tolist(), p.tolist()):
            self.planned[name] += share * self.size
            if not count:
                continue
            self.drawn[name] += count
            cells, at = self._cells[name], self._sources[name].take(count)
            labels[name] = cells.labels(at, torch.arange(start, start + count))
            rows.append(cells.rows[at])
            start += count
        return replace(self.data.batch(torch.from_numpy(np.concatenate(rows)), ()), labels=labels)


Uniform = UniformMix
"""Its name in the first edition; `pluribus.modeling.Uniform` is a range of a setting."""
