"""Labels that are late: a negative that may still turn positive, weighed as what it stands for.

A conversion is known as soon as it happens; that there is none is known only when the window is over. So among the labels of
recent rows positives are too frequent if the pending ones are left out, and too rare if they are called negative. With G_b the
probability that a positive of time bin b has been seen by now, labels are weighed by p(x, y) / p(x, what was seen):

    seen positive: 1 / G_b        pending: a negative of weight P(negative | pending, b)        final negative: 1

(the importance weights of Ktena et al., "Addressing Delayed Feedback for Continuous Training with Neural Networks in CTR
Prediction", RecSys 2019, with the bin's probabilities in the place of the model's). G_b is estimated: the share of positives
seen in the bin over that of the mature bins, in which nothing is pending. It assumes that the rate of positives does not drift,
and that within a bin early conversions are like late ones; real drift in the recent bins is taken for lateness.

The weights are the cells' own, so losses, samplers, metrics and every kind of model see them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pluribus.data.cells import Cells
from pluribus.errors import BadInput

FloatArray = NDArray[np.float64]
CLIP = 15.0  # largest 1/G; where less has been seen, a bin tells nothing yet and is left out
PER_BIN = 50  # positives that a bin should hold
MIN_POSITIVES = 20


def seen_share(
    positive: NDArray[np.bool_], pending: NDArray[np.bool_], time: FloatArray, weight: FloatArray, where: str
) -> tuple[NDArray[np.int64], FloatArray, float]:
    """The share of positives that has been seen by now, by bins of time.

    Parameters
    ----------
    positive, pending : ndarray of bool
        [n], what has happened, and what is still to come.
    time, weight : ndarray of float64
        [n], of the rows.
    where : str
        The file and the task, for messages.

    Returns
    -------
    ndarray of int64
        [n], each row's bin; bins ascend in time.
    ndarray of float64
        G of each bin.
    float
        The rate of positives where nothing is pending.

    Raises
    ------
    BadInput
        There are too few positives in times when nothing is pending any more.
    """
    count = int(np.clip(positive.sum() / PER_BIN, 4, 50))
    edges = np.unique(np.quantile(time, np.linspace(0, 1, count + 1)[1:-1]))
    bins = np.searchsorted(edges, time, side="right")
    size = len(edges) + 1
    total, happened = (np.bincount(bins, w, size) for w in (weight, weight * positive))
    mature = np.bincount(bins[pending], minlength=size) == 0
    known = mature[bins]
    if (positive & known).sum() < MIN_POSITIVES:
        what = f"has {int((positive & known).sum())} positives in times when nothing is pending any more, too few to weigh by"
        remedy = f"bring at least {MIN_POSITIVES}, or leave delayed labels out"
        raise BadInput(what, where=where, remedy=remedy)
    rate = float(happened[mature].sum() / total[mature].sum())
    share = happened / (np.maximum(total, 1e-12) * rate)
    return bins, np.where(mature, 1.0, np.minimum(share, 1.0)), rate


def weighed(value: FloatArray, pending: NDArray[np.bool_], time: FloatArray, weight: FloatArray | None, where: str) -> Cells:
    """The cells of one binary task, with the weights of the module's text.

    Parameters
    ----------
    value : ndarray of float64
        [n]: 1, 0, or NaN where there is no label.
    pending : ndarray of bool
        [n], not positive so far, and not final.
    time : ndarray of float64
        [n], the rows' times.
    weight : ndarray of float64 or None
        [n], the rows' weights.
    where : str
        The file and the task, for messages.
    """
    positive = value == 1
    rows = np.flatnonzero(positive | (value == 0) | pending)
    own = np.ones(len(rows)) if weight is None else weight[rows]
    waits, happened = pending[rows] & ~positive[rows], positive[rows]
    bins, share, rate = seen_share(happened, waits, time[rows], own, where)
    final = ~happened & ~waits
    total, negatives, left = (np.bincount(bins, own * each, len(share)) for each in (1, final, waits))
    no = np.clip((total * (1 - rate) - negatives) / np.maximum(left, 1e-12), 0, 1)  # P(negative | pending)
    factor = np.where(happened, 1 / np.maximum(share, 1 / CLIP)[bins], np.where(waits, no[bins], 1.0))
    kept = (share >= 1 / CLIP)[bins] & (factor > 0)
    return Cells(rows[kept], happened[kept].astype(np.float64), (own * factor)[kept])
