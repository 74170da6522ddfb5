"""Greedy blends: never worse than the best single candidate on the rows of the picks, and measured on other rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pluribus.data import Table, prepare, split
from pluribus.evaluation import metrics
from pluribus.study.blend import PICKS, blended, picks
from pluribus.tasks import Task

NUMBER = Task("y", "regression", metrics=("rmse",))


@given(seed=st.integers(0, 50), kinds=st.integers(1, 5))
def test_a_blend_is_never_below_the_best_single_one(seed: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=60)
    said = {str(i): y + rng.normal(size=60) * rng.uniform(0.2, 2) + rng.normal() for i in range(kinds)}
    weight = rng.random(60)
    found = picks(NUMBER, said, y, weight)
    assert sum(found.values()) == 1 or abs(sum(found.values()) - 1) < 1e-12
    assert all(round(w * k) > 0 for w in found.values() for k in range(1, PICKS + 1) if abs(w * k - round(w * k)) < 1e-9)
    mixed = sum(w * said[name] for name, w in found.items())
    best = min(metrics.compute("rmse", p, y, weight) for p in said.values())
    assert metrics.compute("rmse", mixed, y, weight) <= best + 1e-12


def test_equal_candidates_are_the_first_one() -> None:
    """Broken: copies of one model are mixed, and cost what several cost."""
    p = np.random.default_rng(0).normal(size=30)
    assert picks(NUMBER, {"a": p, "b": p, "c": p}, p + 0.1) == {"a": 1.0}


def test_opposite_errors_are_mixed() -> None:
    """Oracle: the mean of y + 1 and y − 1 is y."""
    y = np.random.default_rng(0).normal(size=30)
    assert picks(NUMBER, {"up": y + 1, "down": y - 1}, y) == {"up": 0.5, "down": 0.5}


def test_what_is_said_of_a_blend_is_not_fitted_to_noise() -> None:
    """Ten useless candidates: the picks look good on their own rows; the cross-fitted predictions do not."""
    rng = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame({"a": rng.normal(size=n), "y": rng.normal(size=n)})
    table = Table(frame, ["y:regression"], split="random")
    data = prepare(table, split(table, 0))
    cells = data.labelled("y", "valid")
    said = {str(i): rng.normal(size=len(cells)) for i in range(10)}
    weights, crossed = blended(data.tasks[0], data, said, 0)
    own = metrics.compute("rmse", sum(w * said[name] for name, w in weights.items()), cells.values)
    assert metrics.compute("rmse", crossed, cells.values) > own
