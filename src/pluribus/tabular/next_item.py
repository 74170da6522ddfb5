"""Next items: a kind of task whose label is a row of an item table, and whose prediction is a ranked list.

Labels are rows of the catalogue, predictions the rows of the `RANKED` items that score highest, best first (−1 behind the last
where the catalogue is smaller); prediction files hold their keys. Outputs are scores of all items [m, I].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.tasks.kinds import Kind, register

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


def _loss(outputs: Tensor, values: Tensor) -> Tensor:
    return F.cross_entropy(outputs, values.long(), reduction="none")


def _start(values: Tensor, size: int) -> Tensor:
    counts = torch.bincount(values.long(), minlength=size).double() + 1e-2
    return (counts / counts.sum()).log().float()


NEXT_ITEM = register(Kind("next_item", lambda size: size, _loss, ranked, _start, ("recall@20", "recall@10", "mrr")))
