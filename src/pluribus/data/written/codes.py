"""Is this number a code?

Zip codes have leading zeros and telephone numbers a plus, which a number would lose; ids have another value in every row.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

MARKS = re.compile(rb"[,;\t|\n\" ](?:0\d\d|\+\d{8})")
"""What a file holds, perhaps elsewhere, if one of its columns has leading zeros or telephone numbers."""

_CODE = r"^\s*(?:0\d\d+|\+\d{8,})\s*$"
_NAMES = re.compile(
    r"(?:^|[_\W])(?:id|ids|key|no|nr|number|index|idx|row|rownum|uuid|guid|code)$|(?<=[a-z])(?:ID|Id|Key|No|Nr)$", re.I
)
_LEAST_ROWS = 50


def a_code(words: pa.Array) -> str | None:
    """The first word that begins with a zero and has at least three digits, or with a plus and has at least eight."""
    import pyarrow.compute as pc

    found = words.filter(pc.match_substring_regex(words, _CODE))
    return found[0].as_py() if len(found) else None


def looks_like_id(name: str, values: NDArray[np.float64]) -> bool:
    """Whether whole numbers, another one in every row, are called like an id or count the rows."""
    if len(values) < _LEAST_ROWS or np.isnan(values).any() or not (values == np.floor(values)).all():
        return False
    steps = np.diff(values)
    counts_rows = bool((steps == 1).all())
    if not counts_rows and not _NAMES.search(name):
        return False
    return counts_rows or len(np.unique(values)) == len(values)
