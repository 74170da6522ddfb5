"""Mixes are the formulas, draws follow them within binomial error, and batches hold the right cells."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data import Labels, Prepared, Table, prepare, split
from pluribus.data.sampling import Annealed, Capped, Mix, Proportional, TaskSampler, Temperature, UniformMix
from pluribus.errors import BadInput

SIZES = np.array([1000.0, 100.0, 10.0])
MIXES: list[Mix] = [Proportional(), UniformMix(), Temperature(2), Temperature(5, limit=200), Capped(50), Annealed(40)]


def test_table_of_values() -> None:
    """Each rule by hand for n = 1000, 100, 10."""
    cases = [
        (Proportional(), 0, [1000 / 1110, 100 / 1110, 10 / 1110]),
        (UniformMix(), 0, [1 / 3] * 3),
        (Temperature(2), 0, np.sqrt(SIZES) / np.sqrt(SIZES).sum()),
        (Temperature(1), 9, SIZES / SIZES.sum()),
        (Temperature(2, limit=100), 0, np.array([10, 10, 10**0.5]) / (20 + 10**0.5)),
        (Capped(100), 0, [100 / 210, 100 / 210, 10 / 210]),
        (Annealed(5), 0, SIZES / SIZES.sum()),
        (Annealed(5), 2, SIZES**0.6 / (SIZES**0.6).sum()),
        (Annealed(5), 4, SIZES**0.2 / (SIZES**0.2).sum()),
        (Annealed(5), 99, SIZES**0.2 / (SIZES**0.2).sum()),
    ]
    for mix, step, expected in cases:
        assert np.allclose(mix.probabilities(SIZES, step), expected), mix


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8), st.integers(0, 1000))
def test_probabilities_are_probabilities(sizes: list[int], step: int) -> None:
    n = np.array(sizes, float)
    for mix in MIXES:
        p = mix.probabilities(n, step)
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1)
        assert (p[np.argsort(n)] == np.sort(p)).all() or np.allclose(p[np.argsort(n)], np.sort(p)), "more data, no less heard"


def data(seed: int = 0) -> Prepared:
    n = 1200
    rng = np.random.default_rng(seed)
    table = Table(
        pd.DataFrame(
            {
                "x": np.arange(n, dtype=float),
                "a": rng.normal(size=n),
                "w": rng.random(n) + 0.5,
                "b": np.where(rng.random(n) < 0.6, np.nan, rng.normal(size=n)),
                "c": np.where(rng.random(n) < 0.9, np.nan, rng.normal(size=n)),
            }
        ),
        ["a:regression", "b:regression", "c:regression"],
        split="random",
        weight="w",
    )
    return prepare(table, split(table))


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: type(mix).__name__)
@pytest.mark.parametrize("homogeneous", [False, True])
def test_realised_counts_follow_the_plan(mix: Mix, homogeneous: bool) -> None:
    """Within four standard errors of the binomial (homogeneous: of batches, else of cells)."""
    size, steps = 32, 600
    sampler = TaskSampler(data(), "train", size, mix, homogeneous=homogeneous, seed=3)
    for _ in range(steps):
        sampler.draw()
    assert sum(sampler.drawn.values()) == size * steps
    assert sum(sampler.planned.values()) == pytest.approx(size * steps)
    unit = size if homogeneous else 1
    for name, planned in sampler.planned.items():
        share = planned / (size * steps)
        error = np.sqrt(size * steps / unit * share * (1 - share)) * unit
        assert abs(sampler.drawn[name] - planned) <= 4 * error + 1e-9


@pytest.mark.parametrize("homogeneous", [False, True])
def test_batches_hold_cells_of_their_tasks(homogeneous: bool) -> None:
    prepared = data()
    sampler = TaskSampler(prepared, "train", 40, UniformMix(), homogeneous=homogeneous, seed=1)
    centre = prepared.columns.numbers["x"]
    for batch in itertools.islice(sampler, 30):
        assert batch.n_rows == 40
        assert len(batch.labels) == 1 if homogeneous else len(batch.labels) >= 1
        assert sorted(torch.cat([labels.rows for labels in batch.labels.values()]).tolist()) == list(range(40))
        table_rows = (batch.inputs["numeric"][:, 0].double() * centre.scale + centre.centre).round().long().numpy()
        assert np.isin(table_rows, prepared.parts["train"]).all()
        for name, labels in batch.labels.items():
            cells = prepared.cells[name]
            at = np.searchsorted(cells.rows, table_rows[labels.rows])
            assert np.array_equal(cells.rows[at], table_rows[labels.rows])
            assert np.allclose(labels.values, cells.values[at])
            assert labels.weight is not None
            assert cells.weight is not None
            assert np.allclose(labels.weight, cells.weight[at])


def test_cells_of_weight_0_are_not_drawn() -> None:
    frame = pd.DataFrame({"x": np.arange(90.0), "y": np.arange(90) % 2, "w": (np.arange(90) % 3 == 0) * 1.0})
    table = Table(frame, ["y:binary"], weight="w", split="random")
    sampler = TaskSampler(prepare(table, split(table, 0)), "train", 8, Proportional())
    for _ in range(10):
        labels = sampler.draw().labels["y"]
        assert labels.weight is not None
        assert bool((labels.weight == 1).all())


def test_no_cell_comes_again_before_all_have_come() -> None:
    prepared = data()
    sampler = TaskSampler(prepared, "train", 7, UniformMix(), seed=5, tasks=["c"])
    total = len(prepared.labelled("c", "train"))
    values: list[float] = []
    while len(values) < 2 * total:
        values += sampler.draw().labels["c"].values.tolist()
    assert sorted(values[:total]) == sorted(values[total : 2 * total])
    assert len(set(values[:total])) == total
    assert values[:total] != values[total : 2 * total]


def test_seeds() -> None:
    def stream(seed: int) -> list[float]:
        sampler = TaskSampler(data(), "train", 16, Proportional(), seed=seed)
        return [value for batch in itertools.islice(sampler, 5) for value in batch.inputs["numeric"][:, 0].tolist()]

    assert stream(1) == stream(1)
    assert stream(1) != stream(2)


def test_mixed_batch_equals_accumulated_single_task_batches() -> None:
    """A linear model's gradient of the summed losses is the same, whether the cells come together or task by task."""
    batch = TaskSampler(data(), "train", 64, UniformMix(), seed=2).draw()
    weight = torch.zeros(1, requires_grad=True)

    def loss(labels: Labels) -> torch.Tensor:
        x = batch.inputs["numeric"][labels.rows, 0]
        return ((x * weight - labels.values) ** 2).sum()

    together = torch.autograd.grad(sum(loss(labels) for labels in batch.labels.values()), weight)[0]
    apart = sum(torch.autograd.grad(loss(labels), weight)[0] for labels in batch.labels.values())
    assert torch.allclose(together, torch.as_tensor(apart))


def test_bad_settings() -> None:
    with pytest.raises(BadInput, match="tau and limit"):
        Temperature(0)
    with pytest.raises(BadInput, match="limit must be positive"):
        Capped(-1)
    with pytest.raises(BadInput, match="at least one cell"):
        TaskSampler(data(), "train", 0, UniformMix())
    with pytest.raises(BadInput, match="steps must be"):
        Annealed(0)
    with pytest.raises(BadInput, match="no task to sample"):
        TaskSampler(data(), "train", 5, UniformMix(), tasks=["none"])
    with pytest.raises(BadInput, match="task 'a' has no label in train"):
        TaskSampler(data().with_parts(train=np.empty(0, np.int64)), "train", 5, UniformMix())
