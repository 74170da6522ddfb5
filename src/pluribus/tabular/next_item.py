"""Next items: a kind of task whose label is a row of an item table, and whose prediction is a ranked list.

Labels are rows of the catalogue, predictions the rows of the `RANKED` items that score highest, best first (−1 behind the last
where the catalogue is smaller); prediction files hold their keys. Outputs are scores of all items [m, I].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data.ragged import read_lists
from pluribus.tasks.columns import Column, word_of
from pluribus.tasks.forms import Ragged, Values
from pluribus.tasks.kinds import Kind, register
from pluribus.tasks.kinds.record import Declared, Empty, Schema

RANKED = 50


def ranked(scores: Tensor) -> Tensor:
    """The rows of the best items [m, RANKED], best first, of scores [m, I]; −1 where there are fewer items. Of equal scores
    the earlier item comes first."""
    count = min(RANKED, scores.shape[1])
    best = _descending(scores) if scores.shape[1] <= RANKED else _top(scores, count)
    return F.pad(best[:, :count].to(torch.get_default_dtype()), (0, RANKED - count), value=-1.0)


def _top(scores: Tensor, count: int) -> Tensor:
    """`torch.topk` does not say which of equal scores it takes: some more are taken, then sorted."""
    taken = torch.topk(scores, min(2 * count, scores.shape[1]), sorted=False).indices.sort(1).values
    return taken.gather(1, _descending(scores.gather(1, taken)))


def _descending(scores: Tensor) -> Tensor:
    return torch.argsort(scores, dim=1, descending=True, stable=True)


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.cross_entropy(outputs, values.long(), reduction="none")


def _start(values: Tensor, size: int) -> Tensor:
    counts = torch.bincount(values.long(), minlength=size).double() + 1e-2
    return (counts / counts.sum()).log().float()


class NextItem(Kind):
    """A key of an item table in TASK; predictions are lists of keys, best first."""

    phrase = "is an item"
    verb = "rank items"

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        """Rows of the item table [n]; empty where the cell is, or where the table lacks the item."""
        import pandas as pd

        assert column.keys is not None
        codes, distinct = pd.factorize(column.series)
        rows = np.array([*(column.keys.get(word_of(value), np.nan) for value in distinct), np.nan], np.float64)
        values = rows[codes]  # an empty cell's code is −1: the last place
        return values, np.isnan(values)

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """A list a row; an item is called by its row where no item table says its key."""
        return {task.name: [[str(int(item)) for item in row if item >= 0] for row in predictions]}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """Rows of the items [n, RANKED], best first, −1 behind the last; an item that the table lacks is never right.

        Raises
        ------
        BadInput
            A cell is no list of keys.
        """
        column = columns[task.name]
        assert column.keys is not None
        lists = read_lists(column.series, column.where, numeric=False)
        place = np.array([column.keys.get(word, len(column.keys)) for word in lists.words], np.int32)
        rows = Ragged(place[lists.codes], lists.starts)
        values = rows.to_padded(width=RANKED)[:, :RANKED].astype(np.float64)
        return values, rows.lengths == 0

    def schema(self, task: Declared) -> dict[str, Schema]:
        """A list of keys."""
        return {task.name: {"type": "array", "items": {"type": "string"}, "description": "keys of the best items, best first"}}


NEXT_ITEM = register(
    NextItem(
        "next_item",
        lambda size: size,
        _loss,
        ranked,
        _start,
        ("recall@20", "recall@10", "mrr"),
        quantity=False,
        head="catalogue",
        beside="items",
        form="ranked",
    )
)
