"""Folds of a small table: every row is predicted by a model that did not see it.

On few rows a hold-out of a fifth decides by luck. The rows of the train and valid parts are dealt to K folds, whole units each; a
candidate is fitted K times, without one fold each, which is its valid part. Predictions of all held-out folds together are
out-of-fold predictions of all rows: what is chosen is chosen on them, and the average of the K models is what is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import held_classes
from pluribus.data.prepared import Prepared
from pluribus.data.table import MIN_TRAIN_LABELS
from pluribus.tasks.forms import joined
from pluribus.tasks.metrics import Terms

FOLDS = 5
FEWEST_UNITS = 3000
"""Units of the train and valid parts from which on a hold-out is large enough to choose on."""


def whole(data: Prepared) -> Prepared:
    """The same table whose train and valid parts both are all their rows: what out-of-fold predictions are judged on."""
    rows = np.sort(np.concatenate([data.parts["train"], data.parts["valid"]]))
    return data.with_parts(train=rows, valid=rows)


def fold_parts(data: Prepared, folds: int, fold: int, seed: int) -> Prepared:
    """The table as the fit without one fold sees it: that fold is its valid part, the others its train part.

    Parameters
    ----------
    data : Prepared
        The table, with train and valid parts.
    folds : int
        K.
    fold : int
        The one that is held out, below K.
    seed : int
        Of the deal; the same for all fits of a study.
    """
    rows = np.sort(np.concatenate([data.parts["train"], data.parts["valid"]]))
    held = _dealt(data, rows, folds, seed) == fold
    return data.with_parts(train=rows[~held], valid=rows[held])


def why_not(data: Prepared, folds: int, seed: int) -> str | None:
    """Why a table cannot be cut into so many folds, or None where it can: every fit needs labels to learn from and to stop by."""
    rows = np.sort(np.concatenate([data.parts["train"], data.parts["valid"]]))
    units = len(np.unique(data.units[rows]))
    if folds > units:
        return f"{folds} folds need as many units, and there are {units}"
    code = _dealt(data, rows, folds, seed)
    place = np.full(data.n_rows, -1)
    place[rows] = code
    for task in data.tasks:
        cells = data.cells[task.name].within(rows)
        own = place[cells.rows]
        counts = np.bincount(own, minlength=folds)
        if not counts.min():
            return f"{task.name!r} has no label in one of {folds} folds"
        if len(own) - counts.max() < MIN_TRAIN_LABELS:
            return f"{task.name!r} has fewer than {MIN_TRAIN_LABELS} labels outside one of {folds} folds"
        if task.record.classes:
            for fold in range(folds):
                if why := task.record.varied(task, cells.values[own != fold]):
                    return f"{task.name!r} {why} outside one of {folds} folds"
                if task.record.positive and (why := task.record.varied(task, cells.values[own == fold])):
                    return f"{task.name!r} {why} in one of {folds} folds"
    return None


def assembled(data: Prepared, parts: Sequence[Prepared], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Out-of-fold predictions in the order of the table's cells.

    Parameters
    ----------
    data : Prepared
        What `whole` gave.
    parts : sequence of Prepared
        What `fold_parts` gave, fold by fold.
    predictions : sequence of mapping
        Task → predictions of the labelled cells of each fold's valid part, or their terms.
    """
    found: dict[str, Any] = {}
    for task in data.tasks:
        each = [own[task.name] for own in predictions]
        rows = np.concatenate([part.labelled(task.name, "valid").rows for part in parts])
        order = np.argsort(rows, kind="stable")
        if isinstance(each[0], Terms):
            found[task.name] = Terms({m: np.concatenate([own.each[m] for own in each])[order] for m in each[0].each})
        else:
            found[task.name] = joined(each)[order]
    return found


def _dealt(data: Prepared, rows: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.intp]:
    """The fold of each of the rows: units with the rarest labels and classes first, large ones before small ones, each to the
    fold with the fewest rows."""
    rng = np.random.default_rng(seed)
    codes = np.unique(data.units[rows], return_inverse=True)[1]
    sizes = np.bincount(codes)
    total = len(sizes)
    place = np.full(data.n_rows, -1)
    place[rows] = codes
    keys = []
    for task in data.tasks:
        cells = data.cells[task.name].within(rows)
        own = [cells.rows]
        if task.record.classes:
            own += [cells.rows[has] for has in held_classes(cells.values, len(task.classes)).T]
        for labelled in own:
            key = np.zeros(total, bool)
            key[place[labelled]] = True
            if 0 < key.sum() < total:
                keys.append(key)
    keys.sort(key=lambda key: int(key.sum()))
    order = np.lexsort((rng.random(total), -sizes, *reversed([~key for key in keys[:24]])))
    code = np.empty(total, np.intp)
    have = np.zeros(folds)
    for unit, chance in zip(order, rng.random((total, folds))):
        fold = int(np.lexsort((chance, have))[0])
        code[unit] = fold
        have[fold] += sizes[unit]
    return code[codes]
