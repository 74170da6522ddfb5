"""Tagging: one class a word.

A row's label is a list of tags as long as its words. In memory, values are [m, W] class indices with −1 behind the last word;
outputs are [m, W', C]. Words beyond the longest sequence that the tokenizer allows have no output: they do not count in
the loss, and are predicted as the first class.

Tags of the BIO scheme (Ramshaw & Marcus, "Text Chunking using Transformation-Based Learning", 1995) have their classes in the
order O, B-a, I-a, B-b, I-b, …, both tags of every type, so that class 0 is outside, an odd class begins and an even one
continues type (class + 1) // 2: metrics read spans off the indices. As in the CoNLL-2000 scorer, a tag that continues nothing
of its type begins a span. Other tag sets (parts of speech) keep their alphabetical order and have no spans.

`link` decodes: the likeliest class of each word, independently.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.tasks.kinds import Kind, register

NO_WORD = -1


def is_bio(tags: Iterable[str]) -> bool:
    """Whether every tag is O, B-type or I-type, and at least one begins or continues something."""
    tags = list(tags)
    return all(tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2) for tag in tags) and any(tag != "O" for tag in tags)


def ordered(tags: Iterable[str]) -> tuple[str, ...]:
    """The classes of a set of tags, in order (see the module's text)."""
    distinct = sorted(set(tags))
    if not is_bio(distinct):
        return tuple(distinct)
    types = sorted({tag[2:] for tag in distinct if tag != "O"})
    return ("O", *(f"{place}-{name}" for name in types for place in "BI"))


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
    Kind("tagging", lambda size: size, _loss, _link, _start, ("token_accuracy", "span_f1"), classes=True)
)


def check_metrics(name: str, classes: Iterable[str], metrics: Iterable[str]) -> None:
    """Spans need BIO tags."""
    if "span_f1" in metrics and not is_bio(classes):
        remedy = "judge it by token_accuracy, or write tags as B-TYPE, I-TYPE and O"
        raise BadInput("span_f1 needs BIO tags", where=f"task {name!r}", remedy=remedy)
