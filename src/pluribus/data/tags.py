"""Columns of lists as labels: one tag a word of a text column.

A cell of words is a text, cut at white space, or a list of words. A list becomes a text whose white space parts exactly those
words (`as_text`), so that a text and its tags stay together wherever the text goes.

Tags of the BIO scheme (Ramshaw & Marcus, "Text Chunking using Transformation-Based Learning", 1995) have their classes in the
order O, B-a, I-a, B-b, I-b, …, both tags of every type, so that class 0 is outside, an odd class begins and an even one
continues type (class + 1) // 2: metrics read spans off the indices. Other tag sets (parts of speech) keep their alphabetical
order and have no spans.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.data.ragged import looks_like_lists, read_lists
from pluribus.errors import BadInput
from pluribus.tasks.forms import Ragged

if TYPE_CHECKING:
    import pandas as pd

NO_WORD = -1
MAX_TAGS = 1000


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


def as_text(cell: Any) -> Any:
    """A list of words (or a JSON list of them, as a CSV file holds it) as one text; anything else as it is.

    White space within a word becomes _, a word without a letter that shows U+FFFD: the text has as many words as the list.
    """
    words = cell
    if isinstance(cell, str) and cell[:1] == "[" and cell.rstrip()[-1:] == "]":
        try:
            words = json.loads(cell)
        except ValueError:
            return cell
    if not isinstance(words, list | tuple | np.ndarray) or not all(isinstance(word, str) for word in words):
        return cell
    return " ".join("_".join(str(word).split()) or "\ufffd" for word in words)


def joined(series: pd.Series) -> pd.Series:
    """A column of texts in which lists of words are texts too."""
    import pandas as pd

    written = looks_like_lists(series)
    if not written and series.dtype != np.dtype(object):
        return series
    cells = [as_text(cell) if written or not isinstance(cell, str) else cell for cell in series.to_numpy(object)]
    return pd.Series(cells, series.index, object)


def find_tags(series: pd.Series, where: str) -> tuple[str, ...]:
    """The classes of a column of tags.

    Raises
    ------
    BadInput
        A cell that is no list, tags that are no words, too many different ones.
    """
    lists = read_lists(series, where, numeric=False)
    classes = ordered(lists.words)
    if len(classes) > MAX_TAGS:
        raise BadInput(f"holds {len(classes)} different tags", where=where, remedy="check that it is a column of tags")
    return classes


def word_counts(texts: Sequence[str | None]) -> NDArray[np.int64]:
    """How many words each text has."""
    return np.array([len((text or "").split()) for text in texts], np.int64)


def tag_counts(series: pd.Series, where: str) -> NDArray[np.int64]:
    """How many tags each cell has."""
    return np.diff(read_lists(series, where, numeric=False).starts)


def tags_of(series: pd.Series, words: NDArray[np.int64], classes: Sequence[str], where: str) -> Ragged:
    """Class indices, one list a row [n]; the list of an empty cell (a hole) is empty.

    Parameters
    ----------
    series : pandas.Series
        The lists of tags.
    words : ndarray of int64
        [n], how many words each row's text has.
    classes : sequence of str
        The task's classes.
    where : str
        The file and the column, for messages.

    Raises
    ------
    BadInput
        A tag that is missing or none of the classes, a list that is longer or shorter than its text.
    """
    lists = read_lists(series, where, numeric=False)
    lengths = np.diff(lists.starts)
    wrong = (lengths != words) & (lengths > 0)
    if wrong.any():
        row = int(wrong.argmax())
        what = f"has {lengths[row]} tags in row {row + 1}, where the text has {words[row]} words ({int(wrong.sum())} such rows)"
        raise BadInput(what, where=where, remedy="give every word one tag, or leave the cell empty")
    if (lists.codes < 0).any():
        row = int(np.searchsorted(lists.starts, int((lists.codes < 0).argmax()), "right"))
        raise BadInput(f"a tag is missing in row {row}", where=where, remedy="write O, or leave the whole cell empty")
    position = {tag: i for i, tag in enumerate(classes)}
    for tag in lists.words:
        if tag not in position:
            what = f"holds {tag!r}, which is none of the task's classes ({', '.join(classes[:12])})"
            raise BadInput(what, where=where, remedy="add the class or mend the tag")
    return Ragged(np.array([position[tag] for tag in lists.words], np.int32)[lists.codes], lists.starts)
