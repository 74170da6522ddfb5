"""Tagging: one class a word.

A row's label is a list of tags as long as its words: in a batch, values are [m, W] class indices with −1 behind the last word,
and the mask names the places of words. Outputs are [m, W', C]. Words beyond the longest sequence that the tokenizer allows have
no output: they do not count in the loss, and are predicted as the first class.

The order of the classes is that of `pluribus.data.tags`. As in the CoNLL-2000 scorer, a tag that continues nothing of its type
begins a span.

`link` decodes: the likeliest class of each word, independently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus.data.ragged import looks_like_lists
from pluribus.data.tags import NO_WORD, find_tags, is_bio, ordered, tag_counts, tags_of
from pluribus.errors import BadInput
from pluribus.tasks import METRICS, Task
from pluribus.tasks.columns import Column
from pluribus.tasks.forms import Ragged, Values
from pluribus.tasks.kinds import Kind, register
from pluribus.tasks.kinds.record import Declared, Empty, Schema


def check_metrics(name: str, classes: Iterable[str], metrics: Iterable[str]) -> None:
    """Refuse metrics that some tags do not fit (spans need BIO tags)."""
    task = Task(name, "tagging", tuple(classes))
    for metric in metrics:
        METRICS.named(metric).check_task(task)


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


def _loss(outputs: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over a row's words [m]; 0 for a row without words. Without a mask, −1 is no word."""
    width = min(outputs.shape[1], values.shape[1])
    outputs, target = outputs[:, :width], values[:, :width].long()
    if mask is not None:
        target = target.masked_fill(~mask[:, :width], NO_WORD)
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


class Tagging(Kind):
    """A list in TASK, one tag for each word of the text."""

    phrase = "is a list of tags"
    verb = "label words"

    def infer(self, column: Column) -> str | None:
        """Lists, of which half at least are as long as the one text."""
        if column.words is None or not looks_like_lists(column.series):
            return None
        lengths = tag_counts(column.series, column.where)
        fits = 2 * int(((lengths == column.words) & (lengths > 0)).sum()) >= max(1, int((lengths > 0).sum()))
        return "one list element for each word of the text" if fits else None

    def settle(self, task: Any, column: Column, notes: list[str]) -> Any:
        """Its classes, its longest row, and metrics that fit them."""
        classes = ordered(task.classes or find_tags(column.series, column.where))
        if len(classes) < 2:
            what = f"has one tag only ({classes[0]!r})" if classes else "has no tag at all"
            raise BadInput(what, where=column.where, remedy="leave it out: there is nothing to predict")
        spans = is_bio(classes)
        if task.metrics == type(task)(task.name, self.name).metrics:  # none were named
            task = task.with_(metrics=("span_f1", "token_accuracy") if spans else ("token_accuracy",))
        check_metrics(task.name, classes, [m.name for m in task.metrics])
        kind = f"spans of {len(classes) // 2} types (BIO)" if spans else f"{len(classes)} tags"
        notes.append(f"{task.name!r} is {self.name}: {kind}, one for each word of {column.beside!r}")
        assert column.words is not None
        return task.with_(classes=classes, size=max(1, int(column.words.max(initial=0))))

    def read(self, task: Declared, column: Column) -> tuple[Values, Empty]:
        """Class indices, a list a row; an empty list is a hole."""
        assert column.words is not None
        found = tags_of(column.series, column.words, task.classes, column.where)
        return found, found.lengths == 0

    def write(self, task: Declared, predictions: Any, threshold: float = 0.5) -> dict[str, Sequence[Any]]:
        """A list of tags a row; predictions are lists of class indices, `Ragged` or padded with −1 [m, W]."""
        lists = predictions if isinstance(predictions, Ragged) else Ragged.of_padded(predictions)
        return {task.name: [[task.classes[i] for i in lists.row(place).tolist()] for place in range(len(lists))]}

    def parse(self, task: Declared, columns: Mapping[str, Column]) -> tuple[Any, Empty]:
        """Class indices, a list a row, each as long as the row's text where that is known."""
        column = columns[task.name]
        words = tag_counts(column.series, column.where) if column.words is None else column.words
        found = tags_of(column.series, words, task.classes, column.where)
        return found, (found.lengths == 0) & (words > 0)

    def schema(self, task: Declared) -> dict[str, Schema]:
        """A list of tags."""
        tag: Schema = {"type": "string", "enum": list(task.classes)}
        return {task.name: {"type": "array", "items": tag, "description": "one a word"}}


TAGGING = register(
    Tagging(
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
