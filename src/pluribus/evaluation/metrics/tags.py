"""Metrics of tags: one class a word, as lists or as [n, words] with −1 behind a row's last word.

`token_accuracy` counts words; `span_f1` counts whole spans of BIO tags whose borders and type are right, over all rows together
(as the CoNLL-2000 scorer). Class indices are those of `pluribus.data.tags`: 0 is outside, an odd class begins and an even one
continues type (class + 1) // 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pluribus.data.tags import is_bio
from pluribus.errors import BadInput
from pluribus.evaluation.metrics import checks
from pluribus.evaluation.metrics.parts import undefined_unless
from pluribus.tasks.forms import Ragged
from pluribus.tasks.metrics import Additive
from pluribus.tasks.weightings import Array, Ints

_TAGS = ("tagging",)


def _token_terms(p: Ints, y: Ragged, mask: None) -> Array:
    return np.stack((y.lengths, y.sums(p == y.values)), 1).astype(float)


def _token_accuracy(s: Array) -> Array:
    return undefined_unless(s[:, 0] > 0, s[:, 1] / s[:, 0])


def _spans(tags: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """The type of the span that begins at each word, else 0 [total]; and the last word of the span that a word lies in [total].

    tags, rows: the class and the row of each word [total].
    """
    type_ = np.where(tags > 0, (tags + 1) // 2, 0)
    same_row = np.zeros(len(tags), bool)
    same_row[1:] = rows[1:] == rows[:-1]
    before = np.where(same_row, np.roll(type_, 1), 0)
    first = (type_ > 0) & ((tags % 2 == 1) | (type_ != before))
    ends = np.ones(len(tags), bool)  # a span ends where the next word is outside, begins another or is of another row
    ends[:-1] = (first | (type_ == 0) | ~same_row)[1:]
    at = np.flatnonzero(ends)
    return np.where(first, type_, 0), at[np.searchsorted(at, np.arange(len(tags)))]


def _span_terms(p: Ints, y: Ragged, mask: None) -> Array:
    rows = y.rows
    said, said_last = _spans(p, rows)
    true, true_last = _spans(np.asarray(y.values, np.intp), rows)
    both = (true > 0) & (said == true) & (said_last == true_last)
    return np.stack([np.bincount(rows, each, len(y)) for each in (said > 0, true > 0, both)], 1).astype(float)


def _span_f1(s: Array) -> Array:
    return undefined_unless(s[:, 0] + s[:, 1] > 0, 2 * s[:, 2] / (s[:, 0] + s[:, 1]))


def _commonest(target: Any, weight: Array) -> Array:
    """The commonest tag: of every place [words] where labels are [n, words], one for all [] where they are lists."""
    y = target if isinstance(target, Ragged) else Ragged.of_padded(target)
    best = float(np.bincount(y.values, np.repeat(weight, y.lengths), minlength=1).argmax())
    return np.full(() if isinstance(target, Ragged) else np.shape(target)[1], best)


class SpanF1(Additive):
    """F1 of spans; only BIO tags have spans."""

    def check_task(self, task: Any) -> None:
        """Refuse tags that are not BIO tags."""
        if not is_bio(task.classes):
            remedy = "judge it by token_accuracy, or write tags as B-TYPE, I-TYPE and O"
            raise BadInput(f"{self.name} needs BIO tags", where=f"task {task.name!r}", remedy=remedy)


TOKEN_ACCURACY = Additive(
    "token_accuracy", "max", _TAGS, terms=_token_terms, finish=_token_accuracy, check=checks.tags, best=1.0, constant=_commonest
)
SPAN_F1 = SpanF1("span_f1", "max", _TAGS, terms=_span_terms, finish=_span_f1, check=checks.tags, best=1.0, constant=_commonest)
