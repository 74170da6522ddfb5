"""Tagging: one class a word.

A row's label is a list of tags as long as its words. In memory, values are [m, W] class indices with −1 behind the last word;
outputs are [m, W', C]. Words beyond the longest sequence that the tokenizer allows have no output: they do not count in
the loss, and are predicted as the first class.

The order of the classes is that of `pluribus.data.tags`. As in the CoNLL-2000 scorer, a tag that continues nothing of its type
begins a span.

`link` decodes: the likeliest class of each word, independently.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data.tags import NO_WORD, check_metrics, is_bio, ordered
from pluribus.tasks.kinds import Kind, register


def spans(tags: Iterable[str]) -> list[tuple[int, int, str]]:
    """The spans of one row's BIO tags: (first word, word after the last, type)."""
    found: list[tuple[int, int, str]] = []
    open_: tuple[int, str] | None = None
    count = 0
    for count, tag in enumerate([*tags, "O"], 1):
        place, name = tag[:2], tag[2:]
        if open_ is not None and (tag == "O" or place == "B-" or name != open_[1]):
            found.append((open_[0], count - 1, open_[1]))
            open_ = None
        if tag != "O" and open_ is None:
            open_ = (count - 1, name)
    return found


def _loss(outputs: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy over a row's words [m]; 0 for a row without words."""
    width = min(outputs.shape[1], values.shape[1])
    outputs, target = outputs[:, :width], values[:, :width].long()
    each = F.cross_entropy(outputs.flatten(0, 1), target.flatten(), ignore_index=NO_WORD, reduction="none")
    return each.view(target.shape).sum(1) / (target != NO_WORD).sum(1).clamp_min(1)


def _link(outputs: Tensor) -> Tensor:
    return outputs.argmax(-1).to(torch.get_default_dtype())


def _start(values: Tensor, size: int) -> Tensor:
    """Log frequencies, each row's words weighing one together, as in the loss."""
    there = values >= 0
    weight = (there / there.sum(1, keepdim=True).clamp_min(1)).double()
    counts = torch.zeros(size, dtype=torch.float64).index_add_(0, values[there].long(), weight[there]) + 1e-2
    return (counts / counts.sum()).log().float()


TAGGING = register(
    Kind(
        "tagging",
        lambda size: size,
        _loss,
        _link,
        _start,
        ("token_accuracy", "span_f1"),
        classes=True,
        quantity=False,
        cell="list",
        beside="text",
        form="list",
    )
)


__all__ = ["NO_WORD", "TAGGING", "check_metrics", "is_bio", "ordered", "spans"]
