"""Which inputs the predictions of a task rest on: shares that sum to 1, whatever the artefact is.

Three ways to measure them, all without a look at the labels, for n rows, inputs j and outputs k of a task:

- TreeSHAP (trees): φ_j(x, k), the Shapley values of the raw score; m_j = Σ_x Σ_k |φ_j(x, k)|. The values of the features that
  one input became are added before the absolute value is taken.
- exchange (everything else): the cells of one input change places between the rows, at random; m_j = Σ_x Σ_k |f_k(x) − f_k(x')|.
  It needs one more prediction an input, and takes numbers, categories, lists and texts alike.
- a mean of members' shares (committees, averages), weighted as the members are.

share_j = m_j / Σ_i m_i. An input that carries the same news as another shares with it: shares say what a model uses, not what
causes what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.prepared import Prepared

PIECE = 50
"""Rows whose Shapley values are computed between two looks at the clock."""


@dataclass(frozen=True)
class Importance:
    """How much the predictions of one task rest on each input.

    Parameters
    ----------
    by : str
        How it was measured: "TreeSHAP", "exchange", or both.
    shares : dict of str to float
        Input → share. They sum to 1; all are 0 where the predictions move with no input.
    rows : int
        How many rows it was measured on.
    unmeasured : tuple of str
        Inputs for which the time was too short; they have no share.
    """

    by: str
    shares: dict[str, float]
    rows: int
    unmeasured: tuple[str, ...] = ()


def by_exchange(
    answer: Callable[[Prepared, Mapping[str, NDArray[np.int64]]], Mapping[str, Any]],
    data: Prepared,
    rows: NDArray[np.int64],
    tasks: Sequence[str],
    seconds: float,
    seed: int = 0,
) -> dict[str, Importance]:
    """Exchange each input's cells between the rows, and see how far the predictions move.

    Parameters
    ----------
    answer : callable
        Predicts cells, as `Fitted.answer` does.
    data : Prepared
        A table encoded by the artefact's columns.
    rows : ndarray of int64
        [m], the rows whose cells are exchanged.
    tasks : sequence of str
        Their names; all are measured in the same predictions.
    seconds : float
        When to stop; inputs later in the table are then unmeasured.
    seed : int, default 0
        Of the exchange.

    Returns
    -------
    dict
        Task → its importance. Tasks that answer with lists or maps are left out.
    """
    until = time.monotonic() + seconds
    part = taken(data, rows)
    wanted = dict.fromkeys(tasks, np.arange(len(rows)))
    before = {name: value for name, value in answer(part, wanted).items() if isinstance(value, np.ndarray)}
    wanted = {name: wanted[name] for name in before}
    moved: dict[str, dict[str, float]] = {name: {} for name in before}
    order = np.random.default_rng(seed).permutation(len(rows))
    inputs = data.columns.inputs
    for one in inputs if wanted else ():
        if time.monotonic() > until:
            break
        numeric, categorical = part.numeric.copy(), part.categorical.copy()
        for names, array in ((one.numeric, numeric), (one.categorical, categorical)):
            places = [data.columns.place(name) for name in names]
            array[:, places] = array[order][:, places]
        stores = {name: store.take(order) if name == one.name else store for name, store in part.stores.items()}
        after = answer(replace(part, numeric=numeric, categorical=categorical, stores=stores), wanted)
        for name, value in before.items():
            moved[name][one.name] = float(np.nansum(np.abs(np.asarray(after[name], np.float64) - value)))
    names = [one.name for one in inputs]
    return {
        name: Importance("exchange", _shares(each), len(rows), tuple(n for n in names if n not in each))
        for name, each in moved.items()
    }


def by_shapley(
    values: Callable[[NDArray[np.int64]], NDArray[np.float64]], data: Prepared, rows: NDArray[np.int64], seconds: float
) -> Importance:
    """The shares of Shapley values, which come in pieces of rows until the time is over; the first piece always counts.

    Parameters
    ----------
    values : callable
        Rows [m] → Shapley values [m, features, outputs], the features as `data.columns.names` has them.
    data : Prepared
        The encoded table.
    rows : ndarray of int64
        [m].
    seconds : float
        When to stop.
    """
    until = time.monotonic() + seconds
    inputs = data.columns.inputs
    numbers = len(data.columns.numeric_names)
    places = [
        [*map(data.columns.place, one.numeric), *(numbers + data.columns.place(name) for name in one.categorical)]
        for one in inputs
    ]
    moved, done = np.zeros(len(inputs)), 0
    for start in range(0, len(rows), PIECE):
        if start and time.monotonic() > until:
            break
        piece = rows[start : start + PIECE]
        phi = values(piece)
        moved += [np.abs(phi[:, own].sum(axis=1)).sum() for own in places]
        done += len(piece)
    return Importance("TreeSHAP", _shares({one.name: float(m) for one, m in zip(inputs, moved)}), done)


def mixed(parts: Sequence[tuple[float, Importance]]) -> Importance:
    """The weighted mean of several members' shares; what any of them did not measure has none."""
    total = sum(weight for weight, _ in parts)
    unmeasured = tuple(dict.fromkeys(name for _, part in parts for name in part.unmeasured))
    shares: dict[str, float] = {}
    for weight, part in parts:
        for name, share in part.shares.items():
            if name not in unmeasured:
                shares[name] = shares.get(name, 0.0) + weight / total * share
    by = " and ".join(dict.fromkeys(part.by for _, part in parts))
    return Importance(by, _shares(shares), min(part.rows for _, part in parts), unmeasured)


def taken(data: Prepared, rows: NDArray[np.int64]) -> Prepared:
    """Some rows of an encoded table, without labels and parts."""
    return replace(
        data,
        numeric=data.numeric[rows],
        categorical=data.categorical[rows],
        cells={},
        parts={},
        units=data.units[rows],
        context={name: value[rows] for name, value in data.context.items()},
        stores={name: store.take(rows) for name, store in data.stores.items()},
    )


def _shares(moved: Mapping[str, float]) -> dict[str, float]:
    total = sum(moved.values())
    return {name: value / total if total > 0 else 0.0 for name, value in moved.items()}
