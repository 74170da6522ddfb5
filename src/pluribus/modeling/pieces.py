"""Forward passes in pieces: as many rows at a time as the memory of their inputs and outputs allows.

A row of a table holds a few hundred bytes, a picture some megabytes: a fixed number of rows is slow for the one or too much for
the other.

    each = bytes_per_row(run, rows)             # run: slice → (inputs, outputs); it runs on a few rows
    for piece in pieces(rows, each):
        inputs, outputs = run(piece)
    predictions = collected(form, [outputs, …])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pluribus.tasks.forms import Form, Maps, Ragged, joined
from pluribus.tasks.kinds.record import Predictions

LIMIT = 64 * 2**20  # bytes of inputs and outputs of one forward pass
MOST = 8192  # rows of one forward pass: what lies between inputs and outputs is larger than both where these are small
FEW = 16  # rows that are measured


def bytes_of(tree: Any) -> int:
    """The memory of everything in a tree.

    Parameters
    ----------
    tree : tree
        Nested dicts, lists and tuples; tensors, NumPy arrays, `Ragged` and `Maps` in it count.

    Returns
    -------
    int
        Bytes.
    """
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor | np.ndarray | Ragged | Maps))


def bytes_per_row(run: Callable[[slice], Any], rows: int) -> float:
    """The memory of one row, measured on 16 rows that lie evenly over all; 0 where there are no more rows than that.

    Parameters
    ----------
    run : callable
        Slice of the rows → a tree of inputs and outputs of their forward pass. The slice has a step.
    rows : int
        How many rows there are.

    Returns
    -------
    float
        Bytes of a row. Outputs that stay the same in further calls need not be measured again: keep the number.
    """
    if rows <= FEW:
        return 0.0
    some = slice(0, rows // FEW * FEW, rows // FEW)
    return bytes_of(run(some)) / FEW


def pieces(rows: int, bytes_each: float, *, limit: int = LIMIT, most: int = MOST) -> Iterator[slice]:
    """Cut rows into pieces.

    Parameters
    ----------
    rows : int
        How many rows there are. Without a row there is one empty piece, so that outputs have their shapes.
    bytes_each : float
        Bytes of inputs and outputs of one row.
    limit : int
        Bytes of a piece (default 64 MB); a row that is larger is a piece of its own.
    most : int
        Rows of a piece, however small they are (default 8,192).

    Yields
    ------
    slice
        They follow one another.
    """
    size = max(1, min(most, int(limit // max(1.0, bytes_each))))
    for start in range(0, max(1, rows), size):
        yield slice(start, min(rows, start + size))


def collected(form: Form, parts: Sequence[Tensor]) -> Predictions:
    """The predictions of several forward passes, one below the other.

    Parameters
    ----------
    form : {"value", "list", "map"}
        What the task answers by (`Kind.per`).
    parts : sequence of Tensor
        What `MultiTaskModel.predict` gives of a task, one tensor a pass; at least one.

    Returns
    -------
    float64 [m] or [m, C]; lists without their padding; maps in the type that they have.
    """
    if form == "list":
        return joined([Ragged.of_padded(part.cpu().numpy()) for part in parts])
    whole = (parts[0] if len(parts) == 1 else torch.cat(list(parts))).cpu()
    return Maps(whole.numpy()) if form == "map" else whole.double().numpy()
